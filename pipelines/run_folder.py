"""The folder of a local run, runs/NAME: reserved while the run works, filled at its end, complete by its last file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from distilrank.core import artifacts
from distilrank.core.errors import InputError
from distilrank.teacher import label_manifest

ESTIMATE = "estimate.json"
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@contextlib.contextmanager
def reserve(runs: Path, name: str) -> Iterator[Path]:
    """Create an empty folder for the run `name`, and lock it against other processes until the context ends.

    The lock is on a file beside the folder. The kernel releases it when the process ends, however it ends. On a file
    system without locks the folder is not protected.

    Args:
        runs: folder of all local runs.
        name: name of the run.

    Raises:
        InputError: the run is in progress in another process or complete, or the folder cannot be created.
    """
    if NAME.fullmatch(name) is None or name == "latest":
        raise InputError(f"--name {name}: expected lowercase letters, digits and hyphens, but not latest")
    path = runs / f".{name}.lock"
    with contextlib.ExitStack() as stack:
        try:
            runs.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(path)
            stack.callback(os.close, descriptor)
        except BlockingIOError:
            raise InputError(
                f"{runs / name}: a run of this name is in progress{_describe_owner(path)}; wait for it, or choose "
                "another --name"
            ) from None
        except OSError as error:
            raise InputError(
                f"{runs / name}: cannot be created ({error.strerror}), expected a writable folder for --runs"
            ) from None
        stack.callback(path.unlink, missing_ok=True)  # while the file is still locked: the stack closes it afterwards
        yield _new_folder(runs, name)


def _lock(path: Path) -> int:
    """Open and lock the file `path`, write the process ID and host name to it, and return its descriptor.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be created.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # the file system has no locks
                pass
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps([os.getpid(), socket.gethostname()]).encode(), 0)
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the previous owner removed the file before this process locked it


def _describe_owner(path: Path) -> str:
    try:
        process, host = json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):  # not written yet, or removed just now
        return ""
    return f" (process {process}{'' if host == socket.gethostname() else f' on {host}'})"


def _new_folder(runs: Path, name: str) -> Path:
    folder = runs / name
    is_incomplete = (folder / "run.log").is_file() and not is_complete(folder)
    if folder.exists() and not is_incomplete:  # a complete run, or another folder, e.g. a registry
        raise InputError(f"{folder}: a run of this name exists already; choose another --name")
    try:
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that did not complete
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be created ({error.strerror}), expected a writable folder for --runs"
        ) from None
    return folder


def is_complete(folder: Path) -> bool:
    """Whether a run has completed: its completion file is written last."""
    if (folder / "monitor").is_dir():
        return (folder / "monitor.json").exists()
    return any((folder / name).exists() for name in ("verdict.json", ESTIMATE))


def mark_complete(source: Path, target: Path) -> None:
    """Copy the file that marks a folder as complete, atomically."""
    with artifacts.replacing(target) as handle:
        handle.write(source.read_bytes())


def collect_results(kfp_folder: Path, folder: Path, seconds: float, peak_mib: float) -> None:
    """Copy the results of a run from KFP's folder to the run's own, the verdict last.

    A folder without a verdict belongs to an incomplete run, which the next attempt replaces.

    Args:
        kfp_folder: KFP's folder of the run.
        folder: folder of the run.
        seconds: duration of the run.
        peak_mib: peak memory of the run.
    """
    report = kfp_folder / "render-report" / "report"
    if not (report / "report.html").is_file():
        raise RuntimeError(f"{report}: the report stage did not write report.html")
    artifacts.verify(report)
    inputs = {
        name: [Path(path) for path in paths] for name, paths in artifacts.read_json(report / "inputs.json").items()
    }
    unsealed_files = {"teacher": ["quality.json", "disagreements.csv"], "labels": [artifacts.MANIFEST]}
    artifacts.require(inputs, unsealed_files)
    folders = {name: paths[0] for name, paths in inputs.items()}
    shutil.copyfile(report / "report.html", folder / "report.html")
    for page in sorted(folders["drift"].glob("*.html")):
        shutil.copyfile(page, folder / page.name)
    shutil.copyfile(folders["drift"] / "drift.json", folder / "drift.json")
    shutil.copyfile(folders["evaluation"] / "metrics.json", folder / "metrics.json")
    shutil.copyfile(folders["teacher"] / "quality.json", folder / "quality.json")
    shutil.copyfile(folders["teacher"] / "disagreements.csv", folder / "disagreements.csv")
    for name in ("profile.json", "profile.html"):
        shutil.copyfile(folders["profile"] / name, folder / name)
    artifacts.copy_tree(folders["student"], folder / "student")
    artifacts.copy_tree(folders["evaluation"], folder / "evaluation")
    artifacts.copy_tree(folders["judgements"], folder / "judgements")
    artifacts.write_json(folder / "labels" / "manifest.json", label_manifest.combine(inputs["labels"]))
    records = [artifacts.read_record(path.parent) for path in kfp_folder.rglob(artifacts.RECORD)]
    known_stages = {record["stage"] for record in records}
    for paths in inputs.values():
        for record in (artifacts.read_record(path) for path in paths if (path / artifacts.RECORD).exists()):
            if record["stage"] not in known_stages:
                records.append(record | {"cached": True})
    artifacts.write_json(
        folder / "timings.json",
        {
            "seconds": round(seconds, 1),
            "peak_memory_mib": round(peak_mib, 1),
            "stages": {
                record["stage"]: {
                    "seconds": record["seconds"],
                    "peak_memory_mib": record["peak_memory_mib"],
                    "cached": record.get("cached", False),
                }
                for record in sorted(records, key=lambda record: record["started"])
            },
        },
    )
    mark_complete(folders["verdict"] / "verdict.json", folder / "verdict.json")


def replace_link(link: Path, folder: Path) -> None:
    """Make the symbolic link `link` point to its sibling `folder`, atomically."""
    partial = artifacts.temporary_name(link)
    try:
        partial.symlink_to(folder.name)
        partial.replace(link)
    finally:
        partial.unlink(missing_ok=True)
