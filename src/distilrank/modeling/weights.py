"""Names and shapes of the tensors in a model folder, from the headers of its safetensors: no weights, no torch.

Training frameworks save tensors with prefixes (`_orig_mod.encoder...`). Known prefixes are stripped; any other
difference between weights and architecture would leave random tensors, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
from safetensors import SafetensorError

from distilrank.core import artifacts
from distilrank.core.errors import InputError, one_line

INSIDE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Prefixes that torch.compile, FSDP and activation checkpointing add wherever they wrap a module."""
OUTSIDE = re.compile(r"^(?:model\.)?(?:module|0\.auto_model|0\.model|auto_model)\.")
"""Prefixes that DataParallel and the modules of sentence-transformers add before all other names."""
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SHOWN = 3  # most names in a message


class Header(NamedTuple):
    """Location of a tensor in the files of a model folder."""

    file: Path
    name: str
    """As stored."""
    shape: tuple[int, ...]
    dtype: str
    """Name in safetensors: F32, BF16, ..."""


def files(folder: Path) -> list[Path]:
    """Return the weight files of the model in `folder`, as transformers chooses them.

    Raises:
        InputError: there are none, or a file named by the index is missing.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        weight_map = artifacts.read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{index}: has no 'weight_map', expected the file of each tensor")
        paths = [folder / name for name in sorted(set(weight_map.values()))]
        for path in paths:
            if not path.is_file():
                raise InputError(f"{index}: names {path.name}, but {folder} has no such file")
        return paths
    raise InputError(f"{folder}: neither model.safetensors nor model.safetensors.index.json, expected the weights")


def are_in(folder: Path) -> bool:
    """Whether `folder` has weights, not only settings."""
    return any(folder.glob("*.safetensors"))


def headers(folder: Path, base_prefix: str) -> dict[str, Header]:
    """Return the tensors of the model in `folder` by name, without the prefixes of training frameworks.

    Args:
        folder: holds safetensors.
        base_prefix: the architecture's own prefix, such as `bert` or `model`.

    Raises:
        InputError: a file is missing or unreadable, or two tensors have one name.
    """
    tensors: dict[str, Header] = {}
    for path in files(folder):
        try:
            with safetensors.safe_open(path, "np") as file:
                for stored in file.keys():  # noqa: SIM118
                    name, part = unwrapped(stored, base_prefix), file.get_slice(stored)
                    if name in tensors:
                        raise InputError(f"{folder}: the tensors {tensors[name].name} and {stored} are both {name}")
                    tensors[name] = Header(path, stored, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not readable as safetensors ({one_line(error)})") from None
    return tensors


def unwrapped(name: str, base_prefix: str) -> str:
    """The name of a tensor without the prefixes of training frameworks."""
    name = INSIDE.sub("", name)
    while (shorter := OUTSIDE.sub("", name)) != name:
        name = shorter
    # A LightningModule holds the network as `model`, which is also the base prefix of most decoders.
    wrapper = "model.model." if base_prefix == "model" else "model."
    return name.removeprefix("model.") if name.startswith(wrapper) else name


def check_depth(folder: Path) -> None:
    """Check that the weights have the number of layers in config.json; independent of torch and architecture.

    Raises:
        InputError: layers are missing or too many, or the weights are unreadable.
    """
    path = folder / "config.json"
    config = artifacts.read_json(path)
    numbers = {int(match[1]) for name in headers(folder, "") if (match := LAYER.search(name))}
    depth = next((config[key] for key in DEPTHS if isinstance(config.get(key), int)), None)
    if not numbers or depth is None:
        return
    if missing := sorted(set(range(depth)) - numbers):
        raise InputError(
            f"{folder}: the weights lack {len(missing)} of {depth} layers (number {', '.join(map(str, missing[:8]))}), "
            f"which would be random; expected all that {path.name} describes"
        )


def refuse(
    model: str,
    expected: int,
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    reshaped: Mapping[str, tuple[tuple[int, ...], tuple[int | None, ...]]] | None = None,
    whole: bool = False,
) -> None:
    """Refuse weights that do not fit the architecture.

    Args:
        model: the folder or reference, for the message.
        expected: number of tensors of the architecture.
        missing: required tensors that the weights lack.
        unexpected: tensors in the weights that the architecture does not have.
        reshaped: by name, the shape in the weights and the expected one.
        whole: whether a missing head is an error.

    Raises:
        InputError: any of them is not empty.
    """
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {expected} tensors are missing from the weights ({_names(missing)})")
    if unexpected:
        faults.append(f"{len(unexpected)} tensors are unknown to config.json's architecture ({_names(unexpected)})")
    if reshaped:
        name, (stored, expected_shape) = min(reshaped.items())
        faults.append(
            f"{len(reshaped)} of {expected} tensors have another shape ({name} is {list(stored)}, expected "
            f"{list(expected_shape)})"
        )
    if faults:
        allowed = "every tensor" if whole else "every tensor but those of a head and a pooler"
        raise InputError(f"{model}: {'; '.join(faults)}; expected {allowed}: the rest would be random")


def _names(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
