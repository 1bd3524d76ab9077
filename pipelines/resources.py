"""Apply the section `cluster` of the configuration to a pipeline's tasks: images, resources, volumes, secrets.

No other module sets them. Without a configuration, a pipeline of this package is a plain KFP pipeline that runs on one
machine. `configured` rebuilds it for a configuration: each task passes through `configure_task`, which reads the
configuration from a context variable.
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
    """Return the two innermost frames as `inspect.stack` does, without reading their source code."""
    frames = sys._getframe(1), sys._getframe(2)
    return [inspect.FrameInfo(frame, "", 0, frame.f_code.co_name, None, None) for frame in frames]


# Each setter of a KFP task calls `inspect.stack` to name itself in an error message. That reads the source of every
# frame, which took two thirds of a compilation.
pipeline_task.inspect = types.SimpleNamespace(stack=_callers)


@dataclass(frozen=True)
class _Building:
    """The pipeline under construction: its configuration, and the pipelines that it contains."""

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
    """Build a pipeline with the configuration's images and exit handler; for a cluster, with all of `config.cluster`.

    Args:
        pipeline: `distill`, `monitor` or `estimate`, as its module defines it.
        config: the validated configuration.
        cluster: whether Kubernetes will run it. KFP's local runner ignores all settings of pods but retries, and would
            retry bad input.
        scheduled: whether a recurring run starts it. Schedule time and run name are then resolved by Kubeflow when
            the run starts.
        parts: the pipelines that it contains; KFP cannot build a pipeline while it builds another.

    Raises:
        InputError: the configuration needs a resource that it does not request for its pods.
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
    """Return the pipeline as a component of the one under construction, built for the same configuration."""
    building = _building.get()
    return pipeline if building is None else building.parts[pipeline.name]


def _build(pipeline: GraphComponent, building: _Building) -> GraphComponent:
    token = _building.set(building)
    try:
        return dsl.pipeline(name=pipeline.name, description=pipeline.description)(pipeline.pipeline_func)
    finally:
        _building.reset(token)


def images() -> dict[str, str]:
    """Return the images of the pipeline under construction, by kind (`ops`, `train`)."""
    building = _building.get()
    return image_names(building.config) if building else {"ops": OPS_IMAGE, "train": TRAIN_IMAGE}


def image_names(config: Config) -> dict[str, str]:
    """Return the images of a configuration's pods, by kind (`ops`, `train`)."""
    configured_images = config.cluster.images
    return {"ops": configured_images.ops or OPS_IMAGE, "train": configured_images.train or TRAIN_IMAGE}


def scheduled_time(parameter: Any) -> Any:
    """Return the parameter, or in a scheduled pipeline the placeholder that Kubeflow replaces by the schedule's time.

    The driver resolves the placeholder only as a constant input of a task. KFP's local runner never resolves it.
    """
    building = _building.get()
    return dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER if building and building.scheduled else parameter


def run_name(parameter: Any) -> Any:
    """Return the parameter, or in a scheduled pipeline, whose runs share their parameters, a placeholder for the name.

    In a recurring run the driver has no display name (`PIPELINE_JOB_NAME_PLACEHOLDER` resolves to the empty string).
    The resource name is never empty, and the API and the UI show the run under it too.
    """
    building = _building.get()
    return dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER if building and building.scheduled else parameter


def secrets() -> dict[str, list[str]]:
    """Return by Secret what every pod must have of it: names of variables, and mount paths (with a leading slash)."""
    building = _building.get()
    if building is None or not building.cluster:
        return {}
    return {
        secret.name: [*secret.env.values(), *([secret.path] if secret.path else [])]
        for secret in building.config.cluster.secrets
    }


def exit_handler(name: Any, registry: Any) -> contextlib.AbstractContextManager[Any]:
    """Context manager whose tasks are followed by a notification to `cluster.notify`, whatever their outcome.

    Without a webhook or Secret in `cluster.notify` it does nothing.
    """
    building = _building.get()
    notify = building.config.cluster.notify if building and not building.nested else None
    if building is None or notify is None or not (notify.webhook or notify.secret):
        return contextlib.nullcontext()
    notification = report_outcome(name=run_name(name), config=parameters(notify), registry=registry)
    if notify.secret and building.cluster:
        kubernetes.use_secret_as_volume(
            notification, secret_name=notify.secret, mount_path=WEBHOOK_FOLDER, optional=True
        )
    configure_task(notification, "notify", cacheable=False)
    return dsl.ExitHandler(notification, name="run")


def configure_task(task: Any, stage: Stage, *, cacheable: bool = True) -> Any:
    """Name a task by its stage, and apply the configuration of that stage to its pod.

    Args:
        task: a task of the pipeline under construction.
        stage: selects `cluster.stages.STAGE`.
        cacheable: whether Kubeflow may reuse an earlier result; False for stages with side effects.

    Returns:
        The same task, for chaining.
    """
    assert stage in get_args(Stage), stage
    task.set_display_name(stage)
    if not cacheable:
        task.set_caching_options(False)
    building = _building.get()
    if building is None:
        return task
    kind: Literal["ops", "train"] = "train" if task.container_spec.image == TRAIN_IMAGE else "ops"
    task.set_container_image(images()[kind])
    if building.cluster:
        _set_stage_resources(task, stage, building.config.cluster.pod(stage, kind))
        _set_shared_settings(task, building.config)
    return task


def _set_stage_resources(task: Any, stage: Stage, pod: Pod) -> None:
    """Apply the pod settings of one stage: resources, scheduling, retries, timeout."""
    if pod.gpu and pod.ephemeral_storage:
        raise InputError(
            f"the pods of {stage} ask for a GPU and for ephemeral_storage ({pod.ephemeral_storage}), but Kubeflow "
            "Pipelines 2.17 passes one resource beyond processors and memory: expected gpu: 0, or a LimitRange in the "
            "namespace of the runs instead of ephemeral_storage (docs/cluster.md)"
        )
    if pod.cpu:  # also as a limit, since torch starts one thread per visible core
        task.set_cpu_request(pod.cpu).set_cpu_limit(pod.cpu)
    if pod.memory:
        task.set_memory_request(pod.memory).set_memory_limit(pod.memory)
    if pod.gpu:
        task.set_accelerator_type(pod.gpu_type or "nvidia.com/gpu").set_accelerator_limit(pod.gpu)
    if pod.ephemeral_storage:
        # KFP has no setting for ephemeral storage. Its driver uses the accelerator type as the resource name of a limit
        # without validating it, and Kubernetes copies a limit to the request (kubeflow/pipelines 2.17.0,
        # backend/src/v2/driver/driver.go, initPodSpecPatch). The count must consist of digits.
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
            # Argo measures this from the start of the first attempt, and stops a retry that is still running then.
            backoff_max_duration=f"{(pod.retry_hours or 720) * 3600}s",
        )
    if pod.timeout_minutes:
        kubernetes.set_timeout(task, 60 * pod.timeout_minutes)


def _bytes(quantity: str) -> int:
    """Convert a Kubernetes quantity of `Memory` to bytes."""
    number = quantity.rstrip("KMGTPEi")
    unit = quantity[len(number) :]
    base = 1024 if unit.endswith("i") else 1000
    return int(number) * base ** (" KMGTPE".index(unit[0]) if unit else 0)


def _set_shared_settings(task: Any, config: Config) -> None:
    """Apply the settings that all pods share: volumes, Secrets, environment, metadata, security context."""
    cluster = config.cluster
    for volume in cluster.volumes:
        kubernetes.mount_pvc(task, pvc_name=volume.claim, mount_path=volume.path, sub_path=volume.sub_path)
    for secret in cluster.secrets:  # optional, so that preflight starts and names the missing one
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
