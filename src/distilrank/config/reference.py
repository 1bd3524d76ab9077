"""The configuration as people read it: every knob with its type, default, bound and description.

All of it comes from the models of `distilrank.config`, so that neither a table nor a page can fall behind them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distilrank.config.cluster import Pod
from distilrank.config.run import Config

TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "null"}


@dataclass(frozen=True)
class Knob:
    """One knob; `key` is what `--set` takes, `default` is written as in YAML, or `required`."""

    key: str
    type: str
    default: str
    bound: str
    description: str


@dataclass(frozen=True)
class Group:
    """The knobs of one section; `source` names the kind of data that it belongs to, where there is a choice."""

    path: str
    source: str
    summary: str
    knobs: tuple[Knob, ...]

    @property
    def title(self) -> str:
        """The section's heading."""
        return f"{self.path or 'top level'} ({self.source})" if self.source else self.path or "top level"


def groups() -> list[Group]:
    """All sections, in the order of the configuration."""
    return list(_groups(Config, None, "", "", {Pod}))  # pods stand below cluster.ops already


def markdown() -> str:
    """The reference page of the configuration."""
    lines = [
        "# Configuration",
        "",
        "A configuration file holds only what differs from these defaults. `--set section.key=value` on the command",
        "line is stronger than the file, and the file is stronger than the defaults. What the file holds under",
        "`without_fast_bf16` applies only where neither a GPU nor the processor computes in bf16.",
        "",
        "This page is the output of `distilrank config --markdown`.",
    ]
    for group in groups():
        lines += ["", f"## {group.title}", "", group.summary, ""]
        lines += ["| key | type | default | bound | what it does |", "| --- | --- | --- | --- | --- |"]
        for knob in group.knobs:
            default = knob.default if knob.default == "required" else f"`{knob.default}`"
            cells = (f"`{knob.key}`", knob.type, default, knob.bound, knob.description)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _groups(
    model: type[BaseModel], values: BaseModel | None, path: str, source: str, listed: set[type[BaseModel]]
) -> Iterator[Group]:
    """The section `model` at `path`, then the sections within; `values` are its defaults, where it has all of them.

    `listed` are the models of items that have been listed, and gets those of this section.
    """
    schemas = model.model_json_schema()["properties"]
    knobs, within = [], []
    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        default = getattr(values, name) if values is not None else field.default
        sections, items = _sections(field), list(_items(field.annotation))
        if not sections:
            knobs.append(_knob(key, schemas[name], field, default))
        for section in sections:
            inner = default if isinstance(default, section) else None
            # Data comes in several kinds; each is told by the constant in its `source`.
            kind = section.model_json_schema()["properties"].get("source", {}).get("const", "")
            within.append((section, inner, key, f"source: {kind}" if kind else source))
        for section, suffix in items:
            if section not in listed:  # once is enough: the same keys stand wherever such an item does
                listed.add(section)
                within.append((section, None, key + suffix, source))
    yield Group(path, source, " ".join((model.__doc__ or "").split()), tuple(knobs))
    for arguments in within:
        yield from _groups(*arguments, listed)


def _sections(field: FieldInfo) -> list[type[BaseModel]]:
    kinds = [field.annotation] if get_origin(field.annotation) in (dict, tuple) else _options(field.annotation)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _options(annotation: Any) -> list[Any]:
    return [annotation, *get_args(annotation)]


def _items(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """The models that a list or a mapping holds, with what stands for the place of one of them in a key."""
    for option in _options(annotation):
        suffix = {dict: ".NAME", tuple: "[]"}.get(get_origin(option), "")
        for item in get_args(option) if suffix else ():
            if isinstance(item, type) and issubclass(item, BaseModel):
                yield item, suffix


def _knob(key: str, schema: dict[str, Any], field: FieldInfo, default: Any) -> Knob:
    return Knob(
        key,
        _type(schema),
        "required" if field.is_required() else json.dumps(default, ensure_ascii=False),
        _bound(schema),
        field.description or ("Chooses this kind." if "const" in schema else ""),
    )


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if schema.get("type") == "object":
        within = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
        return f"mapping to {_type(within)}"
    if "type" not in schema:  # a choice among values of several types
        return "choice"
    return TYPES[schema["type"]]


def _bound(schema: dict[str, Any]) -> str:
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if schema.get("type") == "array" and "enum" in schema["items"]:
        return "of " + ", ".join(schema["items"]["enum"])
    if "enum" in schema.get("propertyNames", {}):
        return "keys of " + ", ".join(schema["propertyNames"]["enum"])
    texts = {
        "minimum": "≥ {}",
        "exclusiveMinimum": "> {}",
        "maximum": "≤ {}",
        "exclusiveMaximum": "< {}",
        "minLength": "at least {} characters",
        "maxLength": "at most {} characters",
        "pattern": "`{}`",
    }
    if schema.get("minLength") == 1:
        texts["minLength"] = "not empty"
    return ", ".join(text.format(_plain(schema[name])) for name, text in texts.items() if name in schema)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
