"""Reads configuration files, policies and overrides, and describes the first error of one that does not fit."""

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
from distilrank.core.errors import InputError, one_line

CPU_OVERRIDES = "cpu_overrides"
"""Key of a configuration file: overrides for machines that have neither a GPU nor a CPU with bf16 instructions."""

RENAMED = {
    "compute.resume": "compute.checkpoint_dir",
    "gate.minima": "gate.min_metrics",
    "gate.refuse_from_looks": "gate.max_test_evaluations",
    "gate.warn_from_looks": "gate.warn_after_test_evaluations",
    "prepare.store": "prepare.log_cache_dir",
    "prepare.test_draw": "prepare.test_fold",
    "registry.cache": "registry.cache_dir",
    "student.human": "student.judged_weight",
    "student.human_loss": "student.judged_loss",
    "student.human_share": "student.judged_share",
    "student.optimiser": "student.optimizer",
    "teacher.optimiser": "teacher.optimizer",
    "without_fast_bf16": CPU_OVERRIDES,
}
"""Keys of earlier releases, and their present names. A policy file holds the keys of `gate` without that prefix."""
ONE_LESS = ("gate.refuse_from_looks", "gate.warn_from_looks")
"""Renamed keys with a new meaning: the old value was the first count beyond the limit, the new one is the limit."""


def load(path: Path, overrides: list[str] | None = None, fast_bf16: bool = True) -> Config:
    """Read a configuration file. The command line overrides the file, and the file overrides the defaults.

    Args:
        path: YAML file with the settings that differ from the defaults; its `gate` may name a policy file, relative
            to it.
        overrides: `section.key=value` from the command line, with values as in YAML.
        fast_bf16: whether this machine computes in bf16; if not, the `cpu_overrides` of the file apply.

    Raises:
        InputError: a file is missing, is not a YAML mapping, or has an invalid setting.
    """
    values = _resolve_policy(read_yaml(path, "configuration", "sections"), path.parent)
    cpu_values = values.pop(CPU_OVERRIDES, {})
    if not isinstance(cpu_values, dict):
        raise InputError(f"{path}: {CPU_OVERRIDES}: expected a mapping of sections, got {cpu_values!r}")
    command_line = parse_overrides(overrides or [])
    cpu_values = _resolve_policy(cpu_values, path.parent)
    if cpu_values:  # a typo in them must be reported on every machine
        parse(_merge(_merge(values, cpu_values), command_line), f"{path} with {CPU_OVERRIDES}")
    values = _merge(values if fast_bf16 else _merge(values, cpu_values), command_line)
    return parse(values, f"{path} with --set" if overrides else str(path))


def read_policy(path: Path) -> Gate:
    """Read a policy file: the keys of `gate` that differ from their defaults, in YAML.

    Raises:
        InputError: the file is missing, is not a YAML mapping, or has an invalid setting.
    """
    return parse(read_yaml(path, "policy", "the keys of `gate`"), str(path), model=Gate)


def override_policy(policy: Gate, overrides: list[str]) -> Gate:
    """Return `policy` with the `gate.key=value` settings of the command line.

    Raises:
        InputError: another section is set, or a setting is invalid.
    """
    values = parse_overrides(overrides)
    other_sections = sorted(set(values) - {"gate"})
    if other_sections:
        raise InputError(
            f"--set {other_sections[0]}: expected gate.KEY=VALUE, since only the policy can change after a run"
        )
    return parse(_merge({"gate": parameters(policy)}, values)["gate"], "--set gate", model=Gate)


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """Return the settings of the command line as nested mappings.

    Args:
        overrides: `section.key=value`, with values as in YAML; the last one of a key applies.

    Raises:
        InputError: an override has another form.
    """
    values: dict[str, Any] = {}
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
        values = _merge(values, _resolve_policy(value, Path()))
    return values


def read_yaml(path: Path, kind: str, content: str) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Args:
        path: the file.
        kind: kind of the file, for messages: `configuration`.
        content: keys of the mapping, for messages: `sections`.

    Raises:
        InputError: the file is missing, is not YAML, or does not hold a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such {kind} file") from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:  # ValueError: a day or bytes that are none
        raise InputError(f"{path}: not readable as YAML ({one_line(error, None)})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of {content}, got {type(values).__name__}")
    return values


def parse(values: dict[str, Any], origin: str, model: type[BaseModel] = Config, *, partial: bool = False) -> Any:
    """Validate settings.

    Args:
        values: the settings that differ from the defaults.
        origin: their source, for messages.
        model: the section, or the whole configuration.
        partial: whether sections are missing whose settings may differ from the defaults, so that the rules between
            sections cannot be checked.

    Returns:
        An instance of `model`.

    Raises:
        InputError: names `origin`, the key, the value seen and what was expected.
    """
    try:
        return model.model_validate(values, context=PARTIAL if partial else None)
    except ValidationError as error:
        raise InputError(f"{origin}: {_describe(error, model)}") from None


def parameters(section: BaseModel) -> dict[str, Any]:
    """Return a section as a pipeline parameter: plain JSON values."""
    return section.model_dump(mode="json")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key, `gate.max_ece` for example."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def looser_settings(section: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings among `values` that are less strict than the defaults of `section`.

    Returns:
        One mapping per setting: `key` (`gate.max_ece`), `value` and `default`.
    """
    model = _models(Config.model_fields[section].annotation)[0]
    return [
        {"key": f"{section}.{name}", "value": values[name], "default": field.default}
        for name, field in model.model_fields.items()
        for marker in field.metadata
        if isinstance(marker, Strictness) and name in values and marker.is_looser(values[name], field.default)
    ]


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overrides.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def _resolve_policy(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Replace the name of a policy file, which is relative to `folder`, by the policy."""
    policy = values.get("gate")
    return values | {"gate": parameters(read_policy(folder / policy))} if isinstance(policy, str) else values


def _describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe the first error in one line: the key, the value seen, the value expected."""
    # Unknown keys first: a renamed key may be the reason why a required one is missing.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    # The discriminated union adds the chosen source to the location, which no user has typed.
    sources = {typing.get_args(source.model_fields["source"].annotation)[0] for source in _models(Data)}
    path = [str(part) for part in first["loc"] if part not in sources]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        old_key = key if key in RENAMED else f"{model.__name__.lower()}.{key}"
        if old_key in RENAMED:
            value = ", and its value is one less" if old_key in ONE_LESS else ""
            return f"unknown key {key!r}; it is {RENAMED[old_key]!r} now{value}"
        valid_keys = _keys_at(model, path[:-1])
        close_keys = difflib.get_close_matches(path[-1], valid_keys, n=1)
        hint = f"did you mean {close_keys[0]!r}?" if close_keys else ""
        if valid_keys and not hint:
            hint = f"expected one of {', '.join(valid_keys)}"
        return f"unknown key {key!r}; {hint}"
    further = len(error.errors()) - 1
    # A rule about a whole section names the values itself; the section would fill the screen.
    has_value = first["type"] != "missing" and not isinstance(first["input"], dict)
    message = first["msg"].removeprefix("Value error, ")
    message += f" (got {first['input']!r})" if has_value else ""
    message += f"; and {further} more" if further else ""
    return f"{key}: {message}" if key else message


def _keys_at(model: Any, path: list[str]) -> list[str]:
    """Return the keys of the section at `path`, looking through unions and Annotated."""
    for part in path:
        annotations = [
            field.annotation
            for section in _models(model)
            for name, field in section.model_fields.items()
            if name == part
        ]
        if not annotations:
            return []
        model = annotations[0]
    return sorted({name for section in _models(model) for name in section.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []
