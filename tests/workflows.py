"""Argo workflows as Kubeflow Pipelines 2.17.0 makes them: each template has a Retry node with its attempts below it."""

from __future__ import annotations

from typing import Any

from distilrank import workflow

NAME = "distilrank-distill-x7k2p"


def attempt(phase: str, message: str = "") -> tuple[str, str]:
    """One attempt of a task's executor."""
    return phase, message


def manifest(
    tasks: dict[str, list[tuple[str, str]]], *, phase: str = "", name: str = NAME, **spec: Any
) -> dict[str, Any]:
    """The workflow whose tasks had these attempts, in order of time, each behind a driver that succeeded."""
    nodes: dict[str, dict[str, Any]] = {}

    def add(path: str, kind: str, phase: str, template: str, message: str = "", children: tuple[str, ...] = ()) -> str:
        id = f"{name}-{workflow.pod_name('', '', path).rpartition('-')[2]}"
        nodes[id] = {
            "id": id,
            "name": path,
            "displayName": path.rpartition(".")[2],
            "type": kind,
            "templateName": template,
            "phase": phase,
            "message": message,
            "startedAt": f"2026-11-30T20:00:{len(nodes):02}Z",
            "finishedAt": f"2026-11-30T20:01:{len(nodes):02}Z",
            "children": list(children),
        }
        return id

    for task, attempts in tasks.items():
        group, _, task_name = task.rpartition("/")
        base = f"{name}.root(0){'.' + group if group else ''}"
        driver = add(f"{base}.{task_name}-driver(0)", "Pod", "Succeeded", "system-container-driver")
        add(f"{base}.{task_name}-driver", "Retry", "Succeeded", "system-container-driver", children=(driver,))
        executor = f"{base}.{task_name}(0).executor"
        pods = tuple(
            add(f"{executor}({number})", "Pod", *pair[:1], "system-container-impl", *pair[1:])
            for number, pair in enumerate(attempts)
        )
        add(executor, "Retry", attempts[-1][0], "system-container-impl", "No more retries left", pods)
    failed = any(attempts[-1][0] in ("Failed", "Error") for attempts in tasks.values())
    return {
        "metadata": {"name": name},
        "spec": spec,
        "status": {"phase": phase or ("Failed" if failed else "Succeeded"), "nodes": nodes},
    }


def pod(workflow_manifest: dict[str, Any], task: str) -> workflow.Node:
    """The last pod of a task's executor."""
    return [node for node in workflow.nodes(workflow_manifest) if node.task == task and not node.is_driver][-1]
