"""A registry whose versions and aliases a Kubeflow Model Registry shows too.

The folder or bucket alone decides and holds the bytes. The mirror is brought up to date after every change and never
fails one: where it is down, that is said in one line, and the next change or `distilrank registry mirror` repairs it.
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
    """`backend` with the mirror that `config` names. Nothing is asked yet."""
    mirror = Mirror(config.mirror, config.mirror_name, config.mirror_token_file, config.mirror_ca_file)
    return cast(Backend, Mirrored(backend, mirror))


@dataclass(frozen=True)
class Mirror:
    """Where the mirror is; empty paths: no token, the system's certificates."""

    url: str
    name: str
    """Of the registered model, which belongs to one registry alone."""
    token_file: str = ""
    ca_file: str = ""

    def token(self) -> str:
        """The bearer token, read anew each time since a pod's is renewed; empty: none.

        Raises:
            InputError: its file cannot be read.
        """
        return _read(self.token_file, "registry.mirror_token_file").strip() if self.token_file else ""

    def check(self) -> None:
        """Make sure that the mirror could be written to, as far as this machine knows: it is not asked.

        Raises:
            InputError: a file is missing, or the client is not installed.
        """
        self.token()
        if self.ca_file:
            _read(self.ca_file, "registry.mirror_ca_file")
        _client()

    def sync(self, backend: Backend) -> list[str]:
        """Write what the mirror lacks of `backend`, in words; none: it was up to date.

        Raises:
            InputError: the mirror does not answer, refuses, or shows another registry under this name.
        """
        self.check()
        return _client().sync(backend, self.url, self.name, token=self.token(), ca_file=self.ca_file)


class Mirrored:
    """A backend that shows each of its changes in a mirror; whatever is only read comes from the backend itself."""

    def __init__(self, backend: Backend, mirror: Mirror) -> None:
        self.backend, self.mirror = backend, mirror

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def publish(self, folder: Path, version: str) -> None:
        self.backend.publish(folder, version)
        self._show()

    def move(self, alias: str, version: str, expected: str, *, action: str = "promote", reason: str = "") -> None:
        self.backend.move(alias, version, expected, action=action, reason=reason)
        self._show()

    def rollback(self, alias: str = CHAMPION, reason: str = "", expected: str = "") -> str:
        version = self.backend.rollback(alias, reason, expected)
        self._show()
        return version

    def collect(self, keep: int, *, dry_run: bool) -> list[str]:
        removed = self.backend.collect(keep, dry_run=dry_run)
        if not dry_run:
            self._show()
        return removed

    def check(self) -> None:
        self.backend.check()
        self.mirror.check()

    def _show(self) -> None:
        try:
            self.mirror.sync(self.backend)
        except InputError as error:
            progress.log_event("registry", "note", f"warning: {error}; the mirror lags until the next change")


def _client() -> Any:
    try:
        from distilrank.registry import model_registry
    except ModuleNotFoundError as error:
        raise InputError(
            f"registry.mirror: this Python has no {error.name!r}, expected what `pip install distilrank[ops]` brings"
        ) from None
    return model_registry


def _read(path: str, key: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key}: {path} cannot be read ({error})") from None
