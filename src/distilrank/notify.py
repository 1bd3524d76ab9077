"""Tells somebody how a run ended: one HTTP POST, whose payload docs/operations.md describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests
from urllib3.util import Retry

from distilrank import progress, registry
from distilrank.config import WEBHOOK_FOLDER, Notify, Registry
from distilrank.errors import InputError

STAGE = "notify"
VERSION = 1
"""Of the payload: it changes when a key changes its meaning or goes."""
RETRIES = Retry(total=4, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None)
TIMEOUT = (5, 20)  # seconds to connect, and to be answered
ENDS = {
    "SUCCEEDED": "SUCCEEDED",
    "COMPLETE": "SUCCEEDED",
    "CACHED": "SUCCEEDED",
    "FAILED": "FAILED",
    "CANCELLED": "CANCELLED",
    "CANCELED": "CANCELLED",
}
"""What we call an end, by what Kubeflow's backends and its local runner call it."""
UNKNOWN = "UNKNOWN"
"""Where Kubeflow names no end: some versions say RUNNING of a run with a loop in it (kubeflow/pipelines#13321)."""


def payload(name: str, run: str, state: str, error: str, promoted: str) -> dict[str, Any]:
    """What is posted; `text` is the line that chat services show."""
    text = f"distilrank {name}: {'ended, Kubeflow does not say how' if state == UNKNOWN else state.lower()}"
    if promoted:
        text += f", promoted {promoted}"
    if error:
        text += f": {error}"
    return {
        "version": VERSION,
        "text": text,
        "name": name,
        "run": run,
        "state": state,
        "error": error,
        "promoted": promoted or None,
    }


def notify(
    config: Notify, registry_config: Registry, *, name: str, run: str | None, state: str | None, error: str | None
) -> None:
    """Post the outcome; a message that cannot be delivered is told in the log, and does not fail a run that succeeded.

    Args:
        config: to whom; the URL of a Secret lies in the file `WEBHOOK_FOLDER`/`config.key`.
        registry_config: where a promoted student would be.
        name: the run, as its promotion has it.
        run: Kubeflow's name of it, if it has one.
        state: how it ended, in Kubeflow's words.
        error: Kubeflow's message, if there is one.
    """
    progress.announce(STAGE, "started")
    end = ENDS.get(state or "", UNKNOWN)
    if config.when == "failure" and end == "SUCCEEDED":
        progress.announce(STAGE, "finished", "the run succeeded: nobody is told")
        return
    try:
        url = _url(config)
        promoted = _promoted(registry_config, name) if end in ("SUCCEEDED", UNKNOWN) else ""
        with requests.Session() as session:
            for scheme in ("http://", "https://"):
                session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=RETRIES))
            answer = session.post(url, json=payload(name, run or "", end, error or "", promoted), timeout=TIMEOUT)
        answer.raise_for_status()
    except InputError as problem:
        progress.announce(STAGE, "note", f"nobody was told: {problem}")
    except requests.RequestException as problem:  # its text holds the URL, which may be a secret
        status = problem.response.status_code if problem.response is not None else "no answer"
        progress.announce(STAGE, "note", f"nobody was told: the webhook failed ({type(problem).__name__}, {status})")
    progress.announce(STAGE, "finished", end)


def _url(config: Notify) -> str:
    if config.webhook:
        return config.webhook
    path = Path(WEBHOOK_FOLDER) / config.key
    try:
        url = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"cluster.notify: the secret {config.secret} is missing, or has no key {config.key}") from None
    if not url.startswith(("http://", "https://")):
        raise InputError(f"cluster.notify: key {config.key} of the secret {config.secret} is no URL of http or https")
    return url


def _promoted(config: Registry, name: str) -> str:
    """The champion's version if this run made it, else nothing."""
    try:
        backend = registry.connect(config)
        version = backend.alias(registry.CHAMPION)
        return version if version and backend.manifest(version).get("lineage", {}).get("name") == name else ""
    except InputError as problem:
        progress.announce(STAGE, "note", f"whether it was promoted is not known: {problem}")
        return ""
