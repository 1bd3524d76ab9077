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
"""Environment variable and default path of the file for a container's last message, which Argo reports as the reason of
the pod's failure. An exit status cannot distinguish bad input from a crash, since KFP's launcher always ends with 1."""

TERMINATION_CHARACTERS = 1000
"""Longest such message: Kubernetes keeps 4,096 bytes, and Argo's status of a whole run has 1 MiB."""


@dataclass
class Record:
    """Inputs and facts that a stage records beside its results."""

    inputs: dict[str, str] = field(default_factory=dict)
    """Digests of the inputs by name."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Further facts, such as row counts or the precision that was used."""


@contextlib.contextmanager
def stage(
    name: str,
    output: Path,
    *,
    config: Any,
    inputs: Inputs | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[Record]:
    """Run the body as a stage: verify its inputs, log and time it, and write its record `output/stage.json` last.

    An earlier attempt's record and seal of `output` are removed first.

    Args:
        name: name of the stage, with its shard if it has one (`label-00003`).
        output: folder that the stage writes; created if missing.
        config: pydantic model with the settings of the stage.
        inputs: folders that the stage reads, as for `require`.
        only: files of the inputs that the stage reads, as for `require`.

    Yields:
        The record to fill in.

    Raises:
        InputError: an input is incomplete, or the storage refuses. Errors of the body are logged and raised again.
    """
    started = time.time()
    record = Record()
    progress.log_event(name, "started")
    with logging_failure(name):
        try:
            require(inputs or {}, only)
            output.mkdir(parents=True, exist_ok=True)
            for stale in (RECORD, SEAL):
                (output / stale).unlink(missing_ok=True)
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
def logging_failure(name: str) -> Iterator[None]:
    """Log an error of the body in one line of stage `name`, and raise it again."""
    try:
        yield
    except Exception as error:
        _report_failure(name, error)
        raise


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a stage into its folder, with the digest of the results and of the record itself."""
    sealed_record = {**record, "sealed": sealed_digest(folder) if is_sealed(folder) else ""}
    write_json(folder / RECORD, sealed_record | {"digest": digest_json(sealed_record)})


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of the stage that wrote `folder`: `stage`, `config`, `inputs`, `facts`, times and memory.

    Raises:
        InputError: the record is missing, was changed, or belongs to other results.
    """
    path = folder / RECORD
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected the record of the stage that made the folder")
    record = read_json(path)
    if record.get("digest") != digest_json({key: value for key, value in record.items() if key != "digest"}):
        raise InputError(f"{path}: differs from the digest that it holds of itself; it was changed or damaged")
    sealed = sealed_digest(folder) if is_sealed(folder) else ""
    if record.get("sealed") != sealed:
        recorded, expected = (str(digest or "no seal")[:12] for digest in (record.get("sealed"), sealed))
        raise InputError(f"{path}: is the record of other results ({recorded}), expected that of {expected}")
    return record


def check_made_of(folder: Path, expected: Mapping[str, str], verb: str = "made") -> None:
    """Refuse results that were made from other inputs than expected.

    Args:
        folder: the results, with the record of their stage.
        expected: digests or ids of inputs of that stage by name.
        verb: what the stage did, for the message.

    Raises:
        InputError: as `read_record`, or the record names another input, or none.
    """
    inputs = read_record(folder)["inputs"]
    for name, value in expected.items():
        if inputs.get(name) != value:
            recorded = inputs[name][:13] or "none" if name in inputs else "that its record does not tell"
            raise InputError(f"{folder}: {verb} with {name} {recorded}, expected {value[:13] or 'none'}")


def _report_failure(name: str, error: Exception) -> None:
    """Log why a stage fails, and write the same line to the container's termination log."""
    if isinstance(error, InputError | RunStopped):
        event, text = "bad input" if isinstance(error, InputError) else "stopped", str(error)
    else:
        event, text = "failed", f"{type(error).__name__}: {error}"
    progress.log_event(name, event, text)
    variable, default = TERMINATION_LOG
    path = Path(os.environ.get(variable, default))
    if path.exists():
        with contextlib.suppress(OSError):  # the line is in the log too
            path.write_text(progress.line(name, event, text)[:TERMINATION_CHARACTERS], encoding="utf-8")


def peak_memory_mib() -> float:
    """Return the peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # after an exec, getrusage may return the parent's peak
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
