"""Files and folders that stages hand to one another: atomic writes, content digests, and the record of a stage.

A sealed folder holds `digest.json`, written last: its existence means that the folder is complete, and its content
lets any reader verify every byte.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import glob
import hashlib
import importlib.resources
import json
import os
import resource
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from distilrank.core import progress
from distilrank.core.errors import InputError, RunStopped

SEAL = "digest.json"
RECORD = "stage.json"
MANIFEST = "manifest.json"
"""What a shard of labels says of itself."""
PARTIAL = ".*.partial"
"""Pattern of the temporary names under which files and folders are written: no content of the folder around them."""
STALE_SECONDS = 24 * 3600
"""Age from which a temporary file or folder counts as left by a killed process; writing takes hours at most."""
TERMINATION_LOG = "DISTILRANK_TERMINATION_LOG", "/dev/termination-log"
"""The variable that names it, and where Kubernetes puts it: the last message of a container, which Argo then reports
as the reason of the pod's failure. An exit status cannot tell bad input from a crash: KFP's launcher ends with 1."""
POD_NAME = "KFP_POD_NAME"
"""A variable of every pod of a run, and of nothing else (kubeflow/pipelines 2.17.0, argocompiler/container.go)."""
Inputs = Mapping[str, Path | Sequence[Path]]
"""The folders that a stage reads, by name; of labels one a shard."""
TERMINATION_CHARACTERS = 1000
"""Of that message at most: Kubernetes keeps 4,096 bytes, and Argo's status of a whole run has 1 MiB."""
SETTLED_SECONDS = 2.0
"""A file that was changed less than this ago is hashed each time, as Git does: a further change in the same tick of the
file system's clock (2 s on FAT, 1 s on some network volumes) would not show in its times."""

_digests: dict[tuple[int, ...], str] = {}
"""Digests of the files that this process has verified, by device, inode, size and the times of their last change."""


def temporary_name(path: Path) -> Path:
    """A hidden sibling of `path` that no other process uses: process ids are equal in pods that share a volume."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o666, keep_existing: bool = False) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` once it is complete and on the disk.

    Args:
        path: its folder is made if missing.
        mode: permissions of the file, less those that the umask takes away.
        keep_existing: whether a file that has the name by then stays, instead of being replaced.

    Raises:
        FileNotFoundError: the folder was removed meanwhile.
        InputError: the storage refuses.
    """
    partial = temporary_name(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # it was there, and mkdir looked what it is when it was gone
            if not path.parent.exists():
                raise FileNotFoundError(path.parent) from None
            raise
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        if keep_existing:
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
        else:
            partial.replace(path)
    except FileNotFoundError:
        raise
    except OSError as error:  # write(2) does not know the file's name
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def replacing_folder(path: Path, *, keep: Callable[[], bool] | None = None) -> Iterator[Path]:
    """A new folder to fill that takes the name `path` once the body is done and all of it is on the disk.

    Args:
        path: the folder around it is made if missing. What has the name already is deleted once it is replaced.
        keep: whether what has the name by then stays, and the new folder is deleted instead; None: never. An empty
            folder is always replaced.
    """
    with folder_beside(path) as folder:
        yield folder
        settle(folder)
        move_into_place(folder, path, keep=keep)


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A new folder on the file system of `path`, deleted afterwards unless it was moved.

    It lies in a hidden folder, whose age is that of the attempt: a copy takes over the age of its source.
    """
    remove_stale(path.parent, path.name)
    partial = temporary_name(path)
    try:
        (partial / path.name).mkdir(parents=True)
        yield partial / path.name
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def settle(folder: Path) -> None:
    """Give a complete folder and all below it the permissions of new files, and make sure that they are on the disk."""
    folder.chmod(folder.stat().st_mode | stat.S_IRWXU)  # it may be a copy of one that is read only
    permissions = _permissions(folder)
    _permit(folder, permissions)
    follow_umask(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def follow_umask(folder: Path) -> None:
    """Give all that is below `folder` the permissions of new files: libraries write weights for their owner alone."""
    permissions = _permissions(folder)
    for path in folder.rglob("*"):
        _permit(path, permissions)


def _permissions(folder: Path) -> int:
    """Permissions of a new folder below `folder`; the umask itself cannot be read without changing it."""
    probe = temporary_name(folder / "umask")
    probe.mkdir()
    try:
        return stat.S_IMODE(probe.stat().st_mode) & 0o777
    finally:
        probe.rmdir()


def _permit(path: Path, permissions: int) -> None:
    if path.is_symlink():
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    expected = (mode & ~0o777) | (permissions if path.is_dir() else permissions & 0o666)
    if mode != expected:
        with contextlib.suppress(OSError):  # a file system without permissions, or somebody else's file
            path.chmod(expected)


def sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # a file system that has no such call
            raise
    finally:
        os.close(handle)


def move_into_place(folder: Path, path: Path, *, keep: Callable[[], bool] | None = None) -> None:
    """Rename a folder that `folder_beside` made to `path`; what is replaced is deleted at the end of its body.

    Where the system can exchange two names, there is always a folder of the name `path`; elsewhere it is missing
    for a moment.

    Args:
        keep: as for `replacing_folder`.
    """
    while True:
        try:
            folder.rename(path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        if keep is not None and keep():
            return
        if _exchange(folder, path):
            break
        with contextlib.suppress(FileNotFoundError):
            path.rename(folder.with_name(f"replaced-{uuid.uuid4().hex}"))
    sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two files or folders in one step, as Linux can on its own file systems; whether it was done."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    working_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(working_folder, os.fsencode(one), working_folder, os.fsencode(other), exchange) == 0


def remove_stale(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left in `folder` under temporary names of `name`, or of any name."""
    pattern = PARTIAL if name is None else f".{glob.escape(name)}.*.partial"
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def check_member(name: str, place: str) -> None:
    """Check the name that a bucket, a hub or a list gives to a file before anything is read or written under it.

    Args:
        name: relative to the folder that the file belongs to, with slashes.
        place: what names it, for the message.

    Raises:
        InputError: it is absolute or leads out of that folder, or file systems disagree on what it names.
    """
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(
            f"{place}: lists {name!r}, expected files inside it, with relative names that have no empty part, no part "
            "'.' or '..', no backslash and no NUL"
        )


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` under a temporary name, then rename: readers see the old file or the new one."""
    with replacing(path) as handle:
        handle.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically; floats must be finite."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, kind: type[dict | list] = dict) -> Any:
    """Read a JSON file that holds an object or, with `kind`, an array.

    Raises:
        InputError: the file is missing, is not JSON, or holds something else.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    return parse_json(data, str(path), kind)


def parse_json(data: str | bytes, place: str, kind: type[dict | list] = dict) -> Any:
    """Parse a JSON text (UTF-8) that holds an object or, with `kind`, an array.

    Args:
        place: the file or the answer that the text is from, for messages.

    Raises:
        InputError: the text is not JSON, holds something else, or is nested deeper than Python reads.
    """
    try:
        value = json.loads(data)
    except ValueError as error:  # not UTF-8 and a number of too many digits included
        raise InputError(f"{place}: not JSON ({error})") from None
    except RecursionError:
        raise InputError(f"{place}: not JSON that can be read (brackets within brackets, too deep)") from None
    if not isinstance(value, kind):
        expected = "object" if kind is dict else "array"
        seen = data if isinstance(data, str) else data.decode(errors="replace")
        raise InputError(f"{place}: holds {seen.strip()[:60]}, expected a JSON {expected}")
    return value


def digest_bytes(data: bytes) -> str:
    """SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def code_digest() -> str:
    """Digest of the library's own files, templates included: a version alone would not tell what edited code does."""
    package = Path(str(importlib.resources.files("distilrank")))
    files = (path for pattern in ("*.py", "*.j2") for path in package.rglob(pattern))
    return digest_json({path.relative_to(package).as_posix(): digest_file(path) for path in files})


def _names(folder: Path) -> list[str]:
    """Names of the files that a seal of `folder` covers, sorted; not the record of its stage, which has timings."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    content = (name for name in names if not any(fnmatch.fnmatchcase(part, PARTIAL) for part in name.parts))
    return [name.as_posix() for name in content if str(name) not in (SEAL, RECORD)]


def seal(folder: Path, only: Sequence[str] | None = None) -> str:
    """Write the digests of all files in `folder` (or of those named by `only`) and return the digest of them all."""
    files = {name: digest_file(folder / name) for name in (_names(folder) if only is None else only)}
    digest = digest_json(files)
    write_json(folder / SEAL, {"digest": digest, "files": files})
    return digest


def _seal(folder: Path) -> dict[str, Any]:
    path = folder / SEAL
    sealed = read_json(path)
    if not isinstance(sealed.get("files"), dict) or "digest" not in sealed:
        raise InputError(f"{path}: damaged, expected an object with digest and files")
    for name in sealed["files"]:
        check_member(name, str(path))
    if digest_json(sealed["files"]) != sealed["digest"]:
        raise InputError(f"{path}: its digest does not match its own list of files")
    return sealed


def is_sealed(folder: Path) -> bool:
    """Whether a folder has a seal; one that a person put together has none."""
    return (folder / SEAL).is_file()


def sealed_digest(folder: Path) -> str:
    """The digest with which `folder` was sealed, to tell it from another; no byte of its files is read.

    Whatever reads the files, or vouches for them, calls `verify`.
    """
    return _seal(folder)["digest"]


def verify(folder: Path, only: Sequence[str] | None = None, *, again: bool = False) -> str:
    """Check the bytes of a sealed folder (or of the files named by `only`) and return its digest.

    Args:
        only: the files that the caller reads, where it does not read all of a large folder.
        again: hash what this process has hashed before too: a disk may damage a file without changing its times.

    Raises:
        InputError: a file is missing, unexpected or differs from its digest.
    """
    sealed = _seal(folder)
    for name in sealed["files"] if only is None else only:
        path, expected = folder / name, sealed["files"].get(name)
        if expected is None:
            raise InputError(f"{path}: not listed in {folder / SEAL}")
        if not path.is_file():
            raise InputError(f"{path}: missing, although {folder / SEAL} lists it")
        seen = _digest_once(path, again)
        if seen != expected:
            raise InputError(
                f"{path}: digest {seen[:12]} differs from the recorded {expected[:12]}; the file is corrupt"
            )
    extra = sorted(set(_names(folder)) - set(sealed["files"])) if only is None else []
    if extra:
        raise InputError(f"{folder / extra[0]}: not listed in {folder / SEAL}; the folder was changed")
    return sealed["digest"]


def _digest_once(path: Path, again: bool) -> str:
    """`digest_file`, once in a process while the file stays as it is."""
    status = path.stat()
    key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    settled = time.time() - status.st_ctime > SETTLED_SECONDS
    if again or key not in _digests:
        digest = digest_file(path)
        if not settled:
            return digest
        _digests[key] = digest
    return _digests[key]


def require(inputs: Inputs, only: Mapping[str, Sequence[str]] | None = None) -> None:
    """Refuse inputs of a stage whose files did not all arrive as they were sealed.

    Caches go by what a result was made of, and never look whether it still exists, or is still the same: Kubeflow
    offers what a lifecycle rule has deleted, and the launcher downloads nothing without an error.

    Args:
        inputs: the sealed folder of each input by its name in the pipeline; several where a loop made them.
        only: the files that the stage reads of an input, where it does not read all of it; the others must be there.

    Raises:
        InputError: a folder is missing or empty, or lacks its seal or a file that the seal lists; or a file differs
            from its digest.
    """
    folders = [
        (name, folder) for name, given in inputs.items() for folder in ([given] if isinstance(given, Path) else given)
    ]
    for name, folder in folders:
        lacking = _lacking(folder)
        if lacking:
            raise InputError(f"input {name} ({folder}): {lacking}; {_cause()}")
    for name, folder in folders:
        try:
            verify(folder, (only or {}).get(name))
        except InputError as error:
            raise InputError(f"input {name}: {error}; make it again with --no-cache") from None


def _lacking(folder: Path) -> str:
    """What a sealed folder lacks, in words; empty: nothing."""
    if not folder.is_dir() or not any(path.is_file() for path in folder.rglob("*")):
        return "arrived empty"
    if not is_sealed(folder):
        return f"lacks {SEAL}"
    names = list(_seal(folder)["files"])
    missing = [name for name in names if not (folder / name).is_file()]
    return f"lacks {len(missing)} of its {len(names)} files, {missing[0]} for one" if missing else ""


def _cause() -> str:
    """Why files of an input are missing, and what to do about it, here."""
    if POD_NAME in os.environ:
        return (
            "the object store no longer has its files (expired by a lifecycle rule?), but Kubeflow's cache still "
            "offers it: submit with --no-cache, and for recurring runs set preflight.cache_days (docs/operations.md)"
        )
    return "its files were deleted, but the cache still offers this result: run again with --no-cache"


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder to `target` under a temporary name, then rename; an existing `target` is replaced.

    Raises:
        InputError: a file cannot be read, or the storage refuses.
    """
    with replacing_folder(target) as folder:
        copy_into(source, folder)


def copy_into(source: Path, folder: Path) -> None:
    """Copy what a folder holds to another that exists; what is being written there is no part of it.

    Raises:
        InputError: a file cannot be read, or the storage refuses.
    """
    try:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(PARTIAL), dirs_exist_ok=True)
    except shutil.Error as error:  # it holds a reason for each file, and no error number
        path, copy, reason = error.args[0][0]
        raise InputError(f"{path}: cannot be copied to {copy} ({reason})") from error


def copy_files(folder: Path, targets: Mapping[str, str]) -> None:
    """Copy files of `folder` to paths of their own, as Kubeflow shows only a page that is an artifact by itself.

    Args:
        targets: path of each copy, by the file's name in `folder`; its parent must exist.
    """
    for name, target in targets.items():
        shutil.copyfile(folder / name, target)


def peak_memory_mib() -> float:
    """Peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure survives an exec: it may be that of the parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


@dataclass
class Record:
    """What a stage remembers of itself."""

    inputs: dict[str, str] = field(default_factory=dict)
    """Digest of each input, by name."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else is worth keeping: row counts, the precision that was used."""


@contextlib.contextmanager
def announcing(name: str) -> Iterator[None]:
    """Tell of bad input and of a stopped run that the body raises, in one line of stage `name`."""
    try:
        yield
    except Exception as error:
        _report_failure(name, error)
        raise


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
