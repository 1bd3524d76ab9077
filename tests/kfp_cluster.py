"""A Kubeflow Pipelines that runs pipelines for real: the API server of tests/kfp_server.py, and a process a task.

`python -m tests.kfp_cluster --port N --folder DIR [--prefix /pipeline]` serves until it is stopped. What a run does is
in DIR/runs/ID (tests/kfp_worker.py writes it), its artifacts are in DIR/artifacts/PIPELINE/ID/TASK/NAME (delete one
to see a cached result without its bytes), Secrets are the files DIR/secrets/NAME/KEY (as variables only).

It answers as Kubeflow Pipelines 2.17.0 with Argo Workflows 4.0.5 did; each behavior names its source. Beyond Kubeflow's
own paths it has hooks for tests:
  POST /stub/recurringruns/ID:tick            start the run of a tick now
  POST /stub/runs/ID/tasks/TASK:delete-pod    end a task's process like that of a deleted pod; also :oom-kill and :evict
Volumes cannot be mounted and users not changed: a configuration names folders of this machine.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil

from distilrank.core import artifacts
from pipelines.recurring_runs import cron
from tests.kfp_server import Document, Entity, Handler, Operation, Refused, Server, Store
from tests.kfp_worker import now, read_events, running

GRACE_SECONDS = 0.5
"""Between SIGTERM and the end of a pod: seen 0.49, for KFP's launcher dies of it and takes the container along."""
OVER = ("SUCCEEDED", "FAILED")
STATES = {"Error": "FAILED", "Omitted": "RUNTIME_STATE_UNSPECIFIED"}
"""State of a task by its node's phase, where it is not the same word (backend/src/apiserver/model/run.go, ToV2)."""


def to_seconds(moment: datetime) -> str:
    """A moment as Kubeflow writes it into pipelines."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def fnv32a(text: str) -> int:
    """The hash by which Argo names nodes."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return value


# The Argo Workflow of a run ----------------------------------------------------------------------------------------


class Graph:
    """The nodes of a workflow, from its pipeline and what its tasks did so far.

    KFP's manifests give every template a retry strategy (`templateDefaults`), so each pod and each DAG is the child
    NAME(0) of a node NAME of type Retry. Sources: backend/src/v2/compiler/argocompiler/dag.go and container.go for the
    names of templates and tasks; argo-workflows 4.0.5, workflow/controller/operator.go (initializeNode,
    getOutboundNodes, processNodeRetries) for nodes.
    """

    def __init__(self, name: str, specification: Entity, events: list[Entity], *, over: bool, deadline: str) -> None:
        """
        Args:
            name: the workflow's.
            specification: of the pipeline, as compiled.
            events: as tests/kfp_worker.py writes them.
            over: whether nothing runs any more.
            deadline: when somebody terminated the run; empty: nobody did.
        """
        self.name = name
        self.components = specification["components"]
        self.over = over
        self.deadline = deadline
        self.nodes: dict[str, Entity] = {}
        self.log_keys: dict[str, str] = {}
        """Key of a log by its pod's node."""
        self.cached: dict[tuple[str, ...], Entity] = {}
        self.attempts: dict[tuple[str, ...], list[Entity]] = {}
        self.loops: dict[tuple[str, ...], Entity] = {}
        self._read(events)
        if events or over:
            start = events[0]["time"] if events else now()
            entry = self._retry(name, None, "entrypoint", [], start)
            driver = self._pod(f"{name}(0).root-driver", entry, "system-dag-driver", [entry["id"]], start)
            self._close(entry, self._dag(f"{name}(0).root", entry, "root", specification["root"], (), [driver]))

    def _read(self, events: list[Entity]) -> None:
        for event in events:
            path = tuple(event["path"])
            if event["event"] == "cached":
                self.cached[path] = event
            elif event["event"] == "loop":
                self.loops[path] = event
            elif event["event"] in ("started", "pending"):
                phase = "Running" if event["event"] == "started" else "Pending"
                self.attempts.setdefault(path, []).append({"message": ""} | event | {"phase": phase})
            elif event["event"] == "ended":
                self.attempts[path][-1] |= event | {"finished": event["time"], "time": self.attempts[path][-1]["time"]}
            elif event["event"] == "retry":  # failed pods are deleted, and their nodes with them
                self.attempts = {path: pods for path, pods in self.attempts.items() if pods[-1]["phase"] == "Succeeded"}
        if self.over:  # a process of a terminated run has left no event
            for pods in self.attempts.values():
                if pods[-1]["phase"] in ("Pending", "Running") or pods[-1].get("again"):
                    ended: Entity = {"phase": "Failed", "message": "main: Error (exit code 143)", "exit_code": 143}
                    if pods[-1]["phase"] == "Pending":  # operator.go, failNodesWithoutCreatedPodsAfterDeadline...
                        ended |= {"message": "Step exceeded its deadline", "exit_code": None}
                    pods[-1] |= ended | {"finished": pods[-1].get("finished", self.deadline or now()), "again": False}

    # Nodes ---------------------------------------------------------------------------------------------------------

    def id(self, name: str) -> str:
        """A node's id by its name."""
        return name if name == self.name else f"{self.name}-{fnv32a(name)}"

    def pod_name(self, node: Entity) -> str:
        """Source: backend/src/common/util/workflow.go, RetrievePodName."""
        if node["name"] == self.name:
            return self.name
        return f"{self.name}-{node['templateName']}-{node['id'].rpartition('-')[2]}"

    def _node(
        self, name: str, kind: str, boundary: Entity | None, template: str, parents: list[str], start: str
    ) -> Entity:
        display = re.sub(r"^(\[\d+\])?\.", "", name.removeprefix(boundary["name"])) if boundary else name
        node: Entity = {"id": self.id(name), "name": name, "displayName": display, "type": kind}
        node |= {"templateName": template, "templateScope": f"local/{self.name}", "startedAt": start}
        if boundary:
            node["boundaryID"] = boundary["id"]
        self.nodes[node["id"]] = node
        for parent in parents:
            self.nodes[parent].setdefault("children", []).append(node["id"])
        return node

    def _retry(
        self, name: str, boundary: Entity | None, template: str, parents: list[str], start: str, kind: str = "DAG"
    ) -> Entity:
        """A node of type Retry, and its first child, which is returned."""
        retry = self._node(name, "Retry", boundary, template, parents, start)
        return self._node(f"{name}(0)", kind, boundary, template, [retry["id"]], start)

    def _close(self, child: Entity, phase: str, message: str = "", finished: str = "") -> str:
        """Give the child of a Retry node and that node their phase."""
        retry = self.nodes[self.id(re.sub(r"\(\d+\)$", "", child["name"]))]
        child |= {"phase": phase} | ({"message": message} if message else {})
        if self.deadline and phase in ("Failed", "Error"):  # operator.go, processNodeRetries
            message = f"retry exceeded workflow deadline {self.deadline}"
        retry |= {"phase": phase} | ({"message": message} if message else {})
        if phase != "Running":
            child["finishedAt"] = retry["finishedAt"] = finished or now()
        return phase

    def _pod(
        self, name: str, boundary: Entity, template: str, parents: list[str], start: str, phase: str = "Succeeded"
    ) -> str:
        """A driver's pod; returns the id that what depends on it gets as its parent."""
        pod = self._retry(name, boundary, template, parents, start, "Pod")
        self._close(pod, phase, finished=start)
        return pod["id"]

    def _skip(
        self, name: str, boundary: Entity, template: str, parents: list[str], start: str, phase: str, message: str
    ) -> str:
        node = self._node(name, "Skipped", boundary, template, parents, start)
        node |= {"phase": phase, "message": message, "finishedAt": start}
        return phase

    # DAGs ----------------------------------------------------------------------------------------------------------

    def _start(self, path: tuple[str, ...]) -> str:
        """When the first task at or below `path` started; empty: none has."""
        events = [*((key, pods[0]) for key, pods in self.attempts.items()), *self.cached.items()]
        return min((event["time"] for key, event in events if key[: len(path)] == path), default="")

    def _dag(
        self, name: str, boundary: Entity, template: str, component: Entity, path: tuple[str, ...], parents: list[str]
    ) -> str:
        """Nodes of a DAG and of all in it; returns its phase."""
        dag = self._retry(name, boundary, template, parents, self._start(path) or now())
        tasks = component["dag"]["tasks"]
        hooks = {
            task["dependentTasks"][0]: name
            for name, task in tasks.items()
            if task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED"
        }
        phases: dict[str, str] = {}
        for task_name in _in_order({key: task for key, task in tasks.items() if key not in hooks.values()}):
            task = tasks[task_name]
            before = task.get("dependentTasks", [])
            outbound = [self.id(f"{dag['name']}.{each}(0)") for each in before]
            parents = [each for each in outbound if each in self.nodes] or [dag["id"]]
            phases[task_name] = self._task(dag, task_name, task, path, [phases[each] for each in before], parents)
            if task_name in hooks and self._start((*path, hooks[task_name])):
                hook = hooks[task_name]
                parent = self.id(f"{dag['name']}.{task_name}")
                exit_name = f"{dag['name']}.{task_name}.onExit"
                exit_dag = self._retry(exit_name, dag, f"exit-hook-root-{hook}", [parent], dag["startedAt"])
                phases[hook] = self._close(
                    exit_dag, self._task(exit_dag, hook, tasks[hook], path, [], [exit_dag["id"]])
                )
        return self._close(dag, self._phase(list(phases.values())))

    def _phase(self, phases: list[str]) -> str:
        if "Running" in phases or (not self.over and "" in phases):
            return "Running"
        return "Failed" if {"Failed", "Error"} & set(phases) else "Succeeded"

    def _task(
        self, dag: Entity, task_name: str, task: Entity, path: tuple[str, ...], before: list[str], parents: list[str]
    ) -> str:
        """Nodes of one task in a DAG: its driver's, and then its own; returns its phase, empty: it has not begun."""
        key = (*path, task_name)
        name = f"{dag['name']}.{task_name}"
        component_name = task["componentRef"]["name"]
        component = self.components[component_name]
        iterated = "parameterIterator" in task
        is_dag = "dag" in component
        template = component_name if is_dag else "system-container-executor"
        driver_template = "system-dag-driver" if is_dag else "system-container-driver"
        start = self.loops[key]["time"] if key in self.loops else self._start(key)
        if not start:
            if {"Failed", "Error", "Omitted"} & set(before):
                message = "omitted: depends condition not met"
                if not iterated:
                    self._skip(f"{name}-driver", dag, driver_template, parents, now(), "Omitted", message)
                return self._skip(name, dag, template, parents, now(), "Omitted", message)
            if any(phase in ("Running", "") for phase in before):
                return ""
            if not self.over:
                return ""
            driver = self._pod(f"{name}-driver", dag, driver_template, parents, now())
            return self._skip(name, dag, template, [driver], now(), "Skipped", "when 'false != false' evaluated false")
        if iterated:
            return self._iterations(name, dag, component_name, path, task_name, start, parents)
        driver = self._pod(f"{name}-driver", dag, driver_template, parents, start)
        if is_dag:
            return self._dag(name, dag, component_name, component, key, [driver])
        retried = "retry-" if "retryPolicy" in task else ""
        executor = self._retry(name, dag, f"{retried}system-container-executor", [driver], start)
        implementation = f"{retried}system-container-impl"
        if key in self.cached:
            message = "when 'true != true' evaluated false"
            self._skip(
                f"{executor['name']}.executor", executor, implementation, [executor["id"]], start, "Skipped", message
            )
            return self._close(executor, "Succeeded", finished=start)
        return self._close(executor, self._attempts(executor, implementation, self.attempts[key]))

    def _iterations(
        self, name: str, dag: Entity, template: str, path: tuple[str, ...], task: str, start: str, parents: list[str]
    ) -> str:
        """Nodes of a ParallelFor (dag.go, iteratorTask and iterationItemTask)."""
        loop = self._retry(name, dag, f"{template}-{task}-iterator", parents, start)
        driver = self._pod(f"{loop['name']}.iteration-driver", loop, "system-dag-driver", [loop["id"]], start)
        group_name = f"{loop['name']}.iteration-iterations"
        group = self._node(group_name, "TaskGroup", loop, f"{template}-iteration", [driver], start)
        phases: list[str] = []
        for number in range(self.loops[*path, task]["count"]):
            key = (*path, f"{task}-iteration-{number}")
            if not self._start(key):
                phases.append("")
                continue
            item_name = f"{group_name}({number}:{number})"
            item = self._retry(item_name, loop, f"{template}-iteration", [group["id"]], self._start(key))
            item_driver = self._pod(
                f"{item['name']}.iteration-item-driver", item, "system-dag-driver", [item["id"]], self._start(key)
            )
            component = self.components[template]
            phase = self._dag(f"{item['name']}.iteration-item", item, template, component, key, [item_driver])
            phases.append(self._close(item, phase))
        group["phase"] = self._phase(phases)
        return self._close(loop, group["phase"])

    def _attempts(self, executor: Entity, template: str, pods: list[Entity]) -> str:
        """Nodes of an executor's pods, one for each attempt."""
        name = f"{executor['name']}.executor"
        retry = self._node(name, "Retry", executor, template, [executor["id"]], pods[0]["time"])
        for number, pod in enumerate(pods):
            node = self._node(f"{name}({number})", "Pod", executor, template, [retry["id"]], pod["time"])
            self.log_keys[node["id"]] = pod["log"]
            if pod["phase"] in ("Pending", "Running"):
                node |= {"phase": pod["phase"]} | ({"message": pod["message"]} if pod["message"] else {})
                continue
            self._close(node, pod["phase"], pod["message"], pod["finished"])
            key = f"v2/artifacts/{self.name}/{self.pod_name(node)}/main.log"  # archiveLogs: true
            node["outputs"] = {"artifacts": [{"name": "main-logs", "s3": {"key": key}}]}
            if pod.get("exit_code") is not None:
                node["outputs"]["exitCode"] = str(pod["exit_code"])
        if pods[-1]["phase"] in ("Pending", "Running") or pods[-1].get("again"):
            retry |= {"phase": "Running"}
            retry.pop("message", None)
            return "Running"
        return pods[-1]["phase"]


def _in_order(tasks: dict[str, Entity]) -> Iterator[str]:
    """Names of tasks, each after those on which it depends."""
    left = dict(tasks)
    while left:
        ready = [name for name, task in left.items() if not set(task.get("dependentTasks", [])) & set(left)]
        for name in ready:
            del left[name]
            yield name


# The API server ----------------------------------------------------------------------------------------------------


class ClusterStore(Store):
    """The store whose runs run."""

    def __init__(self, document: Document, folder: Path) -> None:
        self.folder = folder.resolve()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.compress_nodes = False
        """Whether workflows hold their nodes compressed, as large ones do."""
        self.pods_are_gone = False
        """Whether the workflows' time to live is over (an hour in KFP's manifests): logs are in the archive alone."""
        self.missing_images: set[str] = set()
        """Images that no registry has: their pods stay Pending."""
        self.retry_policy = "OnError"
        """Argo's, for every template: that of KFP's manifests, or `Always`."""
        super().__init__(document)
        self.tag_name: str | None = "2.17.0"
        """The version that the server says it is; None: it says nothing."""

    def _perform(self, operation: Operation, placeholders: list[str], named: dict[str, str], body: Any) -> Entity:
        made = super()._perform(operation, placeholders, named, body)
        if operation.name == "HealthzService_GetHealthz" and self.tag_name is not None:
            # backend/src/apiserver/main.go, healthzResponse; the published document does not have it
            made |= {"commit_sha": "unknown", "tag_name": self.tag_name}
        return made

    # Runs ----------------------------------------------------------------------------------------------------------

    def CreateRun(self, named: dict[str, str], body: Any) -> Entity:
        self._check_job(body)
        pipeline = self.pipelines[body["pipeline_version_reference"]["pipeline_id"]]["display_name"]
        return self._create(
            body, f"{pipeline}-{uuid.uuid4().hex[:5]}", body["display_name"], to_seconds(datetime.now(UTC))
        )

    def _create(self, body: Entity, name: str, job_name: str, scheduled: str) -> Entity:
        """Start a run.

        Args:
            body: as the API takes it.
            name: of its workflow.
            job_name: what `{{$.pipeline_job_name}}` becomes.
            scheduled: what `{{$.pipeline_job_schedule_time_utc}}` becomes.
        """
        made = body | {"run_id": str(uuid.uuid4()), "created_at": self._now(), "state": "PENDING"}
        made |= {"storage_state": "AVAILABLE", "scheduled_at": scheduled, "state_history": []}
        folder = self.folder / "runs" / made["run_id"]
        folder.mkdir(parents=True)
        version = body["pipeline_version_reference"]["pipeline_version_id"]
        (folder / "pipeline.yaml").write_bytes(self.contents[version])
        specification = self.versions[version]["pipeline_spec"]
        specification = specification.get("pipeline_spec", specification)
        description: Entity = {
            "run_id": made["run_id"],
            "name": name,
            "job_name": job_name,
            "created": to_seconds(datetime.now(UTC)),
            "scheduled": scheduled,
            "pipeline": str(folder / "pipeline.yaml"),
            "arguments": body.get("runtime_config", {}).get("parameters", {}),
            "artifacts": str(self.folder / "artifacts" / specification["pipelineInfo"]["name"]),
            "cache": str(self.folder / f"cache-{artifacts.code_digest()[:16]}"),
            "secrets": str(self.folder / "secrets"),
            "missing_images": sorted(self.missing_images),
            "retry_policy": self.retry_policy,
            "retried": False,
            "terminated": "",
        }
        artifacts.write_json(folder / "run.json", description)
        self.runs[made["run_id"]] = made
        self._launch(made)
        return dict(made)

    def write_kubeconfig(self, server: str) -> None:
        """Write what leads the pods of runs to this server: they ask Kubernetes how their run ended."""
        context = {"cluster": "stub", "user": "stub", "namespace": "kubeflow"}
        artifacts.write_json(
            self.folder / "kubeconfig",
            {
                "current-context": "stub",
                "contexts": [{"name": "stub", "context": context}],
                "clusters": [{"name": "stub", "cluster": {"server": server}}],
                "users": [{"name": "stub", "user": {}}],
            },
        )

    def _launch(self, run: Entity) -> None:
        folder = self.folder / "runs" / run["run_id"]
        with (folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.kfp_worker", str(folder)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=Path(__file__).parents[1],
            )
        self.processes[run["run_id"]] = process
        threading.Thread(target=self._wait, args=(run, process), daemon=True).start()

    def _wait(self, run: Entity, process: subprocess.Popen[bytes]) -> None:
        """Follow a run to its end."""
        folder = self.folder / "runs" / run["run_id"]
        while process.poll() is None:
            if run["state"] == "PENDING" and (folder / "events.jsonl").exists():
                with self.lock:
                    self._change(run, "RUNNING")
            time.sleep(0.05)
        with self.lock:
            run["finished_at"] = now()
            self._change(run, "FAILED" if process.returncode or run["state"] == "CANCELING" else "SUCCEEDED")

    def _change(self, run: Entity, state: str) -> None:
        run["state"] = state
        run["state_history"] = [*run["state_history"], {"update_time": now(), "state": state}]

    def GetRun(self, run: str, named: dict[str, str], body: Any) -> Entity:
        row = self._get(self.runs, run)
        self._allow(self.experiments[row["experiment_id"]].get("namespace", ""))
        return row | {"run_details": {"task_details": self._task_details(row)}}

    def _task_details(self, run: Entity) -> list[Entity]:
        """A row for each node, without an error: backend/src/apiserver/server/api_converter.go leaves it empty."""
        rows = []
        for node in self.graph(run["run_id"]).nodes.values():
            state = STATES.get(node["phase"], node["phase"].upper())
            row = {
                "run_id": run["run_id"],
                "task_id": str(uuid.uuid5(uuid.NAMESPACE_OID, run["run_id"] + node["id"])),
                "display_name": node["displayName"],
                "create_time": node["startedAt"],
                "start_time": node["startedAt"],
                "end_time": node.get("finishedAt", "1970-01-01T00:00:00Z"),
                "state": state,
                "state_history": [{"update_time": node["startedAt"], "state": state}],
                "child_tasks": [{"pod_name": child} for child in node.get("children", [])],
            }
            rows.append(row)
        return rows

    def description(self, run: str) -> Entity:
        """What the worker was given."""
        return artifacts.read_json(self.folder / "runs" / self._get(self.runs, run)["run_id"] / "run.json")

    def graph(self, run: str) -> Graph:
        """The run's nodes as they are now."""
        row, description = self._get(self.runs, run), self.description(run)
        version = self.versions[row["pipeline_version_reference"]["pipeline_version_id"]]["pipeline_spec"]
        return Graph(
            description["name"],
            version.get("pipeline_spec", version),
            read_events(self.folder / "runs" / run),
            over=row["state"] in OVER,
            deadline=description["terminated"],
        )

    def workflow(self, run: str) -> Entity:
        """The run's Argo Workflow."""
        row, description, graph = self.runs[run], self.description(run), self.graph(run)
        phase = {"SUCCEEDED": "Succeeded", "FAILED": "Failed", "PENDING": "Pending"}.get(row["state"], "Running")
        status: Entity = {"phase": phase, "startedAt": row["created_at"], "finishedAt": row.get("finished_at")}
        root = graph.nodes.get(description["name"], {})
        if phase == "Failed" and "message" in root:
            status["message"] = root["message"]
        if self.compress_nodes:  # argo-workflows 4.0.5, pkg/apis/workflow/v1alpha1/workflow_types.go
            packed = gzip.compress(json.dumps(graph.nodes).encode())
            status["compressedNodes"] = base64.b64encode(packed).decode()
        else:
            status["nodes"] = graph.nodes
        # backend/src/common/util/workflow.go: a run is terminated by a deadline of nothing.
        deadline = {"activeDeadlineSeconds": 0} if description["terminated"] else {}
        metadata = {"name": description["name"], "namespace": "kubeflow", "labels": {"pipeline/runid": run}}
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": metadata,
            "spec": {"entrypoint": "entrypoint"} | deadline,
            "status": status,
        }

    def TerminateRun(self, run: str, named: dict[str, str], body: Any) -> Entity:
        """Source: backend/src/apiserver/storage/run_store.go, TerminateRun; the rest as seen."""
        row = self._get(self.runs, run)
        if row["state"] in (*OVER, "CANCELING"):
            raise Refused(400, f"Failed to terminate a run {run}. Row not found")
        self._write_description(run, terminated=now())
        row["state"] = "CANCELING"  # which is not added to the history
        threading.Thread(target=self._stop, args=(run,), daemon=True).start()
        return {}

    def _stop(self, run: str) -> None:
        """End all processes of a run: tasks get SIGTERM, and no time to speak of."""
        process = self.processes[run]
        with contextlib.suppress(psutil.NoSuchProcess):
            worker = psutil.Process(process.pid)
            worker.suspend()  # so that it starts nothing more
            tasks = worker.children(recursive=True)
            for task in tasks:
                with contextlib.suppress(psutil.NoSuchProcess):
                    task.terminate()
            psutil.wait_procs(tasks, timeout=GRACE_SECONDS)
            for task in tasks:
                with contextlib.suppress(psutil.NoSuchProcess):
                    task.kill()
            worker.kill()

    def RetryRun(self, run: str, named: dict[str, str], body: Any) -> Entity:
        """Run what failed again. Source: backend/src/common/util/workflow.go, GenerateRetryExecution."""
        row = self._get(self.runs, run)
        if row["state"] != "FAILED":
            raise Refused(400, "Workflow must be Failed/Error to retry: workflow cannot be retried")
        self._write_description(run, retried=True, terminated="")
        with (self.folder / "runs" / run / "events.jsonl").open("a") as events:
            events.write(json.dumps({"event": "retry", "time": now(), "path": []}) + "\n")
        row.pop("finished_at", None)
        self._change(row, "RUNNING")
        self._launch(row)
        return {}

    def _write_description(self, run: str, **changes: Any) -> None:
        artifacts.write_json(self.folder / "runs" / run / "run.json", self.description(run) | changes)

    # Logs ----------------------------------------------------------------------------------------------------------

    def log(self, run: str, pod: str, *, archived: bool) -> bytes:
        """The log of a pod's main container, by the pod's name or its node's id.

        Raises:
            Refused: no such pod has run, or it still runs and `archived` asks for what is kept.
        """
        graph = self.graph(run)
        for number, key in graph.log_keys.items():
            if pod in (number, graph.pod_name(graph.nodes[number])):
                if self.pods_are_gone if not archived else "outputs" not in graph.nodes[number]:
                    break
                return (self.folder / "runs" / run / "logs" / key).read_bytes()
        raise Refused(404, f'pods "{pod}" not found')

    # Recurring runs ------------------------------------------------------------------------------------------------

    def _run_detail(self, run: str) -> Entity:
        row = self.GetRun(run, {}, None)
        manifest = self.workflow(run) if row["state"] != "PENDING" else None
        return self._detail(row, manifest)

    def _archived_log(self, run: str, node: str) -> str:
        return self.log(run, node, archived=True).decode("utf-8", "replace")

    def _pod_log(self, run: str, pod: str) -> str:
        return self.log(run, pod, archived=False).decode("utf-8", "replace")

    def tick(self, number: str, scheduled: str) -> Entity:
        """Start the run of a recurring run's tick.

        Source: backend/src/crd/controller/scheduledworkflow: controller.go sends neither a description nor the name of
        the job, util/scheduled_workflow.go names the run.
        """
        recurring = self._get(self.recurring, number)
        key = recurring["recurring_run_id"]
        count = 1 + sum(run.get("recurring_run_id") == key for run in self.runs.values())
        resource = f"{recurring['display_name'][:25]}{key[:5]}-{count}"
        name = f"{resource}-{fnv32a(resource)}"
        copied_keys = ("experiment_id", "pipeline_version_reference", "runtime_config", "service_account")
        body = {key: recurring[key] for key in copied_keys if key in recurring}
        return self._create(body | {"display_name": name, "recurring_run_id": key}, name, "", scheduled)

    def tick_due(self) -> None:
        """Start the runs that are due, by UTC."""
        for recurring in list(self.recurring.values()):
            if recurring["mode"] != "ENABLE":
                continue
            key = recurring["recurring_run_id"]
            own = [run for run in self.runs.values() if run.get("recurring_run_id") == key]
            if sum(run["state"] not in OVER for run in own) >= int(recurring["max_concurrency"]):
                continue
            last = max((run["scheduled_at"] for run in own), default=recurring["created_at"])
            expression = recurring["trigger"]["cron_schedule"]["cron"]
            ticks = cron.ticks(expression, datetime.fromisoformat(last).astimezone(UTC))
            due = list(itertools.takewhile(lambda tick: tick <= datetime.now(UTC), ticks))
            if due:  # seen: of missed ticks the last alone with `no_catchup`, otherwise one after another
                self.tick(key, to_seconds(due[-1] if recurring.get("no_catchup") else due[0]))

    # Hooks ---------------------------------------------------------------------------------------------------------

    def kill(self, run: str, task: str, kind: str) -> Entity:
        """End a running task's process as its pod would end."""
        for path, event in running(read_events(self.folder / "runs" / run)).items():
            if path[-1] == task:
                (self.folder / "runs" / run / "kills" / event["log"]).write_text(kind)
                os.killpg(event["pid"], signal.SIGKILL)
                return {"pod": event["log"]}
        raise Refused(404, f"no task {task} is running")


TICK = re.compile(r"/stub/recurringruns/([^/:]+):tick")
KILL = re.compile(r"/stub/runs/([^/]+)/tasks/([^/:]+):(delete-pod|oom-kill|evict)")


WORKFLOW = re.compile(r"/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows/([^/]+)")
POD_LOG = re.compile(r"/api/v1/namespaces/kubeflow/pods/([^/]+)/log")


class ClusterHandler(Handler):
    """Also the paths by which a test acts on the cluster, and what pods of a run ask of Kubernetes itself."""

    server: ClusterServer

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix(self.server.prefix)
        if self.command == "GET" and (match := WORKFLOW.fullmatch(path) or POD_LOG.fullmatch(path)):
            return self.answer_pod(match)
        tick, kill = TICK.fullmatch(path), KILL.fullmatch(path)
        if self.command != "POST" or not (tick or kill):
            return super().handle_any()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        store = self.server.store
        try:
            with store.lock:
                answer = store.tick(tick[1], to_seconds(datetime.now(UTC))) if tick else store.kill(*kill.groups())
        except Refused as refused:
            return self.send(refused.args[0], {"error_message": refused.args[1], "error_details": refused.args[1]})
        self.send(200, answer)

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = handle_any

    def answer_pod(self, match: re.Match[str]) -> None:
        store = self.server.store
        with store.lock:
            name = match[1]
            run = next((run for run in store.runs if name.startswith(store.description(run)["name"])), "")
            if match.re is WORKFLOW and run:
                return self.send(200, store.workflow(run))
            try:
                return self.send_bytes(200, "text/plain", store.log(run, name, archived=False))
            except Refused as refused:
                self.send(404, {"kind": "Status", "code": 404, "message": refused.args[1]})


class ClusterServer(Server):
    """The store behind a port, and a clock that starts recurring runs; `close` ends all their processes."""

    store: ClusterStore

    def __init__(self, document: Document, folder: Path, *, prefix: str = "", port: int = 0) -> None:
        store = ClusterStore(document, folder)
        super().__init__(document, prefix=prefix, port=port, store=store, handler=ClusterHandler)
        store.write_kubeconfig(self.url)
        self._closed = threading.Event()
        threading.Thread(target=self._watch_clock, daemon=True).start()

    def _watch_clock(self) -> None:
        while not self._closed.wait(0.5):
            with self.store.lock:
                self.store.tick_due()

    def close(self) -> None:
        """Stop answering, and every run."""
        self._closed.set()
        self.shutdown()
        self.server_close()
        for run, process in self.store.processes.items():
            if process.poll() is None:
                self.store._stop(run)
                process.wait()


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="A Kubeflow Pipelines that runs pipelines on this machine.")
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prefix", default="", help="Path of the API below the host, e.g. /pipeline.")
    options = parser.parse_args()
    server = ClusterServer(Document(), options.folder, prefix=options.prefix, port=options.port)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    print(f"serving {server.url}", flush=True)
    stopped.wait()
    server.close()
    for problem in server.store.problems:
        print(f"not in the document: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
