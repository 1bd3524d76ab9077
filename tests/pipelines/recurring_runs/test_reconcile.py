"""Recurring runs as declared state, against a server that allows only what KFP's document has."""

from __future__ import annotations

import re
import threading
from collections import Counter
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from distilrank.core.errors import InputError
from pipelines.kubeflow import Kubeflow
from pipelines.recurring_runs import reconcile
from tests.clusters import Run, document_is_here, run, server
from tests.kfp_server import DOCUMENT, Fault, Server
from tests.schedule_files import DAILY, WEEKLY, declare

if DOCUMENT.exists():
    from benchmarks import schedule as benchmark

__all__ = ["run", "server"]


def shown(server: Server) -> dict[str, str]:
    """Mode by name; a name that is there twice shows."""
    counts = Counter(recurring_run["display_name"] for recurring_run in server.store.recurring.values())
    assert set(counts.values()) <= {1}, counts
    return {recurring_run["display_name"]: recurring_run["mode"] for recurring_run in server.store.recurring.values()}


# Applying --------------------------------------------------------------------------------------------------------


@document_is_here
def test_applying_twice_writes_nothing_the_second_time(tmp_path: Path, server: Server, run: Run) -> None:
    file = declare(tmp_path, WEEKLY | {"end": "2036-01-01T01:00:00+01:00"}, DAILY | {"catch_up": True, "paused": True})
    status, out, _ = run("schedule", "apply", "--file", file)
    assert status == 0
    assert shown(server) == {"distill-weekly": "ENABLE", "monitor-daily": "DISABLE"}
    assert re.search(r"distill-weekly: distill, 0 0 3 \* \* 1 in UTC, next 20\d\d-\d\d-\d\d 03:00:00 UTC", out)
    assert "monitor-daily: monitor, 0 30 5 * * * in UTC, paused" in out
    weekly = next(
        recurring_run
        for recurring_run in server.store.recurring.values()
        if recurring_run["display_name"] == "distill-weekly"
    )
    assert weekly["trigger"]["cron_schedule"] == {"cron": "0 0 3 * * 1", "end_time": "2036-01-01T00:00:00+00:00"}
    assert (weekly["no_catchup"], weekly["max_concurrency"]) == (True, "1")
    writes = len(server.store.writes)
    assert [pipeline["display_name"] for pipeline in server.store.pipelines.values()] == [
        "distilrank-distill",
        "distilrank-monitor",
    ]

    status, out, _ = run("schedule", "apply", "--file", file)
    assert (status, len(server.store.writes)) == (0, writes)
    assert out.endswith("nothing to change\n")
    assert run("schedule", "diff", "--file", file) == (0, "nothing to change\n", "")


@document_is_here
def test_a_change_makes_the_new_one_before_the_old_one_stops(tmp_path: Path, server: Server, run: Run) -> None:
    run("schedule", "apply", "--file", declare(tmp_path, WEEKLY))
    old, done = next(iter(server.store.recurring)), len(server.store.writes)
    file = declare(tmp_path, WEEKLY | {"cron": "* * * * * *"})
    assert run("schedule", "diff", "--file", file)[:2] == (
        3,
        "distill-weekly: create (changed)\n"
        f"distill-weekly: disable {old} (outdated)\n"
        "distill-weekly: enable (not paused)\n"
        f"distill-weekly: delete {old} (outdated)\n",
    )
    assert len(server.store.writes) == done
    server.store.fault = lambda operation: Fault(200, delay=1.1) if "Enable" in operation else None
    status, out, _ = run("schedule", "apply", "--file", file)
    assert status == 0
    assert [re.sub(r".*Service_|RecurringRun", "", each) for each in server.store.writes[done:]] == [
        "Create",
        "Disable",
        "Enable",
        "Delete",
    ]
    assert server.store.propagation == ["ORPHAN"]
    assert re.search(r"the tick of \S+ \S+ UTC fell between disabling the old and enabling the new; Kubeflow now", out)
    assert shown(server) == {"distill-weekly": "ENABLE"}
    # The pipeline is the same, so it is not uploaded again.
    assert len(server.store.versions) == 1


@document_is_here
def test_a_replacement_without_missed_ticks_reports_none(tmp_path: Path, server: Server, run: Run) -> None:
    run("schedule", "apply", "--file", declare(tmp_path, WEEKLY))
    _, out, _ = run("schedule", "apply", "--file", declare(tmp_path, WEEKLY | {"concurrency": 2}))
    assert "enable" in out and "tick" not in out


@document_is_here
def test_what_is_not_declared_goes_and_what_is_others_stays(tmp_path: Path, server: Server, run: Run) -> None:
    run("schedule", "apply", "--file", declare(tmp_path, WEEKLY, owner="other"))
    run("schedule", "apply", "--file", declare(tmp_path, WEEKLY, DAILY))
    foreign = next(
        number
        for number, recurring_run in server.store.recurring.items()
        if "owner=other" in recurring_run["description"]
    )
    file = declare(tmp_path, DAILY | {"concurrency": 2})
    assert "distill-weekly: delete" in run("schedule", "diff", "--file", file)[1]
    assert "distill-weekly" not in run("schedule", "diff", "monitor-daily", "--file", file)[1]
    assert run("schedule", "apply", "monitor-daily", "--file", file)[0] == 0
    assert len(server.store.recurring) == 3
    assert run("schedule", "apply", "--file", file)[0] == 0
    names = sorted(
        (recurring_run["display_name"], number == foreign) for number, recurring_run in server.store.recurring.items()
    )
    assert names == [("distill-weekly", True), ("monitor-daily", False)]
    assert run("schedule", "apply", "weekly", "--file", file) == (
        2,
        "",
        f"error: {file}: no schedule is called 'weekly', expected one of monitor-daily\n",
    )
    assert run("schedule", "delete", "weekly", "--file", file)[2] == (
        "error: weekly: no such recurring run of shop, expected one of monitor-daily\n"
    )
    assert run("schedule", "delete", "--file", file)[:2] == (0, "monitor-daily: deleted\n")
    assert run("schedule", "delete", "--file", file)[:2] == (0, "shop has no recurring runs\n")
    assert list(server.store.recurring) == [foreign]


@document_is_here
def test_a_deleted_pipeline_version_is_noticed_and_uploaded_again(tmp_path: Path, server: Server, run: Run) -> None:
    file = declare(tmp_path, WEEKLY)
    run("schedule", "apply", "--file", file)
    (old,) = server.store.recurring
    server.store.versions.clear()
    assert (
        f"distill-weekly: disable {old} (its pipeline version was deleted)"
        in run("schedule", "diff", "--file", file)[1]
    )
    assert run("schedule", "apply", "--file", file)[0] == 0
    assert shown(server) == {"distill-weekly": "ENABLE"}
    (new,) = server.store.recurring.values()
    assert new["recurring_run_id"] != old
    assert [new["pipeline_version_reference"]["pipeline_version_id"]] == list(server.store.versions)


@document_is_here
def test_an_apply_that_ends_half_way_reports_what_it_did(tmp_path: Path, server: Server, run: Run) -> None:
    run("schedule", "apply", "--file", declare(tmp_path, WEEKLY))
    server.store.forbidden = {"RecurringRunService_EnableRecurringRun"}
    file = declare(tmp_path, WEEKLY | {"concurrency": 2})
    status, _, err = run("schedule", "apply", "--file", file)
    assert status == 2
    assert err.endswith(
        "; changes made so far: 2, the same command completes the rest; until then distill-weekly may start no runs\n"
    )
    server.store.forbidden = set()
    assert run("schedule", "apply", "--file", file)[0] == 0
    assert shown(server) == {"distill-weekly": "ENABLE"}


@document_is_here
def test_a_pause_lasts_until_the_next_apply(tmp_path: Path, server: Server, run: Run) -> None:
    file = declare(tmp_path, WEEKLY, DAILY)
    error = "error: distill-weekly: no such recurring run of shop, which has none\n"
    assert run("schedule", "pause", "distill-weekly", "--file", file)[2] == error
    run("schedule", "apply", "--file", file)
    status, out, _ = run("schedule", "pause", "distill-weekly", "--file", file)
    assert (status, out.splitlines()[0]) == (0, "distill-weekly: paused")
    assert shown(server) == {"distill-weekly": "DISABLE", "monitor-daily": "ENABLE"}
    assert run("schedule", "pause", "--file", file)[1].startswith("monitor-daily: paused")
    assert run("schedule", "resume", "monitor-daily", "--file", file)[1].startswith("monitor-daily: resumed")
    assert run("schedule", "resume", "monitor-weekly", "--file", file)[2] == (
        "error: monitor-weekly: no such recurring run of shop, expected one of distill-weekly, monitor-daily\n"
    )
    run("schedule", "apply", "--file", file)
    assert shown(server) == {"distill-weekly": "ENABLE", "monitor-daily": "ENABLE"}
    run("schedule", "apply", "--file", declare(tmp_path, WEEKLY | {"paused": True}, DAILY))
    assert shown(server) == {"distill-weekly": "DISABLE", "monitor-daily": "ENABLE"}


@document_is_here
def test_a_creation_whose_answer_is_lost_is_not_repeated(tmp_path: Path, server: Server, run: Run) -> None:
    lost = Counter[str]()

    def fault(operation: str) -> Fault | None:
        lost[operation] += 1
        return Fault(after=True) if lost[operation] == 1 and ("Create" in operation or "Upload" in operation) else None

    server.store.fault = fault
    assert run("schedule", "apply", "--file", declare(tmp_path, WEEKLY))[0] == 0
    assert shown(server) == {"distill-weekly": "ENABLE"}
    held = server.store
    assert [len(each) for each in (held.pipelines, held.versions, held.experiments)] == [1, 1, 1]


# What Kubeflow's database holds -----------------------------------------------------------------------------------


def orphans(server: Server) -> list[str]:
    """Names of the ScheduledWorkflows in Kubernetes that the API does not list."""
    held = server.store.scheduled_workflows
    return [name for number, name in held.items() if number not in server.store.recurring]


@document_is_here
@pytest.mark.parametrize("owner", [f"{'n' * 63}.{'r' * 53}", "o" * 119], ids=["the chart's longest", "the longest"])
def test_the_longest_owner_fits_into_a_description(tmp_path: Path, server: Server, run: Run, owner: str) -> None:
    file = declare(tmp_path, WEEKLY, owner=owner)
    assert run("schedule", "apply", "--file", file)[0] == 0
    assert run("schedule", "diff", "--file", file)[0] == 0
    (row,) = server.store.recurring.values()
    assert len(row["description"]) <= 255 and owner in row["description"]
    assert orphans(server) == []


@document_is_here
def test_a_recurring_run_of_an_earlier_version_is_replaced(tmp_path: Path, server: Server, run: Run) -> None:
    file = declare(tmp_path, WEEKLY)
    run("schedule", "apply", "--file", file)
    ((number, row),) = server.store.recurring.items()
    note = "Kept as declared by `python -m pipelines schedule apply`; a change by hand is undone by the next one."
    digest = row["description"].rpartition("digest=")[2]
    row["description"] = f"{note}\ndistilrank: owner=shop digest={digest}"
    assert run("schedule", "apply", "--file", file)[1].endswith("nothing to change\n")
    row["description"] = f"{note}\ndistilrank: owner=shop digest={'0' * 64}"  # of other images
    assert f"distill-weekly: delete {number} (outdated)" in (run("schedule", "apply", "--file", file)[1])
    assert shown(server) == {"distill-weekly": "ENABLE"}


@document_is_here
def test_what_can_never_be_stored_is_asked_for_once(
    tmp_path: Path, server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "NOTE", "x" * 100)  # a description that is too long, whatever the owner
    file = declare(tmp_path, WEEKLY, owner="o" * 119)
    status, _, err = run("schedule", "apply", "--file", file)
    assert (status, err.count("\n")) == (2, 1)
    assert err == (
        f"error: {server.url}: cannot create jobs; a retry would fail the same way (500: Failed to create a "
        "recurring run: "
        "InternalServerError: Failed to store job distill-weekly to table: Error 1406 (22001): Data too long for "
        "column 'Description' at row 1); it may have left an object in Kubernetes that the API does "
        "not list: kubectl get scheduledworkflows --namespace NAMESPACE\n"
    )
    assert orphans(server) == ["distill-weekly"]


@document_is_here
def test_a_creation_that_the_database_missed_is_not_repeated(tmp_path: Path, server: Server, run: Run) -> None:
    server.store.database_down = 1
    file = declare(tmp_path, WEEKLY)
    status, _, err = run("schedule", "apply", "--file", file)
    assert (status, err.count("\n")) == (1, 1)
    assert "cannot create jobs now (500: Failed to create a recurring run" in err
    assert err.endswith("kubectl get scheduledworkflows --namespace NAMESPACE\n")
    assert orphans(server) == ["distill-weekly"]
    assert run("schedule", "apply", "--file", file)[0] == 0
    assert shown(server) == {"distill-weekly": "ENABLE"}


@document_is_here
def test_a_fault_before_anything_was_created_is_repeated(tmp_path: Path, server: Server, run: Run) -> None:
    faults = iter([Fault(500)])
    server.store.fault = lambda operation: next(faults, None) if "CreateRecurringRun" in operation else None
    assert run("schedule", "apply", "--file", declare(tmp_path, WEEKLY))[0] == 0
    assert orphans(server) == []


# The server's version ---------------------------------------------------------------------------------------------


@document_is_here
def test_a_server_that_is_too_old_gets_no_recurring_run(tmp_path: Path, server: Server, run: Run) -> None:
    server.store.tag_name = "2.15.2"
    file = declare(tmp_path, WEEKLY)
    for verb in ("apply", "diff"):
        status, out, err = run("schedule", verb, "--file", file)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(
            f"error: {server.url}: is Kubeflow Pipelines 2.15.2, expected 2.17.0 or newer, for it lacks what came with "
            "2.16: the security context of a task"
        )
        assert "2.17.0: the time of a schedule" in err and "2.14" not in err
    assert server.store.writes == []
    assert run("schedule", "delete", "--file", file)[0] == 0, "what is there can be removed from any"


@document_is_here
def test_duplicates_are_found_and_removed(tmp_path: Path, server: Server, run: Run) -> None:
    file = declare(tmp_path, WEEKLY)
    run("schedule", "apply", "--file", file)
    number, recurring_run = next(iter(server.store.recurring.items()))
    server.store.recurring["late"] = recurring_run | {"recurring_run_id": "late", "mode": "DISABLE"}
    assert run("schedule", "resume", "--file", file)[2] == (
        "error: distill-weekly: has 2 recurring runs after an interrupted change, expected one; run `schedule apply` "
        "first\n"
    )
    assert "distill-weekly: delete late (duplicate)" in run("schedule", "apply", "--file", file)[1]
    assert list(server.store.recurring) == [number]


@document_is_here
def test_long_lists_are_read_to_their_end(tmp_path: Path, server: Server, run: Run) -> None:
    file = declare(tmp_path, *(WEEKLY | {"name": f"weekly-{number}"} for number in range(7)))
    run("schedule", "apply", "--file", file)
    server.store.requests.clear()
    writes = len(server.store.writes)

    def once(operation: str) -> Fault | None:
        if server.store.requests.count("RecurringRunService_ListRecurringRuns") == 2:
            server.store.fault = lambda operation: None
            return Fault(503)
        return None

    server.store.fault = once
    assert run("schedule", "apply", "--file", file)[0] == 0
    assert server.store.requests.count("RecurringRunService_ListRecurringRuns") == 4
    assert len(server.store.writes) == writes


@document_is_here
def test_two_concurrent_applies_converge(server: Server) -> None:
    state = benchmark._changed(benchmark.compiled()[:1], 0)
    errors: list[Exception] = []

    def apply() -> None:
        try:
            reconcile.apply(Kubeflow(server.url), "shop", state, zone=ZoneInfo("UTC"), report=lambda line: None)
        except (InputError, RuntimeError) as error:  # who comes too late finds what he wanted to change gone
            errors.append(error)

    for _ in range(3):
        threads = [threading.Thread(target=apply) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        apply()
        assert shown(server) == {"distill-weekly": "ENABLE"}
        server.store.recurring.clear()
    server.store.problems.clear()  # the API has no preconditions: for a moment two may be enabled


@document_is_here
def test_in_multi_user_mode_everything_is_in_the_namespace(tmp_path: Path, server: Server, run: Run) -> None:
    server.store.multi_user, server.store.namespaces, server.store.token = True, {"search"}, "secret"
    token = tmp_path / "token"
    token.write_text("secret\n")
    file = declare(tmp_path, WEEKLY)
    assert run("schedule", "apply", "--file", file, "--token-file", token) == (
        2,
        "",
        f"error: {server.url}: runs in multi-user mode, expected --namespace, the one of your profile\n",
    )
    own = ("schedule", "apply", "--file", file, "--token-file", token, "--namespace")
    assert run(*own, "search")[0] == 0
    assert [recurring_run["namespace"] for recurring_run in server.store.recurring.values()] == ["search"]
    assert [pipeline["namespace"] for pipeline in server.store.pipelines.values()] == ["search"]
    writes = len(server.store.writes)
    assert run(*own, "search")[0] == 0
    assert len(server.store.writes) == writes
    status, _, err = run(*own, "payments")
    assert status == 2
    assert err == (
        f"error: {server.url}: no permission to list jobs in namespace payments (403: User 'robot' is not authorized "
        "in namespace payments); grant this account list on jobs.pipelines.kubeflow.org there, as Kubeflow's "
        "ClusterRole kubeflow-edit does\n"
    )


# Random sequences ------------------------------------------------------------------------------------------------


@document_is_here
def test_random_states_faults_and_kills_converge(server: Server) -> None:
    packages, counts = benchmark.compiled(), Counter[str]()
    for seed in range(8):
        counts.update(benchmark.run_sequence(server, packages, seed))
    assert {name: count for name, count in counts.items() if name.startswith("broken: ") and count} == {}
    assert min(counts["kills"], counts["faults"], counts["interferences"], counts["applications that ended"]) > 0


@document_is_here
def test_a_replacement_in_the_wrong_order_would_be_noticed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = reconcile._steps

    def hasty(*arguments: object) -> list[reconcile.Step]:
        return sorted(steps(*arguments), key=lambda step: ["create", "enable", "disable", "delete"].index(step.verb))

    packages = benchmark.compiled()
    benchmark._apply(server, benchmark._changed(packages, 0), benchmark.OWNER)
    monkeypatch.setattr(reconcile, "_steps", hasty)
    benchmark._apply(server, benchmark._changed(packages, 1), benchmark.OWNER)
    assert server.store.problems == [
        "2 recurring runs of one name and owner are enabled: distill-weekly, ('shop',)",
    ]
    server.store.problems.clear()


@document_is_here
def test_processes_that_are_killed_leave_what_the_next_completes(server: Server) -> None:
    counts = benchmark.kill_processes(server, benchmark.compiled(), kills=4, seed=1)
    assert counts["process kills"] == 4
    assert {name: count for name, count in counts.items() if name.startswith("broken: ") and count} == {}
