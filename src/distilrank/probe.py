"""What `python -m pipelines doctor --run` runs in a cluster's pods, to see what they are given and how they end.

Each function prints one line, the event `outcome` with a JSON object, which `pipelines.doctor` reads from a pod's log.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distilrank import __version__, registry
from distilrank.config import parse
from distilrank.core import artifacts, progress, volume
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import sources

STAGE = "probe"
TOKEN = "token.txt"


def _report(**facts: Any) -> None:
    progress.log_event(STAGE, "outcome", json.dumps(facts))


def report_pod(
    sections: Mapping[str, Any],
    *,
    schedule_time: str,
    volumes: Sequence[str],
    secrets: Mapping[str, Sequence[str]],
    token: str,
    output: Path,
) -> None:
    """Report what this pod has of what the configuration promises it, and write an artifact for the next pod.

    Args:
        sections: `data` and `registry` of the configuration.
        schedule_time: as Kubeflow resolved it.
        volumes: where they are mounted.
        secrets: by name of each Secret the variables and the folders that this pod must have of it.
        token: what the artifact holds.
        output: the artifact's folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    artifacts.write_text(output / TOKEN, token)
    config = parse(dict(sections), "probe", partial=True)
    _report(
        version=__version__,
        code=artifacts.code_digest(),
        user=os.getuid(),
        groups=sorted({os.getgid(), *os.getgroups()}),
        now=datetime.now(UTC).isoformat(),
        schedule_time=schedule_time,
        volumes={path: _failure(lambda path=path: volume.write_through(Path(path))) for path in volumes},  # type: ignore[misc]
        secrets={name: ", ".join(_missing(places)) for name, places in secrets.items()},
        data=_failure(lambda: sources.open(config.data).check(Problems())),
        registry=_failure(lambda: registry.connect(config.registry).check()),
    )


def _missing(places: Sequence[str]) -> list[str]:
    """The variables that are not set, and the folders without a file."""
    return [
        place
        for place in places
        if not (any(Path(place).glob("[!.]*")) if place.startswith("/") else os.environ.get(place))
    ]


def _failure(attempt: Callable[[], object]) -> str:
    """Why an attempt failed, in a line; empty: it did not."""
    try:
        attempt()
    except InputError as error:
        return str(error)
    except Exception as error:  # whatever a storage library raises is what is to be reported
        return f"{type(error).__name__}: {error}"
    return ""


def read_artifact(folder: Path, token: str) -> None:
    """Report whether the artifact of `report_pod` has come through the object store."""
    path = folder / TOKEN
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    _report(store="" if text == token else f"{TOKEN} holds {text!r}, expected {token!r}")


def report_training() -> None:
    """Report the torch of the training image, and whether it sees a GPU."""
    import torch  # the image `ops`, which runs the rest of this module, has none

    _report(version=__version__, torch=torch.__version__, gpus=torch.cuda.device_count())


def end(how: str, seconds: float) -> None:
    """End as a stage may end.

    Args:
        how: `exit`, by an exception; `kill`, by a signal that nothing can catch; `wait`, when somebody ends this pod.
        seconds: how long to wait at most.
    """
    if how == "wait":
        return _wait(seconds)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("this pod ends with an error on purpose: `doctor` looks whether it is started again")


def _wait(seconds: float) -> None:
    """Print the time ten times a second; the log tells how long SIGTERM leaves this pod."""
    signal.signal(signal.SIGTERM, lambda *_: progress.log_event(STAGE, "note", f"SIGTERM {time.time():.2f}"))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        progress.log_event(STAGE, "note", f"alive {time.time():.2f}")
        time.sleep(0.1)
