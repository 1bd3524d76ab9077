"""How many shards a run on Kubeflow can have: two size limits, computed from the compiled pipeline.

**One argument.** Kubeflow's driver hands the launcher a task's inputs and outputs as one JSON argument
(`--executor_input`, in kubeflow/pipelines 2.17.0, backend/src/v2/driver/driver.go), and Linux refuses an
argument of more than 131,071 bytes (MAX_ARG_STRLEN). Argo offloads long `args` to a file, but this one is in `command`.
`student` and `report` take the labels of all shards: with Kubeflow's own store and the shipped configurations about
5,500 bytes plus 590 per shard, mostly the artifact's URI and the access settings of its store.

**One workflow.** Argo keeps a workflow's specification and its nodes in one object of at most 1 MiB
(argo-workflows 4.0.5, workflow/packer/packer.go); the nodes are compressed (gzip, base64) if they do not fit otherwise.
A shard has twelve nodes, since Kubeflow's manifests make each of six a retry node and its attempt: the iteration, its
driver, the iteration's item, and the task's driver, executor and pod. All nodes have their inputs in full: the
driver's component, task, executor and Kubernetes settings twice, and the patch of the pod, which contains the
executor's input and the component's code, six times. This is about 75,000 bytes per shard, 4,100 compressed: random
identifiers do not compress, and repeated text is farther apart than gzip's window of 32 KiB.

The compressed size is estimated from the plain size; `tests/workflow_status.py` builds such nodes to verify the
estimate. A run is refused above nine tenths of either limit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distilrank.config import Config, parameters
from distilrank.core.errors import InputError

ARGUMENT_BYTES = 128 * 1024 - 1
WORKFLOW_BYTES = 1024 * 1024
USABLE = 0.9
"""Usable share of either limit; the rest is for longer identifiers and store settings."""

PIPELINE_ROOT = "minio://mlpipeline/v2/artifacts"
"""Kubeflow's default location of artifacts."""
SESSION = {
    "Provider": "minio",
    "Params": {
        "accessKeyKey": "accesskey",
        "disableSSL": "true",
        "endpoint": "seaweedfs.kubeflow:9000",
        "forcePathStyle": "true",
        "fromEnv": "false",
        "maxRetries": "5",
        "region": "minio",
        "secretKeyKey": "secretkey",
        "secretName": "mlpipeline-minio-artifact",
    },
}
"""Access settings of a store, which the metadata of every artifact repeats (backend/src/v2/objectstore/config.go)."""
IDENTIFIER = "0" * 36
"""Placeholder of the length of UUIDs of runs and of tasks' outputs."""
UNKNOWN_VALUE = "x" * 100
"""Placeholder for an input that another task computes, such as a digest."""

NODE_BYTES = 600
"""Size of a node without inputs and outputs."""
TEMPLATE_BYTES = 40_000
"""Size of the workflow's templates."""
ESCAPED = 1.5
"""Growth factor of a pipeline's JSON when it is escaped as a string within the workflow's JSON."""
FIXED_COMPRESSION, SHARD_COMPRESSION = 3.5, 12.0
"""Compression ratio of nodes: of stages that run once, and of shards, which are similar to each other."""


@dataclass(frozen=True)
class Size:
    """A number of bytes: a fixed part and a part per shard."""

    fixed: float
    per_shard: float = 0.0

    def __add__(self, other: Size) -> Size:
        return Size(self.fixed + other.fixed, self.per_shard + other.per_shard)

    def __mul__(self, factor: float) -> Size:
        return Size(self.fixed * factor, self.per_shard * factor)

    def total(self, shards: int) -> float:
        """Return the number of bytes with that many shards."""
        return self.fixed + self.per_shard * shards


@dataclass(frozen=True)
class Demand:
    """Sizes of a run that the two limits apply to."""

    argument: Size
    """Longest argument of any task."""
    workflow: Size
    """The workflow with its compressed nodes."""

    @property
    def shards(self) -> int:
        """Largest number of shards within both limits."""
        return min(_max_shards(self.argument, ARGUMENT_BYTES), _max_shards(self.workflow, WORKFLOW_BYTES))


def _max_shards(size: Size, limit: int) -> int:
    return max(0, math.floor((USABLE * limit - size.fixed) / size.per_shard))


def check(documents: Sequence[Any], config: Config) -> None:
    """Check that a run can have as many shards as the configuration says.

    Args:
        documents: the compiled pipeline, see `Package.documents`.
        config: configuration of the run.

    Raises:
        InputError: too many shards; the message gives the maximum and both limits.
    """
    if documents[0]["pipelineInfo"]["name"] == "monitor" and config.monitor.retrain == "never":
        return  # only its nested `distill` has shards, which never runs
    size = demand(documents, config)
    if size is None or config.prepare.shards <= size.shards:
        return
    shards = config.prepare.shards
    raise InputError(
        f"prepare.shards is {shards}, expected at most {size.shards} on Kubeflow with this configuration: Argo's "
        f"workflow of {WORKFLOW_BYTES:,} bytes would have {size.workflow.total(shards):,.0f}, and an argument of "
        f"{ARGUMENT_BYTES:,} bytes {size.argument.total(shards):,.0f} (a tenth of each is reserved); a shorter "
        "cluster.pipeline_root and fewer pod settings allow more"
    )


def demand(documents: Sequence[Any], config: Config) -> Demand | None:
    """Compute the sizes of a run; None if the pipeline has no shards. Arguments: see `check`."""
    pipeline = _Pipeline(documents, config)
    tasks = list(pipeline.tasks(pipeline.specification["root"]))
    if not any(is_sharded for _, _, is_sharded in tasks):
        return None
    longest = Size(0)
    fixed, shard = 0.0, 0.0
    for name, task, is_sharded in tasks:
        component = pipeline.components[task["componentRef"]["name"]]
        if "executorLabel" in component:
            executor_input = pipeline.executor_input(name, task, component)
            longest = max(longest, executor_input, key=lambda size: (size.per_shard, size.fixed))
            settings = pipeline.settings(component)
            plain = Size(6 * NODE_BYTES + 2 * (settings + _size(task))) + (executor_input + Size(settings)) * 6
        else:
            plain = Size(6 * NODE_BYTES + 2 * (_size(component) + _size(task)))
        if is_sharded:
            shard += plain.fixed
        else:
            fixed, shard = fixed + plain.fixed, shard + plain.per_shard
    specification = TEMPLATE_BYTES + ESCAPED * sum(map(_size, documents))
    workflow = Size(specification + fixed / FIXED_COMPRESSION, shard / SHARD_COMPRESSION)
    return Demand(longest, workflow)


class _Pipeline:
    """A compiled pipeline with accessors for what Kubeflow's driver reads."""

    def __init__(self, documents: Sequence[Any], config: Config) -> None:
        self.specification = documents[0]
        self.components = self.specification["components"]
        self.executors = self.specification["deploymentSpec"]["executors"]
        platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"] if len(documents) > 1 else {}
        self.pods = platform.get("executors", {})
        self.values = parameters(config)
        root = (config.cluster.pipeline_root or PIPELINE_ROOT).rstrip("/")
        self.run_root = f"{root}/{self.specification['pipelineInfo']['name']}/{IDENTIFIER}"

    def tasks(self, component: Mapping[str, Any], is_sharded: bool = False) -> Iterator[tuple[str, Any, bool]]:
        """Yield name and specification of each task, and whether it runs once per shard."""
        for name, task in component["dag"]["tasks"].items():
            inner = self.components[task["componentRef"]["name"]]
            is_inner_sharded = is_sharded or "parameterIterator" in task
            yield name, task, is_inner_sharded
            if "dag" in inner:
                yield from self.tasks(inner, is_inner_sharded)

    def settings(self, component: Mapping[str, Any]) -> int:
        """Return the bytes of a component that the driver gets besides its task: signature, container, pod settings."""
        label = component["executorLabel"]
        return _size(component) + _size(self.executors[label]["container"]) + _size(self.pods.get(label, {}))

    def executor_input(self, name: str, task: Mapping[str, Any], component: Mapping[str, Any]) -> Size:
        """Return the size of the JSON of a task's inputs and outputs."""
        inputs = component.get("inputDefinitions", {})
        outputs = component.get("outputDefinitions", {})
        artifacts = inputs.get("artifacts", {})
        single = {key: artifact for key, artifact in artifacts.items() if not artifact.get("isArtifactList")}
        lists = {key: artifact for key, artifact in artifacts.items() if artifact.get("isArtifactList")}
        folder = f"{self.run_root}/{name}/{IDENTIFIER}"
        logs = {"executor-logs": {"artifactType": {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}}}
        executor_input = {
            "inputs": {
                "parameterValues": {
                    key: self._value(source) for key, source in task.get("inputs", {}).get("parameters", {}).items()
                },
                "artifacts": {key: {"artifacts": [self._input(key, artifact)]} for key, artifact in single.items()}
                | {key: {"artifacts": []} for key in lists},
            },
            "outputs": {
                "parameters": {key: {"outputFile": f"/tmp/kfp/outputs/{key}"} for key in outputs.get("parameters", {})},
                "artifacts": {
                    key: {"artifacts": [{"name": key, "type": artifact["artifactType"], "uri": f"{folder}/{key}"}]}
                    for key, artifact in (outputs.get("artifacts", {}) | logs).items()
                },
                "outputFile": f"{folder}/output_metadata.json",
            },
        }
        separator = len(", ")
        return Size(
            _size(executor_input), sum(_size(self._input(key, artifact)) + separator for key, artifact in lists.items())
        )

    def _value(self, source: Mapping[str, Any]) -> Any:
        if "runtimeValue" in source:
            return source["runtimeValue"].get("constant")
        name = source.get("componentInputParameter", "").rpartition("--")[2]
        return self.values.get(name, UNKNOWN_VALUE)

    def _input(self, name: str, artifact: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON of an input artifact; its producer has the longest name of any task."""
        return {
            "name": "0" * 9,
            "type": artifact["artifactType"],
            "uri": f"{self.run_root}/evaluate-student/{IDENTIFIER}/{name}",
            "metadata": {
                "display_name": name,
                "store_session_info": json.dumps(SESSION, separators=(",", ":")),
            },
        }


def _size(value: Any) -> int:
    """Return the bytes of JSON, with the spaces that Go's protobuf encoder may insert."""
    return len(json.dumps(value, ensure_ascii=False, separators=(", ", ":")).encode())
