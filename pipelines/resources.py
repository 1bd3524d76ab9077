"""What the pods of a Kubeflow cluster get, from the section `cluster` of the configuration; nothing else sets it.

A pipeline in this package is also a plain KFP pipeline without any of it, which runs on one machine. `configured`
builds the same pipeline for a configuration: its tasks pass through `place`, which then knows what to ask for.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from kfp import dsl, kubernetes
from kfp.dsl import pipeline_task
from kfp.dsl.graph_component import GraphComponent

from components.notify import report_outcome
from components.stage import OPS_IMAGE, TRAIN_IMAGE
from distilrank.config import WEBHOOK_FOLDER, Config, Pod, Stage, parameters
from distilrank.core.errors import InputError


def _callers() -> list[inspect.FrameInfo]:
    """As `inspect.stack`, the function that calls this and the one that calls that, without their source code."""
    frames = sys._getframe(1), sys._getframe(2)
    return [inspect.FrameInfo(frame, "", 0, frame.f_code.co_name, None, None) for frame in frames]


# KFP asks who calls each setter of a task, for one word of an error message; `inspect.stack` reads the sources of the
# whole stack for it, which made two thirds of a compilation.
pipeline_task.inspect = types.SimpleNamespace(stack=_callers)


@dataclass(frozen=True)
class _Building:
    """The pipeline that is being built: for what, and which others it contains, built for the same."""

    config: Config
    cluster: bool
    scheduled: bool
    nested: bool = False
    parts: Mapping[str, GraphComponent] = field(default_factory=dict)


_building: ContextVar[_Building | None] = ContextVar("building", default=None)


def configured(
    pipeline: GraphComponent,
    config: Config,
    *,
    cluster: bool,
    scheduled: bool = False,
    parts: Sequence[GraphComponent] = (),
) -> GraphComponent:
    """The pipeline with the configuration's images and exit handler, and on a cluster with all of `config.cluster`.

    Args:
        pipeline: `distill`, `monitor` or `estimate`, as its module defines it.
        config: the validated configuration.
        cluster: whether Kubernetes will run it; KFP's local runner would heed the retries alone, and retry bad input.
        scheduled: take the schedule's time and the run's name from Kubeflow, which knows them when the run starts.
        parts: the pipelines that it contains; KFP cannot build one while it builds another.

    Raises:
        InputError: the configuration wants of a cluster what its pods would not have.
    """
    if cluster and config.compute.device == "cuda" and config.compute.nodes == 1:
        for stage in ("teacher", "label", "student"):
            if not config.cluster.pod(stage, "train").gpu:
                raise InputError(
                    f"compute.device is 'cuda', but the pods of {stage} ask for no GPU: expected cluster.train.gpu or "
                    f"cluster.stages.{stage}.gpu to be 1 or more"
                )
    building = _Building(config, cluster, scheduled)
    inner = {part.name: _build(part, replace(building, nested=True)) for part in parts}
    return _build(pipeline, replace(building, parts=inner))


def nested_pipeline(pipeline: GraphComponent) -> GraphComponent:
    """The pipeline as a part of the one that is being built, for the same configuration."""
    building = _building.get()
    return pipeline if building is None else building.parts[pipeline.name]


def _build(pipeline: GraphComponent, building: _Building) -> GraphComponent:
    token = _building.set(building)
    try:
        return dsl.pipeline(name=pipeline.name, description=pipeline.description)(pipeline.pipeline_func)
    finally:
        _building.reset(token)


def images() -> dict[str, str]:
    """The images of the pipeline that is being built, by kind."""
    building = _building.get()
    return image_names(building.config) if building else {"ops": OPS_IMAGE, "train": TRAIN_IMAGE}


def image_names(config: Config) -> dict[str, str]:
    """The images of a configuration's pods, by kind."""
    chosen = config.cluster.images
    return {"ops": chosen.ops or OPS_IMAGE, "train": chosen.train or TRAIN_IMAGE}


def scheduled_time(given: Any) -> Any:
    """The parameter `given`, or in a scheduled pipeline what Kubeflow's driver puts in its place.

    The driver resolves the placeholder only where it is a constant input of a task, and KFP's local runner nowhere.
    """
    building = _building.get()
    return dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER if building and building.scheduled else given


def run_name(given: Any) -> Any:
    """The parameter `given`, or in a scheduled pipeline, whose runs share their parameters, the name of the run.

    Of a recurring run the driver knows no display name (`PIPELINE_JOB_NAME_PLACEHOLDER` is the empty string there);
    its resource name is never empty, and is what the API and the UI call the run too.
    """
    building = _building.get()
    return dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER if building and building.scheduled else given


def secrets() -> dict[str, list[str]]:
    """What every pod must find of each Secret: variables, and folders (they begin with a slash)."""
    building = _building.get()
    if building is None or not building.cluster:
        return {}
    wanted = building.config.cluster.secrets
    return {secret.name: [*secret.env.values(), *([secret.path] if secret.path else [])] for secret in wanted}


def exit_handler(name: Any, registry: Any) -> contextlib.AbstractContextManager[Any]:
    """Tasks within it end, however they end, in a message to `cluster.notify`; where nobody is named, in none."""
    building = _building.get()
    notify = building.config.cluster.notify if building and not building.nested else None
    if building is None or notify is None or not (notify.webhook or notify.secret):
        return contextlib.nullcontext()
    told = report_outcome(name=run_name(name), config=parameters(notify), registry=registry)
    if notify.secret and building.cluster:
        kubernetes.use_secret_as_volume(told, secret_name=notify.secret, mount_path=WEBHOOK_FOLDER, optional=True)
    configure_task(told, "notify", effect=True)
    return dsl.ExitHandler(told, name="run")


def configure_task(task: Any, stage: Stage, *, effect: bool = False) -> Any:
    """Name the task by its stage, and give its pod what the configuration says.

    Args:
        task: the task, in a pipeline.
        stage: which stage it is.
        effect: whether it acts on the world, and so is never taken from the cache.

    Returns:
        The task.
    """
    assert stage in get_args(Stage), stage
    task.set_display_name(stage)
    if effect:
        task.set_caching_options(False)
    building = _building.get()
    if building is None:
        return task
    kind: Literal["ops", "train"] = "train" if task.container_spec.image == TRAIN_IMAGE else "ops"
    task.set_container_image(images()[kind])
    if building.cluster:
        _ask(task, stage, building.config.cluster.pod(stage, kind))
        _equip(task, building.config)
    return task


def _ask(task: Any, stage: Stage, pod: Pod) -> None:
    """What single stages ask for."""
    if pod.gpu and pod.ephemeral_storage:
        raise InputError(
            f"the pods of {stage} ask for a GPU and for ephemeral_storage ({pod.ephemeral_storage}), but Kubeflow "
            "Pipelines 2.17 passes one resource beyond processors and memory: expected gpu: 0, or a LimitRange in the "
            "namespace of the runs instead of ephemeral_storage (docs/cluster.md)"
        )
    if pod.cpu:  # a limit too, for torch starts as many threads as it sees processors
        task.set_cpu_request(pod.cpu).set_cpu_limit(pod.cpu)
    if pod.memory:
        task.set_memory_request(pod.memory).set_memory_limit(pod.memory)
    if pod.gpu:
        task.set_accelerator_type(pod.gpu_type or "nvidia.com/gpu").set_accelerator_limit(pod.gpu)
    if pod.ephemeral_storage:
        # KFP has no setting for it. Its driver makes the accelerator's type a key of the container's limits, whatever
        # resource it names, and Kubernetes takes a limit for the request (kubeflow/pipelines 2.17.0,
        # backend/src/v2/driver/driver.go, initPodSpecPatch). The count must be digits.
        task.set_accelerator_type("ephemeral-storage").set_accelerator_limit(_bytes(pod.ephemeral_storage))
    if pod.shared_memory:
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=pod.shared_memory
        )
    for key, value in (pod.node_selector or {}).items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in pod.tolerations or ():
        kubernetes.add_toleration(
            task,
            key=toleration.key or None,
            operator=toleration.operator,
            value=toleration.value or None,
            effect=toleration.effect or None,
            toleration_seconds=toleration.seconds,
        )
    if pod.retries:
        task.set_retry(
            pod.retries,
            backoff_duration=f"{pod.backoff_seconds or 60}s",
            backoff_factor=pod.backoff_factor or 2,
            # Argo counts it from the first attempt's start, and ends a retry that is still at work then.
            backoff_max_duration=f"{(pod.retry_hours or 720) * 3600}s",
        )
    if pod.timeout_minutes:
        kubernetes.set_timeout(task, 60 * pod.timeout_minutes)


def _bytes(quantity: str) -> int:
    """A quantity as `Memory` allows it, in bytes."""
    number = quantity.rstrip("KMGTPEi")
    unit = quantity[len(number) :]
    base = 1024 if unit.endswith("i") else 1000
    return int(number) * base ** (" KMGTPE".index(unit[0]) if unit else 0)


def _equip(task: Any, config: Config) -> None:
    """What all pods get."""
    cluster = config.cluster
    for volume in cluster.volumes:
        kubernetes.mount_pvc(task, pvc_name=volume.claim, mount_path=volume.path, sub_path=volume.sub_path)
    for secret in cluster.secrets:  # optional, so that preflight can say which one is missing: a pod would only wait
        if secret.env:
            kubernetes.use_secret_as_env(task, secret.name, dict(secret.env), optional=True)
        if secret.path:
            kubernetes.use_secret_as_volume(task, secret.name, secret.path, optional=True)
    for key, value in cluster.env.items():
        task.set_env_variable(key, value)
    for key, value in cluster.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in cluster.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    if cluster.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.pull_secrets))
    kubernetes.set_security_context(
        task, run_as_user=cluster.run_as_user, run_as_group=cluster.run_as_group, run_as_non_root=True
    )
