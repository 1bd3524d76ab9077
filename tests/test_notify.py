"""Who is told how a run ended, by a real HTTP server that is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distilrank import notify
from distilrank.config import Notify, Registry
from tests.listener import Listener
from tests.promotions import LINEAGE, fill


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        yield server


def tell(config: Notify, tmp_path: Path, state: str | None = "SUCCEEDED", error: str | None = "") -> None:
    empty = Registry(uri=str(tmp_path / "registry"))
    notify.notify(config, empty, name="weekly", run="runs/4711", state=state, error=error)


def test_the_payload_says_what_happened(listener: Listener, tmp_path: Path) -> None:
    tell(Notify(webhook=listener.url), tmp_path, "FAILED", "teacher: out of memory")
    assert listener.posts == [
        {
            "version": 1,
            "text": "distilrank weekly: failed: teacher: out of memory",
            "name": "weekly",
            "run": "runs/4711",
            "state": "FAILED",
            "error": "teacher: out of memory",
            "promoted": None,
        }
    ]


def test_a_promotion_is_told_by_the_run_that_made_it(listener: Listener, tmp_path: Path) -> None:
    config = Registry(uri=str(tmp_path / "registry"))
    (version,) = fill(config, tmp_path, "a")
    for name in (LINEAGE["name"], "another"):
        notify.notify(Notify(webhook=listener.url), config, name=name, run="runs/1", state="SUCCEEDED", error="")
    assert [post["promoted"] for post in listener.posts] == [version, None]
    assert listener.posts[0]["text"] == f"distilrank nightly: succeeded, promoted {version}"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("COMPLETE", "SUCCEEDED"),  # the metadata store's word, which the cluster's backend passes on
        ("CANCELED", "CANCELLED"),
        ("RUNNING", "UNKNOWN"),
        (None, "UNKNOWN"),
    ],
)
def test_an_end_has_one_name_whatever_kubeflow_calls_it(
    listener: Listener, tmp_path: Path, said: str | None, told: str
) -> None:
    tell(Notify(webhook=listener.url), tmp_path, said, None)
    assert [(post["state"], post["error"]) for post in listener.posts] == [(told, "")]
    tell(Notify(webhook=listener.url, when="failure"), tmp_path, said, None)
    assert len(listener.posts) == (1 if told == "SUCCEEDED" else 2)


def test_a_busy_server_is_asked_again(listener: Listener, tmp_path: Path) -> None:
    listener.statuses = [503, 429, 204]
    tell(Notify(webhook=listener.url), tmp_path)
    assert len(listener.posts) == 3


def test_only_failures_where_only_they_are_wanted(listener: Listener, tmp_path: Path) -> None:
    wanted = Notify(webhook=listener.url, when="failure")
    tell(wanted, tmp_path)
    assert listener.posts == []
    tell(wanted, tmp_path, "CANCELLED")
    assert [post["state"] for post in listener.posts] == ["CANCELLED"]


def test_the_url_of_a_secret_is_read_and_never_printed(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notify, "WEBHOOK_FOLDER", str(tmp_path))
    (tmp_path / "url").write_text(listener.url + "\n")
    listener.statuses = [404]
    tell(Notify(secret="chat"), tmp_path)
    said = capsys.readouterr().out
    assert len(listener.posts) == 1 and "nobody was told: the webhook failed (HTTPError, 404)" in said
    assert listener.url not in said and "127.0.0.1" not in said


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "the secret chat is missing, or has no key url"), ("ftp://x", "key url of the secret chat is no URL")],
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
    assert f"nobody was told: cluster.notify: {message}" in capsys.readouterr().out
