"""The configuration refuses what it does not understand, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.check_champion import check_champion
from distilrank.config import CPU_OVERRIDES, RENAMED, Config, load, parameters, parse, read_policy, reference
from distilrank.config.loading import ONE_LESS
from distilrank.core.errors import InputError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("fast", [True, False])
def test_shipped_configurations_are_valid_and_survive_the_pipeline(path: Path, fast: bool) -> None:
    config = load(path, fast_bf16=fast)

    def floats(value):  # what KFP makes of numbers in a dict parameter
        if isinstance(value, dict):
            return {key: floats(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [floats(inner) for inner in value]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    values = {name: value for name, value in parameters(config).items() if name != "cluster"}  # for compiling only
    assert None not in _leaves(values), "KFP takes no null in a dict parameter"
    assert Config(**floats(values), cluster=config.cluster) == config


def _leaves(value):
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in _leaves(inner)]
    return [leaf for inner in value for leaf in _leaves(inner)] if isinstance(value, list) else [value]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {source: demo_shop}\nstudnet: {}\n", r"run.yaml: unknown key 'studnet'; did you mean 'student'\?"),
        (
            "data: {source: demo_shop}\nteacher: {optimizer: {epoch: 3}}\n",
            r"unknown key 'teacher.optimizer.epoch'; did you mean 'epochs'\?",
        ),
        ("data: {source: demo_shop, produts: 3}\n", r"unknown key 'data.produts'; did you mean 'products'\?"),
        (
            "data: {source: demo_shop}\nstudent: {optimizer: {batch_tokens: -5}}\n",
            r"student.optimizer.batch_tokens: Input should be greater than or equal to 1 \(got -5\)",
        ),
        ("data: {source: demo_shop}\nteacher: {text: {template: 'x {query}'}}\n", r"teacher.text: .*lacks \{product\}"),
        ("data: {source: demo_shop}\nprepare: {dev_share: 0.6, test_share: 0.5}\n", r"dev_share \+ test_share is 1.1"),
        ("data: {source: nowhere}\n", r"'nowhere'.*'demo_shop', 'home_depot', .*'tables'"),
        ("name: x\n", r"run.yaml: data: Field required"),
        ("- a\n", r"run.yaml: expected a mapping of sections, got list"),
        ("data: {source: demo_shop\n", r"run.yaml: not readable as YAML"),
        (
            "data: {source: demo_shop}\ncpu_overrides: {label: {rows: 1}}\n",
            r"with cpu_overrides: unknown key 'label.rows'",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load(written(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("old_key", RENAMED)
def test_a_renamed_key_is_refused_with_its_new_name(tmp_path: Path, old_key: str) -> None:
    values: Any = 1
    for part in reversed(old_key.split(".")):
        values = {part: values}
    path = written(tmp_path, json.dumps(values))
    hint = f"it is '{RENAMED[old_key]}' now" + (", and its value is one less" if old_key in ONE_LESS else "")
    message = f"{path}: unknown key '{old_key}'; {hint}"
    with pytest.raises(InputError) as error:
        load(path)
    assert str(error.value) == message
    section, _, key = old_key.partition(".")
    if section == "gate":  # a policy file has the same keys
        path.write_text(json.dumps({key: 1}))
        with pytest.raises(InputError) as error:
            read_policy(path)
        assert str(error.value) == f"{path}: unknown key '{key}'; {hint}"


def test_the_new_name_of_a_key_is_a_key() -> None:
    settings = {setting.key for group in reference.groups() for setting in group.settings}
    keys = settings | {group.path for group in reference.groups()} | {CPU_OVERRIDES}
    assert set(RENAMED.values()) <= keys
    assert not keys & set(RENAMED)


def test_the_command_line_comes_before_the_file_and_the_file_before_the_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, "data: {source: demo_shop}\nstudent: {optimizer: {epochs: 7}}\n")
    assert load(path).student.optimizer.epochs == 7
    config = load(path, ["student.optimizer.epochs=9", "gate.max_ece=1"])
    assert (config.student.optimizer.epochs, config.gate.max_ece) == (9, 1.0)
    assert (
        config.student.optimizer.learning_rate == Config(data={"source": "demo_shop"}).student.optimizer.learning_rate
    )
    for override, message in (
        ("epochs", "expected section.key=value"),
        ("student.epochs=1", "unknown key 'student.epochs'"),
    ):
        with pytest.raises(InputError, match=message):
            load(path, [override])


def test_slower_machines_get_the_smaller_counts(tmp_path: Path) -> None:
    path = written(tmp_path, "data: {source: demo_shop}\ncpu_overrides: {data: {searches: 11}}\n")
    assert load(path, fast_bf16=False).data.searches == 11
    assert load(path, fast_bf16=True).data.searches != 11


def test_sections_are_immutable() -> None:
    config = parse({"data": {"source": "demo_shop"}}, "here")
    with pytest.raises(ValueError, match="frozen"):
        config.student.pointwise = 3


@pytest.mark.parametrize(
    ("text", "switch", "message"),
    [
        (
            "drift: {embedding_rows: 0}",
            "gate.max_embedding_auc=1",
            r"drift\.embedding_rows is 0, but gate\.max_embedding_auc is 0\.8: no student could pass",
        ),
        (
            "evaluate: {bootstrap: 500}",
            "gate.min_resamples=500",
            r"evaluate\.bootstrap is 500, expected at least gate\.min_resamples \(1000\)",
        ),
        (
            "evaluate: {slice_queries: 60}",
            "gate.slices=false",
            r"evaluate\.slice_queries is 60, expected at most gate\.max_slice_queries \(50\)",
        ),
        ("evaluate: {slices: []}", "gate.slices=false", r"evaluate\.slices is empty, but gate\.slices asks for some"),
    ],
)
def test_a_gate_that_waits_for_what_nobody_measures_is_refused(
    tmp_path: Path, text: str, switch: str, message: str
) -> None:
    path = written(tmp_path, f"data: {{source: demo_shop}}\n{text}\n")
    with pytest.raises(InputError, match=rf"run\.yaml: {message}"):
        load(path)
    complete = parameters(load(path, [switch]))
    assert parameters(parse(complete, "pipeline parameters")) == complete
    with pytest.raises(InputError, match=f"pipeline parameters: {message}"):
        parse({name: section for name, section in complete.items() if name != "gate"}, "pipeline parameters")


@pytest.mark.parametrize("level", [0.8, 0.995])
def test_a_level_that_the_gate_does_not_decide_by_is_refused(level: float) -> None:
    values = {"data": {"source": "demo_shop"}, "evaluate": {"confidence": level}}
    message = rf"evaluate\.confidence is {level:g}, expected 0\.9 \(gate\.min_confidence\) to 0\.99, or the gate could"
    with pytest.raises(InputError, match=message):
        parse(values, "here")
    with pytest.raises(InputError, match=r"evaluate\.confidence is 0\.95, expected 0\.96 \(gate\.min_confidence\)"):
        parse(values | {"evaluate": {}, "gate": {"min_confidence": 0.96}}, "here")
    parse(values | {"evaluate": {"confidence": 0.9}}, "here")


def test_a_required_slice_is_one_that_is_evaluated() -> None:
    values = {"data": {"source": "demo_shop"}, "gate": {"required_slices": ["stratum=tail", "locale=de"]}}
    message = (
        r"required_slices names 'locale=de', but evaluate\.slices has only stratum, query_words, product_type; add"
    )
    with pytest.raises(InputError, match=message):
        parse(values, "here")
    parse(values | {"evaluate": {"slices": ["locale", "stratum"]}}, "here")


def test_a_task_without_the_gate_section_does_not_check_other_sections_against_it(tmp_path: Path) -> None:
    sections = {"window": {}, "preflight": {}, "prepare": {}, "monitor": {}, "drift": {"embedding_rows": 0}}
    with pytest.raises(InputError, match="champion"):  # that there is none yet shows after the configuration
        check_champion.python_func(
            name="watch",
            schedule_time="",
            secrets={},
            data={"source": "demo_shop"},
            registry={"uri": str(tmp_path / "registry")},
            resolved=SimpleNamespace(path=str(tmp_path / "out")),
            **sections,
        )


def test_the_documentation_of_the_settings_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference.markdown(), (
        "distilrank config --markdown > docs/configuration.md"
    )
