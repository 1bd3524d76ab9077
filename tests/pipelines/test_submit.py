"""Runs on a cluster, and the connection to it, against a server that allows only what KFP's document has."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp
import pytest
import tenacity
import yaml

from distilrank import workflow
from pipelines import kubeflow, submit
from tests import workflows
from tests.clusters import CONFIG, REGISTRY, Run, document_is_here, run, server
from tests.kfp_server import Entity, Fault, Server

__all__ = ["run", "server"]
pytestmark = document_is_here
Story = Callable[[Entity], None]
SUBMIT = ("submit", "--config", CONFIG, "--set", REGISTRY)


@pytest.fixture
def schedules_file(tmp_path: Path) -> Path:
    """Of no schedule: `schedule delete` needs nothing but the connection."""
    path = tmp_path / "schedules.yaml"
    path.write_text("owner: shop\nschedules: []\n")
    return path


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "POLL_SECONDS", 0.0)


def becomes(state: str, **tasks: str) -> Story:
    """A moment in a run's life: its state, and those of its tasks, none of which ever has an error."""

    def change(stored_run: Entity) -> None:
        names = {name: name.replace("_", "-") for name in tasks}
        details = [
            {"run_id": stored_run["run_id"], "task_id": name, "display_name": names[name], "state": task_state}
            for name, task_state in tasks.items()
        ]
        stored_run |= {"state": state, "run_details": {"task_details": details}}

    return change


# The connection ----------------------------------------------------------------------------------------------------


def test_a_token_is_read_before_each_request(tmp_path: Path, server: Server, run: Run, schedules_file: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    server.store.token = "first"

    def rotate(operation: str) -> None:
        if "List" in operation and server.store.token == "first":
            token.write_text("second")
            server.store.token = "second"
            return Fault(503)
        return None

    server.store.fault = rotate
    assert run("schedule", "delete", "--file", schedules_file, "--token-file", token)[0] == 0
    assert server.store.token == "second"


def test_the_projected_token_is_found(
    tmp_path: Path, server: Server, run: Run, schedules_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.store.token = "projected"
    (tmp_path / "token").write_text("projected\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert run("schedule", "delete", "--file", schedules_file)[0] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--token-file {path}: not readable (No such file or directory)"),
        ("", "--token-file {path}: expected a single bearer token and nothing else"),
        ("<html> sign in", "--token-file {path}: expected a single bearer token and nothing else"),
        ("old", "{host}: refuses the token in {path} (401: Request header error: there is no user identity header.)"),
    ],
)
def test_a_token_that_does_not_serve_is_named(
    tmp_path: Path, server: Server, run: Run, schedules_file: Path, content: str | None, message: str
) -> None:
    server.store.token = "new"
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    status, out, err = run("schedule", "delete", "--file", schedules_file, "--token-file", path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: " + message.format(path=path, host=server.url))


def test_a_missing_token_is_asked_for(server: Server, run: Run, schedules_file: Path) -> None:
    server.store.token = "new"
    assert re.search(
        r"refuses requests without a token \(401.*--token-file", run("schedule", "delete", "--file", schedules_file)[2]
    )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(200, body="<html>Sign in</html>", after=True), "the response is not that of a Kubeflow Pipelines API"),
        (Fault(302, headers={"Location": "https://dex/auth"}), "redirects requests to https://dex/auth; expected"),
        (Fault(404, body="<html>"), "no Kubeflow Pipelines API there (404); expected the API's own URL"),
        (Fault(403), "no permission to get healthz (403: as asked)"),
    ],
)
def test_what_is_not_the_api_is_one_line(
    server: Server, run: Run, schedules_file: Path, fault: Fault, message: str
) -> None:
    server.store.fault = lambda operation: fault
    status, out, err = run("schedule", "delete", "--file", schedules_file)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {server.url}: {message}")


def test_an_unreachable_host_is_one_line(server: Server, run: Run, schedules_file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        status, out, err = run("schedule", "delete", "--file", schedules_file, host=url)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {url}: unreachable (Failed to establish a new connection: [Errno 111]")
    assert run("schedule", "delete", "--file", schedules_file, host="kubeflow.example.com")[2] == (
        "error: --host kubeflow.example.com: expected a URL such as https://kubeflow.example.com/pipeline\n"
    )
    assert run("schedule", "delete", "--file", schedules_file, host="https://kubeflow:99999")[2].startswith(
        "error: --host https://kubeflow:99999: expected a URL"
    )
    secure = server.url.replace("http:", "https:")
    err = run("schedule", "delete", "--file", schedules_file, host=secure)[2]
    assert err.startswith(f"error: {secure}: no trusted TLS connection (") and "--ca-file" in err


# The server's version ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.17.0", "2.17.3", "v2.18", "3.0.0-rc.1"])
def test_a_server_that_is_new_enough_is_not_mentioned(server: Server, run: Run, version: str) -> None:
    server.store.tag_name = version
    status, out, _ = run(*SUBMIT, "--no-wait", "--name", "x")
    assert (status, len(out.splitlines())) == (0, 1)


@pytest.mark.parametrize("version", ["2.4.0", "2.13", "v2.16.1"])
def test_a_server_that_is_too_old_is_refused(server: Server, run: Run, version: str) -> None:
    server.store.tag_name = version
    status, out, err = run(*SUBMIT, "--no-wait")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"is Kubeflow Pipelines {version}, expected 2.17.0 or newer, for it lacks what came with " in err
    assert server.store.writes == []


@pytest.mark.parametrize("version", ["unknown", "", "b6ac35a1d8f0c8cbd0b6b2b2dd94c8de5cf26d4e", None])
def test_a_server_that_does_not_say_its_version_is_noted(server: Server, run: Run, version: str | None) -> None:
    server.store.tag_name = version
    status, out, _ = run(*SUBMIT, "--no-wait", "--name", "x")
    assert (status, len(out.splitlines())) == (0, 2)
    assert out.startswith(
        f"{server.url} does not say which version it is (tag_name {version or ''!r}); expected Kubeflow Pipelines 2.17"
    )


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("2.17.0", (2, 17, 0)), ("v2.5", (2, 5, 0)), ("2.16.0-rc.1", (2, 16, 0)), ("unknown", None), ("20261130", None)],
)
def test_a_version_is_read(text: str, numbers: tuple[int, int, int] | None) -> None:
    assert kubeflow.version_numbers(text) == numbers
    missing = kubeflow.missing_features(text)
    assert (missing is None) == (numbers is None) and (text != "2.17.0" or missing == [])


# What Kubeflow's database holds -----------------------------------------------------------------------------------


def test_a_name_that_the_database_would_refuse_is_refused_first(server: Server, run: Run) -> None:
    status, out, err = run(*SUBMIT, "--no-wait", "--name", "n" * 256)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.endswith("...: 256 characters, expected at most 255\n") and err.startswith("error: --name nnn")
    assert run(*SUBMIT, "--experiment", "e" * 129)[2].endswith("...: 129 characters, expected at most 128\n")
    assert server.store.requests == []
    assert run(*SUBMIT, "--no-wait", "--name", "n" * 255, "--experiment", "e" * 128)[0] == 0
    (row,) = server.store.runs.values()
    assert len(row["description"]) <= 255


def test_a_run_that_the_database_missed_is_not_started_twice(server: Server, run: Run) -> None:
    server.store.database_down = 9
    status, _, err = run(*SUBMIT, "--no-wait", "--name", "weekly")
    assert (status, err.count("\n")) == (1, 1)
    assert "cannot create runs now (500: Failed to create a run: " in err
    assert err.endswith(
        "; it may have left an object in Kubernetes that the API does not list: kubectl get workflows "
        "--namespace NAMESPACE\n"
    )
    assert list(server.store.created_workflows.values()) == ["weekly"]


def test_slow_answers_are_not_waited_for_indefinitely(
    server: Server, run: Run, schedules_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubeflow, "TIMEOUT", (0.1, 0.1))
    slow = [Fault(200, delay=0.5)]
    server.store.fault = lambda operation: slow.pop() if slow else None
    assert run("schedule", "delete", "--file", schedules_file)[0] == 0
    server.store.fault = lambda operation: Fault(200, delay=0.3)
    status, _, err = run("schedule", "delete", "--file", schedules_file)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"failed: {server.url}: no response in 5 attempts (Read timed out.")


def test_pauses_are_as_long_as_the_server_asks(
    server: Server, run: Run, schedules_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    monkeypatch.setattr(tenacity.nap, "time", type("Clock", (), {"sleep": staticmethod(rests.append)}))
    answers = [Fault(429, headers={"Retry-After": "7"}), Fault(503), Fault(429, headers={"Retry-After": "86400"})]
    server.store.fault = lambda operation: answers.pop() if answers else None
    assert run("schedule", "delete", "--file", schedules_file)[0] == 0
    assert rests == [kubeflow.LONGEST_PAUSE, 0.0, 7.0]
    server.store.fault = lambda operation: Fault(429, headers={"Retry-After": "soon"})
    assert run("schedule", "delete", "--file", schedules_file)[2] == (
        f"failed: {server.url}: cannot get healthz now (429: as asked)\n"
    )


# Submitting --------------------------------------------------------------------------------------------------------


def test_a_run_is_started_and_its_address_is_printed(tmp_path: Path, server: Server, run: Run) -> None:
    settings = ("--set", "cluster.service_account=runner", "--set", "cluster.pipeline_root=gs://bucket/runs")
    status, out, _ = run(*SUBMIT, *settings, "--name", "first", "--no-wait")
    ((number, stored_run),) = server.store.runs.items()
    assert (status, out) == (0, f"distill first: {server.url}/#/runs/details/{number}\n")
    assert stored_run["runtime_config"] == {"parameters": {"name": "first"}, "pipeline_root": "gs://bucket/runs"}
    assert (stored_run["display_name"], stored_run["service_account"]) == ("first", "runner")
    assert [each["display_name"] for each in server.store.experiments.values()] == ["distilrank"]
    run(*SUBMIT, *settings, "--name", "second", "--no-wait")
    assert (len(server.store.runs), len(server.store.versions)) == (2, 1)
    run(*SUBMIT, *settings, "--name", "third", "--no-wait", "--no-cache")
    assert (len(server.store.runs), len(server.store.versions)) == (3, 2)
    fresh = yaml.safe_load_all(list(server.store.contents.values())[-1])
    specification = next(iter(fresh))
    graphs = [
        component["dag"]
        for component in (specification["root"], *specification["components"].values())
        if "dag" in component
    ]
    tasks = [task for graph in graphs for task in graph["tasks"].values()]
    assert tasks and not any(task["cachingOptions"] for task in tasks)


def test_a_lost_answer_starts_no_second_run(server: Server, run: Run) -> None:
    lost = [Fault(after=True)]
    server.store.fault = lambda operation: lost.pop() if operation.endswith("CreateRun") and lost else None
    assert run(*SUBMIT, "--no-wait")[0] == 0
    assert len(server.store.runs) == 1 and not lost


def test_a_pipeline_that_somebody_else_uploaded_first_is_used(server: Server, run: Run) -> None:
    def race(operation: str) -> None:
        if operation.endswith("CreatePipeline") and not server.store.pipelines:
            server.store.CreatePipeline({}, {"name": "distilrank-distill", "display_name": "distilrank-distill"})

    server.store.fault = race
    assert run(*SUBMIT, "--no-wait")[0] == 0
    assert len(server.store.pipelines) == 1
    assert server.store.requests.count("PipelineService_CreatePipeline") == 1


def test_what_is_forbidden_is_named_with_the_grant(server: Server, run: Run) -> None:
    server.store.forbidden = {"RunService_CreateRun"}
    status, _, err = run(*SUBMIT, "--no-wait")
    assert (status, err.count("\n")) == (2, 1)
    assert (
        "no permission to create runs (403" in err and "grant this account create on runs.pipelines.kubeflow.org" in err
    )


PREPARED = {"check_inputs": "SUCCEEDED", "prepare_data": "SUCCEEDED"}


def test_waiting_shows_the_stages_and_ends_with_success(server: Server, run: Run) -> None:
    server.store.stories = [
        [
            becomes("PENDING"),
            becomes("RUNNING", root="RUNNING", check_inputs_driver="SUCCEEDED", check_inputs="RUNNING"),
            becomes("RUNNING", check_inputs="SUCCEEDED", prepare_data="RUNNING"),
            becomes("SUCCEEDED", **PREPARED, promote_student="SUCCEEDED"),
        ]
    ]
    status, out, _ = run(*SUBMIT, "--fail-on-refusal")
    assert status == 0
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["preflight", "running"],
        ["preflight", "succeeded"],
        ["prepare", "running"],
        ["prepare", "succeeded"],
        ["promote", "succeeded"],
        ["succeeded;", "promoted"],
    ]


def ends(state: str, tasks: dict[str, tuple[str, str]], logs: dict[str, str], server: Server, **spec: Any) -> Story:
    """The end of a run as the server tells of it: no error anywhere, a workflow, and logs in the object store."""

    def change(stored_run: Entity) -> None:
        phase = {"SUCCEEDED": "Succeeded", "FAILED": "Failed"}[state]
        argo = workflows.manifest({name: [pair] for name, pair in tasks.items()}, phase=phase, **spec)
        server.store.workflows[stored_run["run_id"]] = argo
        for node in workflow.nodes(argo):
            if not node.is_driver and node.task in logs:
                server.store.archived_logs[node.id] = logs[node.task]
        states = {name: pair[0].upper().replace("ERROR", "FAILED") for name, pair in tasks.items()}
        becomes(state, **states)(stored_run)
        stored_run["state_history"] = [*stored_run.get("state_history", []), {"state": state}]
        stored_run["finished_at"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")

    return change


def verdict(outcome: str, *failed: str) -> str:
    decided = {"outcome": outcome, "candidate": "v1", "champion": "v0", "failed": failed}
    return f"distilrank | gate | note | ...\ndistilrank | gate | outcome | {json.dumps(decided)}\n"


DONE = ("Succeeded", "")


@pytest.mark.parametrize(
    ("outcome", "failed", "status", "words"),
    [
        ("refused", ["lift_over_bm25"], 3, "succeeded; the student was refused (lift_over_bm25)"),
        ("unchanged", [], 0, "succeeded; unchanged: the student is the champion v1 itself"),
    ],
)
def test_a_run_that_promotes_nothing_explains_why(
    server: Server, run: Run, outcome: str, failed: list[str], status: int, words: str
) -> None:
    story = [ends("SUCCEEDED", {"decide": DONE}, {"decide": verdict(outcome, *failed)}, server)]
    server.store.stories = [story, [*story]]
    assert run(*SUBMIT)[::2] == (0, "")
    result = run(*SUBMIT, "--fail-on-refusal")
    assert (result[0], result[1].splitlines()[-1]) == (status, words)


def test_a_verdict_that_cannot_be_read_is_not_made_up(server: Server, run: Run) -> None:
    story = [becomes("SUCCEEDED", **PREPARED, decide="SUCCEEDED", promote_student="SKIPPED")]
    server.store.stories = [story, [*story], [becomes("SUCCEEDED", decide="SUCCEEDED", promote_student="SUCCEEDED")]]
    words = "succeeded; the student was not promoted, and the run's report says why"
    assert run(*SUBMIT)[1].splitlines()[-1] == words
    status, _, err = run(*SUBMIT, "--fail-on-refusal")
    assert status == 1 and "no log of the stage gate, so the verdict is unknown" in err
    assert run(*SUBMIT, "--fail-on-refusal")[0] == 0
    assert run(*SUBMIT, "--fail-on-refusal", "--no-wait")[::2] == (
        2,
        "error: --fail-on-refusal: expected the pipeline distill and --wait\n",
    )


BAD_INPUT = "main: Error (exit code 1): distilrank | prepare | bad input | a.csv: no such file"
CRASH = "main: Error (exit code 1)"


def test_bad_input_of_a_stage_has_the_exit_status_of_bad_input(server: Server, run: Run) -> None:
    server.store.stories = [[ends("FAILED", {"check-inputs": DONE, "prepare-data": ("Failed", BAD_INPUT)}, {}, server)]]
    status, out, err = run(*SUBMIT)
    assert (status, out.splitlines()[-1]) == (2, "✗ prepare: bad input: a.csv: no such file")
    assert re.fullmatch(r"error: prepare: bad input: a.csv: no such file: http://\S+/#/runs/details/\S+\n", err)


def test_a_crash_shows_the_end_of_its_log(server: Server, run: Run) -> None:
    log = "loading\nTraceback (most recent call last):\nKeyError: 'x'\nI1130 launcher\n"
    server.store.stories = [[ends("FAILED", {"prepare-data": ("Failed", CRASH)}, {"prepare-data": log}, server)]]
    status, out, err = run(*SUBMIT)
    assert (status, out.splitlines()[-5:]) == (
        1,
        [
            "✗ prepare: failed: KeyError: 'x'",
            "    loading",
            "    Traceback (most recent call last):",
            "    KeyError: 'x'",
            "    I1130 launcher",
        ],
    )
    assert err.startswith("stopped: the run failed: prepare: failed: KeyError: 'x': http")


def test_a_log_is_read_from_the_pod_where_it_is_not_archived(server: Server, run: Run) -> None:
    def change(stored_run: Entity) -> None:
        ends("FAILED", {"prepare-data": ("Failed", CRASH)}, {}, server)(stored_run)
        pod = workflows.pod(server.store.workflows[stored_run["run_id"]], "prepare-data").pod
        server.store.pod_logs[pod] = "distilrank | prepare | stopped | nothing to learn\n"

    server.store.stories = [[change]]
    assert "✗ prepare: stopped: nothing to learn" in run(*SUBMIT)[1]


def test_a_failure_without_a_workflow_names_its_stages(server: Server, run: Run) -> None:
    server.store.stories = [
        [becomes("FAILED", check_inputs="SUCCEEDED", prepare_data="FAILED")],
        [becomes("CANCELED", check_inputs="CANCELED")],
        [becomes("FAILED")],
    ]
    status, out, err = run(*SUBMIT)
    assert (status, out.splitlines()[-1]) == (1, "✗ prepare: failed")
    assert re.fullmatch(r"stopped: the run failed: prepare: failed: http://\S+/#/runs/details/\S+\n", err)
    assert "stopped: the run was stopped by a person: http" in run(*SUBMIT)[2]
    assert "stopped: the run failed: Kubeflow names no stage: http" in run(*SUBMIT)[2]


def test_a_terminated_run_was_stopped_by_a_person(server: Server, run: Run) -> None:
    tasks = {"train-teacher": ("Failed", "main: Error (exit code 143)")}
    server.store.stories = [[becomes("CANCELING"), ends("FAILED", tasks, {}, server, activeDeadlineSeconds=0)]]
    status, _, err = run(*SUBMIT, "--retry-run", 3)
    assert status == 1 and err.startswith("stopped: the run was stopped by a person: http")


def test_what_keeps_a_pod_from_starting_is_reported_while_it_waits(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "PROBLEMS_SECONDS", 0.0)

    def waits(phase: str, message: str) -> Story:
        def change(stored_run: Entity) -> None:
            becomes("RUNNING", check_inputs="RUNNING")(stored_run)
            argo = workflows.manifest({"check-inputs": [(phase, message)]}, phase="Running")
            server.store.workflows[stored_run["run_id"]] = argo

        return change

    invalid = 'Pod "x" is invalid: spec.volumes[1].name: Invalid value: "trust.me": must not contain dots'
    pending = waits("Pending", "Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.")
    starting = waits("Pending", "PodInitializing")
    server.store.stories = [
        [starting, pending, pending, waits("Error", invalid), becomes("SUCCEEDED", check_inputs="SUCCEEDED")]
    ]
    _, out, _ = run(*SUBMIT)
    assert [line.strip() for line in out.splitlines()[1:]] == [
        "preflight    running",
        "preflight    waits: Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.",
        f"preflight    an attempt failed: {invalid}",
        "preflight    succeeded",
        "succeeded",
    ]


# Retries -----------------------------------------------------------------------------------------------------------

EVICTED = {"train-teacher": ("Failed", "The node was low on resource: memory.")}
KILLED = {"train-teacher": ("Failed", "main: OOMKilled (exit code 137)")}


def test_waiting_retries_what_may_pass(server: Server, run: Run) -> None:
    well = becomes("SUCCEEDED", train_teacher="SUCCEEDED")
    server.store.stories = [[ends("FAILED", EVICTED, {}, server)], [ends("FAILED", EVICTED, {}, server)], [well]]
    status, out, _ = run(*SUBMIT, "--retry-run", 2)
    assert (status, out.count("the failed stages are retried"), out.splitlines()[-1]) == (0, 2, "succeeded")
    assert server.store.requests.count("RunService_RetryRun") == 2
    server.store.stories = [[ends("FAILED", EVICTED, {}, server)], [ends("FAILED", EVICTED, {}, server)]]
    assert run(*SUBMIT, "--retry-run", 1)[0] == 1
    server.store.stories = [[ends("FAILED", KILLED, {}, server)], [ends("FAILED", KILLED, {}, server)]]
    status, out, _ = run(*SUBMIT, "--retry-run", 5)
    assert (status, out.count("the failed stages are retried")) == (1, 1)  # out of memory: once
    assert out.splitlines()[-1].strip() == "raise cluster.stages.teacher.memory if it happens again"
    server.store.stories = [[ends("FAILED", {"prepare-data": ("Failed", BAD_INPUT)}, {}, server)]]
    before = server.store.requests.count("RunService_RetryRun")
    assert run(*SUBMIT, "--retry-run", 5)[0] == 2
    assert server.store.requests.count("RunService_RetryRun") == before
    assert run(*SUBMIT, "--retry-run", 1, "--no-wait")[0] == 2


def test_an_outcome_that_kubeflow_reports_twice_is_not_taken_for_a_new_one(server: Server, run: Run) -> None:
    # 2.17.0: the persistence agent may report the workflow as it was before the retry, after it.
    failed = ends("FAILED", EVICTED, {}, server)
    before: list[Entity] = []

    def stale(stored_run: Entity) -> None:
        stored_run |= before[0]

    server.store.stories = [
        [lambda stored_run: (failed(stored_run), before.append(dict(stored_run)))],
        [stale, stale, becomes("RUNNING"), becomes("SUCCEEDED", train_teacher="SUCCEEDED")],
    ]
    status, out, _ = run(*SUBMIT, "--retry-run", 3)
    assert (status, out.count("the failed stages are retried"), out.splitlines()[-1]) == (0, 1, "succeeded")
    server.store.stories = [[failed], [stale, becomes("SUCCEEDED", train_teacher="SUCCEEDED")]]
    run(*SUBMIT, "--name", "stale")
    before[0] = dict(list(server.store.runs.values())[-1])
    assert run("retry", "stale")[0] == 0


def test_a_lost_answer_retries_once(server: Server, run: Run) -> None:
    server.store.stories = [[ends("FAILED", EVICTED, {}, server)], [becomes("SUCCEEDED", train_teacher="SUCCEEDED")]]
    lost = [Fault(after=True)]
    server.store.fault = lambda operation: lost.pop() if operation.endswith("RetryRun") and lost else None
    assert run(*SUBMIT, "--retry-run", 1)[0] == 0
    assert server.store.requests.count("RunService_RetryRun") == 1 and not lost


def test_a_run_is_retried_by_name_or_id(server: Server, run: Run) -> None:
    server.store.stories = [[ends("FAILED", KILLED, {}, server)], [becomes("SUCCEEDED", train_teacher="SUCCEEDED")]]
    run(*SUBMIT, "--name", "weekly")
    (run_id,) = server.store.runs
    status, out, _ = run("retry", "weekly")
    assert (status, out.splitlines()[-1]) == (0, "succeeded")
    assert run("retry", run_id)[2].startswith(f"error: run {run_id}: is succeeded, expected one that failed: http")
    assert (
        run("retry", "daily")[2]
        == f"error: run daily: not found on {server.url}, expected the ID or the name of a run\n"
    )
    assert run("retry", run_id.replace("-", "0"))[0] == 2
    assert run("retry")[2] == "error: retry: expected either RUN or --failed-since AGE\n"
    assert run("retry", "--failed-since", "6h", "--force")[2] == "error: --force: expected RUN, not --failed-since\n"


def test_bad_input_is_retried_by_force_only(server: Server, run: Run) -> None:
    server.store.stories = [[ends("FAILED", {"prepare-data": ("Failed", BAD_INPUT)}, {}, server)]]
    run(*SUBMIT, "--name", "weekly")
    status, _, err = run("retry", "weekly", "--no-wait")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(
        "error: run weekly: failed: prepare: bad input: a.csv: no such file; a retry would fail the same way."
    )
    assert run("retry", "weekly", "--no-wait", "--force")[0] == 0
    assert server.store.requests.count("RunService_RetryRun") == 1


def test_failed_runs_are_retried_within_bounds(server: Server, run: Run, tmp_path: Path) -> None:
    server.store.stories = [
        [ends("FAILED", EVICTED, {}, server)],
        [ends("FAILED", {"prepare-data": ("Failed", BAD_INPUT)}, {}, server)],
        [ends("FAILED", EVICTED, {}, server)],
        [ends("FAILED", KILLED, {}, server)],
        [ends("FAILED", EVICTED, {}, server)],
    ]
    for name in ("evicted", "wrong", "old", "killed", "others"):
        run(*SUBMIT, "--name", name)
    runs = {stored_run["display_name"]: stored_run for stored_run in server.store.runs.values()}
    runs["old"]["finished_at"] = "2026-01-01T00:00:00Z"
    runs["others"]["pipeline_version_reference"] = {"pipeline_id": "iris", "pipeline_version_id": "v"}
    status, out, _ = run("retry", "--failed-since", "6h")
    assert (status, out.splitlines()) == (
        0,
        [
            "killed: failed: teacher: out of memory: main: OOMKilled (exit code 137): retried",
            "wrong: failed: prepare: bad input: a.csv: no such file: not retried, a retry would fail the same way",
            "evicted: failed: teacher: evicted: The node was low on resource: memory.: retried",
        ],
    )
    # They fail again.
    for name, tasks in (("evicted", EVICTED), ("killed", KILLED)):
        ends("FAILED", tasks, {}, server)(runs[name])
    out = run("retry", "--failed-since", "6h", "--max-retries", 2)[1]
    assert "evicted: failed: teacher: evicted: The node was low on resource: memory.: retried" in out.splitlines()
    assert "not retried, raise cluster.stages.teacher.memory if it happens again" in out
    failures = {"prepare-data": ("Error", "pod deleted"), **KILLED}
    ends("FAILED", failures, {}, server)(runs["killed"])
    assert "not retried, raise cluster.stages.teacher.memory" in run("retry", "--failed-since=6h", "--max-retries=9")[1]
    ends("FAILED", EVICTED, {}, server)(runs["evicted"])
    assert "not retried, after 2 retries" in run("retry", "--failed-since", "6h", "--max-retries", 2)[1]
    assert run("retry", "--failed-since", "6 hours")[2].startswith("error: --failed-since 6 hours: expected a number")


def test_a_run_that_cannot_be_retried_does_not_keep_others_from_it(server: Server, run: Run) -> None:
    server.store.stories = [[ends("FAILED", EVICTED, {}, server)] for _ in range(3)]
    for name in ("first", "second", "third"):
        run(*SUBMIT, "--name", name)
    # backend/src/common/util/workflow.go of 2.17.0, GenerateRetryExecution, says so of one whose pods are still ending.
    refusals = [Fault(400)]
    server.store.fault = lambda operation: refusals.pop() if operation.endswith("RetryRun") and refusals else None
    status, out, _ = run("retry", "--failed-since", "6h")
    lines = [line.removesuffix(".") for line in out.splitlines()]
    assert (status, len(lines)) == (1, 3)
    assert ": not retried, http" in lines[0] and "refuses to retry runs (400" in lines[0]
    assert [line.rpartition(": ")[2] for line in lines[1:]] == ["retried", "retried"]
    assert [stored_run["state"] for stored_run in server.store.runs.values()] == ["RUNNING", "RUNNING", "FAILED"]


def test_runs_of_doctor_are_not_retried(server: Server, run: Run) -> None:
    server.store.stories = [[ends("FAILED", EVICTED, {}, server)]]
    run(*SUBMIT)
    ((pipeline, _),) = server.store.pipelines.items()
    server.store.pipelines[pipeline]["display_name"] = "distilrank-termination"
    assert run("retry", "--failed-since", "6h")[:2] == (0, "nothing to retry\n")


def test_an_owner_retries_the_runs_of_its_schedules_alone(server: Server, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "schedules.yaml"
    plan = {"name": "weekly", "pipeline": "distill", "config": str(CONFIG), "set": {"registry.uri": "/registry"}}
    path.write_text(yaml.safe_dump({"owner": "shop", "schedules": [plan | {"cron": "0 3 * * 1"}]}))
    run("schedule", "apply", "--file", path)
    ((recurring, _),) = server.store.recurring.items()
    server.store.stories = [[ends("FAILED", EVICTED, {}, server)], [ends("FAILED", EVICTED, {}, server)]]
    run(*SUBMIT, "--name", "by-hand")
    run(*SUBMIT, "--name", "weekly-1-1234")
    list(server.store.runs.values())[-1]["recurring_run_id"] = recurring
    status, out, _ = run("retry", "--failed-since", "2d", "--file", path)
    assert (status, len(out.splitlines()), out.startswith("weekly-1-1234: failed: teacher: evicted: ")) == (0, 1, True)
    path.write_text("owner: another\nschedules: []\n")
    assert run("retry", "--failed-since", "2d", "--file", path)[1] == "nothing to retry\n"


def test_waiting_survives_an_outage_and_reports_that_the_run_continues(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [Fault(503)] * 20
    server.store.fault = lambda operation: away.pop() if operation.endswith("GetRun") and away else None
    server.store.stories = [[becomes("SUCCEEDED", check_inputs="SUCCEEDED")]]
    assert run(*SUBMIT)[0] == 0 and not away
    monkeypatch.setattr(submit, "OUTAGE_SECONDS", 0.0)
    server.store.fault = lambda operation: Fault(503) if operation.endswith("GetRun") else None
    status, _, err = run(*SUBMIT)
    assert status == 1
    assert re.search(r"cannot get runs now \(503: as asked\); the run continues: http://\S+\n$", err)


def test_waiting_ends_in_time_or_when_it_is_interrupted(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.match(
        r"stopped: waited for 0.0005 minutes; the run continues: http://", run(*SUBMIT, "--timeout-minutes", 0.0005)[2]
    )

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(submit, "time", type("Clock", (), {"sleep": interrupt, "monotonic": time.monotonic}))
    status, out, _ = run(*SUBMIT)
    assert status == 130
    assert re.match(r"interrupted; the run continues: http://", out.splitlines()[-1])
    assert {stored_run["state"] for stored_run in server.store.runs.values()} == {"PENDING"}


# A compiled pipeline -----------------------------------------------------------------------------------------------


def test_a_run_that_somebody_deletes_is_not_waited_for(server: Server, run: Run) -> None:
    server.store.stories.append([becomes("RUNNING", preflight="RUNNING"), lambda stored_run: server.store.runs.clear()])
    status, out, err = run(*SUBMIT)
    assert (status, "preflight    running" in out) == (1, True)
    assert re.fullmatch(r"stopped: the run was deleted: http\S+\n", err)


@pytest.fixture
def compiled(tmp_path: Path, run: Run, server: Server) -> Path:
    run(*SUBMIT, "--no-wait", "--name", "origin")
    path = tmp_path / "distill.yaml"
    path.write_bytes(list(server.store.contents.values())[-1])
    return path


def test_a_compiled_pipeline_takes_the_configurations_parameters(server: Server, run: Run, compiled: Path) -> None:
    assert run(*SUBMIT, "--set", "gate.max_ece=0.15", "--no-wait", "--pipeline", compiled)[0] == 0
    parameters = list(server.store.runs.values())[-1]["runtime_config"]["parameters"]
    assert parameters["gate"]["max_ece"] == 0.15 and "cluster" not in parameters
    assert len(server.store.versions) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda package: package.update(sdkVersion="kfp-2.9.0"),
            f"compiled by kfp-2.9.0, expected kfp-{kfp.__version__};",
        ),
        (
            lambda package: package["root"]["inputDefinitions"]["parameters"].update(
                evaluation=package["root"]["inputDefinitions"]["parameters"].pop("evaluate")
            ),
            "compiled by another version, it has evaluation and lacks evaluate; compile it again with this version",
        ),
        (
            lambda package: next(iter(package["deploymentSpec"]["executors"].values()))["container"].update(
                image="shop/ops"
            ),
            "image shop/ops: no tag and no digest, expected a tag that is never pushed again",
        ),
        (
            lambda package: package["pipelineInfo"].update(name="iris"),
            "contains the pipeline 'iris', expected distill or monitor",
        ),
        (lambda package: package.pop("root"), "not a compiled pipeline; `python -m pipelines compile` writes one"),
    ],
)
def test_a_pipeline_of_another_version_is_refused(
    run: Run, compiled: Path, change: Callable[[Any], Any], message: str
) -> None:
    documents = list(yaml.safe_load_all(compiled.read_bytes()))
    change(documents[0])
    compiled.write_text(yaml.safe_dump_all(documents))
    status, _, err = run(*SUBMIT, "--pipeline", compiled)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: --pipeline {compiled}: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"\xff", "not readable as YAML"),
        (b"", "not a compiled pipeline"),
        (b"- 1", "not a compiled"),
    ],
)
def test_what_is_no_pipeline_is_refused(tmp_path: Path, run: Run, content: bytes | None, message: str) -> None:
    path = tmp_path / "some.yaml"
    if content is not None:
        path.write_bytes(content)
    status, _, err = run(*SUBMIT, "--pipeline", path)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: --pipeline {path}: {message}")


def test_a_compiled_pipeline_gets_no_more_shards_than_a_run_holds(server: Server, run: Run, compiled: Path) -> None:
    options = ("--no-wait", "--pipeline", compiled, "--set", "prepare.shards=400")
    requests = len(server.store.requests)  # of the fixture
    status, out, err = run(*SUBMIT, *options)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: prepare.shards is 400, expected at most ")
    assert len(server.store.requests) == requests
