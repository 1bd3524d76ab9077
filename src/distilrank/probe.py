"""Code that `python -m pipelines doctor --run` runs in pods, to check what they are given and how they end.

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
from distilrank.core.pod_secrets import missing_targets
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
    """Report which volumes, Secrets, data and registry this pod can use, and write an artifact for the next pod.

    Args:
        sections: `data` and `registry` of the configuration.
        schedule_time: the schedule time as Kubeflow resolved it.
        volumes: their mount paths.
        secrets: environment variables and folders that this pod must have, by name of the Secret.
        token: content of the artifact.
        output: folder of the artifact.
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
        secrets={name: ", ".join(missing_targets(targets)) for name, targets in secrets.items()},
        data=_failure(lambda: sources.open(config.data).check(Problems())),
        registry=_failure(lambda: registry.connect(config.registry).check()),
    )


def _failure(attempt: Callable[[], object]) -> str:
    """Return why an attempt failed, in one line; empty if it did not."""
    try:
        attempt()
    except InputError as error:
        return str(error)
    except Exception as error:  # every error of a storage library is a finding
        return f"{type(error).__name__}: {error}"
    return ""


def read_artifact(folder: Path, token: str) -> None:
    """Report whether the artifact of `report_pod` arrived through the object store."""
    path = folder / TOKEN
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    _report(store="" if text == token else f"{TOKEN} holds {text!r}, expected {token!r}")


def report_training() -> None:
    """Report the torch version of the training image and its number of GPUs."""
    import torch  # missing in the image `ops`, which runs the rest of this module

    _report(version=__version__, torch=torch.__version__, gpus=torch.cuda.device_count())


def end(how: str, seconds: float) -> None:
    """End this pod in one of the ways in which a stage may end.

    Args:
        how: `exit` raises an exception, `kill` sends SIGKILL to this process, `wait` waits until the pod is deleted.
        seconds: longest wait.
    """
    if how == "wait":
        return _wait(seconds)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("this pod fails on purpose: `doctor` checks whether it is started again")


def _wait(seconds: float) -> None:
    """Print the time ten times a second, so that the log shows the time between SIGTERM and the end of this pod."""
    signal.signal(signal.SIGTERM, lambda *_: progress.log_event(STAGE, "note", f"SIGTERM {time.time():.2f}"))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        progress.log_event(STAGE, "note", f"alive {time.time():.2f}")
        time.sleep(0.1)
