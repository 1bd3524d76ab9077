"""The TrainJob as an object of the Kubernetes API."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from distilrank.config import Compute
from distilrank.core import artifacts
from distilrank.core.errors import InputError

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
NODE = "node"  # the job and its container that train, in Kubeflow Trainer's runtimes for torch
MANAGER = "distilrank/train"  # a patch of the runtime must be signed with a domain-like prefix
SETTINGS = "distilrank/settings"  # annotation: digest of the specification
VOLUME = "distilrank"
PAGE = "docs/several-nodes.md"


def job_name(stage: str, key: str) -> str:
    """The TrainJob's name for the task of `stage` with this content key, so that a retried task finds its TrainJob.

    At most 30 characters: JobSet appends up to 33 to make pod names, which may have 63.
    """
    name = f"distilrank-{stage}-{artifacts.digest_bytes(key.encode())[:10]}"
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 30, name
    return name


def check(compute: Compute) -> None:
    """Refuse, before any expensive work, a configuration that cannot train on several nodes.

    Raises:
        InputError: no claim, a `checkpoint_dir` that the nodes do not share, or GPUs that contradict `device`.
    """
    if compute.nodes == 1:
        return
    job = compute.trainjob
    if not job.claim:
        raise InputError(
            f"compute.trainjob.claim is empty, expected a PersistentVolumeClaim that all pods can write: "
            f"compute.nodes is {compute.nodes} ({PAGE})"
        )
    checkpoint_dir = PurePosixPath(compute.checkpoint_dir)
    if not checkpoint_dir.is_relative_to(job.mount) or ".." in checkpoint_dir.parts:
        raise InputError(
            f"compute.checkpoint_dir is {compute.checkpoint_dir!r}, expected a folder below compute.trainjob.mount "
            f"({job.mount!r}), which is what all {compute.nodes} nodes see"
        )
    if compute.device != "auto" and (compute.device == "cuda") != bool(job.gpus):
        raise InputError(
            f"compute.trainjob.gpus is {job.gpus}, but compute.device is {compute.device!r}: expected "
            + ("0" if job.gpus else "at least 1")
        )


def build(name: str, command: list[str], compute: Compute, owner: dict[str, Any] | None = None) -> dict[str, Any]:
    """The TrainJob that runs `command` on every node, with the `PET_*` environment that torchrun reads.

    Args:
        name: from `job_name`.
        command: what every node runs.
        compute: number of nodes and the TrainJob's settings.
        owner: reference to the object with which Kubernetes is to delete it; None: no owner.
    """
    job = compute.trainjob
    resources = {"nvidia.com/gpu": str(job.gpus or ""), "cpu": job.cpu, "memory": job.memory}
    resources = {resource: amount for resource, amount in resources.items() if amount}
    labels = {"app.kubernetes.io/managed-by": "distilrank"}
    if job.queue:
        labels["kueue.x-k8s.io/queue-name"] = job.queue
    trainer: dict[str, Any] = {
        "command": command,
        "numNodes": compute.nodes,
        "numProcPerNode": compute.processes or max(job.gpus, 1),
    }
    if job.image:
        trainer["image"] = job.image
    if resources:
        # Both: some versions of the controller start a single process per node where requests are missing.
        trainer["resourcesPerNode"] = {"requests": resources, "limits": resources}
    pod = {
        # Namespaces of Kubeflow profiles inject Istio, whose proxy breaks torch's rendezvous and never ends.
        "metadata": {"labels": {"sidecar.istio.io/inject": "false"}},
        "spec": {
            "volumes": [{"name": VOLUME, "persistentVolumeClaim": {"claimName": job.claim}}],
            "containers": [{"name": NODE, "volumeMounts": [{"name": VOLUME, "mountPath": job.mount}]}],
        },
    }
    jobs = [{"name": NODE, "template": {"spec": {"template": pod}}}]
    spec = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": job.runtime},
        "trainer": trainer,
        "runtimePatches": [
            {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}}}
        ],
        # Enforced by the cluster: nodes that hang cannot end themselves.
        "activeDeadlineSeconds": 60 * job.timeout_minutes,
    }
    metadata = {"name": name, "labels": labels, "annotations": {SETTINGS: artifacts.digest_json(spec)}}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": metadata | ({"ownerReferences": [owner]} if owner else {}),
        "spec": spec,
    }
