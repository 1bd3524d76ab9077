"""A registry in Google Cloud Storage, at `gs://BUCKET/PREFIX`.

    versions/<id>.json              folder and digest of a version; written last, so a version without it does not exist
    versions/<id>/<attempt>/...     files of a version; each attempt to publish it has a separate folder
    aliases/, history/, looks/      see ledger

Every write has a precondition on the object's generation, so that a late promoter changes nothing. If the answer to a
request was lost, the object's content shows whether the repeated request succeeded or lost a race. Reading needs the
role storage.objectViewer, recording test evaluations also storage.objectCreator, and all other writing
storage.objectUser, which can belong to another service account (`registry.promoter`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google.auth
from google.api_core.exceptions import (
    Conflict,
    Forbidden,
    GoogleAPIError,
    NotFound,
    PreconditionFailed,
    Unauthorized,
)
from google.auth import impersonated_credentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import RequestException

from distilrank.config import Registry
from distilrank.core import artifacts, volume
from distilrank.core.errors import InputError, one_line
from distilrank.registry import content, ledger
from distilrank.registry.base import CHAMPION, Backend, is_version_id

VIEWER, CREATOR, USER = "roles/storage.objectViewer", "roles/storage.objectCreator", "roles/storage.objectUser"
IMPERSONATOR = "roles/iam.serviceAccountTokenCreator"
SCOPE, WRITING = (f"https://www.googleapis.com/auth/{name}" for name in ("cloud-platform", "devstorage.read_write"))
RETRY = DEFAULT_RETRY.with_timeout(60)
CHUNK_BYTES = 32 << 20
"""Part size of a large upload: at most one part is sent again after an interruption."""
TRANSFERS = 4
"""Number of files that are uploaded or downloaded at the same time."""

_URI = re.compile(r"gs://(?P<bucket>[^/]+)(/(?P<prefix>[^/]+(/[^/]+)*))?/?")


def open(config: Registry) -> Backend:
    """Open the registry in the bucket and under the prefix of `config.uri`.

    Raises:
        InputError: the URI has no bucket.
    """
    match = _URI.fullmatch(config.uri)
    if match is None:
        raise InputError(f"registry {config.uri!r}: expected gs://BUCKET/PREFIX")
    artifacts.check_member("/".join(filter(None, match.group("bucket", "prefix"))), f"registry {config.uri!r}")
    cache_dir = config.cache_dir or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        base = Path(cache_dir).expanduser()
    except RuntimeError:
        raise InputError(
            f"registry.cache_dir {cache_dir!r}: no such home folder, expected the path of a folder"
        ) from None
    cache = base if config.cache_dir else base / "distilrank" / "registry"
    bucket, prefix = match["bucket"], match["prefix"] or ""
    return Bucket(bucket, prefix, cache.absolute() / bucket / prefix, config.promoter)


class Bucket(ledger.Ledger):
    """Registry in a Cloud Storage bucket. `registry.Backend` describes the methods."""

    def __init__(self, bucket: str, prefix: str, cache: Path, promoter: str) -> None:
        self.bucket, self.prefix, self.cache, self.promoter = bucket, prefix, cache, promoter
        self.uri = f"gs://{bucket}/{prefix}" if prefix else f"gs://{bucket}"

    def exists(self) -> bool:
        return bool(self._list("", max_results=1)[0])

    # Versions -----------------------------------------------------------------------------------------------------

    def versions(self) -> list[str]:
        names = (name.removesuffix(".json") for name in self._names("versions") if name.endswith(".json"))
        return [name for name in names if is_version_id(name)]

    def manifest(self, version: str) -> dict[str, Any]:
        folder, sealed = self._sealed(self._root(version)[0])
        data, expected = self._bytes(f"{folder}/{content.MANIFEST}"), sealed["files"].get(content.MANIFEST)
        if artifacts.digest_bytes(data) != expected:
            raise InputError(
                f"{self._full_path(folder)}/{content.MANIFEST}: differs from its digest; the object is corrupt"
            )
        return content.parse(data, self._full_path(f"{folder}/{content.MANIFEST}"))

    def location(self, version: str) -> str:
        return self._full_path(_folder(self._root(version)[0]))

    def fetch(self, version: str) -> Path:
        root, _ = self._root(version)
        target = self.cache / version
        with self._caching():
            self.cache.mkdir(parents=True, exist_ok=True)
            # One process downloads and the others wait; a killed process releases the lock.
            with volume.locked(self.cache / f".{version}.lock"):
                if not self._cached(target, root):
                    for partial in self.cache.glob(f".{version}.*.partial"):  # of an interrupted download
                        shutil.rmtree(partial)
                    with artifacts.replacing_folder(target) as fresh:
                        self._download(root, fresh)
        self._verify_history(version, root["content"], self._heads())
        return target

    def verify(self, version: str) -> None:
        root, _ = self._root(version)
        with self._caching():
            self.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".verify-", dir=self.cache) as scratch:
                self._download(root, Path(scratch) / version)
        self._verify_history(version, root["content"], self.history())

    def publish(self, folder: Path, version: str) -> None:
        if not is_version_id(version):
            raise InputError(
                f"registry {self.uri}: {version!r} is not a version id, expected v and 12 hexadecimal digits"
            )
        with tempfile.TemporaryDirectory(prefix="publish-") as scratch:
            links = Path(scratch) / version
            shutil.copytree(
                folder, links, copy_function=lambda source, target: os.symlink(os.path.realpath(source), target)
            )
            digest = content.seal(links)
            content.verify(links, version)
            root = {"version": version, "content": digest, "folder": uuid.uuid4().hex}
            root["digest"] = artifacts.digest_json(root)
            if not self._read(_root_name(version)):
                self._upload(links, _folder(root))
                if self._write(_root_name(version), content.encode(root), None):
                    return
                self._delete_below(_folder(root))
            published, sealed = self._sealed(self._root(version)[0])
            if (name := content.differing(content.read_seal(links)["files"], sealed["files"])) is not None:
                raise InputError(
                    f"{self._full_path(published)}/{name}: version {version} is already published with different "
                    "content; versions never change"
                )
            self._claim(version)

    def check(self) -> None:
        self._names("aliases")
        self.alias(CHAMPION)
        probe = f".writable-{uuid.uuid4().hex}"
        self._write(probe, b"writable\n", None)
        with self._translating_errors(USER, self.promoter):
            self._blob(probe, self._writer).delete(retry=RETRY)

    # Storage operations of the ledger -----------------------------------------------------------------------------

    def _full_path(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def _read(self, name: str) -> tuple[bytes, Any] | None:
        with self._translating_errors(VIEWER):
            blob = self._blob(name)
            try:
                data = blob.download_as_bytes(retry=RETRY, checksum="auto")
            except NotFound:
                return None
            return data, blob.generation

    def _write(self, name: str, data: bytes, token: Any) -> bool:
        is_evaluation = name.startswith(f"{ledger.TEST_EVALUATIONS}/")
        role, client = (CREATOR, self._reader) if is_evaluation else (USER, self._writer)
        with self._translating_errors(role, "" if is_evaluation else self.promoter):
            try:
                self._blob(name, client).upload_from_string(
                    data,
                    content_type="application/json",
                    if_generation_match=token or 0,
                    checksum="crc32c",
                    retry=RETRY,
                )
                return True
            except (PreconditionFailed, Conflict):
                pass
        # A repeated request is refused if the first one succeeded and only its answer was lost.
        existing = self._read(name)
        return existing is not None and existing[0] == data

    def _names(self, folder: str) -> list[str]:
        prefix = self._name(f"{folder}/")
        blobs, folders = self._list(f"{folder}/", delimiter="/")
        names = {blob.name for blob in blobs} | folders
        return sorted(name.removeprefix(prefix).rstrip("/") for name in names)

    def _changing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _claim(self, version: str) -> str:
        root, generation = self._root(version)
        # The same bytes with a new generation: a process that is about to remove the version sees the change.
        if not self._write(_root_name(version), content.encode(root), generation):
            raise InputError(f"registry {self.uri}: version {version} was removed in the meantime")
        return root["content"]

    def _ages(self) -> dict[str, tuple[float, Any]]:
        prefix = self._name("versions/")
        ages = {}
        for blob in self._list("versions/", delimiter="/")[0]:
            name = blob.name.removeprefix(prefix).removesuffix(".json")
            if is_version_id(name):
                ages[name] = time.time() - blob.time_created.timestamp(), blob.generation
        return ages

    def _remove(self, version: str, token: Any) -> bool:
        root, generation = self._root(version)
        if generation != token or not self._delete(_root_name(version), generation):
            return False
        self._delete_below(_folder(root))
        return True

    def _sweep(self) -> None:
        prefix = self._name("versions/")
        newest: dict[str, float] = {}
        for blob in self._list("versions/")[0]:
            version, *rest = blob.name.removeprefix(prefix).split("/")
            if len(rest) > 1 and is_version_id(version):
                folder = f"versions/{version}/{rest[0]}"
                newest[folder] = max(newest.get(folder, 0.0), blob.time_created.timestamp())
        # Read after the listing, so that an attempt that has finished in the meantime is found here.
        published = {_folder(self._root(version)[0]) for version in self.versions()}
        for folder in sorted(newest.keys() - published):
            if time.time() - newest[folder] > ledger.MINIMUM_AGE:
                self._delete_below(folder)

    # Internals ----------------------------------------------------------------------------------------------------

    def _root(self, version: str) -> tuple[dict[str, Any], Any]:
        """Read the object that names the folder of a version, and its generation."""
        file = self._read(_root_name(version)) if is_version_id(version) else None
        if file is None:
            available = ", ".join(self.versions()) or "none"
            raise InputError(f"registry {self.uri}: no version {version!r}; it has: {available}")
        path = self._full_path(_root_name(version))
        root = content.decode(file[0], path)
        digest = artifacts.digest_json({key: value for key, value in root.items() if key != "digest"})
        if root.get("digest") != digest or root.get("version") != version:
            raise InputError(f"{path}: damaged, its digest does not match")
        return root, file[1]

    def _sealed(self, root: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the folder of a version and its seal."""
        folder = _folder(root)
        name = f"{folder}/{artifacts.SEAL}"
        sealed = content.parse_seal(self._bytes(name), self._full_path(name))
        if sealed["digest"] != root["content"]:
            raise InputError(
                f"{self._full_path(name)}: damaged, it is not the seal that {_root_name(root['version'])} names"
            )
        return folder, sealed

    def _cached(self, target: Path, root: dict[str, Any]) -> bool:
        """Whether `target` is an intact copy of the version. Every byte is checked."""
        try:
            return target.exists() and content.verify(target, root["version"]) == root["content"]
        except InputError:
            return False

    def _download(self, root: dict[str, Any], target: Path) -> Path:
        """Download a version to the new or empty folder `target`, and check every byte."""
        folder, sealed = self._sealed(root)

        def get(name: str) -> None:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._translating_errors(VIEWER):
                try:
                    self._blob(f"{folder}/{name}").download_to_filename(path, retry=RETRY, checksum="auto")
                except NotFound:
                    raise InputError(
                        f"{self._full_path(folder)}/{name}: missing, although its version lists it"
                    ) from None

        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(get, [*sealed["files"], artifacts.SEAL]))
        try:
            content.verify(target, root["version"])
        except InputError as error:
            raise InputError(str(error).replace(str(target), self._full_path(folder))) from None
        return target

    def _upload(self, source: Path, folder: str) -> None:
        """Upload the files of a sealed folder to the new folder `folder`.

        No other process writes there, so an existing object comes from an earlier request of this upload.
        """
        client = self._writer  # created once, before the threads start

        def put(name: str) -> None:
            path, blob = (source / name).resolve(), self._blob(f"{folder}/{name}", client)
            blob.chunk_size = CHUNK_BYTES if path.stat().st_size > CHUNK_BYTES else None
            with self._translating_errors(USER, self.promoter), contextlib.suppress(PreconditionFailed):
                blob.upload_from_filename(path, if_generation_match=0, checksum="crc32c", retry=RETRY)

        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(put, [*content.read_seal(source)["files"], artifacts.SEAL]))

    def _bytes(self, name: str) -> bytes:
        file = self._read(name)
        if file is None:
            raise InputError(f"{self._full_path(name)}: missing, although its version lists it")
        return file[0]

    def _delete(self, name: str, generation: int) -> bool:
        with self._translating_errors(USER, self.promoter):
            try:
                self._blob(name, self._writer).delete(if_generation_match=generation, retry=RETRY)
            except (NotFound, PreconditionFailed):
                return False
            return True

    def _delete_below(self, folder: str) -> None:
        for blob in self._list(f"{folder}/")[0]:
            self._delete(blob.name.removeprefix(self._name("")), blob.generation)

    def _list(self, start: str, **options: Any) -> tuple[list[Any], set[str]]:
        """List the objects whose names begin with `start`, and the folders among them if `options` has a delimiter."""
        with self._translating_errors(VIEWER):
            pages = self._reader.list_blobs(self.bucket, prefix=self._name(start), retry=RETRY, **options)
            return list(pages), set(pages.prefixes)

    def _name(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _blob(self, name: str, client: Any = None) -> Any:
        return (client or self._reader).bucket(self.bucket).blob(self._name(name))

    @functools.cached_property
    def _reader(self) -> Any:
        return storage.Client(project=None)

    @functools.cached_property
    def _writer(self) -> Any:
        if not self.promoter or os.environ.get("STORAGE_EMULATOR_HOST"):
            return self._reader
        source, _ = google.auth.default(scopes=[SCOPE])
        credentials = impersonated_credentials.Credentials(source, self.promoter, [WRITING])
        return storage.Client(project=None, credentials=credentials)

    @contextlib.contextmanager
    def _caching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise InputError(f"registry.cache_dir {self.cache}: cannot be used ({reason})") from error

    @contextlib.contextmanager
    def _translating_errors(self, role: str, promoter: str = "") -> Iterator[None]:
        """Translate errors of Cloud Storage to one line that names the missing role."""
        needed = f"{role} on gs://{self.bucket}"
        account = promoter or "the account that runs this"
        try:
            yield
        except DefaultCredentialsError as error:
            raise InputError(
                f"registry {self.uri}: no credentials ({_brief(error)}); run as a service account that has {needed}, "
                "or `gcloud auth application-default login`"
            ) from None
        except TransportError as error:
            raise InputError(f"registry {self.uri}: credentials cannot be obtained ({_brief(error)})") from None
        except GoogleAuthError as error:
            denied = promoter and "impersonated" in str(error)
            advice = f"grant {IMPERSONATOR} on {promoter} to the account that runs this" if denied else "renew them"
            raise InputError(f"registry {self.uri}: credentials are refused ({_brief(error)}); {advice}") from None
        except Unauthorized as error:
            raise InputError(
                f"registry {self.uri}: credentials are missing or refused ({_brief(error)}); run as a service account "
                f"that has {needed}"
            ) from None
        except Forbidden as error:
            raise InputError(
                f"registry {self.uri}: access is denied ({_brief(error)}); grant {needed} to {account}"
            ) from None
        except NotFound:
            raise InputError(
                f"registry {self.uri}: bucket gs://{self.bucket} does not exist, create it first"
            ) from None
        except (GoogleAPIError, DataCorruption, ConnectionError, RequestException) as error:
            raise InputError(f"registry {self.uri}: cannot be reached ({_brief(error)})") from None


def _root_name(version: str) -> str:
    return f"versions/{version}.json"


def _folder(root: dict[str, Any]) -> str:
    return f"versions/{root['version']}/{root['folder']}"


def _brief(error: Exception) -> str:
    return one_line(error)
