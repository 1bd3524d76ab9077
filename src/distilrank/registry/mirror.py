"""Mirror of a registry's versions and aliases in a Kubeflow Model Registry.

The folder or bucket remains the source of truth and holds the files. The mirror is updated after every change and never
makes a change fail: if it is unreachable, one line of the log says so, and the next change or
`distilrank registry mirror` brings it up to date.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from distilrank.config import Registry
from distilrank.core import progress
from distilrank.core.errors import InputError
from distilrank.registry.base import CHAMPION, Backend


def open(backend: Backend, config: Registry) -> Backend:
    """Wrap `backend` with the mirror that `config` describes. This sends no request yet."""
    mirror = Mirror(config.mirror, config.mirror_name, config.mirror_token_file, config.mirror_ca_file)
    return cast(Backend, Mirrored(backend, mirror))


@dataclass(frozen=True)
class Mirror:
    """Address and credentials of a mirror. Empty paths mean no token and the system's certificates."""

    url: str
    name: str
    """Name of the registered model, which belongs to a single registry."""
    token_file: str = ""
    ca_file: str = ""

    def token(self) -> str:
        """Read the bearer token; empty if there is none. It is read each time, since the token of a pod is renewed.

        Raises:
            InputError: the file cannot be read.
        """
        return _read(self.token_file, "registry.mirror_token_file").strip() if self.token_file else ""

    def check(self) -> None:
        """Check the local requirements of the mirror. This sends no request.

        Raises:
            InputError: a file is missing, or the client is not installed.
        """
        self.token()
        if self.ca_file:
            _read(self.ca_file, "registry.mirror_ca_file")
        _client()

    def sync(self, backend: Backend) -> list[str]:
        """Bring the mirror up to date with `backend`, and return a description of each change.

        Raises:
            InputError: the mirror does not answer, refuses, or already shows another registry under this name.
        """
        self.check()
        return _client().sync(backend, self.url, self.name, token=self.token(), ca_file=self.ca_file)


class Mirrored:
    """A backend that updates a mirror after each change. Reads go to the backend itself."""

    def __init__(self, backend: Backend, mirror: Mirror) -> None:
        self.backend, self.mirror = backend, mirror

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def publish(self, folder: Path, version: str) -> None:
        self.backend.publish(folder, version)
        self._sync()

    def move(self, alias: str, version: str, expected: str, *, action: str = "promote", reason: str = "") -> None:
        self.backend.move(alias, version, expected, action=action, reason=reason)
        self._sync()

    def rollback(self, alias: str = CHAMPION, reason: str = "", expected: str = "") -> str:
        version = self.backend.rollback(alias, reason, expected)
        self._sync()
        return version

    def collect(self, keep: int, *, dry_run: bool) -> list[str]:
        removed = self.backend.collect(keep, dry_run=dry_run)
        if not dry_run:
            self._sync()
        return removed

    def check(self) -> None:
        self.backend.check()
        self.mirror.check()

    def _sync(self) -> None:
        try:
            self.mirror.sync(self.backend)
        except InputError as error:
            progress.log_event("registry", "note", f"warning: {error}; the mirror is out of date until the next change")


def _client() -> Any:
    try:
        from distilrank.registry import model_registry
    except ModuleNotFoundError as error:
        raise InputError(
            f"registry.mirror: this Python has no {error.name!r}, install it with `pip install distilrank[ops]`"
        ) from None
    return model_registry


def _read(path: str, key: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key}: {path} cannot be read ({error})") from None
