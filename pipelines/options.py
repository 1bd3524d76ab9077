"""Options that several commands of `python -m pipelines` share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

ConfigFile = Annotated[Path, typer.Option("--config", help="YAML file with what differs from the defaults.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation
    typer.Option("--set", metavar="KEY=VALUE", help="Set one knob, e.g. prepare.shards=4. Repeatable."),
]
Host = Annotated[
    str,
    typer.Option(envvar="KFP_HOST", help="URL of Kubeflow Pipelines, e.g. https://kubeflow.example.com/pipeline."),
]
Namespace = Annotated[
    str,
    typer.Option(envvar="KFP_NAMESPACE", help="Where the runs belong: that of your profile, in multi-user mode."),
]
TokenFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        envvar="KFP_TOKEN_FILE",
        help="File with a bearer token, read before each request.",
        show_default="the token that Kubernetes projects into a pod for Kubeflow, else none",
    ),
]
CaFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Certificates (PEM) to trust the host by.", show_default="those of certifi"),
]
Experiment = Annotated[str, typer.Option(help="The runs' experiment; created if there is none.")]


class Pipeline(StrEnum):
    """What can be compiled and submitted."""

    distill = "distill"
    monitor = "monitor"
