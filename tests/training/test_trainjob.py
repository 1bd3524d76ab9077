"""Training over several nodes, against a server that speaks that part of the Kubernetes API and knows the schema."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from pydantic import ValidationError

from distilrank.config import Compute
from distilrank.core import kubernetes_api, progress
from distilrank.core.errors import InputError, RunStopped
from distilrank.training.trainjob import cluster, manifest, runner
from distilrank.training.trainjob import heartbeat as heartbeats

ROOT = Path(__file__).parents[2]
CRD = ROOT.parent / "shared" / "api" / "trainer.kubeflow.org_trainjobs.crd.yaml"
NAME = manifest.job_name("teacher", "key")
COMMAND = ["torchrun", "-m", "distilrank.training.launch", "/distilrank/runs/teacher/task.json"]
COMPUTE = {
    "nodes": 2,
    "checkpoint_dir": "/distilrank/runs",
    "trainjob": {"namespace": "shop", "claim": "distilrank", "timeout_minutes": 2},
}


def compute(**changes: Any) -> Compute:
    """COMPUTE, with changes to its TrainJob."""
    return Compute(**{**COMPUTE, "trainjob": {**COMPUTE["trainjob"], **changes}})


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, refusing keys that it does not name: the API server prunes them, which is never what was meant."""
    schema = {key: closed(value) if isinstance(value, dict) else value for key, value in schema.items()}
    if "properties" in schema:
        schema["additionalProperties"] = False
    return schema


def schema() -> dict[str, Any] | None:
    """The TrainJob's schema, or None: it is no part of the project."""
    if not CRD.exists():
        return None
    version = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]
    assert version["name"] == manifest.VERSION
    # Without its metadata, whose schema is Kubernetes' own
    definition = closed(version["schema"]["openAPIV3Schema"])
    definition["properties"]["metadata"] = {"type": "object"}
    return definition


SCHEMA = schema()


def violations(job: dict[str, Any]) -> list[str]:
    """What the API server would refuse or prune in `job`."""
    if SCHEMA is None:
        return []
    import jsonschema

    errors = jsonschema.Draft202012Validator(SCHEMA).iter_errors(job)
    problems = [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]
    name = job["metadata"]["name"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 63:
        problems.append(f"metadata.name: {name}")
    return problems


# The server ---------------------------------------------------------------------------------------------------------


def condition(kind: str, reason: str, message: str, status: str = "True") -> dict[str, Any]:
    moment = "2026-11-02T03:04:05Z"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": moment}


def status(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"conditions": list(conditions)} if conditions else {}


RUNNING = status()
COMPLETE = status(condition("Complete", "AllJobsCompleted", "jobset completed successfully"))
FAILED = status(condition("Failed", "FailedJobs", f"jobset failed (first failed job: {NAME}-node-0)"))


def pod(index: int, phase: str = "Running", *, message: str = "", **container: Any) -> dict[str, Any]:
    name = f"{NAME}-node-0-{index}-x{index}yz"
    container = {"name": "node", "restartCount": 0, **container}
    return {
        "metadata": {"name": name, "labels": {"jobset.sigs.k8s.io/jobset-name": NAME}},
        "status": {"phase": phase, "containerStatuses": [container]} | ({"message": message} if message else {}),
    }


def unschedulable(index: int) -> dict[str, Any]:
    reason = {"reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}
    pending = pod(index, "Pending")
    pending["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", **reason}]}
    return pending


def terminated(code: int, second: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": f"2026-11-02T03:04:{second:02}Z"}}


def refusal(code: int, message: str) -> tuple[int, str]:
    return code, json.dumps({"kind": "Status", "status": "Failure", "code": code, "message": message})


class Server(ThreadingHTTPServer):
    """Keeps TrainJobs as the API server does; each look at a TrainJob takes its story one step further."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.story: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [(COMPLETE, [])]
        self.logs: dict[tuple[str, bool], str] = {}
        self.pods: list[dict[str, Any]] = []
        self.stages: dict[str, list[dict[str, Any]]] = {}  # a run's own pods, and who owns each
        self.trouble: list[tuple[str, str, Any]] = []  # verb, resource, answer; each is met once
        self.forbidden: set[tuple[str, str]] = set()
        self.lingers = 0  # looks at a deleted TrainJob until it is gone
        self.requests: list[tuple[str, str]] = []
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.installed = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def advance(self, name: str) -> dict[str, Any] | None:
        job = self.jobs.get(name)
        if job is not None and "deletionTimestamp" in job["metadata"]:
            self.lingers -= 1
            if self.lingers < 0:
                del self.jobs[name]
        elif job is not None and job["metadata"].pop("unseen", False):
            pass  # what an earlier attempt left is seen as it was left
        elif job is not None:
            job["status"], self.pods = self.story.pop(0) if len(self.story) > 1 else self.story[0]
        return self.jobs.get(name)

    def leave(self, job: dict[str, Any], state: dict[str, Any]) -> None:
        """Put a TrainJob there as an earlier attempt may have left it."""
        job = copy.deepcopy(job) | {"status": state}
        job["metadata"]["unseen"] = True
        self.jobs[job["metadata"]["name"]] = job


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, code: int, body: str, kind: str = "application/json") -> None:
        data = body.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def handle_request(self, verb: str) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        jobs = re.fullmatch(r"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/shop/trainjobs(?:/([^/]+))?", url.path)
        pods = re.fullmatch(r"/api/v1/namespaces/shop/pods(?:/([^/]+)/log)?", url.path)
        match = jobs or pods
        if match is None or (jobs and not self.server.installed):
            return self.answer(404, "404 page not found\n", "text/plain")
        name = match[1] or ""
        resource = "trainjobs" if jobs else "pods/log" if name else "pods"
        verb = "list" if resource == "pods" else verb
        self.server.requests.append((verb, resource))
        if (verb, resource) in self.server.forbidden:
            account = "system:serviceaccount:shop:pipeline-runner"
            return self.answer(*refusal(403, f'User "{account}" cannot {verb} resource "{resource}"'))
        for trouble in self.server.trouble:
            if trouble[:2] == (verb, resource):
                self.server.trouble.remove(trouble)
                if trouble[2] == "drop":
                    return self.drop()
                if trouble[2] == "drop answer":
                    self.server.jobs[body["metadata"]["name"]] = body
                    return self.drop()
                return self.answer(*trouble[2])
        getattr(self, verb + "_" + resource.replace("/", "_"))(name, query, body)

    def get_trainjobs(self, name: str, query: dict[str, str], body: Any) -> None:
        job = self.server.advance(name)
        self.answer(200, json.dumps(job)) if job else self.answer(*refusal(404, f'trainjobs "{name}" not found'))

    def create_trainjobs(self, _: str, query: dict[str, str], body: Any) -> None:
        name = body["metadata"]["name"]
        if name in self.server.jobs:
            return self.answer(*refusal(409, f'trainjobs "{name}" already exists'))
        assert query == {"fieldValidation": "Strict"}
        wrong = violations(body)
        if wrong:
            return self.answer(*refusal(422, f'TrainJob "{name}" is invalid: {wrong}'))
        self.server.created.append(body)
        self.server.jobs[name] = copy.deepcopy(body)
        self.answer(201, json.dumps(body))

    def delete_trainjobs(self, name: str, query: dict[str, str], body: Any) -> None:
        job = self.server.jobs.get(name)
        if job is None:
            return self.answer(*refusal(404, f'trainjobs "{name}" not found'))
        assert query == {"propagationPolicy": "Foreground"}
        self.server.deleted.append(name)
        job["metadata"]["deletionTimestamp"] = "2026-11-02T03:04:05Z"
        if self.server.lingers <= 0:
            del self.server.jobs[name]
        self.answer(200, json.dumps(job))

    def patch_trainjobs(self, name: str, query: dict[str, str], body: Any) -> None:
        assert self.headers["Content-Type"] == "application/merge-patch+json"
        assert body.keys() == {"metadata"} and body["metadata"].keys() == {"ownerReferences"}
        self.server.jobs[name]["metadata"] |= body["metadata"]
        self.answer(200, json.dumps(self.server.jobs[name]))

    def list_pods(self, _: str, query: dict[str, str], body: Any) -> None:
        if "fieldSelector" in query:
            pods = [
                pod_name for pod_name in self.server.stages if query == {"fieldSelector": f"metadata.name={pod_name}"}
            ]
            metadata = [{"name": pod_name, "ownerReferences": self.server.stages[pod_name]} for pod_name in pods]
            return self.answer(200, json.dumps({"kind": "PodList", "items": [{"metadata": item} for item in metadata]}))
        key, name = query["labelSelector"].split("=")
        pods = [item for item in self.server.pods if item["metadata"]["labels"].get(key) == name]
        self.answer(200, json.dumps({"kind": "PodList", "items": pods}))

    def get_pods_log(self, name: str, query: dict[str, str], body: Any) -> None:
        assert query["container"] == "node"
        log = self.server.logs.get((name, query["previous"] == "True"))
        if log is None:
            return self.answer(*refusal(400, "previous terminated container not found"))
        self.answer(200, "".join(log.splitlines(keepends=True)[-int(query["tailLines"]) :]), "text/plain")

    def do_GET(self) -> None:
        self.handle_request("get")

    def do_POST(self) -> None:
        self.handle_request("create")

    def do_PATCH(self) -> None:
        self.handle_request("patch")

    def do_DELETE(self) -> None:
        self.handle_request("delete")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def heartbeat(tmp_path: Path) -> Path:
    return tmp_path / "heartbeat"


@pytest.fixture
def run(server: Server, heartbeat: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`runner.run` on that server, in a world where a minute takes a second."""
    import kubernetes

    for module in (cluster, runner):
        monkeypatch.setattr(module, "monotonic", lambda: 60 * time.monotonic())
        monkeypatch.setattr(module, "sleep", lambda seconds: time.sleep(seconds / 60))
    configuration = kubernetes.client.Configuration(host=server.url)
    configuration.retries = False
    client = kubernetes.client.ApiClient(configuration)

    def run(settings: Compute | None = None) -> None:
        runner.run(NAME, COMMAND, settings or compute(), "teacher", heartbeat=heartbeat, client=client)

    return run


def notes(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the stage said; each line is of the form that a run's progress is read from."""
    events = [progress.parse(line) for line in capsys.readouterr().out.splitlines()]
    assert all(event and (event.stage, event.event) == ("teacher", "note") for event in events)
    return [event.text for event in events if event]


def has_lines(lines: list[str], *parts: str) -> bool:
    """Whether the parts were said, in this order."""
    remaining = iter(lines)
    return all(any(part in line for line in remaining) for part in parts)


# What is asked for --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        compute(),
        compute(gpus=8, cpu="3500m", memory="64Gi", image="registry/train:1", queue="research"),
        compute(gpus=0),
        compute(gpus=0, cpu="4").model_copy(update={"processes": 4}),
    ],
)
def test_the_crd_allows_the_trainjob(settings: Compute) -> None:
    if SCHEMA is None:
        pytest.skip(f"{CRD.name}, Kubeflow Trainer's own, is not beside this project")
    job = manifest.build(NAME, COMMAND, settings)
    assert violations(job) == []
    job["spec"]["trainer"]["numProcPernode"] = job["spec"]["trainer"].pop("numProcPerNode")
    patch = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    patch["template"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"][0]["path"] = "/somewhere"
    job["spec"]["activeDeadlineSeconds"] = 0
    assert len(violations(job)) == 3


def test_every_process_has_a_gpu_and_no_more_nodes_or_resources_are_asked_for_than_configured() -> None:
    trainer = manifest.build(NAME, COMMAND, compute(gpus=4, memory="8Gi"))["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": "4", "memory": "8Gi"}
    assert trainer["resourcesPerNode"]["requests"] == trainer["resourcesPerNode"]["limits"]
    bare = manifest.build(NAME, COMMAND, compute(gpus=0))["spec"]["trainer"]
    assert bare["numProcPerNode"] == 1 and not {"resourcesPerNode", "image"} & set(bare)


def test_names_follow_the_key_and_leave_room_for_those_of_pods() -> None:
    names = {manifest.job_name(stage, key) for stage in ("teacher", "student") for key in ("a", "b", "a")}
    assert len(names) == 4
    longest = "-model-initializer-20-0-999-abcde"  # a job's name may have 20 characters
    assert all(re.fullmatch(r"[a-z][-a-z0-9]*[a-z0-9]", name) and len(name + longest) <= 63 for name in names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainjob": {"claim": ""}}, "compute.trainjob.claim is empty"),
        ({"checkpoint_dir": ""}, "compute.checkpoint_dir is ''"),
        (
            {"checkpoint_dir": "/data"},
            "compute.checkpoint_dir is '/data', expected a folder below compute.trainjob.mount",
        ),
        ({"checkpoint_dir": "/distilrank/../data"}, "compute.checkpoint_dir"),
        ({"checkpoint_dir": "/distilranked"}, "compute.checkpoint_dir"),
        ({"device": "cpu"}, "compute.trainjob.gpus is 1, but compute.device is 'cpu': expected 0"),
        ({"device": "cuda", "trainjob": {"claim": "c", "gpus": 0}}, "expected at least 1"),
    ],
)
def test_what_cannot_train_on_several_nodes_is_refused_early(changes: dict[str, Any], message: str) -> None:
    settings = Compute(**{**COMPUTE, **changes})
    with pytest.raises(InputError, match=re.escape(message)):
        manifest.check(settings)
    with pytest.raises(InputError, match=re.escape(message)):
        runner.run(NAME, COMMAND, settings, "teacher", heartbeat=Path("heartbeat"))
    manifest.check(settings.model_copy(update={"nodes": 1}))
    manifest.check(compute())


@pytest.mark.parametrize(
    "change",
    [
        {"memory": "64GB"},
        {"cpu": "4 cores"},
        {"mount": "distilrank"},
        {"mount": "/"},
        {"claim": "My Claim"},
        {"runtime": ""},
    ],
)
def test_what_kubernetes_would_not_read_is_refused_early(change: dict[str, str]) -> None:
    compute(memory="1.5Gi", cpu="500m", mount="/mnt/distilrank", claim="a.claim-1")
    with pytest.raises(ValidationError, match=next(iter(change))):
        compute(**change)


def test_importing_it_loads_no_client() -> None:
    heavy = {"kubernetes", "torch", "urllib3"}
    code = f"import sys, distilrank.training.trainjob.runner; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# How it is waited for -----------------------------------------------------------------------------------------------


def test_states_are_reported_until_it_is_complete_and_it_is_deleted(
    server: Server, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pulling = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    creating = {"waiting": {"reason": "ContainerCreating"}}
    server.story = [
        (status(condition("Suspended", "Suspended", "TrainJob is suspended")), []),
        (RUNNING, []),
        (RUNNING, [unschedulable(0), unschedulable(1)]),
        (RUNNING, [pod(0, "Pending", state=creating), pod(1, "Pending", state=pulling)]),
        *[(RUNNING, [pod(1), pod(0)])] * 15,
        (COMPLETE, [pod(0, "Succeeded"), pod(1, "Succeeded")]),
    ]
    server.logs[pod(0)["metadata"]["name"], False] = "noise\ndistilrank | teacher | progress | 120/400 steps\n"
    settings = compute(timeout_minutes=30)
    run(settings)
    lines = notes(capsys)
    assert has_lines(
        lines,
        "created TrainJob shop/distilrank-teacher-",
        "suspended, Suspended: TrainJob is suspended",
        "no pods yet",
        "2 of 2 pods are not scheduled: Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        "x1yz waits: ImagePullBackOff: no such image",
        "2 running of 2 nodes",
        "2 running of 2 nodes | 120/400 steps",
        "is complete",
        "is deleted",
    )
    assert sum("2 running" in line for line in lines) < 10  # as a change, then once a minute
    assert server.created[0] == manifest.build(NAME, COMMAND, settings)
    assert not server.jobs and server.deleted == [NAME]


def test_a_failure_comes_with_the_log_of_the_node_that_failed_first(server: Server, run: Callable[..., None]) -> None:
    lost, first = pod(0, "Failed", state=terminated(1, 50)), pod(1, "Failed", state=terminated(137, 40, "OOMKilled"))
    server.story = [(RUNNING, [pod(0), pod(1)]), (FAILED, [lost, first])]
    server.logs[lost["metadata"]["name"], False] = "NCCL: the other side is gone\n"
    server.logs[first["metadata"]["name"], False] = "".join(f"line {number}\n" for number in range(500)) + "Bus error\n"
    with pytest.raises(RunStopped) as caught:
        run()
    text = str(caught.value)
    assert re.search(r"FailedJobs: jobset failed.*first to fail was \S+-1-x1yz \(exit code 137, OOMKilled\)", text)
    assert text.endswith("line 499\nBus error") and "line 400\n" not in text and "NCCL" not in text
    assert not server.jobs


def test_the_log_of_a_node_that_was_restarted_and_removed_is_kept(
    server: Server, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    restarted = pod(0, lastState=terminated(2, 7), restartCount=3, state={"running": {}})
    server.story = [(RUNNING, [pod(0)]), *[(RUNNING, [restarted])] * 3, (FAILED, [])]
    server.trouble = [("get", "pods/log", "drop")]
    server.logs[restarted["metadata"]["name"], True] = '{"level": "error", "why": "no such column"}\n'
    with pytest.raises(RunStopped, match=re.escape('{"level": "error", "why": "no such column"}')):
        run()
    lines = [line for line in notes(capsys) if "failed: exit code 2, Error; restarts: 3" in line]
    assert len(lines) == 1 and server.requests.count(("get", "pods/log")) == 2


@pytest.mark.parametrize("right", [("list", "pods"), ("get", "pods/log")])
def test_missing_rights_to_see_pods_hide_no_failure(
    server: Server, run: Callable[..., None], capsys: pytest.CaptureFixture[str], right: tuple[str, str]
) -> None:
    server.forbidden.add(right)
    active = {"name": "node", "active": 1, "ready": 0, "failed": 0, "succeeded": 0, "suspended": 0}
    failed = [pod(0, "Failed", state=terminated(1, 5)), pod(1, "Failed", state=terminated(1, 6))]
    server.story = [
        ({"jobsStatus": [active]}, [pod(0)]),
        ({"jobsStatus": [active | {"ready": 1}]}, [pod(0)]),
        (FAILED, failed),
    ]
    with pytest.raises(RunStopped, match="FailedJobs: jobset failed"):
        run()
    lines = notes(capsys)
    assert sum(f"lacks the right to {right[0]} {right[1]} in namespace shop" in line for line in lines) == 1
    assert server.requests.count(right) == 1
    if right == ("list", "pods"):
        assert has_lines(lines, "the nodes are being started", "the nodes run")


def test_a_trainjob_that_takes_too_long_is_deleted(server: Server, run: Callable[..., None]) -> None:
    server.story = [(status(condition("Suspended", "Resumed", "resumed", "False")), [unschedulable(0)])]
    started = time.monotonic()
    with pytest.raises(RunStopped, match=r"has not ended after 2 minutes.*Unschedulable.*Suspended: Resumed: resumed"):
        run()
    assert 2 <= time.monotonic() - started < 10
    assert server.deleted == [NAME] and server.created[0]["spec"]["activeDeadlineSeconds"] == 120


@pytest.mark.parametrize("gone", [True, False])
def test_a_trainjob_that_someone_deletes_is_not_waited_for(
    server: Server, run: Callable[..., None], gone: bool
) -> None:
    server.story, server.lingers = [(RUNNING, [])], 10**6

    def delete() -> None:
        while server.requests.count(("get", "trainjobs")) < 3:
            time.sleep(0.01)
        if gone:
            server.jobs.clear()
        else:
            server.jobs[NAME]["metadata"]["deletionTimestamp"] = "2026-11-02T03:04:05Z"

    thread = threading.Thread(target=delete)
    thread.start()
    with pytest.raises(RunStopped, match="was deleted by someone else while this run waited for it"):
        run()
    thread.join()


# What an earlier attempt left ---------------------------------------------------------------------------------------


def test_a_trainjob_that_still_runs_is_waited_for(
    server: Server, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    server.leave(manifest.build(NAME, COMMAND, compute()), RUNNING)
    run()
    assert not server.created and server.deleted == [NAME]
    assert has_lines(notes(capsys), "of an earlier attempt continues", "is complete")


@pytest.mark.parametrize(
    ("settings", "state", "why"),
    [
        (compute(), FAILED, "it has ended, Failed"),
        (compute(), COMPLETE, "it has ended, Complete"),
        (compute(gpus=8), RUNNING, "it has other settings"),
        (compute(), None, "it is being deleted"),
    ],
)
def test_any_other_trainjob_is_gone_before_a_new_one_starts(
    server: Server,
    run: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    settings: Compute,
    state: dict[str, Any] | None,
    why: str,
) -> None:
    server.leave(manifest.build(NAME, COMMAND, settings), state or {})
    if state is None:
        server.jobs[NAME]["metadata"]["deletionTimestamp"] = "2026-11-02T03:04:05Z"
    server.lingers = 3
    run()
    lines = notes(capsys)
    assert has_lines(lines, f"removing an earlier TrainJob {NAME}: {why}", "created", "is complete")
    assert len(server.created) == 1 and not server.jobs
    first = server.requests.index(("create", "trainjobs"))
    assert server.requests[:first].count(("get", "trainjobs")) >= 4  # it lingered


# Whose it is --------------------------------------------------------------------------------------------------------

STAGE_POD = "distill-x7k2p-system-container-impl-1234567890"
WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "distill-x7k2p", "uid": "1f0e-2"}
EARLIER = {**WORKFLOW, "name": "distill-a1b2c", "uid": "0a0b-1"}


@pytest.fixture
def stage_pod(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """This process as a pod of a run in the namespace `shop`, as Argo makes them."""
    (tmp_path / "account").mkdir()
    (tmp_path / "account" / "namespace").write_text("shop\n")
    monkeypatch.setattr(kubernetes_api, "SERVICE_ACCOUNT", tmp_path / "account")
    monkeypatch.setenv("KFP_POD_NAME", STAGE_POD)
    server.stages = {STAGE_POD: [WORKFLOW | {"controller": True, "blockOwnerDeletion": True}]}
    return STAGE_POD


def test_it_belongs_to_the_workflow_of_the_run(
    server: Server, run: Callable[..., None], stage_pod: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    assert server.created == [manifest.build(NAME, COMMAND, compute(), WORKFLOW)]
    assert server.created[0]["metadata"]["ownerReferences"] == [WORKFLOW]
    assert not has_lines(notes(capsys), "will not be deleted")


def test_a_trainjob_of_an_earlier_run_belongs_to_both_runs(
    server: Server, run: Callable[..., None], stage_pod: str
) -> None:
    server.story = [*[(RUNNING, [])] * 3, (COMPLETE, [])]
    owners: list[Any] = []
    for owner in (EARLIER, WORKFLOW):
        server.leave(manifest.build(NAME, COMMAND, compute(), owner), RUNNING)
        job = server.jobs[NAME]
        run()
        owners.append(job["metadata"]["ownerReferences"])
    assert owners == [[EARLIER, WORKFLOW], [WORKFLOW]]
    assert server.requests.count(("patch", "trainjobs")) == 1 and not server.created


def test_a_missing_right_costs_the_owner_and_no_more(
    server: Server, run: Callable[..., None], stage_pod: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.forbidden = {("list", "pods")}
    run()
    assert "ownerReferences" not in server.created[0]["metadata"]
    assert sum("lacks the right to list pods in namespace shop" in line for line in notes(capsys)) == 1
    server.forbidden = {("patch", "trainjobs")}
    server.leave(manifest.build(NAME, COMMAND, compute(), EARLIER), RUNNING)
    run()
    assert has_lines(
        notes(capsys), "may be deleted with an earlier run: this pod's service account lacks", "is complete"
    )


@pytest.mark.parametrize("case", ["elsewhere", "by hand"])
def test_without_a_workflow_to_own_it_this_is_reported(
    server: Server, run: Callable[..., None], stage_pod: str, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if case == "elsewhere":  # an owner of another namespace counts as deleted
        (kubernetes_api.SERVICE_ACCOUNT / "namespace").write_text("kubeflow\n")
        why = "the run is in namespace kubeflow"
    else:
        server.stages[STAGE_POD] = []
        why = f"pod {STAGE_POD} belongs to no workflow"
    run()
    assert "ownerReferences" not in server.created[0]["metadata"]
    assert has_lines(notes(capsys), f"the TrainJob will not be deleted with the run's workflow: {why}", "is complete")


# What the API says --------------------------------------------------------------------------------------------------

DENIED = (
    'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: spec.RuntimeRef: Invalid value: '
    'ClusterTrainingRuntime "torch-distributed" not found: specified clusterTrainingRuntime must be created before'
)
UNKNOWN = 'TrainJob cannot be handled: strict decoding error: unknown field "spec.runtimePatches"'


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refusal(403, DENIED), "specified clusterTrainingRuntime must be created before"),
        (refusal(400, UNKNOWN), 'Kubeflow Trainer is too old, expected 2.2 or newer: .*"spec.runtimePatches"'),
        (
            refusal(404, 'namespaces "shop" not found'),
            'refuses to create trainjobs in namespace shop: 404: namespaces "shop"',
        ),
        (refusal(401, "Unauthorized"), "401: Unauthorized"),
        (refusal(422, "spec.trainer: Invalid value"), "422: spec.trainer: Invalid value"),
        ((400, "[" * 100_000), "refuses to create trainjobs in namespace shop: 400: "),
        ((200, "[" * 100_000), r"cannot create trainjobs: .* not JSON that can be read \(nested too deeply\)$"),
    ],
)
def test_a_refusal_is_bad_input(
    server: Server, run: Callable[..., None], capsys: pytest.CaptureFixture[str], answer: tuple[int, str], message: str
) -> None:
    server.trouble = [("create", "trainjobs", answer)]
    with pytest.raises(InputError, match=message) as caught:
        run()
    assert "service account lacks" not in str(caught.value)
    assert not server.created and notes(capsys) == []


def test_without_kubeflow_trainer_the_error_names_it(server: Server, run: Callable[..., None]) -> None:
    server.installed = False
    with pytest.raises(
        InputError, match=r"Kubeflow Trainer is not installed.*trainjobs\.trainer\.kubeflow\.org/v1alpha1"
    ):
        run()


@pytest.mark.parametrize("verb", ["get", "create"])
def test_a_missing_right_is_named(server: Server, run: Callable[..., None], verb: str) -> None:
    server.forbidden.add((verb, "trainjobs"))
    with pytest.raises(
        InputError, match=f"lacks the right to {verb} trainjobs in namespace shop .*shop:pipeline-runner"
    ):
        run()


def test_a_missing_right_to_delete_hides_nothing_and_is_reported(
    server: Server, run: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    server.forbidden.add(("delete", "trainjobs"))
    server.story = [(FAILED, [])]
    with pytest.raises(RunStopped, match="FailedJobs"):
        run()
    left = next(line for line in notes(capsys) if "may be left behind" in line)
    assert left.endswith(f"kubectl -n shop delete trainjob {NAME}") and "lacks the right to delete trainjobs" in left


def test_outages_are_waited_out(server: Server, run: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    down, busy = refusal(500, "failed calling webhook: no endpoints"), refusal(429, "too many requests")
    server.trouble = [
        ("get", "trainjobs", "drop"),
        ("create", "trainjobs", down),
        ("create", "trainjobs", (502, "<html>bad gateway</html>")),
        ("list", "pods", "drop"),
        ("get", "trainjobs", busy),
        ("get", "trainjobs", "drop"),
        ("get", "trainjobs", (503, "")),
        ("list", "pods", down),
        ("delete", "trainjobs", down),
    ]
    server.story = [*[(RUNNING, [pod(0), pod(1)])] * 4, (COMPLETE, [])]
    run()
    assert not server.trouble and not server.jobs and len(server.created) == 1
    assert has_lines(
        notes(capsys),
        "cannot get trainjobs, trying again",
        "cannot create trainjobs, trying again: 500: failed calling",
    )


def test_a_creation_whose_answer_got_lost_is_not_repeated(server: Server, run: Callable[..., None]) -> None:
    server.trouble = [("create", "trainjobs", "drop answer")]
    run()
    assert server.requests.count(("create", "trainjobs")) == 2 and not server.created and server.deleted == [NAME]


def test_an_outage_that_does_not_end_stops_the_run(
    server: Server, run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "OUTAGE_SECONDS", 30)
    server.trouble = [("create", "trainjobs", refusal(503, "etcd is gone"))] * 50
    with pytest.raises(
        RunStopped, match="cannot create trainjobs: the Kubernetes API is unavailable, 503: etcd is gone"
    ):
        run()


def test_without_a_cluster_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes.config import kube_config

    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"compute\.nodes is 2, but no Kubernetes cluster is known"):
        runner.run(NAME, COMMAND, compute(), "teacher", heartbeat=tmp_path / "heartbeat")


# Whatever happens ---------------------------------------------------------------------------------------------------


def kubeconfig(server: Server, folder: Path) -> Path:
    path = folder / "kubeconfig"
    clusters = [{"name": "here", "cluster": {"server": server.url}}]
    contexts = [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "shop"}}]
    users = [{"name": "me", "user": {"token": "secret"}}]
    names = {"clusters": clusters, "contexts": contexts, "users": users, "current-context": "here"}
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **names}))
    return path


@pytest.mark.parametrize("moment", ["while it runs", "while it is created"])
@pytest.mark.parametrize(("signum", "exit_status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_process_that_is_stopped_leaves_no_trainjob(
    server: Server, tmp_path: Path, moment: str, signum: int, exit_status: int
) -> None:
    server.story = [(RUNNING, [pod(0), pod(1)])]
    server.trouble = [("delete", "trainjobs", refusal(500, "try again"))]
    if moment == "while it is created":
        server.trouble += [("create", "trainjobs", refusal(500, "try again"))] * 100
    # The namespace comes from the kubeconfig
    settings = compute(namespace="").model_dump_json()
    code = (
        # what runs in the background ignores SIGINT and hands that on; preexec_fn would fork beside the server's thread
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from pathlib import Path\n"
        "from distilrank.training.trainjob import runner; from distilrank.config import Compute\n"
        "runner.POLL_SECONDS = 0.05\n"
        f"settings, heartbeat = Compute.model_validate_json(sys.argv[1]), Path({str(tmp_path / 'heartbeat')!r})\n"
        f"runner.run({NAME!r}, {COMMAND!r}, settings, 'teacher', heartbeat=heartbeat)"
    )
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig(server, tmp_path))}
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code, settings],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    awaited = ("list", "pods") if moment == "while it runs" else ("create", "trainjobs")
    until = time.monotonic() + 60
    while server.requests.count(awaited) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert process.poll() is None and bool(server.jobs) == (moment == "while it runs")
    process.send_signal(signum)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.2)
    process.send_signal(signum if signum == signal.SIGTERM else 0)  # a second one must not cut the clean-up short
    output, _ = process.communicate(timeout=60)
    assert process.returncode == exit_status, output
    assert not server.jobs and ("delete", "trainjobs") in server.requests


def test_the_heart_beats_while_it_is_waited_for_and_not_after(
    server: Server, run: Callable[..., None], heartbeat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.02)
    server.story = [(RUNNING, [])]
    beats: set[int] = set()
    thread = threading.Thread(target=run)
    thread.start()
    until = time.monotonic() + 30
    while len(beats) < 5 and time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError):
            beats.add(heartbeat.stat().st_mtime_ns)
    server.story = [(COMPLETE, [])]
    thread.join()
    assert len(beats) == 5
    last = heartbeat.stat().st_mtime_ns
    time.sleep(0.1)
    assert heartbeat.stat().st_mtime_ns == last


ORPHAN = """
import sys, time
from pathlib import Path
from distilrank.training.trainjob import heartbeat
heartbeat.BEAT_SECONDS = 0.05
heartbeat.end_when_orphaned(Path(sys.argv[1]), float(sys.argv[2]), "teacher")
time.sleep(20)
print("trained", flush=True)
"""


def test_nodes_end_themselves_once_nobody_waits_for_them(server: Server, tmp_path: Path) -> None:
    """The process that waits is killed without a word, as Kubeflow's launcher does half a second after SIGTERM."""
    server.story = [(RUNNING, [])]
    settings = compute(namespace="").model_dump_json()
    waits = (
        "import sys; from pathlib import Path\n"
        "from distilrank.training.trainjob import heartbeat, runner; from distilrank.config import Compute\n"
        "heartbeat.BEAT_SECONDS = 0.05\n"
        f"settings = Compute.model_validate_json(sys.argv[1])\n"
        f"runner.run({NAME!r}, {COMMAND!r}, settings, 'teacher', heartbeat=Path(sys.argv[2]))"
    )
    heartbeat = tmp_path / "heartbeat"
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig(server, tmp_path))}
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    waiting = subprocess.Popen([sys.executable, "-c", waits, settings, str(heartbeat)], env=environment)
    until = time.monotonic() + 60
    while not server.jobs and time.monotonic() < until:
        time.sleep(0.01)
    minutes = 3 / 60
    node = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(heartbeat), str(minutes)], stdout=subprocess.PIPE, text=True
    )
    with pytest.raises(subprocess.TimeoutExpired):
        node.wait(5)  # it is waited for
    waiting.kill()
    waiting.wait()
    output, _ = node.communicate(timeout=15)
    assert node.returncode == 1
    assert server.jobs and not server.deleted, "nothing but the nodes themselves ended it"
    event = progress.parse(output)
    assert event and (event.stage, event.event) == ("teacher", "stopped")
    assert event.text.startswith("no pod has waited for this training for 0.05 minutes (compute.trainjob.orphan_mi")


def test_a_volume_that_is_away_ends_no_training(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-c", ORPHAN, str(tmp_path / "away" / "heartbeat"), "0"], timeout=4, check=False
        )


def test_the_handler_of_sigterm_is_put_back(server: Server, run: Callable[..., None]) -> None:
    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        run()
    finally:
        handler = signal.signal(signal.SIGTERM, before)
    assert handler is mine


def test_it_works_where_no_handler_can_be_set(server: Server, run: Callable[..., None]) -> None:
    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            run()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert not failures and server.deleted == [NAME]


# The page -----------------------------------------------------------------------------------------------------------


def documents(kind: str) -> dict[str, Any]:
    """The YAML of this kind on the page; without kind: the configuration."""
    page = (ROOT / "docs" / "several-nodes.md").read_text()
    blocks = [
        document for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) for document in yaml.safe_load_all(text)
    ]
    return next(block for block in blocks if block.get("kind", "") == kind)


def test_the_page_shows_the_trainjob_that_its_configuration_makes() -> None:
    settings = Compute(**documents("")["compute"])
    manifest.check(settings)
    shown = documents("TrainJob")
    made = manifest.build(shown["metadata"]["name"], shown["spec"]["trainer"]["command"], settings)
    shown["metadata"]["annotations"] = made["metadata"]["annotations"]
    assert shown == made


def test_the_page_grants_what_is_used_and_no_more(server: Server, run: Callable[..., None], stage_pod: str) -> None:
    server.story = [(FAILED, [pod(0, "Failed", state=terminated(1, 1))])]
    server.logs[pod(0)["metadata"]["name"], False] = "why"
    with pytest.raises(RunStopped, match="why"):
        run()
    server.leave(manifest.build(NAME, COMMAND, compute(), EARLIER), RUNNING)
    with pytest.raises(RunStopped, match="why"):
        run()
    granted = {
        (verb, resource)
        for rule in documents("Role")["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == set(server.requests)
