"""`doctor` names each condition on a stub cluster that has it, and is content with a good one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from distilrank.core import artifacts
from pipelines import doctor, kubeflow, packages, submit
from pipelines.__main__ import main
from tests.clusters import compile_package, document_is_here
from tests.kfp_cluster import ClusterServer, ClusterStore, to_seconds
from tests.kfp_server import Document
from tests.kfp_worker import now

pytestmark = document_is_here
Rows = dict[str, tuple[str, str]]
"""Verdict and detail by condition."""
Doctor = Callable[..., tuple[int, Rows, str]]


@pytest.fixture(scope="module")
def document() -> Document:
    return Document()


@pytest.fixture
def cluster(document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterServer]:
    monkeypatch.setattr(kubeflow, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(doctor, "POLL_SECONDS", 0.1)
    for name in ("KFP_HOST", "KFP_NAMESPACE", "KFP_TOKEN_FILE", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    server = ClusterServer(document, tmp_path / "cluster", prefix="/pipeline")
    yield server
    server.close()
    assert server.store.problems == []


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder for all tests: what is compiled for a configuration is compiled once."""
    return tmp_path_factory.mktemp("volume")


@pytest.fixture
def settings(tmp_path: Path, volume: Path) -> dict:
    """A configuration that holds on the stub: its volume is a folder of this machine."""
    secret = tmp_path / "cluster" / "secrets" / "hub"
    secret.mkdir(parents=True)
    (secret / "token").write_text("secret")
    return {
        "data": {"source": "demo_shop"},
        "registry": {"uri": str(volume / "registry")},
        "cluster": {
            "images": {"ops": "registry.example.com/ops:1", "train": "registry.example.com/train:1"},
            "volumes": [{"claim": "shop", "path": str(volume)}],
            "secrets": [{"name": "hub", "env": {"token": "HUB_TOKEN"}}],
        },
    }


@pytest.fixture
def diagnose(
    cluster: ClusterServer,
    settings: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Doctor:
    """Run `doctor` with the settings: exit status, rows, and all that it printed."""

    monkeypatch.setattr(packages, "compile_package", compile_package)

    def diagnose(*arguments: object, host: str = "") -> tuple[int, Rows, str]:
        path = tmp_path / "shop.yaml"
        path.write_text(yaml.safe_dump(settings))
        options = ["--config", path, "--host", host or cluster.url, *arguments]
        monkeypatch.setattr(sys, "argv", ["pipelines", "doctor", *map(str, options)])
        status = 0
        try:
            main()
        except SystemExit as exit:
            status = int(exit.code or 0)
        shown = capsys.readouterr().out
        rows = {}
        for line in shown.splitlines():
            if line.split(" ")[0] in ("yes", "no", "unknown"):
                rows[line[9:38].strip()] = (line[:9].strip(), line[38:].strip())
        return status, rows, shown

    return diagnose


def test_a_good_cluster_passes_every_check_by_requests(cluster: ClusterServer, diagnose: Doctor) -> None:
    status, rows, shown = diagnose()
    assert status == 0 and shown.endswith("0 problems\n")
    assert {condition for condition, (verdict, _) in rows.items() if verdict != "yes"} == {"images"}
    assert rows["version"] == ("yes", "Kubeflow Pipelines 2.17.0")
    assert rows["experiment"] == ("yes", "distilrank does not exist; the first run creates it")
    assert cluster.store.writes == []


def forbid(store: ClusterStore, settings: dict) -> None:
    store.forbidden = {"RunService_ListRuns"}


def age(store: ClusterStore, settings: dict) -> None:
    store.tag_name = "2.4.1"


def silence(store: ClusterStore, settings: dict) -> None:
    store.tag_name = None


def relative_registry(store: ClusterStore, settings: dict) -> None:
    settings["registry"]["uri"] = "registry"


def private_registry(store: ClusterStore, settings: dict) -> None:
    settings["registry"]["uri"] = "/elsewhere/registry"


def relative_data(store: ClusterStore, settings: dict) -> None:
    settings["data"] = {"source": "home_depot", "path": "data/train.csv"}


def no_gpu(store: ClusterStore, settings: dict) -> None:
    settings["compute"] = {"device": "cuda"}


@pytest.mark.parametrize(
    ("change", "condition", "verdict", "detail"),
    [
        (forbid, "may list runs", "no", "no permission to list runs"),
        (age, "version", "no", "2.4.1"),
        (silence, "version", "unknown", "the server does not report it"),
        (relative_registry, "registry is shared", "no", "registry.uri registry: relative"),
        (private_registry, "registry is shared", "no", "on no volume"),
        (relative_data, "data locations", "no", "data.path data/train.csv"),
        (no_gpu, "configuration compiles", "no", "ask for no GPU"),
    ],
)
def test_a_condition_that_requests_can_check_is_named(
    cluster: ClusterServer,
    settings: dict,
    diagnose: Doctor,
    change: Callable[[ClusterStore, dict], None],
    condition: str,
    verdict: str,
    detail: str,
) -> None:
    change(cluster.store, settings)
    status, rows, shown = diagnose()
    assert rows[condition][0] == verdict and detail in rows[condition][1]
    assert status == (1 if verdict == "no" else 0)
    others = {name for name, (other, _) in rows.items() if other == "no" and name != condition}
    assert others == set() and "→ " in shown


def test_a_host_that_is_no_kubeflow_is_the_only_row(cluster: ClusterServer, diagnose: Doctor) -> None:
    status, rows, _ = diagnose(host=cluster.url.replace("/pipeline", "/elsewhere"))
    assert status == 1 and list(rows) == ["host responds"]
    assert "no Kubeflow Pipelines API there" in rows["host responds"][1]
    cluster.store.problems.clear()


def test_bad_input_is_no_condition_of_the_cluster(diagnose: Doctor, tmp_path: Path) -> None:
    assert diagnose("--file", tmp_path / "missing.yaml")[:2] == (2, {})
    assert diagnose("--experiment", "x" * 129)[:2] == (2, {})


def test_the_time_zone_is_that_of_the_last_tick(
    cluster: ClusterServer, diagnose: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "schedules.yaml"
    entry = {"name": "weekly", "pipeline": "monitor", "config": "shop.yaml", "cron": "0 3 * * *"}
    file.write_text(yaml.safe_dump({"owner": "shop", "timezone": "Asia/Tokyo", "schedules": [entry]}))
    assert diagnose("--file", file)[1]["time zone of schedules"][0] == "unknown"
    monkeypatch.setattr(sys, "argv", ["pipelines", "schedule", "apply", "--file", str(file), "--host", cluster.url])
    with pytest.raises(SystemExit, match="0"):
        main()
    store = cluster.store
    (recurring,) = store.recurring.values()
    recurring["mode"] = "DISABLE"  # so that nothing starts meanwhile
    run = {"run_id": "one", "experiment_id": recurring["experiment_id"], "display_name": "one", "created_at": now()}
    for zone_hours, verdict in ((9, "yes"), (0, "no")):
        tick = datetime(2026, 3, 1, 3, tzinfo=UTC) - timedelta(hours=zone_hours)
        store.runs["one"] = run | {
            "state": "SUCCEEDED",
            "recurring_run_id": recurring["recurring_run_id"],
            "scheduled_at": to_seconds(tick),
        }
        status, rows, _ = diagnose("--file", file)
        assert rows["time zone of schedules"][0] == verdict and status == (verdict == "no")


# With --run ----------------------------------------------------------------------------------------------------------


def test_a_good_cluster_runs_the_probes(cluster: ClusterServer, diagnose: Doctor) -> None:
    status, rows, shown = diagnose("--run")
    assert status == 0, shown
    # KFP's manifests give every template the policy OnError, and SIGTERM leaves half a second
    assert rows.pop("retried: exit status 1") == rows.pop("retried: SIGKILL") == ("no", "1 of 2 attempts")
    verdict, detail = rows.pop("time after SIGTERM")
    assert verdict == "no" and 0.0 <= float(detail.removesuffix(" s")) < 2.0
    assert {verdict for verdict, _ in rows.values()} == {"yes"}, shown
    expected_rows = ("image ops", "image train", "image has this version", "secret hub", "object store", "clocks agree")
    for condition in (*expected_rows, "data readable", "registry usable", "may submit runs"):
        assert condition in rows, shown
    states = {run["display_name"].split("-")[1]: run["state"] for run in cluster.store.runs.values()}
    assert states == {"probe": "SUCCEEDED", "exit": "FAILED", "kill": "FAILED", "wait": "FAILED"}


def test_a_bad_cluster_is_described_in_one_go(
    cluster: ClusterServer,
    settings: dict,
    diagnose: Doctor,
    volume: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster.store.retry_policy = "Always"
    cluster.store.missing_images = {"registry.example.com/train:1"}
    (tmp_path / "occupied").touch()
    settings["cluster"]["volumes"] += [{"claim": "root", "path": str(tmp_path / "occupied" / "folder")}]
    settings["cluster"]["secrets"] += [{"name": "trust", "env": {"ca": "TRUST_CA"}}]
    settings["data"] = {"source": "home_depot", "path": str(tmp_path / "missing.csv")}
    (volume / "file").touch()  # where a folder should be
    settings["registry"]["uri"] = str(volume / "file")
    monkeypatch.setattr(artifacts, "code_digest", lambda: "another")
    status, rows, shown = diagnose("--run", "--timeout-minutes", 0.5)
    assert status == 1
    for condition, detail in {
        "image train": 'ImagePullBackOff: Back-off pulling image "registry.example.com/train:1"',
        "image has this version": "the code differs",
        "volume root": "occupied/folder: NotADirectoryError",
        "secret trust": "TRUST_CA is missing",
        "data readable": "missing.csv",
        "registry usable": str(volume / "file"),
    }.items():
        assert rows[condition][0] == "no" and detail in rows[condition][1], shown
    assert rows["secret hub"][0] == "yes" and rows["object store"][0] == "yes"
    assert rows["retried: exit status 1"] == rows["retried: SIGKILL"] == ("yes", "2 of 2 attempts")
    assert all(run["state"] in (*submit.ENDED, "CANCELING") for run in cluster.store.runs.values())


def test_submitting_needs_a_right(cluster: ClusterServer, diagnose: Doctor) -> None:
    cluster.store.forbidden = {"RunService_CreateRun"}
    status, rows, _ = diagnose("--run")
    assert status == 1 and "no permission to create runs" in rows["may submit runs"][1]
    assert all(verdict != "no" for name, (verdict, _) in rows.items() if name != "may submit runs")


def test_the_probe_ends_as_instructed() -> None:
    """`kill` cannot be caught, and `exit` is an exception: how stages end that were out of memory or have a fault."""
    for how, code in (("kill", -9), ("exit", 1)):
        command = [sys.executable, "-c", f"from distilrank import probe; probe.end({how!r}, 0.0)"]
        assert subprocess.run(command, capture_output=True).returncode == code
