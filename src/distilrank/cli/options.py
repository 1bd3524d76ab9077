"""Options that several commands share, and the settings that they become."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distilrank import config


def _description(name: str) -> str:
    return config.Compute.model_fields[name].description or ""


ConfigFile = Annotated[Path, typer.Option("--config", metavar="FILE", help="Configuration of the run (YAML).")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Overrides the file; repeatable.")
]
RegistryUri = Annotated[
    str, typer.Option("--registry", metavar="URI", help="URI of the registry: a folder or gs://BUCKET/PREFIX.")
]
BackendName = Annotated[
    str,
    typer.Option(
        "--backend",
        help="torch; onnx, which needs no torch; onnx-int8, the fastest on CPUs; auto: torch where it is installed, "
        "otherwise onnx.",
    ),
]
Device = Annotated[str, typer.Option("--device", help=_description("device"))]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="fp32 gives the scores of other libraries; bf16 is faster on a GPU or CPU with units for it.",
    ),
]
Threads = Annotated[int, typer.Option("--threads", help=_description("threads"))]

DEFAULT_REGISTRY = config.Registry().uri
DEFAULT_COMPUTE = config.Compute()


def parse_compute(device: str, precision: str, threads: int) -> config.Compute:
    """Return the section `compute` of the options.

    Raises:
        InputError: an option has an invalid value.
    """
    values = {"device": device, "precision": precision, "threads": threads}
    return config.parse(values, "command line", model=config.Compute)
