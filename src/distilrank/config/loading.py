"""Reads configuration files, policies and overrides, and words the error where one of them does not fit."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Union

import yaml
from pydantic import BaseModel, ValidationError

from distilrank.config.data import Data
from distilrank.config.decision import Gate, Strictness
from distilrank.config.run import PARTIAL, Config
from distilrank.core.errors import InputError

SLOW = "without_fast_bf16"
"""Key of a configuration file: differences that apply where neither a GPU nor the processor computes in bf16."""


RENAMED = {
    "student.optimiser": "student.optimizer",
    "teacher.optimiser": "teacher.optimizer",
}
"""Keys of earlier releases and what they are called now; `gate.` is that of a policy's file too."""


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _describe(error: ValidationError, model: type[BaseModel]) -> str:
    # An unknown key first: a key that has been renamed may be why a required one is missing.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    # The discriminated union puts the chosen source into the location; users never typed it.
    sources = {typing.get_args(source.model_fields["source"].annotation)[0] for source in _models(Data)}
    where = [str(part) for part in first["loc"] if part not in sources]
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        if (renamed := RENAMED.get(key) or RENAMED.get(f"{model.__name__.lower()}.{key}")) is not None:
            return f"unknown key {key!r}; it is {renamed!r} now"
        known = _known_keys(model, where[:-1])
        close = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}" if known else ""
        return f"unknown key {key!r}; {hint}"
    more = len(error.errors()) - 1
    # A rule about a whole section says what it saw; the section itself would fill the screen.
    seen = "" if first["type"] == "missing" or isinstance(first["input"], dict) else f" (got {first['input']!r})"
    said = f"{first['msg'].removeprefix('Value error, ')}{seen}" + (f"; and {more} more" if more else "")
    return f"{key}: {said}" if key else said


def _known_keys(model: Any, path: list[str]) -> list[str]:
    """The keys of the section at `path`, looking through unions and Annotated."""
    for part in path:
        fields = [
            field.annotation for sub in _models(model) for name, field in sub.model_fields.items() if name == part
        ]
        if not fields:
            return []
        model = fields[0]
    return sorted({name for sub in _models(model) for name in sub.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []


def parse(values: dict[str, Any], origin: str, model: type[BaseModel] = Config, *, partial: bool = False) -> Any:
    """Validate `values` as `model`.

    Args:
        values: what differs from the defaults.
        origin: where they are from, for messages.
        model: what they are.
        partial: whether sections are missing that may differ from their defaults elsewhere, so that those that are
            there cannot be held against them.

    Raises:
        InputError: naming `origin`, the key, the value seen and what was expected.
    """
    try:
        return model.model_validate(values, context=PARTIAL if partial else None)
    except ValidationError as error:
        raise InputError(f"{origin}: {_describe(error, model)}") from None


def read(path: Path, what: str, content: str) -> dict[str, Any]:
    """The mapping in a YAML file; `what` it is and what its `content` is are for the errors.

    Raises:
        InputError: the file is missing or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what} file") from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:  # ValueError: no such date, bytes
        raise InputError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of {content}, got {type(values).__name__}")
    return values


def read_policy(path: Path) -> Gate:
    """The policy in a YAML file: keys of `gate` that differ from their defaults.

    Raises:
        InputError: the file is missing, is not a YAML mapping, or is no policy.
    """
    return parse(read(path, "policy", "the keys of `gate`"), str(path), model=Gate)


def _with_policy(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`values` with the whole policy in place of its file's name, which is relative to `folder`."""
    policy = values.get("gate")
    return values | {"gate": parameters(read_policy(folder / policy))} if isinstance(policy, str) else values


def settings(overrides: list[str]) -> dict[str, Any]:
    """What the command line sets, as nested mappings.

    Args:
        overrides: `section.key=value`, values as in YAML; the last one counts.

    Raises:
        InputError: one of them has another form.
    """
    given: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"--set {override}: expected section.key=value")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"--set {override}: {text!r} is not a YAML value") from None
        for part in reversed(key.split(".")):
            value = {part: value}
        given = _merge(given, _with_policy(value, Path()))
    return given


def load(path: Path, overrides: list[str] | None = None, fast_bf16: bool = True) -> Config:
    """Read a configuration file; command line > file > defaults.

    Args:
        path: YAML file with what differs from the defaults; its `gate` may name a policy file, relative to it.
        overrides: `section.key=value` from the command line, values as in YAML.
        fast_bf16: whether this machine computes in bf16; if not, the file's `without_fast_bf16` differences apply.

    Raises:
        InputError: a file is missing, is not a YAML mapping, or does not fit.
    """
    values = _with_policy(read(path, "configuration", "sections"), path.parent)
    slow = values.pop(SLOW, {})
    if not isinstance(slow, dict):
        raise InputError(f"{path}: {SLOW}: expected a mapping of sections, got {slow!r}")
    given = settings(overrides or [])
    slow = _with_policy(slow, path.parent)
    if slow:  # a typo there must show on every machine
        parse(_merge(_merge(values, slow), given), f"{path} with {SLOW}")
    values = _merge(values if fast_bf16 else _merge(values, slow), given)
    return parse(values, f"{path} with --set" if overrides else str(path))


def policy(base: Gate, overrides: list[str]) -> Gate:
    """The policy `base` with what the command line sets of it, as `gate.key=value`.

    Raises:
        InputError: something else is set, or the outcome is no policy.
    """
    given = settings(overrides)
    others = sorted(set(given) - {"gate"})
    if others:
        raise InputError(f"--set {others[0]}: expected gate.KEY=VALUE, for only the policy can change after a run")
    return parse(_merge({"gate": parameters(base)}, given)["gate"], "--set gate", model=Gate)


def looser(section: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings among `values` that ask less of a student than the defaults of `section` do.

    Returns:
        For each `key` (`gate.max_ece`), `value` and `default`.
    """
    model = _models(Config.model_fields[section].annotation)[0]
    return [
        {"key": f"{section}.{name}", "value": values[name], "default": field.default}
        for name, field in model.model_fields.items()
        for marker in field.metadata
        if isinstance(marker, Strictness) and name in values and marker.is_looser(values[name], field.default)
    ]


def parameters(section: BaseModel) -> dict[str, Any]:
    """A section as a pipeline parameter: plain JSON values."""
    return section.model_dump(mode="json")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
