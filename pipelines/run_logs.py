"""What Kubeflow's published API does not give: the Argo workflow of a run, and the logs of its pods.

Three paths that the server has besides (kubeflow/pipelines 2.17.0, backend/src/apiserver/main.go, buildHTTPRouter).
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from typing import Any
from urllib.parse import quote

import kfp_server_api as api
import urllib3

from pipelines.kubeflow import Kubeflow

FAULTS = (api.ApiException, urllib3.exceptions.HTTPError, ValueError, KeyError, TypeError)
"""Whatever a request can end in whose answer only explains."""
NO_LOG = '{"error_message"'
"""How a log begins that could not be read, with status 200 (apiserver/server/run_log_server.go)."""

Node = dict[str, Any]


def nodes(kubeflow: Kubeflow, run_id: str) -> list[Node]:
    """The nodes of a run's workflow, none where the server gives no workflow (yet)."""
    try:
        detail = json.loads(read(kubeflow, f"/apis/v1beta1/runs/{quote(run_id)}"))
        status = json.loads(detail["pipeline_runtime"]["workflow_manifest"])["status"]
        if packed := status.get("compressedNodes"):  # a workflow above a megabyte
            return list(json.loads(gzip.decompress(base64.b64decode(packed))).values())
        return list((status.get("nodes") or {}).values())
    except FAULTS:
        return []


def attempts(nodes: list[Node], task: str) -> list[Node]:
    """The nodes of a task's own pods, the first attempt first; a node's name is the path to it."""
    pattern = re.compile(rf"\.{re.escape(task)}(\(\d+\))?\.executor(\(\d+\))?$")
    pods = [node for node in nodes if node.get("type") == "Pod" and pattern.search(node["name"])]
    return sorted(pods, key=lambda node: node.get("startedAt") or "")


def reason(nodes: list[Node], task: str) -> str:
    """The last message of a task's pods or of its driver's, empty: there is none."""
    pattern = re.compile(rf"\.{re.escape(task)}(-driver)?(\(\d+\))?(\.|$)")
    messages = [node["message"] for node in nodes if node.get("message") and pattern.search(node["name"])]
    return messages[-1] if messages else ""


def task_log(kubeflow: Kubeflow, run_id: str, task: str) -> str:
    """The log of a task's last pod: from the pod, else from the object store; empty: neither has it.

    Args:
        run_id: the run.
        task: KFP's name of the task, e.g. `check-inputs`.
    """
    pods = attempts(nodes(kubeflow, run_id), task)
    return pod_log(kubeflow, run_id, pods[-1]) if pods else ""


def pod_log(kubeflow: Kubeflow, run_id: str, pod: Node) -> str:
    """The log of one pod; as `task_log`."""
    run = f"runs/{quote(run_id)}/nodes"
    try:
        text = read(kubeflow, f"/apis/v1alpha1/{run}/{quote(pod_name(pod))}/log").decode("utf-8", "replace")
        if not text.startswith(NO_LOG):
            return text
    except FAULTS:
        pass
    try:
        archived = json.loads(read(kubeflow, f"/apis/v2beta1/{run}/{quote(pod['id'])}/artifacts/main-logs:read"))
        return base64.b64decode(archived["data"]).decode("utf-8", "replace")
    except FAULTS:
        return ""


def pod_name(pod: Node) -> str:
    """Kubernetes' name of a node's pod (backend/src/common/util/workflow.go, RetrievePodName)."""
    workflow, _, digest = pod["id"].rpartition("-")
    return f"{workflow}-{pod['templateName']}-{digest}"


def read(kubeflow: Kubeflow, path: str) -> bytes:
    """The body of an answer to a plain GET, asked for once."""
    answer = kubeflow.client.call_api(
        path,
        "GET",
        header_params={"Accept": "*/*"},
        auth_settings=["Bearer"],
        _preload_content=False,
        _return_http_data_only=True,
    )
    return bytes(answer.data)
