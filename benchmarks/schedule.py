"""`schedule apply` under random declarations, faults and kills, against a server that validates by KFP's API document.

A sequence is a few declarations. Each is applied while requests fail before or after their effect, connections drop,
recurring runs are paused, resumed or duplicated by hand, and the process dies between two requests; then once
undisturbed, and once more.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

from benchmarks import machine
from benchmarks.result import at_least, at_most, report, say
from distilrank.config import load
from distilrank.core.errors import InputError
from pipelines import kubeflow
from pipelines.kubeflow import Kubeflow
from pipelines.packages import Package, compile_package
from pipelines.recurring_runs import reconcile
from pipelines.recurring_runs.spec import DesiredRun, Schedule
from tests.kfp_server import DOCUMENT, Document, Fault, Server

SEQUENCES, PROCESS_KILLS = 1000, 60
QUICK_SEQUENCES, QUICK_PROCESS_KILLS = 50, 4
PACKAGES = ("kfp", "kfp-server-api", "tenacity", "urllib3")
CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
OWNER, OTHER = "shop", "shop-b"
NAMES = ("distill-weekly", "monitor-daily", "monitor-hourly", "distill-b")
CRONS = ("0 3 * * 1", "30 5 * * *", "*/5 * * * * *", "0 0 1 1 *")
FAULTS = (
    Fault(),
    Fault(after=True),
    Fault(500),
    Fault(500, after=True),
    Fault(503),
    Fault(429, headers={"Retry-After": "0"}),
    Fault(504, after=True),
)
UTC_ZONE = ZoneInfo("UTC")


class Killed(BaseException):
    """The process dies here."""


@functools.cache
def compiled() -> list[Package]:
    """Pipelines to schedule: both, each in two configurations."""
    overrides = [["registry.uri=/registry"], ["registry.uri=/registry", "gate.max_ece=0.15"]]
    return [
        compile_package(pipeline, load(CONFIG, changes), scheduled=True)
        for pipeline in ("distill", "monitor")
        for changes in overrides
    ]


def declare(draw: random.Random, packages: Sequence[Package]) -> list[DesiredRun]:
    """A declared state: some of the names, each with something that runs at some time."""
    state = []
    for name in draw.sample(NAMES, draw.randint(0, len(NAMES))):
        package = draw.choice(packages)
        declared = Schedule(
            name=name,
            pipeline=package.pipeline,
            config="shop.yaml",
            cron=draw.choice(CRONS),
            concurrency=draw.choice([1, 1, 3]),
            catch_up=draw.random() < 0.2,
            paused=draw.random() < 0.25,
        )
        state.append(DesiredRun(declared, package, draw.choice(["one", "two"]), draw.choice(["", "runner"]), ""))
    return state


def run_sequence(server: Server, packages: Sequence[Package], seed: int) -> Counter[str]:
    """One sequence; counts what happened, and under `broken: ...` what never should."""
    draw, store, counts = random.Random(seed), server.store, Counter[str]()
    store.reset()
    _apply(server, declare(draw, packages), OTHER)
    _by_hand(store, draw)
    foreign = _of(store, lambda owner: owner != OWNER)
    for _ in range(draw.randint(2, 4)):
        state = declare(draw, packages)
        counts["states"] += 1
        for _ in range(draw.randint(0, 3)):
            _interfere(store, draw, counts)
            _disturbed(server, state, draw, counts)
        _apply(server, state, OWNER)
        counts["broken: did not converge"] += not _as_declared(store, state)
        before = len(store.writes)
        _apply(server, state, OWNER)
        counts["broken: wrote when nothing changed"] += len(store.writes) - before
        counts["broken: touched somebody else's"] += _of(store, lambda owner: owner != OWNER) != foreign
    counts["broken: two enabled, or not in the document"] += len(store.problems)
    counts["requests"] += len(store.requests)
    counts["writes"] += len(store.writes)
    if store.problems:
        say(f"seed {seed}: {store.problems[:3]}")
    return counts


def _apply(server: Server, state: list[DesiredRun], owner: str) -> int:
    connected = Kubeflow(server.url)
    return reconcile.apply(connected, owner, state, zone=UTC_ZONE, report=lambda line: None)


def _disturbed(server: Server, state: list[DesiredRun], draw: random.Random, counts: Counter[str]) -> None:
    """Apply a state while requests fail, and the process may die."""
    chance = draw.choice([0.0, 0.1, 0.5])
    last = draw.randint(1, 40) if draw.random() < 0.6 else None

    def fault(operation: str) -> Fault | None:
        if draw.random() >= chance:
            return None
        counts["faults"] += 1
        return draw.choice(FAULTS)

    server.store.fault = fault
    try:
        with _dying(last, before=draw.random() < 0.5):
            _apply(server, state, OWNER)
        counts["applications that ended"] += 1
    except Killed:
        counts["kills"] += 1
    except (InputError, RuntimeError):
        counts["applications that gave up"] += 1
    finally:
        server.store.fault = lambda operation: None


@contextlib.contextmanager
def _dying(requests: int | None, *, before: bool) -> Iterator[None]:
    """Let the process die at a request: before it leaves, or when its answer has come."""
    send, left = kubeflow._Client.request, requests or 0

    def request(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and before:
            raise Killed
        answer = send(*arguments, **named)
        if left == 0:
            raise Killed
        return answer

    with mock.patch.object(kubeflow._Client, "request", request):
        yield


def _by_hand(store: Any, draw: random.Random) -> None:
    """Recurring runs that people made, one of them with a name of ours, and enabled."""
    for name in (draw.choice(NAMES), "mine"):
        number = str(uuid.uuid4())
        store.recurring[number] = {
            "recurring_run_id": number,
            "display_name": name,
            "description": draw.choice(["", f"as owner={OWNER} wants it"]),
            "mode": "ENABLE",
            "namespace": "",
            "created_at": "2026-01-01T00:00:00Z",
        }


def _interfere(store: Any, draw: random.Random, counts: Counter[str]) -> None:
    """Pause, resume, double or break something of ours by hand, without ever enabling two."""
    ours = list(_of(store, lambda owner: owner == OWNER).values())
    if not ours or draw.random() < 0.6:
        return
    row = store.recurring[draw.choice(ours)["recurring_run_id"]]
    twins = [each for each in ours if each["display_name"] == row["display_name"]]
    what = draw.choice(["pause", "resume", "double", "delete", "break"])
    if what == "double":
        number = str(uuid.uuid4())
        store.recurring[number] = copy.deepcopy(row) | {"recurring_run_id": number, "mode": "DISABLE"}
    elif what == "break":
        store.versions.pop(row["pipeline_version_reference"]["pipeline_version_id"], None)
    elif what == "delete":
        del store.recurring[row["recurring_run_id"]]
    elif what == "pause" or len(twins) == 1:
        row["mode"] = "ENABLE" if what == "resume" else "DISABLE"
    counts["interferences"] += 1


def _of(store: Any, whose: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    matching = {}
    for number, row in store.recurring.items():
        mark = reconcile.MARK.search(row.get("description", ""))
        if whose(mark["owner"] if mark else ""):
            matching[number] = copy.deepcopy(row)
    return matching


def _as_declared(store: Any, state: list[DesiredRun]) -> bool:
    """Whether the server holds what is declared: judged by what it was sent, not by our digests."""
    existing = sorted(_describe(row, store) for row in _of(store, lambda owner: owner == OWNER).values())
    expected = sorted(
        (
            row.name,
            row.schedule.cron,
            str(row.schedule.concurrency),
            not row.schedule.catch_up,
            "DISABLE" if row.schedule.paused else "ENABLE",
            row.experiment,
            row.service_account,
            row.package.content,
            True,
        )
        for row in state
    )
    return existing == expected


def _describe(row: dict[str, Any], store: Any) -> tuple[Any, ...]:
    return (
        row["display_name"],
        row["trigger"]["cron_schedule"]["cron"],
        row["max_concurrency"],
        row["no_catchup"],
        row["mode"],
        store.experiments[row["experiment_id"]]["display_name"],
        row.get("service_account", ""),
        store.contents[row["pipeline_version_reference"]["pipeline_version_id"]],
        row["pipeline_version_reference"]["pipeline_version_id"] in store.versions,
    )


def kill_processes(server: Server, packages: Sequence[Package], kills: int, seed: int) -> Counter[str]:
    """Kill real processes that apply a changed state, at their first request, at their second, and so on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.recurring_runs.reconcile"])
    store, counts, request = server.store, Counter[str](), 1
    draw = random.Random(seed)
    store.reset()
    old, new = (_changed(packages, number) for number in (0, 1))
    _apply(server, old, OWNER)
    while counts["process kills"] < kills:
        after = draw.random() < 0.5
        process = context.Process(target=_apply_elsewhere, args=(server.url, new))
        left = request

        def fault(operation: str, process: Any = process, after: bool = after) -> Fault | None:
            nonlocal left
            left -= 1
            if left:
                return None
            os.kill(process.pid, signal.SIGKILL)
            return Fault(after=after)  # nobody is there to hear an answer

        store.fault = fault
        process.start()
        process.join()
        store.fault = lambda operation: None
        killed = process.exitcode == -signal.SIGKILL
        counts["process kills"] += killed
        request = request + 1 if killed else 1
        _apply(server, new, OWNER)
        counts["broken: did not converge"] += not _as_declared(store, new)
        before = len(store.writes)
        _apply(server, new, OWNER)
        counts["broken: wrote when nothing changed"] += len(store.writes) - before
        old, new = new, old
    counts["broken: two enabled, or not in the document"] += len(store.problems)
    return counts


def _changed(packages: Sequence[Package], number: int) -> list[DesiredRun]:
    name = NAMES[0]
    declared = Schedule(name=name, pipeline=packages[number].pipeline, config="shop.yaml", cron=CRONS[number])
    return [DesiredRun(declared, packages[number], "one", "", "")]


def _apply_elsewhere(url: str, state: list[DesiredRun]) -> None:
    reconcile.apply(Kubeflow(url), OWNER, state, zone=UTC_ZONE, report=lambda line: None)


def measure(sequences: int, process_kills: int, seed: int = 0) -> Counter[str]:
    """Counts over so many sequences and kills of real processes."""
    counts, server, packages = Counter[str](), Server(Document()), compiled()
    with mock.patch.object(kubeflow, "FIRST_PAUSE", 0.0):
        for number in range(sequences):
            counts.update(run_sequence(server, packages, seed + number))
            counts["sequences"] += 1
            if (number + 1) % 50 == 0:
                say(f"{number + 1}/{sequences} sequences")
        counts.update(kill_processes(server, packages, process_kills, seed))
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.schedule", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small: seconds")
    options = parser.parse_args()
    if not DOCUMENT.exists():
        print(f"{DOCUMENT}: not here, and it is what requests are held to", file=sys.stderr)
        return 2
    described = machine.describe(PACKAGES)
    sequences = QUICK_SEQUENCES if options.quick else SEQUENCES
    kills = QUICK_PROCESS_KILLS if options.quick else PROCESS_KILLS
    with machine.output_to_stderr(), tempfile.TemporaryDirectory() as home, mock.patch.dict(os.environ, {"HOME": home}):
        counts = measure(sequences, kills)
    bars = [at_least("sequences", sequences, SEQUENCES)]
    broken = sorted(name for name in counts if name.startswith("broken: "))
    bars += [at_most(name.removeprefix("broken: "), counts[name], 0) for name in broken]
    report("schedule", described, {"quick": options.quick, **counts}, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
