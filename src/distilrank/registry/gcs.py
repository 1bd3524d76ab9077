"""A registry in Google Cloud Storage, at `gs://BUCKET/PREFIX`.

    versions/<id>.json              written last: a version without it does not exist; names the folder and its digest
    versions/<id>/<attempt>/...     the files of a version, of each attempt to publish it a folder of its own
    aliases/, history/, looks/      see ledger

Every write has a precondition on the object's generation, so that a promoter that is late changes nothing, and a
request that is repeated because its answer was lost is told from a lost race by the object's content. Reading needs
the role storage.objectViewer, recording test evaluations also storage.objectCreator, and all other writing
storage.objectUser, which another service account may have (`registry.promoter`).
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
"""What is sent again at most when a large upload breaks off."""
TRANSFERS = 4
"""Files that are sent or fetched at a time."""

_URI = re.compile(r"gs://(?P<bucket>[^/]+)(/(?P<prefix>[^/]+(/[^/]+)*))?/?")


def open(config: Registry) -> Backend:
    """The registry in the bucket and under the prefix of `config.uri`.

    Raises:
        InputError: it names no bucket.
    """
    found = _URI.fullmatch(config.uri)
    if found is None:
        raise InputError(f"registry {config.uri!r}: expected gs://BUCKET/PREFIX")
    artifacts.check_member("/".join(filter(None, found.group("bucket", "prefix"))), f"registry {config.uri!r}")
    chosen = config.cache_dir or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        base = Path(chosen).expanduser()
    except RuntimeError:
        raise InputError(f"registry.cache_dir {chosen!r}: no such home folder, expected the path of a folder") from None
    cache = base if config.cache_dir else base / "distilrank" / "registry"
    bucket, prefix = found["bucket"], found["prefix"] or ""
    return Bucket(bucket, prefix, cache.absolute() / bucket / prefix, config.promoter)


class Bucket(ledger.Ledger):
    """See registry.Backend for the contract."""

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
                f"{self._place(folder)}/{content.MANIFEST}: differs from its digest; the object is corrupt"
            )
        return content.parse(data, self._place(f"{folder}/{content.MANIFEST}"))

    def location(self, version: str) -> str:
        return self._place(_folder(self._root(version)[0]))

    def fetch(self, version: str) -> Path:
        root, _ = self._root(version)
        target = self.cache / version
        with self._caching():
            self.cache.mkdir(parents=True, exist_ok=True)
            # One process downloads, the others wait for it; whoever is killed lets go.
            with volume.locked(self.cache / f".{version}.lock"):
                if not self._cached(target, root):
                    for left in self.cache.glob(f".{version}.*.partial"):  # by a download that was killed
                        shutil.rmtree(left)
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
            raise InputError(f"registry {self.uri}: {version!r} is no version id, expected v and 12 hexadecimal digits")
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
            there, sealed = self._sealed(self._root(version)[0])
            if (name := content.differing(content.read_seal(links)["files"], sealed["files"])) is not None:
                raise InputError(
                    f"{self._place(there)}/{name}: version {version} is published already, with other content; "
                    f"versions never change"
                )
            self._claim(version)

    def check(self) -> None:
        self._names("aliases")
        self.alias(CHAMPION)
        probe = f".writable-{uuid.uuid4().hex}"
        self._write(probe, b"writable\n", None)
        with self._asking(USER, self.promoter):
            self._blob(probe, self._writer).delete(retry=RETRY)

    # What the ledger asks for -------------------------------------------------------------------------------------

    def _place(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def _read(self, name: str) -> tuple[bytes, Any] | None:
        with self._asking(VIEWER):
            blob = self._blob(name)
            try:
                data = blob.download_as_bytes(retry=RETRY, checksum="auto")
            except NotFound:
                return None
            return data, blob.generation

    def _write(self, name: str, data: bytes, token: Any) -> bool:
        is_evaluation = name.startswith(f"{ledger.TEST_EVALUATIONS}/")
        role, client = (CREATOR, self._reader) if is_evaluation else (USER, self._writer)
        with self._asking(role, "" if is_evaluation else self.promoter):
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
        # A repeated request is refused where the first one arrived and only its answer was lost.
        there = self._read(name)
        return there is not None and there[0] == data

    def _names(self, folder: str) -> list[str]:
        prefix = self._name(f"{folder}/")
        blobs, folders = self._list(f"{folder}/", delimiter="/")
        names = {blob.name for blob in blobs} | folders
        return sorted(name.removeprefix(prefix).rstrip("/") for name in names)

    def _changing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def _claim(self, version: str) -> str:
        root, generation = self._root(version)
        # The same bytes again, but a new generation: whoever is about to remove the version finds it changed.
        if not self._write(_root_name(version), content.encode(root), generation):
            raise InputError(f"registry {self.uri}: version {version} was removed meanwhile")
        return root["content"]

    def _ages(self) -> dict[str, tuple[float, Any]]:
        prefix = self._name("versions/")
        found = {}
        for blob in self._list("versions/", delimiter="/")[0]:
            name = blob.name.removeprefix(prefix).removesuffix(".json")
            if is_version_id(name):
                found[name] = time.time() - blob.time_created.timestamp(), blob.generation
        return found

    def _remove(self, version: str, known: Any) -> bool:
        root, generation = self._root(version)
        if generation != known or not self._delete(_root_name(version), generation):
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
        # Listed before: an attempt that has come to its end meanwhile is found here.
        published = {_folder(self._root(version)[0]) for version in self.versions()}
        for folder in sorted(newest.keys() - published):
            if time.time() - newest[folder] > ledger.MINIMUM_AGE:
                self._delete_below(folder)

    # Parts --------------------------------------------------------------------------------------------------------

    def _root(self, version: str) -> tuple[dict[str, Any], Any]:
        """What names the folder of a version, and the generation of the object."""
        found = self._read(_root_name(version)) if is_version_id(version) else None
        if found is None:
            known = ", ".join(self.versions()) or "none"
            raise InputError(f"registry {self.uri}: no version {version!r}; it has: {known}")
        place = self._place(_root_name(version))
        root = content.decode(found[0], place)
        digest = artifacts.digest_json({key: value for key, value in root.items() if key != "digest"})
        if root.get("digest") != digest or root.get("version") != version:
            raise InputError(f"{place}: damaged, its digest does not match")
        return root, found[1]

    def _sealed(self, root: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The folder of a version and its seal."""
        folder = _folder(root)
        name = f"{folder}/{artifacts.SEAL}"
        sealed = content.parse_seal(self._bytes(name), self._place(name))
        if sealed["digest"] != root["content"]:
            raise InputError(
                f"{self._place(name)}: damaged, it is not the seal that {_root_name(root['version'])} names"
            )
        return folder, sealed

    def _cached(self, target: Path, root: dict[str, Any]) -> bool:
        """Whether `target` holds the very version, every byte checked."""
        try:
            return target.exists() and content.verify(target, root["version"]) == root["content"]
        except InputError:
            return False

    def _download(self, root: dict[str, Any], target: Path) -> Path:
        """Fetch a version to the folder `target`, which is new or empty, and check every byte."""
        folder, sealed = self._sealed(root)

        def get(name: str) -> None:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._asking(VIEWER):
                try:
                    self._blob(f"{folder}/{name}").download_to_filename(path, retry=RETRY, checksum="auto")
                except NotFound:
                    raise InputError(f"{self._place(folder)}/{name}: missing, although its version lists it") from None

        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(get, [*sealed["files"], artifacts.SEAL]))
        try:
            content.verify(target, root["version"])
        except InputError as error:
            raise InputError(str(error).replace(str(target), self._place(folder))) from None
        return target

    def _upload(self, source: Path, folder: str) -> None:
        """Send the files of a sealed folder to a folder of our own: what is there already, a request of ours made."""
        client = self._writer  # made here, once, for all threads

        def put(name: str) -> None:
            path, blob = (source / name).resolve(), self._blob(f"{folder}/{name}", client)
            blob.chunk_size = CHUNK_BYTES if path.stat().st_size > CHUNK_BYTES else None
            with self._asking(USER, self.promoter), contextlib.suppress(PreconditionFailed):
                blob.upload_from_filename(path, if_generation_match=0, checksum="crc32c", retry=RETRY)

        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(put, [*content.read_seal(source)["files"], artifacts.SEAL]))

    def _bytes(self, name: str) -> bytes:
        found = self._read(name)
        if found is None:
            raise InputError(f"{self._place(name)}: missing, although its version lists it")
        return found[0]

    def _delete(self, name: str, generation: int) -> bool:
        with self._asking(USER, self.promoter):
            try:
                self._blob(name, self._writer).delete(if_generation_match=generation, retry=RETRY)
            except (NotFound, PreconditionFailed):
                return False
            return True

    def _delete_below(self, folder: str) -> None:
        for blob in self._list(f"{folder}/")[0]:
            self._delete(blob.name.removeprefix(self._name("")), blob.generation)

    def _list(self, start: str, **options: Any) -> tuple[list[Any], set[str]]:
        """The objects whose names begin with `start`, and the folders among them where `options` has a delimiter."""
        with self._asking(VIEWER):
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
    def _asking(self, role: str, promoter: str = "") -> Iterator[None]:
        """Turn what Cloud Storage refuses into one line that says what to grant."""
        needed = f"{role} on gs://{self.bucket}"
        who = promoter or "whoever runs this"
        try:
            yield
        except DefaultCredentialsError as error:
            raise InputError(
                f"registry {self.uri}: no credentials ({_brief(error)}); run as a service account that has {needed}, "
                "or `gcloud auth application-default login`"
            ) from None
        except TransportError as error:
            raise InputError(f"registry {self.uri}: credentials cannot be had ({_brief(error)})") from None
        except GoogleAuthError as error:
            denied = promoter and "impersonated" in str(error)
            advice = f"grant {IMPERSONATOR} on {promoter} to whoever runs this" if denied else "renew them"
            raise InputError(f"registry {self.uri}: credentials are refused ({_brief(error)}); {advice}") from None
        except Unauthorized as error:
            raise InputError(
                f"registry {self.uri}: credentials are missing or refused ({_brief(error)}); run as a service account "
                f"that has {needed}"
            ) from None
        except Forbidden as error:
            raise InputError(
                f"registry {self.uri}: access is denied ({_brief(error)}); grant {needed} to {who}"
            ) from None
        except NotFound:
            raise InputError(
                f"registry {self.uri}: no bucket gs://{self.bucket}, expected one; make it first"
            ) from None
        except (GoogleAPIError, DataCorruption, ConnectionError, RequestException) as error:
            raise InputError(f"registry {self.uri}: cannot be reached ({_brief(error)})") from None


def _root_name(version: str) -> str:
    return f"versions/{version}.json"


def _folder(root: dict[str, Any]) -> str:
    return f"versions/{root['version']}/{root['folder']}"


def _brief(error: Exception) -> str:
    return one_line(error)
