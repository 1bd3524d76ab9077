"""The nodes that Argo would keep of a run, built from a compiled pipeline as Kubeflow's compiler and driver do.

kubeflow/pipelines 2.17.0: backend/src/v2/compiler/argocompiler (container.go, dag.go: which nodes there are, and their
parameters) and backend/src/v2/driver/driver.go (the patch of the pod). argo-workflows 4.0.5: a template with a retry
strategy, as Kubeflow's manifests give every one, is a retry node and its attempt, each with all inputs; what is
compressed is in workflow/packer/packer.go. No run of Kubeflow takes part; what is random in its nodes is random here.
"""

from __future__ import annotations

import base64
import gzip
import json
import random
import uuid
from collections.abc import Mapping
from typing import Any

from distilrank.config import Config, parameters
from pipelines.capacity import PIPELINE_ROOT, SESSION

Entity = dict[str, Any]


def compact(value: Any) -> str:
    """JSON as Go's standard encoder writes it."""
    return json.dumps(value, separators=(",", ":"))


def spaced(value: Any) -> str:
    """JSON as Go's encoder of protocol buffers may write it: a space after commas."""
    return json.dumps(value, separators=(", ", ":"), ensure_ascii=False)


class Run:
    """A finished run of a compiled pipeline with so many shards."""

    def __init__(self, documents: list[Any], config: Config, shards: int) -> None:
        self.random = random.Random(shards)
        self.specification = documents[0]
        self.components = self.specification["components"]
        self.executors = self.specification["deploymentSpec"]["executors"]
        self.pods = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.values = parameters(config)
        self.shards = shards
        self.pipeline = self.specification["pipelineInfo"]["name"]
        self.run_id = self.uuid()
        self.root = f"{config.cluster.pipeline_root or PIPELINE_ROOT}/{self.pipeline}/{self.run_id}"
        self.nodes: dict[str, Entity] = {}
        self.longest_argument = 0
        self.add_graph("root", self.specification["root"])

    def compressed(self) -> int:
        """Bytes of `status.compressedNodes`."""
        return len(base64.b64encode(gzip.compress(compact(dict(sorted(self.nodes.items()))).encode(), 6)))

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def node_id(self) -> str:
        return f"{self.pipeline}-x2k9p-{self.random.randrange(2**32)}"

    def moment(self) -> str:
        return f"2026-11-30T20:{self.random.randrange(10, 60)}:{self.random.randrange(10, 60)}Z"

    def add_node(self, path: str, kind: str, template: str, inputs: Entity, outputs: Entity | None = None) -> None:
        """A retry node and its only attempt."""
        for suffix, node_kind in (("", "Retry"), ("(0)", kind)):
            node: Entity = {
                "id": self.node_id(),
                "name": f"{self.pipeline}-x2k9p.{path}{suffix}",
                "displayName": path.rpartition(".")[2] + suffix,
                "type": node_kind,
                "templateName": template,
                "templateScope": f"local/{self.pipeline}-x2k9p",
                "phase": "Succeeded",
                "boundaryID": self.node_id(),
                "startedAt": self.moment(),
                "finishedAt": self.moment(),
                "progress": "1/1",
                "resourcesDuration": {"cpu": self.random.randrange(100), "memory": self.random.randrange(1000)},
                "children": [self.node_id()],
                "inputs": {"parameters": [{"name": name, "value": value} for name, value in inputs.items()]},
            }
            if node_kind == "Pod":
                node |= {"hostNodeName": "gke-search-pool-1-8f3a2c1d-x1y2", "nodeFlag": {"retried": True}}
            if node_kind == "DAG":
                node |= {"outboundNodes": [self.node_id()], "nodeFlag": {"retried": True}}
            if outputs is not None:
                node["outputs"] = {
                    "parameters": [
                        {"name": name, "value": value, "valueFrom": {"path": f"/tmp/outputs/{name}", "default": ""}}
                        for name, value in outputs.items()
                    ],
                    "exitCode": "0",
                }
            self.nodes[node["id"]] = node

    def add_graph(self, path: str, component: Mapping[str, Any]) -> None:
        """The nodes of all tasks of a component that has tasks."""
        for name, task in component["dag"]["tasks"].items():
            inner = self.components[task["componentRef"]["name"]]
            if "executorLabel" in inner:
                self.add_container(f"{path}.{name}", name, task, inner)
            elif "parameterIterator" in task:
                driver = self.driver_inputs(name, task, inner)
                outputs = {"execution-id": "55", "iteration-count": str(self.shards), "condition": "nil"}
                self.add_node(f"{path}.{name}.iteration-driver", "Pod", "system-dag-driver", driver, outputs)
                for index in range(self.shards):
                    item = f"{path}.{name}.iteration-iterations({index}:{index})"
                    inputs = {"parent-dag-id": "55", "iteration-index": str(index)}
                    self.add_node(item, "DAG", f"comp-{name}-iteration", inputs)
                    outputs = {"execution-id": str(100 + index), "iteration-count": "0", "condition": "nil"}
                    driver |= {"iteration-index": str(index)}
                    self.add_node(f"{item}.iteration-item-driver", "Pod", "system-dag-driver", driver, outputs)
                    inputs = {"parent-dag-id": str(100 + index), "condition": "nil"}
                    self.add_node(f"{item}.iteration-item", "DAG", f"comp-{name}", inputs)
                    self.add_graph(f"{item}.iteration-item", inner)
            else:
                driver = self.driver_inputs(name, task, inner)
                outputs = {"execution-id": "5", "iteration-count": "0", "condition": "nil"}
                self.add_node(f"{path}.{name}-driver", "Pod", "system-dag-driver", driver, outputs)
                self.add_node(f"{path}.{name}", "DAG", f"comp-{name}", {"parent-dag-id": "5"})
                self.add_graph(f"{path}.{name}", inner)

    def driver_inputs(self, name: str, task: Mapping[str, Any], component: Mapping[str, Any]) -> Entity:
        return {
            "component": spaced(component),
            "runtime-config": "",
            "task": spaced(task),
            "task-name": name,
            "parent-dag-id": "1",
            "iteration-index": "-1",
            "driver-type": "DAG",
        }

    def add_container(self, path: str, name: str, task: Mapping[str, Any], component: Mapping[str, Any]) -> None:
        label = component["executorLabel"]
        patch = self.patch(name, task, component)
        inputs = {
            "component": spaced(component),
            "task": spaced(task),
            "container": spaced(self.executors[label]["container"]),
            "task-name": name,
            "parent-dag-id": "123",
            "iteration-index": "-1",
            "kubernetes-config": spaced(self.pods[label]),
        }
        outputs = {"pod-spec-patch": patch, "cached-decision": "false", "condition": "true"}
        self.add_node(f"{path}-driver", "Pod", "system-container-driver", inputs, outputs)
        retries = {"retry-max-count": "2", "retry-backoff-duration": "60", "retry-backoff-factor": "2"}
        inputs = {"pod-spec-patch": patch, "cached-decision": "false", **retries}
        self.add_node(path, "DAG", "retry-system-container-executor", inputs)
        inputs = {"pod-spec-patch": patch, **retries}
        self.add_node(f"{path}.executor", "Pod", "retry-system-container-impl", inputs, {})

    def patch(self, name: str, task: Mapping[str, Any], component: Mapping[str, Any]) -> str:
        """The pod of a task, as its driver hands it to Argo."""
        argument = spaced(self.executor_input(name, task, component))
        self.longest_argument = max(self.longest_argument, len(argument.encode()))
        container = self.executors[component["executorLabel"]]["container"]
        launcher = ["/kfp-launcher/launch", "--pipeline_name", self.pipeline, "--run_id", self.run_id]
        launcher += ["--execution_id", str(self.random.randrange(10**5)), "--executor_input", argument]
        launcher += ["--component_spec", spaced(component), "--pod_name", "$(KFP_POD_NAME)"]
        launcher += ["--ml_pipeline_server_address", "ml-pipeline.kubeflow", "--ml_pipeline_server_port", "8887"]
        launcher += ["--mlmd_server_address", "metadata-grpc-service.kubeflow.svc.cluster.local", "--"]
        main = {
            "name": "main",
            "image": container["image"],
            "command": launcher,
            "args": container["command"] + container["args"],
            "env": container.get("env", []),
            "resources": container["resources"],
        }
        return compact({"containers": [main], **self.pods[component["executorLabel"]]})

    def executor_input(self, name: str, task: Mapping[str, Any], component: Mapping[str, Any]) -> Entity:
        salt = self.uuid()
        values = {}
        for key, parameter in task.get("inputs", {}).get("parameters", {}).items():
            section = parameter.get("componentInputParameter", "").rpartition("--")[2]
            values[key] = parameter.get("runtimeValue", {}).get("constant", self.values.get(section, "a" * 64))
        artifacts = {}
        for key, artifact in component.get("inputDefinitions", {}).get("artifacts", {}).items():
            producer = "label-shard" if artifact.get("isArtifactList") else "prepare-data"
            count = self.shards if artifact.get("isArtifactList") else 1
            artifacts[key] = {"artifacts": [self.input_artifact(producer, key, artifact) for _ in range(count)]}
        outputs = component.get("outputDefinitions", {})
        folder = f"{self.root}/{name}/{salt}"
        return {
            "inputs": {"parameterValues": values, "artifacts": artifacts},
            "outputs": {
                "parameters": {key: {"outputFile": f"/tmp/kfp/outputs/{key}"} for key in outputs.get("parameters", {})},
                "artifacts": {
                    key: {"artifacts": [{"name": key, "type": artifact["artifactType"], "uri": f"{folder}/{key}"}]}
                    for key, artifact in outputs.get("artifacts", {}).items()
                },
                "outputFile": f"/{folder.replace('://', '/')}/output_metadata.json",
            },
        }

    def input_artifact(self, producer: str, name: str, artifact: Mapping[str, Any]) -> Entity:
        return {
            "name": str(self.random.randrange(10**4, 10**5)),
            "type": artifact["artifactType"],
            "uri": f"{self.root}/{producer}/{self.uuid()}/{name}",
            "metadata": {"display_name": name, "store_session_info": compact(SESSION)},
        }
