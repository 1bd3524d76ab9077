"""The configuration reference: every setting with its type, default, bound and description.

It is derived from the models of `distilrank.config`, so no table or page can be outdated.
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
class Setting:
    """One setting. `key` is the form that `--set` takes; `default` is written as in YAML, or is `required`."""

    key: str
    type: str
    default: str
    bound: str
    description: str


@dataclass(frozen=True)
class SettingGroup:
    """The settings of one section. `source` names the kind of data that the section belongs to, if any."""

    path: str
    source: str
    summary: str
    settings: tuple[Setting, ...]

    @property
    def title(self) -> str:
        """Heading of the section."""
        return f"{self.path or 'top level'} ({self.source})" if self.source else self.path or "top level"


def groups() -> list[SettingGroup]:
    """Return all sections in the order of the configuration."""
    return list(_groups(Config, None, "", "", {Pod}))  # `cluster.ops` lists the settings of a pod already


def markdown() -> str:
    """Return the reference page of the configuration."""
    lines = [
        "# Configuration",
        "",
        "A configuration file holds only the settings that differ from these defaults. `--set section.key=value` on",
        "the command line overrides the file. `cpu_overrides` overrides the rest of the file on machines that have",
        "neither a GPU nor a CPU with bf16 instructions (AVX512-BF16 or AMX), where fp32 training takes several times",
        "as long. It applies to `run` and `monitor` on such a machine, never to a pipeline compiled for a cluster.",
        "",
        "This page is the output of `distilrank config --markdown`.",
    ]
    for group in groups():
        lines += ["", f"## {group.title}", "", group.summary, ""]
        lines += ["| key | type | default | bound | what it does |", "| --- | --- | --- | --- | --- |"]
        for setting in group.settings:
            default = setting.default if setting.default == "required" else f"`{setting.default}`"
            cells = (f"`{setting.key}`", setting.type, default, setting.bound, setting.description)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _groups(
    model: type[BaseModel], defaults: BaseModel | None, path: str, source: str, listed: set[type[BaseModel]]
) -> Iterator[SettingGroup]:
    """Yield the section `model` at `path`, then its subsections.

    Args:
        model: the section.
        defaults: the section with its defaults, if all of its settings have one.
        path: dotted key of the section.
        source: kind of data that the section belongs to.
        listed: models of list items and mapping values that are listed already; those of this section are added.
    """
    schemas = model.model_json_schema()["properties"]
    settings, subsections = [], []
    for name, field in model.model_fields.items():
        key = f"{path}.{name}" if path else name
        default = getattr(defaults, name) if defaults is not None else field.default
        sections = _sections(field)
        if not sections:
            settings.append(_setting(key, schemas[name], field, default))
        for section in sections:
            section_defaults = default if isinstance(default, section) else None
            # The constant in `source` tells the kinds of data apart.
            kind = section.model_json_schema()["properties"].get("source", {}).get("const", "")
            subsections.append((section, section_defaults, key, f"source: {kind}" if kind else source))
        for section, suffix in _items(field.annotation):
            if section not in listed:  # an item has the same keys wherever it occurs
                listed.add(section)
                subsections.append((section, None, key + suffix, source))
    yield SettingGroup(path, source, " ".join((model.__doc__ or "").split()), tuple(settings))
    for arguments in subsections:
        yield from _groups(*arguments, listed)


def _sections(field: FieldInfo) -> list[type[BaseModel]]:
    options = [field.annotation] if get_origin(field.annotation) in (dict, tuple) else _options(field.annotation)
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _options(annotation: Any) -> list[Any]:
    return [annotation, *get_args(annotation)]


def _items(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Yield the models that a list or a mapping holds, each with the suffix that stands for an item in a key."""
    for option in _options(annotation):
        suffix = {dict: ".NAME", tuple: "[]"}.get(get_origin(option), "")
        for item in get_args(option) if suffix else ():
            if isinstance(item, type) and issubclass(item, BaseModel):
                yield item, suffix


def _setting(key: str, schema: dict[str, Any], field: FieldInfo, default: Any) -> Setting:
    return Setting(
        key,
        _type(schema),
        "required" if field.is_required() else json.dumps(default, ensure_ascii=False),
        _bound(schema),
        field.description or ("Selects this kind of data." if "const" in schema else ""),
    )


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if schema.get("type") == "object":
        values = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
        return f"mapping to {_type(values)}"
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
    templates = {
        "minimum": "≥ {}",
        "exclusiveMinimum": "> {}",
        "maximum": "≤ {}",
        "exclusiveMaximum": "< {}",
        "minLength": "at least {} characters",
        "maxLength": "at most {} characters",
        "pattern": "`{}`",
    }
    if schema.get("minLength") == 1:
        templates["minLength"] = "not empty"
    return ", ".join(template.format(_number(schema[name])) for name, template in templates.items() if name in schema)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
