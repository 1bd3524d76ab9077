"""Who is told how a run ended, by a real HTTP server that is told."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import kube_config

from distilrank import notify
from distilrank.config import Notify, Registry
from tests import workflows
from tests.listener import Listener
from tests.promotions import LINEAGE, fill


class KubernetesApi(ThreadingHTTPServer):
    """The two requests that a message takes: a workflow, and the log of a pod's container `main`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), KubernetesHandler)
        self.workflows: dict[str, Any] = {}
        self.logs: dict[str, str] = {}
        self.status = 200

    def __enter__(self) -> KubernetesApi:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def write_kubeconfig(self, path: Path) -> None:
        server = f"http://127.0.0.1:{self.server_address[1]}"
        context = {"cluster": "c", "user": "u", "namespace": "search"}
        values = {
            "current-context": "x",
            "contexts": [{"name": "x", "context": context}],
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {}}],
        }
        path.write_text(json.dumps(values))


class KubernetesHandler(BaseHTTPRequestHandler):
    server: KubernetesApi

    def do_GET(self) -> None:
        *_, kind, name = [*self.path.removesuffix("/log?container=main").split("/")]
        prefix = {
            "workflows": "/apis/argoproj.io/v1alpha1/namespaces/search/workflows/",
            "pods": "/api/v1/namespaces/search/pods/",
        }
        assert self.path.startswith(prefix[kind])
        content = json.dumps(self.server.workflows[name]) if kind == "workflows" and self.server.status == 200 else ""
        status = self.server.status
        if kind == "pods":
            content, status = self.server.logs.get(name, ""), 200 if name in self.server.logs else 404
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if kind == "workflows" else "text/plain")
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        yield server


@pytest.fixture
def kubernetes_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """What a pod of a run can ask of Kubernetes."""
    with KubernetesApi() as server:
        server.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("KFP_POD_NAME", "this-pod")
        yield server


def tell(config: Notify, tmp_path: Path, state: str | None = "SUCCEEDED", error: str | None = "") -> None:
    empty = Registry(uri=str(tmp_path / "registry"))
    notify.notify(config, empty, name="weekly", run="runs/4711", state=state, error=error)


def tell_from_cluster(config: Notify, tmp_path: Path) -> None:
    """What Kubeflow's exit handler does: it knows no end and no error."""
    registry = Registry(uri=str(tmp_path / "registry"))
    notify.notify(config, registry, name="weekly", run=workflows.NAME, state="UNKNOWN", error="")


def test_the_payload_describes_what_happened(listener: Listener, tmp_path: Path) -> None:
    tell(Notify(webhook=listener.url), tmp_path, "FAILED", "teacher: out of memory")
    assert listener.posts == [
        {
            "version": 1,
            "text": "distilrank weekly: failed: teacher: out of memory",
            "name": "weekly",
            "run": "runs/4711",
            "state": "FAILED",
            "outcome": None,
            "error": "teacher: out of memory",
            "hint": "",
            "promoted": None,
        }
    ]


DONE = ("Succeeded", "")
DISK_FULL = "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi."
GATE = "distilrank | gate | outcome | "
ENDS: list[tuple[dict[str, tuple[str, str]], dict[str, str], dict[str, Any]]] = [
    (
        {"decide": DONE, "promote-student": DONE},
        {
            "decide": GATE + '{"outcome": "promoted", "candidate": "v1", "champion": "v0", "failed": []}',
            "promote-student": 'distilrank | promote | outcome | {"version": "v1", "previous": "v0"}',
        },
        {"text": "distilrank weekly: promoted v1", "state": "SUCCEEDED", "outcome": "promoted", "promoted": "v1"},
    ),
    (
        {"decide": DONE},
        {"decide": GATE + '{"outcome": "refused", "candidate": "v1", "champion": "v0", "failed": ["drift"]}'},
        {"text": "distilrank weekly: the student was refused (drift)", "outcome": "refused", "promoted": None},
    ),
    (
        {"decide": DONE},
        {"decide": GATE + '{"outcome": "unchanged", "candidate": "v1", "champion": "v1", "failed": []}'},
        {"text": "distilrank weekly: unchanged: the student is the champion v1 itself", "outcome": "unchanged"},
    ),
    (
        {
            "evaluate-student": (
                "Failed",
                "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi.",
            )
        },
        {},
        {
            "state": "FAILED",
            "error": f"evaluate: evicted: {DISK_FULL}",
            "hint": "the node was short of memory or disk; `kubectl describe node` says which",
        },
    ),
    (
        {"check-inputs": ("Failed", "main: Error (exit code 1)")},
        {"check-inputs": "distilrank | preflight | bad input | a.csv: no such file\nTraceback"},
        {
            "text": "distilrank weekly: failed: preflight: bad input: a.csv: no such file",
            "error": "preflight: bad input: a.csv: no such file",
        },
    ),
]


@pytest.mark.parametrize(("tasks", "logs", "expected"), ENDS)
def test_the_message_states_how_the_run_ended_and_why(
    listener: Listener,
    tmp_path: Path,
    kubernetes_api: KubernetesApi,
    tasks: dict[str, tuple[str, str]],
    logs: dict[str, str],
    expected: dict[str, Any],
) -> None:
    argo = workflows.manifest({name: [pair] for name, pair in tasks.items()}, phase="Running")
    kubernetes_api.workflows[workflows.NAME] = argo
    kubernetes_api.logs = {workflows.pod(argo, name).pod: text for name, text in logs.items()}
    tell_from_cluster(Notify(webhook=listener.url), tmp_path)
    (post,) = listener.posts
    assert {key: post[key] for key in expected} == expected
    tell_from_cluster(Notify(webhook=listener.url, when="failure"), tmp_path)
    assert len(listener.posts) == (2 if expected.get("state") == "FAILED" or expected.get("error") else 1)


def test_a_message_is_sent_even_if_the_cluster_reports_nothing(
    listener: Listener, tmp_path: Path, kubernetes_api: KubernetesApi, capsys: pytest.CaptureFixture[str]
) -> None:
    kubernetes_api.status = 403
    tell_from_cluster(Notify(webhook=listener.url), tmp_path)
    assert listener.posts[0]["text"] == "distilrank weekly: ended, and nothing says how"
    assert "the run's workflow cannot be read: ApiException: Forbidden" in capsys.readouterr().out


def test_a_promotion_is_reported_by_the_run_that_made_it(listener: Listener, tmp_path: Path) -> None:
    config = Registry(uri=str(tmp_path / "registry"))
    (version,) = fill(config, tmp_path, "a")
    for name in (LINEAGE["name"], "another"):
        notify.notify(Notify(webhook=listener.url), config, name=name, run="runs/1", state="SUCCEEDED", error="")
    assert [post["promoted"] for post in listener.posts] == [version, None]
    assert listener.posts[0]["text"] == f"distilrank nightly: succeeded, promoted {version}"


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("COMPLETE", "SUCCEEDED"),  # the metadata store's word, which the cluster's backend passes on
        ("CANCELED", "CANCELLED"),
        ("RUNNING", "UNKNOWN"),
        (None, "UNKNOWN"),
    ],
)
def test_an_outcome_has_one_name_whatever_kubeflow_calls_it(
    listener: Listener, tmp_path: Path, status: str | None, state: str
) -> None:
    tell(Notify(webhook=listener.url), tmp_path, status, None)
    assert [(post["state"], post["error"]) for post in listener.posts] == [(state, "")]
    tell(Notify(webhook=listener.url, when="failure"), tmp_path, status, None)
    assert len(listener.posts) == (1 if state == "SUCCEEDED" else 2)


def test_a_busy_server_is_asked_again(listener: Listener, tmp_path: Path) -> None:
    listener.statuses = [503, 429, 204]
    tell(Notify(webhook=listener.url), tmp_path)
    assert len(listener.posts) == 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(
    listener: Listener, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    with Listener() as elsewhere:
        origin = elsewhere.url.removesuffix("/hook")
        listener.statuses, listener.headers = [status], {"Location": f"{elsewhere.url}?token=secret"}
        tell(Notify(webhook=listener.url), tmp_path)
        assert elsewhere.requests == [] and listener.requests == ["POST /hook"]
    log = capsys.readouterr().out
    assert (
        f"the notification was not delivered: the webhook redirects to {origin} ({status}), expected the final URL"
        in log
    )
    assert "secret" not in log


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("/hook/", "another path of the same server"),
        ("", "another path of the same server"),
        ("https://user:secret@example.com/secret", "https://example.com "),
        ("//example.com:8443/secret", "http://example.com:8443 "),
        ("http://[secret", "an invalid URL"),
        ("http://example.com:secret/", "an invalid URL"),
    ],
)
def test_only_the_origin_of_a_redirect_is_shown(
    listener: Listener, tmp_path: Path, capsys: pytest.CaptureFixture[str], location: str, shown: str
) -> None:
    listener.statuses, listener.headers = [302], {"Location": location}
    tell(Notify(webhook=listener.url), tmp_path)
    log = capsys.readouterr().out
    assert f"the webhook redirects to {shown}" in log and "secret" not in log and "127.0.0.1" not in log
    assert listener.requests == ["POST /hook"]


def drip(text: bytes, seconds: float, sent: list[bytes]) -> Iterator[bytes]:
    for byte in text:
        time.sleep(seconds)
        sent.append(bytes([byte]))
        yield sent[-1]


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX-Endless: "])
def test_a_server_that_sends_a_byte_at_a_time_ends_at_the_time_limit(
    listener: Listener,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    start: bytes,
) -> None:
    monkeypatch.setattr(notify, "TIME_LIMIT", 1.0)
    answer = b"HTTP/1.1 200 OK\r\n" + b"X-Padding: " + b"x" * 500
    sent: list[bytes] = []
    listener.raw = itertools.chain([start] if start else [], drip(answer, 0.15, sent))
    tell(Notify(webhook=listener.url), tmp_path)
    assert len(sent) < len(answer) and len(listener.posts) == 1
    assert "the notification was not delivered: the webhook did not answer within 1 s" in capsys.readouterr().out


def test_a_wait_beyond_the_time_limit_is_not_started(
    listener: Listener, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listener.statuses, listener.headers = [429], {"Retry-After": "3600"}
    tell(Notify(webhook=listener.url), tmp_path)  # or it would still wait
    assert len(listener.posts) == 1
    assert "the notification was not delivered: the webhook failed (HTTPError, 429)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "is_delivered"), [("200 OK", True), ("404 Not Found", False), ("302 Found\r\nLocation: /", False)]
)
def test_an_endless_answer_is_not_read(
    listener: Listener, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: str, is_delivered: bool
) -> None:
    sent: list[int] = []

    def endless() -> Iterator[bytes]:
        yield f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\n\r\n".encode()
        while sum(sent) < 2**30:
            yield bytes(2**16)
            sent.append(2**16)

    listener.raw = endless()
    tell(Notify(webhook=listener.url), tmp_path)
    assert len(listener.posts) == 1
    assert ("the notification was not delivered" not in capsys.readouterr().out) == is_delivered
    assert sum(sent) < 2**25  # what the sockets' buffers hold


def test_only_failures_are_sent_when_configured_so(listener: Listener, tmp_path: Path) -> None:
    notify_config = Notify(webhook=listener.url, when="failure")
    tell(notify_config, tmp_path)
    assert listener.posts == []
    tell(notify_config, tmp_path, "CANCELLED")
    assert [post["state"] for post in listener.posts] == ["CANCELLED"]


def test_the_url_of_a_secret_is_read_and_never_printed(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notify, "WEBHOOK_FOLDER", str(tmp_path))
    (tmp_path / "url").write_text(listener.url + "\n")
    listener.statuses = [404]
    tell(Notify(secret="chat"), tmp_path)
    output = capsys.readouterr().out
    assert (
        len(listener.posts) == 1 and "the notification was not delivered: the webhook failed (HTTPError, 404)" in output
    )
    assert listener.url not in output and "127.0.0.1" not in output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the secret chat is missing, or has no key url"),
        ("ftp://x", "key url of the secret chat is not an http or https URL"),
    ],
)
def test_a_secret_that_cannot_be_used_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    message: str,
) -> None:
    monkeypatch.setattr(notify, "WEBHOOK_FOLDER", str(tmp_path))
    if content:
        (tmp_path / "url").write_text(content)
    tell(Notify(secret="chat"), tmp_path)
    assert f"the notification was not delivered: cluster.notify: {message}" in capsys.readouterr().out
