"""What tests of `submit` and `schedule` share: a server that holds to KFP's document, and the command line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from distilrank.config import Config
from pipelines import kubeflow, packages
from pipelines.__main__ import main
from pipelines.packages import Package
from tests.kfp_server import DOCUMENT, Document, Server

CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
REGISTRY = "registry.uri=/registry"

document_is_here = pytest.mark.skipif(not DOCUMENT.exists(), reason=f"{DOCUMENT} is not here")
Run = Callable[..., tuple[int, str, str]]


@functools.cache
def _document() -> Document:
    return Document()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and a client that does not rest between its attempts; what was not in the document fails the test."""
    monkeypatch.setattr(kubeflow, "FIRST_PAUSE", 0.0)
    for name in ("KFP_HOST", "KFP_NAMESPACE", "KFP_TOKEN_FILE", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    server = Server(_document(), prefix="/pipeline")
    yield server
    server.shutdown()
    server.server_close()
    assert server.store.problems == []


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of `python -m pipelines` against the server: exit status, standard output, standard error."""

    def run(*arguments: object, host: str | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pipelines", *map(str, arguments), "--host", host or server.url])
        status = 0
        capsys.readouterr()
        with mock.patch.object(packages, "compile_package", compile_package):
            try:
                main()
            except SystemExit as exit:
                status = int(exit.code or 0)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


_compile = packages.compile_package
_packages: dict[tuple[str, str, bool], Package] = {}


def compile_package(pipeline: str, config: Config, *, scheduled: bool) -> Package:
    """What compiling gives, once for each configuration: the tests ask for few of them, and often."""
    key = str(pipeline), config.model_dump_json(), scheduled
    if key not in _packages:
        _packages[key] = _compile(pipeline, config, scheduled=scheduled)
    return _packages[key]
