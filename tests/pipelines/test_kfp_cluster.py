"""The stub cluster behaves as Kubeflow Pipelines 2.17.0 did: runs that run, nodes, logs, retries, schedules."""

import base64
import gzip
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kfp_server_api as api
import pytest
import yaml
from kfp import compiler, dsl

from pipelines.kubeflow import Kubeflow, Version
from pipelines.packages import Package
from tests.clusters import document_is_here
from tests.kfp_cluster import ClusterServer, fnv32a
from tests.kfp_server import Document, Entity

pytestmark = document_is_here
PATIENCE = 90.0
"""Seconds to wait for anything: this machine may have much else to do."""

component = dsl.component(base_image="distilrank/ops:test", install_kfp_package=False)


@component
def make(folder: str, name: str, resource: str, scheduled: str, made: dsl.Output[dsl.Artifact]) -> bool:
    """Note what Kubeflow says of the run, and make something."""
    import json
    import os

    with open(os.path.join(folder, "made"), "a") as log:
        log.write(json.dumps([name, resource, scheduled]) + "\n")
    print("making it")
    if os.path.exists(os.path.join(folder, "bad")):
        with open(os.environ["DISTILRANK_TERMINATION_LOG"], "w") as reason:
            reason.write("bad input: no such file")
        raise SystemExit(2)
    os.makedirs(made.path)
    open(os.path.join(made.path, "thing.txt"), "w").close()
    return True


@component
def use(folder: str, made: dsl.Input[dsl.Artifact]) -> str:
    """Count the attempt, wait or fail if told so, and say what arrived."""
    import os
    import signal
    import time

    with open(os.path.join(folder, "used"), "a") as log:
        log.write(",".join(os.listdir(made.path)) + "\n")
    signal.signal(signal.SIGTERM, lambda *_: open(os.path.join(folder, "terminated"), "w").close())
    while os.path.exists(os.path.join(folder, "wait")):
        time.sleep(0.02)
    if os.path.exists(os.path.join(folder, "break")):
        raise RuntimeError("it broke")
    return "used"


@component
def part(folder: str, item: str):
    """One of several."""
    print(f"part {item}")


@component
def tell(status: dsl.PipelineTaskFinalStatus, folder: str):
    """Keep the status that an exit handler gets."""
    import json
    import os

    with open(os.path.join(folder, "status"), "a") as log:
        log.write(json.dumps([status.state, status.pipeline_job_resource_name, status.error_message]) + "\n")


@dsl.pipeline(name="tiny")
def tiny(folder: str):
    with dsl.ExitHandler(tell(folder=folder).set_caching_options(False), name="run"):
        made = make(
            folder=folder,
            name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
            resource=dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER,
            scheduled=dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER,
        ).set_caching_options(False)
        use(folder=folder, made=made.outputs["made"]).set_caching_options(False)


@dsl.pipeline(name="loop")
def loop(folder: str):
    made = make(folder=folder, name="", resource="", scheduled="")
    with dsl.ParallelFor(["a", "b"]) as item:
        shard = part(folder=folder, item=item)
    with dsl.If(made.outputs["Output"] == True):  # noqa: E712 - KFP reads the comparison
        used = use(folder=folder, made=made.outputs["made"]).set_caching_options(False).after(shard)
        used.set_retry(1)
    with dsl.If(made.outputs["Output"] == False):  # noqa: E712
        part(folder=folder, item="never")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    folder = tmp_path_factory.mktemp("packages")
    made = {}
    for pipeline in (tiny, loop):
        path = folder / f"{pipeline.name}.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        made[pipeline.name] = Package.of(list(yaml.safe_load_all(path.read_text())))
    return made


@pytest.fixture(scope="module")
def document() -> Document:
    return Document()


class Cluster:
    """A server, a client, and the folder by which the pipelines' components are controlled."""

    def __init__(self, document: Document, packages: dict[str, Package], folder: Path) -> None:
        self.server = ClusterServer(document, folder / "cluster", prefix="/pipeline")
        self.store = self.server.store
        self.folder = folder / "control"
        self.folder.mkdir()
        self.kubeflow = Kubeflow(self.server.url)
        self.packages = packages

    def version(self, name: str) -> Version:
        return self.kubeflow.version(self.packages[name])

    def submit(self, pipeline: str = "tiny") -> str:
        return self.kubeflow.create_run(
            api.V2beta1Run(
                experiment_id=self.kubeflow.experiment("tests"),
                display_name="my run",
                description=f"number {len(self.store.runs)}",
                pipeline_version_reference=self.version(pipeline).reference(),
                runtime_config=api.V2beta1RuntimeConfig(parameters={"folder": str(self.folder)}),
            )
        )

    def run(self, number: str) -> api.V2beta1Run:
        run = self.kubeflow.run(number)
        assert run is not None
        return run

    def ended(self, number: str) -> str:
        wait_for(lambda: self.run(number).state in ("SUCCEEDED", "FAILED"))
        return self.run(number).state

    def call(self, path: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(f"{self.server.url}{path}", method=method)
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    def workflow(self, number: str) -> Entity:
        detail = json.loads(self.call(f"/apis/v1beta1/runs/{number}"))
        return json.loads(detail["pipeline_runtime"]["workflow_manifest"])

    def pods(self, number: str, task: str) -> list[Entity]:
        """Nodes of a task's own pods, in order."""
        nodes = self.workflow(number)["status"]["nodes"].values()
        return [node for node in nodes if re.search(rf"\.{task}\(0\)\.executor\(\d+\)$", node["name"])]

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def cluster(document: Document, packages: dict[str, Package], tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(document, packages, tmp_path)
    yield cluster
    cluster.server.close()
    assert cluster.store.problems == []


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_run_succeeds_and_is_reported_as_by_the_api(cluster: Cluster) -> None:
    run_id = cluster.submit()
    assert cluster.ended(run_id) == "SUCCEEDED"
    run = cluster.run(run_id)
    assert [entry.state for entry in run.state_history] == ["RUNNING", "SUCCEEDED"] and run.error is None
    # facts: a one-off run's job name is its display name, its resource name that of its workflow
    workflow = cluster.workflow(run_id)
    name = workflow["metadata"]["name"]
    assert re.fullmatch(r"distilrank-tiny-[0-9a-z]{5}", name)
    (made,) = (json.loads(line) for line in cluster.lines("made"))
    assert made[:2] == ["my run", name] and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", made[2])
    # facts: task_details has each node's display name, and once more with (0); no task has an error
    names = [task.display_name for task in run.run_details.task_details]
    for expected in ("make-driver", "make", "executor", "root-driver", "root", name):
        assert expected in names and f"{expected}(0)" in names
    assert {task.state for task in run.run_details.task_details} == {"SUCCEEDED"}
    assert all(task.error is None for task in run.run_details.task_details)
    # facts: a run that did not fail at its first stage is UNKNOWN to its exit handler, without an error
    assert [json.loads(line) for line in cluster.lines("status")] == [["UNKNOWN", name, None]]


def test_logs_are_read_by_pod_and_from_the_archive(cluster: Cluster) -> None:
    run_id = cluster.submit()
    cluster.ended(run_id)
    (node,) = cluster.pods(run_id, "make")
    workflow = cluster.workflow(run_id)["metadata"]["name"]
    pod = f"{workflow}-system-container-impl-{node['id'].rpartition('-')[2]}"  # util/workflow.go, RetrievePodName
    assert node["id"] == f"{workflow}-{fnv32a(node['name'])}"  # argo-workflows workflow_types.go, NodeID
    for name in (pod, node["id"]):
        assert "making it\n" in cluster.call(f"/apis/v1alpha1/runs/{run_id}/nodes/{name}/log").decode()
    archived = json.loads(cluster.call(f"/apis/v2beta1/runs/{run_id}/nodes/{node['id']}/artifacts/main-logs:read"))
    assert b"making it\n" in base64.b64decode(archived["data"])
    assert node["outputs"]["exitCode"] == "0" and node["outputs"]["artifacts"][0]["name"] == "main-logs"
    # run_log_server.go has sent 200 when it finds that there is no such pod; run_artifact_server.go sends 404
    missing = json.loads(cluster.call(f"/apis/v1alpha1/runs/{run_id}/nodes/nobody/log"))
    assert "not found" in missing["error_message"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        cluster.call(f"/apis/v2beta1/runs/{run_id}/nodes/nobody/artifacts/main-logs:read")
    cluster.store.compress_nodes = True
    status = cluster.workflow(run_id)["status"]
    nodes = json.loads(gzip.decompress(base64.b64decode(status["compressedNodes"])))
    assert "nodes" not in status and node["id"] in nodes
    assert "making it" in cluster.kubeflow.task_log(run_id, "make")
    cluster.store.pods_are_gone = True
    assert "making it" in cluster.kubeflow.task_log(run_id, "make")
    assert cluster.kubeflow.task_log(run_id, "nobody") == ""


def test_bad_input_ends_with_one_and_its_reason(cluster: Cluster) -> None:
    (cluster.folder / "bad").touch()
    run_id = cluster.submit()
    assert cluster.ended(run_id) == "FAILED"
    (node,) = cluster.pods(run_id, "make")  # facts: status 1 is not retried, whatever the component's own status was
    # argo-workflows operator.go, inferFailedReason
    assert (node["phase"], node["message"]) == (
        "Failed",
        "main: Error (exit code 1): bad input: no such file",
    )
    assert node["outputs"]["exitCode"] == "1"
    states = {task.display_name: task for task in cluster.run(run_id).run_details.task_details}
    assert states["make"].state == "FAILED" and states["make"].error is None
    assert states["use"].state == "RUNTIME_STATE_UNSPECIFIED"  # Omitted, which ToV2 does not know
    assert cluster.workflow(run_id)["status"]["phase"] == "Failed"
    # facts: FAILED where the first stage failed, and no error
    assert [json.loads(line)[::2] for line in cluster.lines("status")] == [["FAILED", None]]


def test_retry_runs_what_failed_and_no_exit_handler(cluster: Cluster) -> None:
    (cluster.folder / "break").touch()
    run_id = cluster.submit()
    assert cluster.ended(run_id) == "FAILED"
    (node,) = cluster.pods(run_id, "use")
    assert node["message"] == "main: Error (exit code 1)"
    (cluster.folder / "break").unlink()
    assert json.loads(cluster.call(f"/apis/v2beta1/runs/{run_id}:retry", "POST")) == {}
    assert cluster.run(run_id).state == "RUNNING"
    assert cluster.ended(run_id) == "SUCCEEDED"
    assert [entry.state for entry in cluster.run(run_id).state_history] == ["RUNNING", "FAILED", "RUNNING", "SUCCEEDED"]
    # facts: only what failed runs again (an uncached task that had succeeded does not), and no exit handler
    assert (len(cluster.lines("made")), len(cluster.lines("used")), len(cluster.lines("status"))) == (1, 2, 1)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        cluster.call(f"/apis/v2beta1/runs/{run_id}:retry", "POST")
    cluster.store.problems.clear()


def test_a_terminated_run_is_failed_within_half_a_second(cluster: Cluster) -> None:
    (cluster.folder / "wait").touch()
    run_id = cluster.submit()
    wait_for(lambda: cluster.lines("used"))
    wait_for(lambda: cluster.run(run_id).state == "RUNNING")
    started = time.monotonic()
    cluster.call(f"/apis/v2beta1/runs/{run_id}:terminate", "POST")
    assert cluster.run(run_id).state == "CANCELING"
    assert cluster.ended(run_id) == "FAILED" and time.monotonic() - started < 10
    assert (cluster.folder / "terminated").exists()  # SIGTERM arrives, and does not help
    workflow = cluster.workflow(run_id)
    assert workflow["spec"]["activeDeadlineSeconds"] == 0
    assert workflow["status"]["message"].startswith("retry exceeded workflow deadline ")
    assert [node["outputs"]["exitCode"] for node in cluster.pods(run_id, "use")] == ["143"]
    (cluster.folder / "wait").unlink()
    cluster.call(f"/apis/v2beta1/runs/{run_id}:retry", "POST")
    assert cluster.ended(run_id) == "SUCCEEDED" and len(cluster.lines("made")) == 1
    assert "activeDeadlineSeconds" not in cluster.workflow(run_id)["spec"]  # GenerateRetryExecution unsets it


def test_a_deleted_pod_is_started_again_and_no_other(cluster: Cluster) -> None:
    (cluster.folder / "wait").touch()
    run_id = cluster.submit()
    wait_for(lambda: len(cluster.lines("used")) == 1)
    cluster.call(f"/stub/runs/{run_id}/tasks/use:delete-pod", "POST")
    wait_for(lambda: len(cluster.lines("used")) == 2)
    assert [(node["phase"], node.get("message")) for node in cluster.pods(run_id, "use")] == [
        ("Error", "pod deleted"),
        ("Running", None),
    ]
    cluster.call(f"/stub/runs/{run_id}/tasks/use:oom-kill", "POST")
    assert cluster.ended(run_id) == "FAILED"
    assert cluster.pods(run_id, "use")[1]["message"] == "main: OOMKilled (exit code 137)"
    cluster.call(f"/apis/v2beta1/runs/{run_id}:retry", "POST")
    wait_for(lambda: len(cluster.lines("used")) == 3)
    cluster.call(f"/stub/runs/{run_id}/tasks/use:evict", "POST")
    assert cluster.ended(run_id) == "FAILED"
    (node,) = cluster.pods(run_id, "use")  # the pods of the first time are gone
    assert node["message"].startswith("Pod ephemeral local storage usage exceeds")


def test_loops_conditions_and_the_cache(cluster: Cluster) -> None:
    first = cluster.submit("loop")
    assert cluster.ended(first) == "SUCCEEDED"
    nodes = {node["name"]: node for node in cluster.workflow(first)["status"]["nodes"].values()}
    name = cluster.workflow(first)["metadata"]["name"]
    item = f"{name}(0).root(0).for-loop-2(0).iteration-iterations(1:1)"  # dag.go, iterationItemTask
    pod = nodes[f"{item}(0).iteration-item(0).part(0).executor(0)"]
    assert pod["displayName"] == "executor(0)" and pod["type"] == "Pod"
    parents = {child: node for node in nodes.values() for child in node.get("children", [])}
    ancestors = []
    node = pod
    while node["id"] in parents:
        node = parents[node["id"]]
        ancestors.append(node["displayName"])
    assert ancestors[:6] == ["executor", "part(0)", "part", "part-driver(0)", "part-driver", "iteration-item(0)"]
    assert ancestors[-1] == name
    log = cluster.call(f"/apis/v1alpha1/runs/{first}/nodes/{pod['id']}/log").decode()
    assert "part b\n" in log and "part a" not in log
    assert nodes[f"{name}(0).root(0).condition-3"]["phase"] == "Succeeded"
    assert nodes[f"{name}(0).root(0).condition-4"]["phase"] == "Skipped"
    assert nodes[f"{name}(0).root(0).condition-3(0).use(0).executor(0)"]["templateName"] == (
        "retry-system-container-impl"
    )
    # container.go: the pod of a cached task is skipped, and the task has succeeded
    second = cluster.submit("loop")
    assert cluster.ended(second) == "SUCCEEDED" and cluster.lines("used") == ["thing.txt", "thing.txt"]
    nodes = {node["name"].partition(".")[2]: node for node in cluster.workflow(second)["status"]["nodes"].values()}
    executor = nodes["root(0).make(0).executor"]
    assert (executor["type"], executor["phase"]) == ("Skipped", "Skipped") and nodes["root(0).make"]["phase"] == (
        "Succeeded"
    )
    # facts: the cache offers what was deleted from the store, and its folder arrives empty
    thing = cluster.store.folder / "artifacts" / "loop" / first / "make" / "made"
    (thing / "thing.txt").unlink()
    thing.rmdir()
    assert cluster.ended(cluster.submit("loop")) == "SUCCEEDED" and cluster.lines("used")[2] == ""


def test_a_recurring_run_has_no_job_name(cluster: Cluster) -> None:
    kubeflow = cluster.kubeflow
    number = kubeflow.create_recurring_run(
        api.V2beta1RecurringRun(
            display_name="weekly",
            description="ours",
            pipeline_version_reference=cluster.version("tiny").reference(),
            runtime_config=api.V2beta1RuntimeConfig(parameters={"folder": str(cluster.folder)}),
            trigger=api.V2beta1Trigger(cron_schedule=api.V2beta1CronSchedule(cron="0 0 0 1 1 *")),
            max_concurrency="1",
            mode="DISABLE",
            no_catchup=True,
            experiment_id=kubeflow.experiment("tests"),
        )
    )
    run_id = json.loads(cluster.call(f"/stub/recurringruns/{number}:tick", "POST"))["run_id"]
    run = cluster.run(run_id)
    # facts: RECURRING-RUN-N-HASH; controller.go sends no description
    assert re.fullmatch(r"weekly\w{5}-1-\d+", run.display_name) and not run.description
    assert run.recurring_run_id == number and run.scheduled_at is not None
    assert cluster.ended(run_id) == "SUCCEEDED"
    (made,) = (json.loads(line) for line in cluster.lines("made"))
    assert made == ["", run.display_name, f"{run.scheduled_at:%Y-%m-%dT%H:%M:%SZ}"]


def test_the_clock_starts_runs_that_are_due(cluster: Cluster) -> None:
    recurring = {
        "recurring_run_id": "abcdefgh",
        "display_name": "often",
        "created_at": "2026-01-01T00:00:30Z",
        "updated_at": "2026-01-01T00:00:30Z",
        "trigger": {"cron_schedule": {"cron": "0 0 0 1 1 *"}},
        "max_concurrency": "1",
        "mode": "ENABLE",
        "no_catchup": True,
        "namespace": "",
    }
    ticks: list[tuple[str, str]] = []
    store = cluster.store
    store.tick = lambda number, scheduled: ticks.append((number, scheduled)) or {}  # type: ignore[method-assign, func-returns-value]
    store.recurring["abcdefgh"] = recurring | {"created_at": "2020-12-31T00:00:00Z"}
    with store.lock:
        store.tick_due()
    assert ticks[-1] == ("abcdefgh", f"{time.gmtime().tm_year}-01-01T00:00:00Z")
    store.recurring["abcdefgh"] |= {"no_catchup": False}
    with store.lock:
        store.tick_due()
    assert ticks[-1] == ("abcdefgh", "2021-01-01T00:00:00Z")
    store.recurring["abcdefgh"] |= {"mode": "DISABLE"}
    ticks.clear()
    with store.lock:
        store.tick_due()
    assert ticks == []
