"""Components stay thin, install nothing, and compile without torch."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPONENTS = sorted(path for path in (ROOT / "components").glob("*.py") if path.stem not in ("__init__", "stage"))
MONITORING = ("check_champion", "sample", "score", "monitor")
PROBES = ("probe", "probe_artifact", "probe_training", "probe_termination")
STAGES = ("preflight", "prepare", "rehearse", "teacher", "label", "student", "evaluate", "drift", "gate", "report")


def function(path: Path) -> ast.FunctionDef:
    (definition,) = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return definition


def test_every_stage_has_its_component() -> None:
    assert {path.stem for path in COMPONENTS} == {
        *STAGES,
        *MONITORING,
        *PROBES,
        "estimate",
        "snapshot",
        "notify",
        "promote",
    }


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.stem)
def test_a_component_only_translates(path: Path) -> None:
    component = function(path)
    body = component.body[1:]  # after the docstring
    assert isinstance(component.body[0], ast.Expr) and ast.get_docstring(component)
    assert len(body) <= 9
    forbidden = (ast.If, ast.For, ast.While, ast.Try, ast.FunctionDef, ast.Lambda, ast.With, ast.IfExp)
    assert not [node for statement in body for node in ast.walk(statement) if isinstance(node, forbidden)]


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.stem)
def test_a_signature_has_no_defaults_and_is_in_order(path: Path) -> None:
    component = function(path)
    arguments = component.args
    assert not arguments.defaults and not arguments.kw_defaults and not arguments.vararg and not arguments.kwarg
    kinds = [
        2 if (text := ast.unparse(argument.annotation)).startswith("Output[") else 1 if text == "dict" else 0
        for argument in arguments.args
    ]
    assert kinds == sorted(kinds), "expected inputs, then configuration, then outputs"
    assert "from __future__" not in path.read_text()


def tasks_of(component: dict) -> dict:
    return component.get("dag", {}).get("tasks", {})


COMPILE = """
import sys, json
from kfp import compiler
from pipelines.distill import distill
from pipelines.monitor import monitor
compiler.Compiler().compile(distill, sys.argv[1])
compiler.Compiler().compile(monitor, sys.argv[2])
heavy = {"torch", "transformers", "evidently", "pandas", "pyarrow", "bm25s", "matplotlib", "sklearn"}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, str]:
    outputs = [tmp_path_factory.mktemp("compiled") / f"{name}.yaml" for name in ("distill", "monitor")]
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, *map(str, outputs)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    distill, monitor = (next(yaml.safe_load_all(output.read_text())) for output in outputs)
    return distill, monitor, result.stdout.splitlines()[-1]


def test_compiling_needs_no_heavy_library(compiled: tuple[dict, dict, str]) -> None:
    assert compiled[2] == "[]"


def test_nothing_is_installed_at_run_time(compiled: tuple[dict, dict, str]) -> None:
    for name, executor in compiled[1]["deploymentSpec"]["executors"].items():  # those of distill are among them
        container = executor["container"]
        text = " ".join(container["command"] + container.get("args", []))
        assert "pip install" not in text and "packages_to_install" not in text, name
        assert container["image"].split(":")[0] in ("distilrank/ops", "distilrank/train"), name
        assert container["image"].split(":")[1] not in ("", "latest")


def test_effects_are_never_cached_and_the_promotion_is_conditional(compiled: tuple[dict, dict, str]) -> None:
    spec = compiled[0]
    tasks = spec["root"]["dag"]["tasks"]
    never = {name for name, task in tasks.items() if not task.get("cachingOptions", {}).get("enableCache")}
    assert never >= {"check-inputs", "decide", "push-drift-snapshot", "render-report"}
    (conditional,) = [task for task in tasks.values() if "triggerPolicy" in task]
    assert "true" in conditional["triggerPolicy"]["condition"]
    inner = spec["components"][conditional["componentRef"]["name"]]["dag"]["tasks"]
    assert list(inner) == ["promote-student"] and not inner["promote-student"].get("cachingOptions", {}).get(
        "enableCache"
    )
    assert "render-report" in conditional["dependentTasks"], "the report comes before the promotion"


def _renewed(spec: dict, component: dict) -> tuple[set[str], set[str]]:
    """The cached tasks of a graph, those in its loops and conditions too, and which of them a new period renews.

    As Kubeflow's key of a task is made (kubeflow/pipelines 2.17.0, backend/src/v2/cacheutils/cache.go): of the values
    of its parameters, and of its input artifacts' ids in the metadata store, which are new where the task that
    made them ran. A parameter from such a task may have its old value.
    """
    cached, renewed, fresh = set(), set(), set()  # fresh: whose artifacts are new in a new period

    def visit(tasks: dict, outside: set[str]) -> None:
        """`outside`: the graph's input artifacts that are new."""
        waiting = dict(tasks)
        while waiting:
            name = next(name for name in waiting if not set(waiting[name].get("dependentTasks", ())) & waiting.keys())
            task = waiting.pop(name)
            inputs = task.get("inputs", {})
            new = {
                key
                for key, artifact in inputs.get("artifacts", {}).items()
                if artifact.get("componentInputArtifact") in outside
                or artifact.get("taskOutputArtifact", {}).get("producerTask") in fresh
            }
            inner = spec["components"][task["componentRef"]["name"]].get("dag")
            if inner:
                visit(inner["tasks"], new)
                fresh.update({name} if inner["tasks"].keys() & fresh else ())
                continue
            period = inputs.get("parameters", {}).get("cache_since", {}).get("taskOutputParameter", {})
            if task.get("cachingOptions", {}).get("enableCache"):
                cached.add(name)
                if new or period.get("outputParameterKey") == "cache_since":
                    renewed.add(name)
                    fresh.add(name)
            else:
                fresh.add(name)

    visit(component["dag"]["tasks"], set())
    return cached, renewed


def test_a_new_cache_period_reaches_every_cached_stage(compiled: tuple[dict, dict, str]) -> None:
    distill, monitor, _ = compiled
    (nested,) = (value for name, value in monitor["components"].items() if "train-teacher" in tasks_of(value))
    stages = {"prepare-data", "train-teacher", "label-shard", "distil-student", "evaluate-student", "measure-drift"}
    for spec, graph in ((distill, distill["root"]), (monitor, nested)):
        cached, renewed = _renewed(spec, graph)
        assert renewed == stages and cached - renewed == {"rehearse-models"}, "nothing reads what a rehearsal writes"
    cached, renewed = _renewed(monitor, monitor["root"])
    assert renewed == {"sample-newest", "score-newest"} | stages and cached - renewed == {"rehearse-models"}
    distill = copy.deepcopy(distill)
    del tasks_of(distill["root"])["prepare-data"]["inputs"]["parameters"]["cache_since"]
    assert not _renewed(distill, distill["root"])[1], "the teacher's own key has nothing of the period"


def test_each_stage_gets_only_its_own_sections(compiled: tuple[dict, dict, str]) -> None:
    tasks = compiled[0]["root"]["dag"]["tasks"]
    sections = {
        name: {
            value["componentInputParameter"]
            for value in task["inputs"].get("parameters", {}).values()
            if "componentInputParameter" in value
        }
        for name, task in tasks.items()
        if "inputs" in task
    }
    assert sections["prepare-data"] == {"prepare", "data"}
    assert sections["train-teacher"] == {"teacher", "compute"}
    assert sections["distil-student"] == {"student", "compute"}
    assert sections["decide"] == {"gate", "registry"}


def test_monitoring_runs_distill_only_if_configured_so(compiled: tuple[dict, dict, str]) -> None:
    tasks = compiled[1]["root"]["dag"]["tasks"]
    never = {name for name, task in tasks.items() if not task.get("cachingOptions", {}).get("enableCache")}
    assert never >= {"check-champion", "watch-champion"} and "sample-newest" not in never
    (conditional,) = [task for task in tasks.values() if "triggerPolicy" in task]
    inner = compiled[1]["components"][conditional["componentRef"]["name"]]["dag"]["tasks"]
    assert list(inner) == ["distill"] and "watch-champion" in conditional["dependentTasks"]
    run = compiled[1]["components"][inner["distill"]["componentRef"]["name"]]["dag"]["tasks"]
    assert set(run) == set(compiled[0]["root"]["dag"]["tasks"])
