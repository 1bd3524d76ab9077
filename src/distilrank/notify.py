"""Notification of how a run ended: one HTTP POST, whose payload docs/operations.md describes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from distilrank import registry, workflow
from distilrank.config import WEBHOOK_FOLDER, Notify, Registry
from distilrank.core import artifacts, kubernetes_api, progress
from distilrank.core.errors import InputError
from distilrank.workflow import SUCCEEDED, UNKNOWN, Cause, Failure, Node, RunEnd

STAGE = "notify"
VERSION = 1
"""Version of the payload; it changes when a key changes its meaning or is removed."""
TIMEOUT = (5, 20)  # seconds to connect, and to wait for the next bytes of an answer
TIME_LIMIT = 60.0
"""Seconds for the whole exchange with the webhook: all attempts, the pauses between them, and slow responses."""
PAUSES = (0, 2, 4, 8)
"""Seconds before each repeated attempt; a number in the response's Retry-After takes precedence."""
BUSY = (429, 500, 502, 503, 504)
"""HTTP statuses after which the message is posted again."""
ENDS = {
    "SUCCEEDED": "SUCCEEDED",
    "COMPLETE": "SUCCEEDED",
    "CACHED": "SUCCEEDED",
    "FAILED": "FAILED",
    "CANCELLED": "CANCELLED",
    "CANCELED": "CANCELLED",
}
"""States of a run by the names that Kubeflow's backends and its local runner use."""


def payload(name: str, run: str, end: RunEnd, promoted: str) -> dict[str, Any]:
    """Return the payload; `text` is the line that chat services show."""
    text = end.summary if not promoted or end.version else f"{end.summary}, promoted {promoted}"
    return {
        "version": VERSION,
        "text": f"distilrank {name}: {text}",
        "name": name,
        "run": run,
        "state": end.state,
        "outcome": end.outcome or None,
        "error": end.error,
        "hint": next((failure.hint for failure in end.failures if failure.hint), ""),
        "promoted": end.version or promoted or None,
    }


def notify(
    config: Notify,
    registry_config: Registry,
    *,
    name: str,
    run: str | None,
    state: str | None,
    error: str | None,
) -> None:
    """Post how a run ended. A failed delivery is only logged, so that it does not fail a successful run.

    Args:
        config: the recipient; the URL of a Secret is in the file `WEBHOOK_FOLDER`/`config.key`.
        registry_config: registry of a promoted student.
        name: name of the run, which its promoted version carries.
        run: name of the Argo workflow, if the run has one.
        state: Kubeflow's final state; it counts only if the workflow cannot be read.
        error: Kubeflow's error message, if there is one.
    """
    progress.log_event(STAGE, "started")
    end = _from_cluster(run or "") or _from_status(state or "", error or "")
    if config.when == "failure" and end.state == SUCCEEDED:
        progress.log_event(STAGE, "finished", "the run succeeded: no notification is sent")
        return
    try:
        url = _url(config)
        promoted = _promoted(registry_config, name) if end.state in (SUCCEEDED, UNKNOWN) and not end.decisions else ""
        _deliver(url, payload(name, run or "", end, promoted))
    except InputError as problem:
        progress.log_event(STAGE, "note", f"the notification was not delivered: {problem}")
    except requests.RequestException as problem:  # its text holds the URL, which may be a secret
        status = problem.response.status_code if problem.response is not None else "no answer"
        progress.log_event(
            STAGE,
            "note",
            f"the notification was not delivered: the webhook failed ({type(problem).__name__}, {status})",
        )
    progress.log_event(STAGE, "finished", end.summary)


class _Session(requests.Session):
    """A session that follows no redirect: most turn a POST into a GET without content, and 307 reposts to any server.

    `allow_redirects=False` is not enough: requests would still read the whole body and parse the target.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def _deliver(url: str, content: dict[str, Any]) -> None:
    """Post `content` to `url` within `TIME_LIMIT` seconds, and follow no redirect.

    The timeouts of `requests` apply to single reads, so neither a server that sends a byte per second nor a name lookup
    exceeds them. The exchange runs in a thread, which is abandoned when the time is up.

    Raises:
        InputError: the webhook redirects, or the time is up.
        requests.RequestException: the webhook is unreachable, or refuses.
    """
    problems: list[Exception] = []

    def exchange() -> None:
        try:
            _post(url, content, time.monotonic() + TIME_LIMIT)
        except Exception as problem:  # raised again below
            problems.append(problem)

    thread = threading.Thread(target=exchange, name="webhook", daemon=True)
    thread.start()
    thread.join(TIME_LIMIT)
    if thread.is_alive():
        raise InputError(f"the webhook did not answer within {TIME_LIMIT:.0f} s")
    if problems:
        raise problems[0]


def _post(url: str, content: dict[str, Any], deadline: float) -> None:
    """Post until the webhook accepts or refuses, or the attempts are used up; no body of a response is read."""
    for pause in (*PAUSES, None):
        try:
            with _Session() as session, session.post(url, json=content, timeout=TIMEOUT, stream=True) as answer:
                if 300 <= answer.status_code < 400:
                    target = _describe_target(url, answer.headers.get("Location", ""))
                    raise InputError(
                        f"the webhook redirects to {target} ({answer.status_code}), expected the final URL"
                    )
                answer.raise_for_status()
                return
        except (requests.ConnectionError, requests.Timeout, requests.HTTPError) as problem:
            refusal = problem.response
            if refusal is not None and refusal.status_code not in BUSY:
                raise
            asked = refusal.headers.get("Retry-After", "") if refusal is not None else ""
            seconds = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 9 else pause
            if pause is None or seconds is None or time.monotonic() + seconds > deadline:
                raise
        time.sleep(seconds)


def _describe_target(url: str, location: str) -> str:
    """Return scheme and host of a redirect; the path may be a secret, as in the URL itself."""
    try:
        source, target = urlsplit(url), urlsplit(urljoin(url, location))
        port = f":{target.port}" if target.port else ""
    except ValueError:
        return "an invalid URL"
    host = target.hostname or ""
    if not location or (target.scheme, target.netloc) == (source.scheme, source.netloc):
        return "another path of the same server"
    origin = f"{target.scheme}://{host}{port}"
    return origin if origin.isprintable() and len(origin) < 200 else "an invalid URL"


def _from_status(state: str, error: str) -> RunEnd:
    """Derive how the run ended from Kubeflow's final status, which is FAILED only for a first stage."""
    failures = (Failure("", Cause.CRASHED, error),) if error else ()
    return RunEnd(ENDS.get(state, UNKNOWN), failures)


def _from_cluster(run: str) -> RunEnd | None:
    """Read how the run ended from its Argo workflow and the logs of its pods; None if they cannot be read.

    Kubeflow's own role for the pods of runs allows both (kubeflow/pipelines 2.17.0, pipeline-runner-role.yaml).
    """
    if not run or artifacts.POD_NAME not in os.environ:
        return None
    try:
        from kubernetes.client import CoreV1Api, CustomObjectsApi

        client, namespace = kubernetes_api.connect()
        answer = CustomObjectsApi(client).get_namespaced_custom_object(
            "argoproj.io", "v1alpha1", namespace, "workflows", run, _request_timeout=TIMEOUT
        )
        core = CoreV1Api(client)
    except Exception as problem:  # of many libraries; the notification must be sent in any case
        progress.log_event(STAGE, "note", f"the run's workflow cannot be read: {_brief(problem)}")
        return None

    def log(node: Node) -> str:
        try:
            read = core.read_namespaced_pod_log(
                node.pod, namespace, container="main", _preload_content=False, _request_timeout=TIMEOUT
            )
            return bytes(read.data).decode("utf-8", "replace")
        except Exception as problem:
            progress.log_event(STAGE, "note", f"the log of {node.stage} cannot be read: {_brief(problem)}")
            return ""

    return workflow.read(workflow.unpacked(answer), log, has_ended=True)


def _brief(problem: Exception) -> str:
    return f"{type(problem).__name__}: {getattr(problem, 'reason', None) or problem}"[:200]


def _url(config: Notify) -> str:
    if config.webhook:
        return config.webhook
    path = Path(WEBHOOK_FOLDER) / config.key
    try:
        url = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"cluster.notify: the secret {config.secret} is missing, or has no key {config.key}") from None
    if not url.startswith(("http://", "https://")):
        raise InputError(f"cluster.notify: key {config.key} of the secret {config.secret} is not an http or https URL")
    return url


def _promoted(config: Registry, name: str) -> str:
    """Return the champion's version if this run promoted it, otherwise an empty text."""
    try:
        backend = registry.connect(config)
        version = backend.alias(registry.CHAMPION)
        return version if version and backend.manifest(version).get("lineage", {}).get("name") == name else ""
    except InputError as problem:
        progress.log_event(STAGE, "note", f"it is unknown whether the student was promoted: {problem}")
        return ""
