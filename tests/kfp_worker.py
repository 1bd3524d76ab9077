"""Runs one compiled pipeline on this machine, as Kubeflow's driver, launcher and Argo Workflows would run it in pods.

`python -m tests.kfp_worker FOLDER` reads FOLDER/run.json, which tests/kfp_cluster.py writes, runs the pipeline with
KFP's local runner, a process a task, and appends what happens to FOLDER/events.jsonl. Where the local runner differs
from a cluster (retries, cache, placeholders, the exit handler's status), this module follows the cluster.
"""

from __future__ import annotations

import contextvars
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from kfp import components, dsl, local
from kfp.local import cache, executor_input_utils, graph_utils, io, subprocess_task_handler, task_dispatcher
from kfp.local.orchestrator import dag_orchestrator, enhanced_dag_orchestrator, task_executor
from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils
from kfp.local.status import Status

RETRY_LIMIT = 2
"""Retries of a task that sets none: `templateDefaults.retryStrategy` of KFP's manifests, policy OnError."""
LONGEST_BACKOFF = 1.0
"""Seconds between attempts, whatever the pipeline says: a minute would tell a test nothing more."""
LAUNCHER_LINE = "I1130 20:10:00.000000       1 "
"""How KFP's launcher begins its own lines, which stand among the component's."""
TERMINATION_LOG = "DISTILRANK_TERMINATION_LOG"
TERMINATION_BYTES = 4096
"""What Kubernetes keeps of a container's termination log."""


def now() -> str:
    """This moment, as the API writes one."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True)
class Attempt:
    """One pod of one task."""

    path: tuple[str, ...]
    """The task's name, after those of the DAGs that it is in."""
    number: int
    environment: dict[str, str]

    @property
    def key(self) -> str:
        """Identifies it in the run's folder."""
        return f"{'.'.join(self.path)}.{self.number}"


_dag: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("dag", default=())
_attempt: contextvars.ContextVar[Attempt] = contextvars.ContextVar("attempt")


class PathStore(io.IOStore):
    """Inputs and outputs of one DAG, which also knows where in the pipeline that DAG is."""

    def __init__(self, parent: io.IOStore | None = None) -> None:
        super().__init__(parent)
        self.path = _dag.get()


class Worker:
    """One run, from its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run: dict[str, Any] = json.loads((folder / "run.json").read_text())
        self.platform: dict[str, Any] = {}
        self.images: dict[str, str] = {}
        """By component."""
        self.exit_codes: dict[str, int] = {}
        self._lock = threading.Lock()
        for name in ("logs", "termination", "results", "kills"):
            (folder / name).mkdir(exist_ok=True)

    def event(self, kind: str, path: tuple[str, ...], **more: Any) -> None:
        """Tell the server what happened."""
        line = json.dumps({"event": kind, "time": now(), "path": path, **more})
        with self._lock, (self.folder / "events.jsonl").open("a") as events:
            events.write(line + "\n")

    # What the driver does ------------------------------------------------------------------------------------------

    def load(self) -> Any:
        """The pipeline, with the placeholders that Kubeflow's driver resolves.

        Source: kubeflow/pipelines 2.17.0, backend/src/v2/driver/resolve.go: only a constant input of a task that is
        exactly the placeholder is replaced. In a recurring run with a pinned version the display name is empty.
        """
        values = {
            "{{$.pipeline_job_name}}": self.run["job_name"],
            "{{$.pipeline_job_resource_name}}": self.run["name"],
            "{{$.pipeline_job_uuid}}": self.run["run_id"],
            "{{$.pipeline_job_create_time_utc}}": self.run["created"],
            "{{$.pipeline_job_schedule_time_utc}}": self.run["scheduled"],
        }
        specification, *platform = yaml.safe_load_all(Path(self.run["pipeline"]).read_text())
        if platform:
            self.platform = platform[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        executors = specification["deploymentSpec"]["executors"]
        for name, component in specification["components"].items():
            if "executorLabel" in component:
                self.images[name] = executors[component["executorLabel"]]["container"]["image"]
        for component in (specification["root"], *specification["components"].values()):
            for task in component.get("dag", {}).get("tasks", {}).values():
                for parameter in task.get("inputs", {}).get("parameters", {}).values():
                    runtime = parameter.get("runtimeValue", {})
                    if isinstance(runtime.get("constant"), str):
                        runtime["constant"] = values.get(runtime["constant"], runtime["constant"])
        return components.load_component_from_text(yaml.safe_dump_all([specification, *platform]))

    def final_status(self, task: Any) -> dict[str, Any]:
        """What an exit handler gets: FAILED if nothing had succeeded before the failure, else UNKNOWN, and no error.

        Source: seen on Kubeflow Pipelines 2.17.0; resolve.go takes MLMD's last known state and leaves `error` empty.
        """
        events = read_events(self.folder)
        succeeded = any(event["event"] == "cached" or event.get("phase") == "Succeeded" for event in events)
        failed = any(event.get("phase") in ("Failed", "Error") for event in events)
        producer = task.dependent_tasks[0] if task.dependent_tasks else ""
        return {
            "state": "FAILED" if failed and not succeeded else "UNKNOWN",
            "pipelineTaskName": producer,
            "pipelineJobResourceName": self.run["name"],
            "error": {},
        }

    def secret_environment(self, executor: str) -> dict[str, str]:
        """Variables from Secrets: the stub's are the files SECRETS/NAME/KEY."""
        variables = {}
        for secret in self.platform.get(executor, {}).get("secretAsEnv", []):
            for pair in secret["keyToEnv"]:
                path = Path(self.run["secrets"]) / secret["secretName"] / pair["secretKey"]
                if path.is_file():
                    variables[pair["envVar"]] = path.read_text()
        return variables

    # One task, in place of kfp.local's execute_single_task ---------------------------------------------------------

    def execute(
        self,
        *,
        task_name: str,
        task_spec: Any,
        pipeline_resource_name: str,
        components: Any,
        executors: Any,
        io_store: PathStore,
        pipeline_root: str,
        runner: Any,
        unique_pipeline_id: str,
        fail_stack: list[str],
    ) -> tuple[dict[str, Any], Status]:
        path = (*io_store.path, task_name)
        component_name = task_spec.component_ref.name
        component = components[component_name]
        executor = executors[component.executor_label]
        result = self.folder / "results" / f"{'.'.join(path)}.json"
        if result.exists():  # of the run before `runs:retry`: nodes that succeeded stay, uncached ones too
            return cache.LocalCache._deserialize_outputs(json.loads(result.read_text())), Status.SUCCESS
        status_inputs = [
            name for name, parameter in task_spec.inputs.parameters.items() if parameter.HasField("task_final_status")
        ]
        if status_inputs and self.run["retried"]:  # seen: after runs:retry the exit handler does not run again
            return {}, Status.SUCCESS
        arguments = OrchestratorUtils.make_task_arguments(task_spec.inputs, io_store)
        arguments |= {name: self.final_status(task_spec) for name in status_inputs}
        container = executor.container
        store = cache.get_local_cache()
        key = store.compute_key(
            component_name=component_name,
            image=container.image,
            full_command=[*container.command, *container.args],
            arguments=arguments,
            env_vars={variable.name: variable.value for variable in container.env},
        )
        cached = store.get(key) if task_spec.caching_options.enable_cache else None
        if cached is not None:
            self.event("cached", path)
            return self._succeed(result, cached)
        root = executor_input_utils.construct_local_task_root(
            pipeline_root=pipeline_root,
            pipeline_resource_name=pipeline_resource_name,
            task_resource_name=executor_input_utils.get_local_task_resource_name(component_name),
        )
        if container.image in self.run["missing_images"]:  # argo-workflows operator.go, getPendingReason
            message = f'ImagePullBackOff: Back-off pulling image "{container.image}"'
            self.event("pending", path, attempt=0, message=message, log=f"{'.'.join(path)}.0")
            threading.Event().wait()
        environment = self.secret_environment(component.executor_label)
        limit = task_spec.retry_policy.max_retry_count if task_spec.HasField("retry_policy") else RETRY_LIMIT
        for number in range(limit + 1):
            shutil.rmtree(root, ignore_errors=True)  # a new pod begins with empty folders
            for artifact in _artifacts(arguments):
                if not os.path.exists(artifact.uri):  # seen: what was deleted from the store arrives as an empty folder
                    os.makedirs(artifact.uri)
            attempt = Attempt(path, number, environment)
            _attempt.set(attempt)
            outputs, _ = task_dispatcher.run_single_task_implementation(
                pipeline_resource_name=pipeline_resource_name,
                component_name=component_name,
                component_spec=component,
                executor_spec=executor,
                arguments=arguments,
                pipeline_root=pipeline_root,
                runner=runner,
                raise_on_error=False,
                block_input_artifact=False,
                unique_pipeline_id=unique_pipeline_id,
            )
            phase, message, code = self._end(attempt)
            # Argo's policy OnError: a pod that was deleted is an Error, one that ended with a status is Failed.
            retried = ("Error",) if self.run["retry_policy"] == "OnError" else ("Error", "Failed")
            again = phase in retried and number < limit
            self.event("ended", path, attempt=number, phase=phase, message=message, exit_code=code, again=again)
            if phase == "Succeeded":
                if task_spec.caching_options.enable_cache:
                    store.put(key, outputs)
                return self._succeed(result, outputs)
            if not again:
                break
            time.sleep(min(task_spec.retry_policy.backoff_duration.seconds, LONGEST_BACKOFF))
        return {}, Status.FAILURE

    def _succeed(self, result: Path, outputs: dict[str, Any]) -> tuple[dict[str, Any], Status]:
        result.write_text(json.dumps(cache.LocalCache._serialize_outputs(outputs)))
        return outputs, Status.SUCCESS

    def _end(self, attempt: Attempt) -> tuple[str, str, int | None]:
        """Phase, message and exit code of a pod's node.

        Source: argo-workflows 4.0.5, workflow/controller/operator.go, inferFailedReason and "pod deleted". Whatever the
        status of the component's process, KFP's launcher ends with 1.
        """
        kill = self.folder / "kills" / attempt.key
        if kill.exists():
            kind = kill.read_text()
            kill.unlink()
            if kind == "delete-pod":
                return "Error", "pod deleted", None
            if kind == "evict":
                return "Failed", "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ", None
            return "Failed", "main: OOMKilled (exit code 137)", 137
        if self.exit_codes[attempt.key] == 0:
            return "Succeeded", "", 0
        reason = self._termination(attempt).read_bytes()[-TERMINATION_BYTES:].decode(errors="replace")
        return "Failed", "main: Error (exit code 1)" + (f": {reason}" if reason else ""), 1

    def _termination(self, attempt: Attempt) -> Path:
        return self.folder / "termination" / attempt.key

    def run_process(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Run a component as its pod's container would, in place of kfp.local's run_local_subprocess."""
        attempt = _attempt.get()
        termination = self._termination(attempt)
        termination.write_bytes(b"")
        environment = os.environ | (env_vars or {}) | attempt.environment | {TERMINATION_LOG: str(termination)}
        # What every pod has (argocompiler/container.go), and in place of its service account a kubeconfig.
        environment |= {"KFP_POD_NAME": attempt.key, "KUBECONFIG": str(self.folder.parents[1] / "kubeconfig")}
        with (self.folder / "logs" / attempt.key).open("w") as log:
            log.write(
                "I1130 20:10:00.000000       1 launcher_v2.go:191] publish success.\n"
            )  # the launcher's own lines
            log.flush()
            with subprocess.Popen(
                full_command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            ) as process:
                self.event("started", attempt.path, attempt=attempt.number, pid=process.pid, log=attempt.key)
                code = process.wait()
            if code:
                log.write(
                    f"F1130 20:10:00.000000       1 main.go:59] failed to execute component: exit status {code}\n"
                )
        self.exit_codes[attempt.key] = code
        return code

    def order(self, tasks: dict[str, Any]) -> list[str]:
        """A stack of tasks, in place of kfp.local's: one that waits for its image must not keep others from starting.

        On a cluster they run side by side, here one after the other, in an order that changes from process to process.
        """

        def waits(name: str) -> bool:
            return self.images.get(tasks[name].component_ref.name) in self.run["missing_images"]

        names = sorted(tasks, key=lambda name: (waits(name), name))
        return graph_utils.topological_sort({name: list(tasks[name].dependent_tasks) for name in names})

    def _with_event(self, execute_parallel_tasks: Callable[..., Any]) -> Callable[..., Any]:
        """The same method, which says how many iterations a loop has."""

        def execute(executor: Any, *, tasks: list[Any], io_store: PathStore, **named: Any) -> Any:
            self.event("loop", (*io_store.path, tasks[0][0].rpartition("-iteration-")[0]), count=len(tasks))
            return execute_parallel_tasks(executor, tasks=tasks, io_store=io_store, **named)

        return execute

    def main(self) -> None:
        """Run the pipeline; ends with an error if it fails."""
        warnings.filterwarnings("ignore", module=r"kfp\.local")
        pipeline = self.load()
        io.IOStore = PathStore
        # This one continues with tasks that depend on nothing that failed, as Argo ends what it has started.
        dag_orchestrator.run_dag = enhanced_dag_orchestrator.run_enhanced_dag
        enhanced_dag_orchestrator.execute_task = _with_path(enhanced_dag_orchestrator.execute_task)
        parallel = enhanced_dag_orchestrator.ParallelExecutor
        parallel.execute_parallel_tasks = self._with_event(parallel.execute_parallel_tasks)
        task_executor.execute_single_task = self.execute
        graph_utils.topological_sort_tasks = self.order
        subprocess_task_handler.run_local_subprocess = self.run_process
        executor_input_utils.get_local_pipeline_resource_name = lambda name: self.run["run_id"]
        # Source: seen on Kubeflow Pipelines 2.17.0: the cache does not ask whether what it offers is still there.
        cache._is_remote_uri = lambda uri: True
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=self.run["artifacts"],
            enable_caching=True,
            cache_root=self.run["cache"],
        )
        pipeline(**self.run["arguments"])


def _with_path(execute_task: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, under which DAGs learn where they are."""

    def execute(*, task_name: str, io_store: PathStore, **named: Any) -> Any:
        token = _dag.set((*io_store.path, task_name))
        try:
            return execute_task(task_name=task_name, io_store=io_store, **named)
        finally:
            _dag.reset(token)

    return execute


def _artifacts(arguments: dict[str, Any]) -> Iterator[dsl.Artifact]:
    for value in arguments.values():
        for artifact in value if isinstance(value, list) else [value]:
            if isinstance(artifact, dsl.Artifact):
                yield artifact


def read_events(folder: Path) -> list[dict[str, Any]]:
    """What has happened in a run so far; a line that is being written is left for the next time."""
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def running(events: list[dict[str, Any]]) -> dict[tuple[str, ...], dict[str, Any]]:
    """The event that started it, of each task whose process has not ended."""
    started: dict[tuple[str, ...], dict[str, Any]] = {}
    for event in events:
        if event["event"] == "started":
            started[tuple(event["path"])] = event
        elif event["event"] == "ended":
            started.pop(tuple(event["path"]), None)
    return started


def _die_with(parent: int, folder: Path) -> None:
    """End this process and those of its tasks when the server is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    for event in running(read_events(folder)).values():
        os.killpg(event["pid"], signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    worker = Worker(Path(sys.argv[1]))
    threading.Thread(target=_die_with, args=(os.getppid(), worker.folder), daemon=True).start()
    worker.main()
