"""The run of a stage: its inputs are verified, its events are logged, and its record is written last."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distilrank.core import progress
from distilrank.core.artifacts.digests import digest_json
from distilrank.core.artifacts.json_files import read_json, write_json
from distilrank.core.artifacts.seals import RECORD, SEAL, Inputs, is_sealed, require, sealed_digest
from distilrank.core.errors import InputError, RunStopped

TERMINATION_LOG = "DISTILRANK_TERMINATION_LOG", "/dev/termination-log"
"""The variable that names it, and where Kubernetes puts it: the last message of a container, which Argo then reports
as the reason of the pod's failure. An exit status cannot tell bad input from a crash: KFP's launcher ends with 1."""

TERMINATION_CHARACTERS = 1000
"""Of that message at most: Kubernetes keeps 4,096 bytes, and Argo's status of a whole run has 1 MiB."""


@dataclass
class Record:
    """What a stage remembers of itself."""

    inputs: dict[str, str] = field(default_factory=dict)
    """Digest of each input, by name."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else is worth keeping: row counts, the precision that was used."""


@contextlib.contextmanager
def stage(
    name: str,
    output: Path,
    *,
    config: Any,
    inputs: Inputs | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Record]:
    """Run the body as stage `name`: announce it, time it, and record it in `output/stage.json`, written last.

    The bytes of the inputs are verified first, and an earlier attempt's seal of `output` is removed.

    Args:
        name: the stage, with its shard if it has one (`label-00003`).
        output: the folder that the stage writes; made if missing.
        config: pydantic model with the knobs that the stage was given.
        inputs: the folders that the stage reads, as `require` takes them.
        only: likewise.

    Yields:
        The record to fill in.

    Raises:
        InputError: the storage refuses; and whatever the body raises, after one line that says so.
    """
    started = time.time()
    record = Record()
    progress.log_event(name, "started")
    with announcing(name):
        try:
            require(inputs or {}, only)
            output.mkdir(parents=True, exist_ok=True)
            for left in (RECORD, SEAL):
                (output / left).unlink(missing_ok=True)
            yield record
            seconds, peak = round(time.time() - started, 3), round(peak_memory_mib(), 1)
            write_record(
                output,
                {
                    "stage": name,
                    "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
                    "seconds": seconds,
                    "peak_memory_mib": peak,
                    "config": config.model_dump(mode="json"),
                    "inputs": record.inputs,
                    "facts": record.facts,
                },
            )
        except (InputError, RunStopped):
            raise
        except Exception as error:
            if refusal := progress.storage_refusal(error, str(output)):
                raise InputError(refusal) from error
            raise
    progress.log_event(name, "finished", f"{seconds:.1f} s", f"peak {peak:.0f} MiB")


@contextlib.contextmanager
def announcing(name: str) -> Iterator[None]:
    """Tell of bad input and of a stopped run that the body raises, in one line of stage `name`."""
    try:
        yield
    except Exception as error:
        _report_failure(name, error)
        raise


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write what a stage records of itself beside its results, with their digest and that of the record."""
    bound = {**record, "sealed": sealed_digest(folder) if is_sealed(folder) else ""}
    write_json(folder / RECORD, bound | {"digest": digest_json(bound)})


def read_record(folder: Path) -> dict[str, Any]:
    """What the stage that made `folder` recorded of itself: `stage`, `config`, `inputs`, `facts`, and what it took.

    Raises:
        InputError: the record is missing, is not as it was written, or is that of another folder.
    """
    path = folder / RECORD
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected the record of the stage that made the folder")
    record = read_json(path)
    if record.get("digest") != digest_json({key: value for key, value in record.items() if key != "digest"}):
        raise InputError(f"{path}: differs from the digest that it holds of itself; it was changed or damaged")
    sealed = sealed_digest(folder) if is_sealed(folder) else ""
    if record.get("sealed") != sealed:
        seen, expected = (str(digest or "no seal")[:12] for digest in (record.get("sealed"), sealed))
        raise InputError(f"{path}: is the record of other results ({seen}), expected that of {expected}")
    return record


def check_made_of(folder: Path, expected: Mapping[str, str], verb: str = "made") -> None:
    """Refuse results that a stage made of something else than what they are taken for.

    Args:
        folder: the results, with the record of their stage.
        expected: digest or id of inputs of that stage, by name.
        verb: what the stage did with them.

    Raises:
        InputError: as `read_record`, or the record names another input, or does not tell.
    """
    inputs = read_record(folder)["inputs"]
    for name, value in expected.items():
        if inputs.get(name) != value:
            seen = inputs[name][:13] or "none" if name in inputs else "that its record does not tell"
            raise InputError(f"{folder}: {verb} with {name} {seen}, expected {value[:13] or 'none'}")


def _report_failure(name: str, error: Exception) -> None:
    """Print why stage `name` fails, and leave the same line where Kubernetes looks for a container's last message."""
    if isinstance(error, InputError | RunStopped):
        event, text = "bad input" if isinstance(error, InputError) else "stopped", str(error)
    else:
        event, text = "failed", f"{type(error).__name__}: {error}"
    progress.log_event(name, event, text)
    variable, default = TERMINATION_LOG
    path = Path(os.environ.get(variable, default))
    if path.exists():
        with contextlib.suppress(OSError):  # the line is in the log all the same
            path.write_text(progress.line(name, event, text)[:TERMINATION_CHARACTERS], encoding="utf-8")


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure survives an exec: it may be that of the parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
