"""How many shards a run on Kubeflow holds: the two limits of what carries it, worked out from the compiled pipeline.

**One argument.** Kubeflow's driver hands the launcher a task's inputs and outputs as one JSON argument
(`--executor_input`, in kubeflow/pipelines 2.17.0, backend/src/v2/driver/driver.go), and Linux starts no process with an
argument of more than 131,071 bytes (MAX_ARG_STRLEN). Argo offloads long `args` to a file, but this one is in `command`.
`student` and `report` take the labels of all shards: with Kubeflow's own store and the shipped configurations about
5,500 bytes and 590 more a shard, most of them the artifact's URI and how its store is reached.

**One workflow.** Argo keeps a workflow's specification and its nodes in one object of at most 1 MiB
(argo-workflows 4.0.5, workflow/packer/packer.go); the nodes are compressed (gzip, base64) when they do not fit plainly.
A shard is twelve nodes, for Kubeflow's manifests make each of six a retry node and its attempt: the iteration, its
driver, the iteration's item, and the task's driver, executor and pod. All of them hold their inputs in full: the
driver's component, task, executor and Kubernetes settings twice, and the patch of the pod, with the executor's input
and the component's code in it, six times. That is some 75,000 bytes, 4,100 compressed, for random identifiers do not
compress and the same text comes again too late for gzip's window of 32 KiB.

What is compressed is estimated from what is plain; `tests/workflow_status.py` builds such nodes to hold the estimate
against. A run is refused from nine tenths of either limit on.
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
"""Share of either limit that is used: identifiers grow, and stores are reached in different ways."""

PIPELINE_ROOT = "minio://mlpipeline/v2/artifacts"
"""Where Kubeflow keeps artifacts unless a run or the installation says otherwise."""
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
"""How a store is reached, as every artifact's metadata repeats it (backend/src/v2/objectstore/config.go)."""
IDENTIFIER = "0" * 36
"""As long as the UUIDs of runs and of tasks' outputs."""
UNKNOWN_VALUE = "x" * 100
"""As long as an input that another task computes, such as a digest."""

NODE_BYTES = 600
"""Of a node without inputs and outputs."""
TEMPLATE_BYTES = 40_000
"""Of the workflow's templates."""
ESCAPED = 1.5
"""How many times longer a pipeline's JSON is as strings within the workflow's JSON."""
FIXED_COMPRESSION, SHARD_COMPRESSION = 3.5, 12.0
"""Bytes of nodes in a byte of the compressed status: of the stages that run once, and of shards, which are alike."""


@dataclass(frozen=True)
class Size:
    """A number of bytes that grows with the number of shards."""

    fixed: float
    shard: float = 0.0

    def __add__(self, other: Size) -> Size:
        return Size(self.fixed + other.fixed, self.shard + other.shard)

    def __mul__(self, factor: float) -> Size:
        return Size(self.fixed * factor, self.shard * factor)

    def at(self, shards: int) -> float:
        """The bytes with so many shards."""
        return self.fixed + self.shard * shards


@dataclass(frozen=True)
class Demand:
    """What a run of a compiled pipeline needs of the two limits."""

    argument: Size
    """The longest argument of any task."""
    workflow: Size
    """The workflow with its nodes, compressed."""

    @property
    def shards(self) -> int:
        """The largest number of shards that both limits hold."""
        return min(_fitting(self.argument, ARGUMENT_BYTES), _fitting(self.workflow, WORKFLOW_BYTES))


def _fitting(size: Size, limit: int) -> int:
    return max(0, math.floor((USABLE * limit - size.fixed) / size.shard))


def check(documents: Sequence[Any], config: Config) -> None:
    """See that a run can have as many shards as the configuration says.

    Args:
        documents: the compiled pipeline, as `Package.documents` gives it.
        config: what it runs with.

    Raises:
        InputError: it has too many; the message says how many fit, and why no more.
    """
    if documents[0]["pipelineInfo"]["name"] == "monitor" and config.monitor.retrain == "never":
        return  # its shards are those of the training that it never starts
    size = demand(documents, config)
    if size is None or config.prepare.shards <= size.shards:
        return
    shards = config.prepare.shards
    raise InputError(
        f"prepare.shards is {shards}, expected at most {size.shards} on Kubeflow with this configuration: Argo's "
        f"workflow of {WORKFLOW_BYTES:,} bytes would have {size.workflow.at(shards):,.0f}, and an argument of "
        f"{ARGUMENT_BYTES:,} bytes {size.argument.at(shards):,.0f} (a tenth of each is kept free); a shorter "
        "cluster.pipeline_root and fewer settings of pods make room for more"
    )


def demand(documents: Sequence[Any], config: Config) -> Demand | None:
    """What a run needs; None: the pipeline has no shards.

    Arguments as for `check`.
    """
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
            longest = max(longest, executor_input, key=lambda size: (size.shard, size.fixed))
            settings = pipeline.settings(component)
            plain = Size(6 * NODE_BYTES + 2 * (settings + _size(task))) + (executor_input + Size(settings)) * 6
        else:
            plain = Size(6 * NODE_BYTES + 2 * (_size(component) + _size(task)))
        if is_sharded:
            shard += plain.fixed
        else:
            fixed, shard = fixed + plain.fixed, shard + plain.shard
    specification = TEMPLATE_BYTES + ESCAPED * sum(map(_size, documents))
    workflow = Size(specification + fixed / FIXED_COMPRESSION, shard / SHARD_COMPRESSION)
    return Demand(longest, workflow)


class _Pipeline:
    """A compiled pipeline, as the driver reads it."""

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
        """Name and specification of each task, and whether each shard has one of its own."""
        for name, task in component["dag"]["tasks"].items():
            inner = self.components[task["componentRef"]["name"]]
            within = is_sharded or "parameterIterator" in task
            yield name, task, within
            if "dag" in inner:
                yield from self.tasks(inner, within)

    def settings(self, component: Mapping[str, Any]) -> int:
        """Bytes of what the driver gets of a component beside its task: signature, container and the pod's settings."""
        label = component["executorLabel"]
        return _size(component) + _size(self.executors[label]["container"]) + _size(self.pods.get(label, {}))

    def executor_input(self, name: str, task: Mapping[str, Any], component: Mapping[str, Any]) -> Size:
        """The JSON of a task's inputs and outputs."""
        inputs = component.get("inputDefinitions", {})
        outputs = component.get("outputDefinitions", {})
        single = {key: one for key, one in inputs.get("artifacts", {}).items() if not one.get("isArtifactList")}
        lists = {key: one for key, one in inputs.get("artifacts", {}).items() if one.get("isArtifactList")}
        folder = f"{self.run_root}/{name}/{IDENTIFIER}"
        logs = {"executor-logs": {"artifactType": {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}}}
        whole = {
            "inputs": {
                "parameterValues": {
                    key: self._value(given) for key, given in task.get("inputs", {}).get("parameters", {}).items()
                },
                "artifacts": {key: {"artifacts": [self._input(key, one)]} for key, one in single.items()}
                | {key: {"artifacts": []} for key in lists},
            },
            "outputs": {
                "parameters": {key: {"outputFile": f"/tmp/kfp/outputs/{key}"} for key in outputs.get("parameters", {})},
                "artifacts": {
                    key: {"artifacts": [{"name": key, "type": one["artifactType"], "uri": f"{folder}/{key}"}]}
                    for key, one in (outputs.get("artifacts", {}) | logs).items()
                },
                "outputFile": f"{folder}/output_metadata.json",
            },
        }
        separator = len(", ")
        return Size(_size(whole), sum(_size(self._input(key, one)) + separator for key, one in lists.items()))

    def _value(self, given: Mapping[str, Any]) -> Any:
        if "runtimeValue" in given:
            return given["runtimeValue"].get("constant")
        name = given.get("componentInputParameter", "").rpartition("--")[2]
        return self.values.get(name, UNKNOWN_VALUE)

    def _input(self, name: str, artifact: Mapping[str, Any]) -> dict[str, Any]:
        """An input, of a task whose name is as long as that of the longest."""
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
    """Bytes of JSON, with the space after commas that Go's encoder puts there or not."""
    return len(json.dumps(value, ensure_ascii=False, separators=(", ", ":")).encode())
