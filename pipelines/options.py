"""Options that several commands of `python -m pipelines` share, and what they are turned into."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console

from distilrank.core.errors import InputError

if TYPE_CHECKING:
    from pipelines.kubeflow import Kubeflow

ConfigFile = Annotated[Path, typer.Option("--config", help="YAML file with settings that differ from the defaults.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. prepare.shards=4. Repeatable."),
]
Host = Annotated[
    str,
    typer.Option(envvar="KFP_HOST", help="URL of Kubeflow Pipelines, e.g. https://kubeflow.example.com/pipeline."),
]
Namespace = Annotated[
    str,
    typer.Option(envvar="KFP_NAMESPACE", help="Namespace of the runs; in multi-user mode, that of your profile."),
]
TokenFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        envvar="KFP_TOKEN_FILE",
        help="File with a bearer token; read before each request.",
        show_default="the token that Kubernetes projects into a pod for Kubeflow, otherwise none",
    ),
]
CaFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="CA certificates (PEM) for the host.", show_default="those of certifi"),
]
Experiment = Annotated[str, typer.Option(help="Experiment of the runs; created if it does not exist.")]
Cache = Annotated[
    bool, typer.Option(help="Reuse results of earlier runs whose stage, inputs and settings are the same.")
]
Timeout = Annotated[
    float, typer.Option(min=0, help="Stop waiting after this time, with exit status 1; the run continues. 0: no limit.")
]
DEFAULT_EXPERIMENT = "distilrank"


class Pipeline(StrEnum):
    """A pipeline that users compile, submit and schedule."""

    distill = "distill"
    monitor = "monitor"


def check_lengths(experiment: str, name: str = "") -> None:
    """Refuse names that are too long for Kubeflow's database, which checks them only after it has started a run."""
    from pipelines.kubeflow import EXPERIMENT_CHARACTERS, TEXT_CHARACTERS

    for option, text, limit in (("--experiment", experiment, EXPERIMENT_CHARACTERS), ("--name", name, TEXT_CHARACTERS)):
        if len(text) > limit:
            raise InputError(f"{option} {text[:40]}...: {len(text)} characters, expected at most {limit}")


def connect(host: str, namespace: str, token_file: Path | None, ca_file: Path | None) -> Kubeflow:
    """Connect to the Kubeflow Pipelines API. Arguments and errors: see `Kubeflow`."""
    from pipelines.kubeflow import Kubeflow

    return Kubeflow(host, namespace=namespace, token_file=token_file, ca_file=ca_file)


def new_console() -> Console:
    """Create a console on the current stdout that does not wrap lines, so that URLs can be copied."""
    return Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
