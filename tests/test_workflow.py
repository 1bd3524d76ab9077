"""Why a run ended, read from Argo workflows with the messages that a real cluster gave."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest

from distilrank import workflow
from distilrank.workflow import Cause
from pipelines import compiling
from tests.workflows import NAME, attempt, manifest, pod

DONE = attempt("Succeeded")


def silent(node: workflow.Node) -> str:
    return ""


@pytest.mark.parametrize(
    ("phase", "message", "log", "cause", "reason"),
    [
        (
            "Failed",
            "main: Error (exit code 1): distilrank | prepare | bad input | data/judgements.csv: row 7: rating is 'x'",
            "",
            Cause.BAD_INPUT,
            "data/judgements.csv: row 7: rating is 'x'",
        ),
        # Where the termination message is missing, the stage's own line in its log counts.
        (
            "Failed",
            "main: Error (exit code 1)",
            "distilrank | prepare | started\ndistilrank | prepare | stopped | no margin to learn\nTraceback (most ...",
            Cause.STOPPED,
            "no margin to learn",
        ),
        (
            "Failed",
            "main: Error (exit code 1)",
            "Traceback (most recent call last):\n  File ...\nKeyError: 'rating'\nI1130 launcher",
            Cause.CRASHED,
            "KeyError: 'rating'",
        ),
        # The parameters are parsed before the stage begins.
        (
            "Failed",
            "main: Error (exit code 1)",
            "Traceback ...\ndistilrank.core.errors.InputError: pipeline parameters: unknown key 'gat'\nI1130",
            Cause.BAD_INPUT,
            "pipeline parameters: unknown key 'gat'",
        ),
        ("Failed", "main: OOMKilled (exit code 137)", "", Cause.OUT_OF_MEMORY, "main: OOMKilled (exit code 137)"),
        (
            "Failed",
            "main: Error (exit code 1)",
            'F1130 failed to execute component: failed to upload output artifact "labels" to remote storage URI',
            Cause.STORAGE_LOST,
            "failed to upload output artifact",
        ),
        (
            "Failed",
            "main: Error (exit code 1)",
            "step 3\nE1130 launcher_v2.go:437] Component failed to execute successfully: signal: killed",
            Cause.OUT_OF_MEMORY,
            "failed to execute successfully: signal: killed",
        ),
        ("Failed", "main: Error (exit code 143)", "step 3", Cause.KILLED, "main: Error (exit code 143)"),
        (
            "Error",
            "wait: Error (exit code 64): failed to put file",
            "",
            Cause.OUTSIDE,
            "wait: Error (exit code 64): ...",
        ),
        (
            "Failed",
            "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi.",
            "",
            Cause.EVICTED,
            "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi.",
        ),
        ("Failed", "The node was low on resource: memory.", "", Cause.EVICTED, "The node was low on resource: memory."),
        ("Error", "pod deleted", "", Cause.POD_LOST, "pod deleted"),
        (
            "Failed",
            "pod failed: neither main nor wait container completed successfully",
            "",
            Cause.POD_LOST,
            "pod failed: neither main nor wait container completed successfully",
        ),
        (
            "Failed",
            "Pod was terminated in response to imminent node shutdown.",
            "",
            Cause.POD_LOST,
            "Pod was terminated in response to imminent node shutdown.",
        ),
        (
            "Failed",
            "Pod was active on the node longer than the specified deadline",
            "",
            Cause.TIMED_OUT,
            "Pod was active on the node longer than the specified deadline",
        ),
        (
            "Error",
            'Pod "x" is invalid: spec.volumes[1].name: Invalid value: "trust.me": must not contain dots',
            "",
            Cause.NOT_STARTED,
            'Pod "x" is invalid: spec.volumes[1].name: Invalid value: "trust.me": must not contain dots',
        ),
        ("Error", "some message that nobody knows", "", Cause.OUTSIDE, "some message that nobody knows"),
    ],
)
def test_a_failure_has_its_cause(phase: str, message: str, log: str, cause: Cause, reason: str) -> None:
    argo = manifest({"check-inputs": [DONE], "prepare-data": [attempt(phase, message)]})
    end = workflow.read(argo, lambda node: log if node.task == "prepare-data" else "")
    (failure,) = end.failures
    assert (failure.stage, failure.cause) == ("prepare", cause)
    assert failure.reason == reason or (reason.endswith("...") and failure.reason.startswith(reason[:-3]))
    assert end.state == workflow.FAILED and end.summary.startswith(f"failed: prepare: {cause}: ")
    passing = {Cause.OUT_OF_MEMORY, Cause.EVICTED, Cause.POD_LOST, Cause.KILLED, Cause.STORAGE_LOST, Cause.OUTSIDE}
    assert end.may_pass is (cause in passing)


def test_what_a_later_attempt_repaired_is_no_failure() -> None:
    argo = manifest({"train-teacher": [attempt("Error", "pod deleted"), DONE]})
    assert workflow.read(argo, silent) == workflow.RunEnd(workflow.SUCCEEDED)
    argo = manifest(
        {"train-teacher": [attempt("Error", "pod deleted"), attempt("Failed", "main: OOMKilled (exit code 137)")]}
    )
    assert [failure.cause for failure in workflow.read(argo, silent).failures] == [Cause.OUT_OF_MEMORY]


def test_what_a_later_attempt_of_a_whole_task_repaired_is_no_failure() -> None:
    # Kubeflow's manifests retry DAGs too: pods of an earlier attempt have a last attempt of their own.
    argo = manifest({"train-teacher": [DONE], "decide": [DONE]})
    nodes = argo["status"]["nodes"]
    base = f"{NAME}.root(0).train-teacher"
    for node in nodes.values():  # what succeeded was the second attempt
        node["name"] = node["name"].replace(f"{base}(0)", f"{base}(1)")
    lost = {"type": "Pod", "phase": "Error", "message": "pod deleted", "templateName": "impl"}
    nodes["lost"] = lost | {"id": "lost", "name": f"{base}(0).executor(2)"}
    nodes["lost-retry"] = {"id": "lost-retry", "type": "Retry", "name": f"{base}(0).executor", "children": ["lost"]}
    for number in (0, 1):
        nodes[f"dag-{number}"] = {"id": f"dag-{number}", "type": "DAG", "name": f"{base}({number})"}
    # The exit handler is a child too, of the Retry node of what it follows.
    nodes["exit"] = {"id": "exit", "type": "Retry", "name": f"{base}.onExit", "children": []}
    nodes["task"] = {"id": "task", "type": "Retry", "name": base, "children": ["dag-0", "dag-1", "exit"]}
    assert workflow.read(argo, silent, has_ended=True) == workflow.RunEnd(workflow.SUCCEEDED)
    assert [node.stage for node in workflow.nodes(argo) if not node.is_driver] == ["teacher", "gate"]
    nodes["task"]["children"] = ["dag-0", "exit"]
    assert [failure.reason for failure in workflow.read(argo, silent).failures] == ["pod deleted"]


def test_one_failure_of_many_shards_decides() -> None:
    shards = {f"for-loop-1(0).iteration-item({n}:{n})/label-shard": [attempt("Error", "pod deleted")] for n in range(3)}
    end = workflow.read(manifest(shards), silent)
    assert (len(end.failures), end.may_pass) == (3, True)
    assert end.summary == "failed: label: pod lost: pod deleted"
    wrong = attempt("Failed", "main: Error (exit code 1): distilrank | label-00001 | bad input | no such shard")
    end = workflow.read(manifest(shards | {"for-loop-1(0).iteration-item(1:1)/label-shard": [wrong]}), silent)
    assert not end.may_pass
    assert end.error == "label: pod lost: pod deleted; label: bad input: no such shard"


def test_a_terminated_run_was_stopped_by_a_person() -> None:
    # `runs/ID:terminate` patches the deadline (2.17.0, apiserver/resource/resource_manager.go), and the run is FAILED.
    argo = manifest({"train-teacher": [attempt("Failed", "main: Error (exit code 143)")]}, activeDeadlineSeconds=0)
    end = workflow.read(argo, silent)
    assert (end.state, end.summary, end.may_pass) == ("CANCELLED", "stopped by a person", False)
    # Between two pods none has failed, and the exit handler sees the workflow at work.
    argo = manifest({"train-teacher": [DONE]}, phase="Running", activeDeadlineSeconds=0)
    assert workflow.read(argo, silent, has_ended=True) == workflow.RunEnd(workflow.STOPPED)


OUTCOMES: list[tuple[dict[str, list[str]], str]] = [
    (
        {
            "decide": ['distilrank | gate | outcome | {"outcome": "cold_start", "candidate": "v1", "failed": []}'],
            "promote-student": ['distilrank | promote | outcome | {"version": "v1", "previous": null}'],
        },
        "promoted as the first champion: v1",
    ),
    (
        {"decide": ['distilrank | gate | outcome | {"outcome": "refused", "failed": ["lift_over_bm25", "drift"]}']},
        "the student was refused (lift_over_bm25, drift)",
    ),
    (
        {"decide": ['distilrank | gate | outcome | {"outcome": "unchanged", "candidate": "v1", "failed": []}']},
        "unchanged: the student is the champion v1 itself",
    ),
    (
        {"watch-champion": ['distilrank | monitor | outcome | {"alarm": true, "failed": ["drift"], "retrain": false}']},
        "alarm (drift)",
    ),
    ({"watch-champion": ['distilrank | monitor | outcome | {"alarm": false, "failed": []}']}, "no alarm"),
    ({"decide": ["distilrank | gate | outcome | {cut"]}, "succeeded"),
    ({"evaluate-student": ["distilrank | evaluate | note | unrelated"]}, "succeeded"),
]


@pytest.mark.parametrize(("logs", "summary"), OUTCOMES)
def test_a_success_reports_what_was_decided(logs: dict[str, list[str]], summary: str) -> None:
    argo = manifest({task: [DONE] for task in logs}, phase="Running")
    end = workflow.read(argo, lambda node: "\n".join(["noise", *logs[node.task]]), has_ended=True)
    assert (end.state, end.summary) == (workflow.SUCCEEDED, summary)


def test_nodes_that_argo_compressed_are_unpacked() -> None:
    argo = manifest({"check-inputs": [attempt("Error", "pod deleted")]})
    expected = workflow.nodes(argo)
    packed = base64.b64encode(gzip.compress(json.dumps(argo["status"].pop("nodes")).encode())).decode()
    argo["status"]["compressedNodes"] = packed
    assert workflow.nodes(workflow.from_manifest(json.dumps(argo))) == expected and expected
    assert workflow.read({}, silent) == workflow.RunEnd(workflow.UNKNOWN)


def test_pods_are_named_as_argo_names_them() -> None:
    # FNV-1a, 32 bits: the vectors of its authors, http://www.isthe.com/chongo/tech/comp/fnv/
    assert workflow.pod_name("wf", "impl", "") == "wf-impl-2166136261"
    assert workflow.pod_name("wf", "impl", "foobar") == f"wf-impl-{0xBF9CF968}"
    assert len(workflow.pod_name("w" * 300, "impl", "foobar")) == 253
    node = pod(manifest({"check-inputs": [DONE]}), "check-inputs")
    assert node.pod.startswith(f"{NAME}-system-container-impl-") and node.id.startswith(f"{NAME}-")


def test_every_task_of_the_pipelines_has_its_stage() -> None:
    stages: dict[str, str] = {}
    for name in ("distill", "monitor"):
        specification: Any = compiling.pipeline(name).pipeline_spec
        for graph in (specification.root, *specification.components.values()):
            for key, task in graph.dag.tasks.items():
                if specification.components[task.component_ref.name].executor_label:
                    stages[key] = task.task_info.name
    assert {**stages, "report-outcome": "notify"} == workflow.STAGES


def test_a_manifest_that_is_nested_too_deep_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="not nested thousands of levels deep"):
        workflow.from_manifest("[" * 100_000)
