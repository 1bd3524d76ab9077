from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from transformers import DistilBertConfig, DistilBertModel

from distilrank import config, preflight, registry
from distilrank.core import artifacts, hardware
from distilrank.core.errors import InputError
from distilrank.preflight.promotion import check_override

LOG = "query,product_id,when\n" + "".join(f"red sofa,p1,2026-03-{day:02d}T12:00:00Z\n" for day in range(1, 31))


@pytest.fixture
def setup(tmp_path: Path, models: Path):
    """Writes data and a model folder, and gives a function from overrides to a checked run."""
    files = {
        "judgements.csv": "query,product_id,rating\nred sofa,p1,2\n",
        "catalogue.csv": "product_id,title\np1,Red sofa\n",
        "log.csv": LOG,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    model = tmp_path / "model"
    shutil.copytree(models / "encoder", model)

    def run(
        schedule_time: str = "", secrets: dict[str, list[str]] | None = None, name: str = "weekly", **overrides
    ) -> preflight.Resolved:
        data = {
            "source": "tables",
            "judgements": str(tmp_path / "judgements.csv"),
            "catalogue": str(tmp_path / "catalogue.csv"),
            "logs": str(tmp_path / "log.csv"),
            "columns": {"timestamp": "when"},
            "rating_min": 0,
            "rating_max": 4,
            "relevant_from": 3,
            **overrides.pop("data", {}),
        }
        values = {
            "data": data,
            "teacher": {"model": str(model)},
            "student": {"model": str(model)},
            "registry": {"uri": str(tmp_path / "registry")},
            "preflight": {"free_disk_gib": 0},
            **overrides,
        }
        parsed = config.parse(values, "test")
        return preflight.check(
            parsed, name=name, schedule_time=schedule_time, secrets=secrets or {}, output=tmp_path / "out"
        )

    return run


@pytest.mark.parametrize(
    ("days", "day", "since"),
    [
        (0, "2026-03-05", ""),
        (1, "2026-03-05", "2026-03-05"),
        (14, "2026-03-01", "2026-03-01"),
        (14, "2026-03-14", "2026-03-01"),
        (14, "2026-03-15", "2026-03-15"),
    ],
)
def test_results_are_reused_within_periods_of_days(days: int, day: str, since: str) -> None:
    for time in ("00:00:00", "23:59:59"):
        now = datetime.fromisoformat(f"{day}T{time}+00:00")
        assert preflight.cache_since(config.Preflight(cache_days=days), now) == since


def test_the_period_is_that_of_the_clock_and_not_of_a_tick_that_was_missed(setup, tmp_path: Path) -> None:
    settings = {"free_disk_gib": 0, "cache_days": 7}
    before = datetime.now(UTC).date()
    resolved = setup(schedule_time="2026-03-20T00:00:00Z", window={"end": "schedule"}, preflight=settings)
    assert before - timedelta(days=6) <= date.fromisoformat(resolved.cache_since) <= datetime.now(UTC).date()
    assert artifacts.read_json(tmp_path / "out" / "preflight.json")["cache_since"] == resolved.cache_since
    assert setup().cache_since == "", "it is off unless it is asked for"


def test_latest_includes_the_newest_day(setup, tmp_path: Path) -> None:
    resolved = setup(window={"days": 14, "newest_days": 7})
    assert resolved.newest_end == "2026-03-31T00:00:00+00:00"
    assert resolved.newest_start == "2026-03-24T00:00:00+00:00"
    assert resolved.reference_start == "2026-03-10T00:00:00+00:00"
    assert resolved.champion == ""
    result = json.loads((tmp_path / "out" / "preflight.json").read_text())
    assert {name: result[name] for name in resolved._fields} == resolved._asdict()
    assert [Path(file).name for file in result["files"]] == ["judgements.csv", "catalogue.csv"]
    assert [Path(file).name for file in result["log"]] == ["log.csv"]
    assert result["name"] == "weekly"
    stage = json.loads((tmp_path / "out" / "stage.json").read_text())
    assert stage["stage"] == "preflight" and stage["facts"] == resolved._asdict()


def test_window_ends_at_the_schedule_time_or_a_configured_one(setup) -> None:
    window = {"days": 10, "newest_days": 5}
    scheduled = setup("2026-03-25T02:00:00+02:00", window={**window, "end": "schedule"})
    chosen = setup(window={**window, "end": "2026-03-25"})
    assert scheduled == chosen
    assert chosen[4:7] == ("2026-03-10T00:00:00+00:00", "2026-03-20T00:00:00+00:00", "2026-03-25T00:00:00+00:00")


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ({"end": "schedule"}, "no impressions in the training window"),  # empty: now, long after the log's end
        ({"end": "tomorrow"}, "window.end is 'tomorrow', expected an ISO 8601 time"),
        ({"end": "2026-05-01"}, r"no impressions in the newest traffic \(2026-04-24.* the log runs from 2026-03-01 to"),
        ({"end": "2026-03-05", "newest_days": 5}, "no impressions in the training window"),
    ],
)
def test_a_window_without_rows_or_sense_is_an_error(setup, window: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        setup(window=window)


UNNAMED = [
    ("", "", "name: is '', expected the name of the run"),
    (" \n", "", r"name: is ' \\n', expected the name of the run"),
    ("{{$.pipeline_job_resource_name}}", "", r"name: is '\{\{\$.pipeline_job_resource_name\}\}', a placeholder that"),
    (
        "weekly",
        "{{$.pipeline_job_schedule_time_utc}}",
        "schedule_time: is .*, a placeholder .* Pipelines 2.17.0",
    ),
    ("weekly", "monday", "schedule_time is 'monday', expected an ISO 8601 time"),
]


@pytest.mark.parametrize(("name", "schedule_time", "message"), UNNAMED)
def test_a_run_without_name_or_time_ends_before_anything_else(
    setup, tmp_path: Path, name: str, schedule_time: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        setup(schedule_time, name=name, data={"logs": "nowhere.csv"})  # named first, though more is wrong
    assert len(str(error.value).splitlines()) == 1
    monitored = config.parse({"data": {"source": "demo_shop"}, "registry": {"uri": "nowhere"}}, "test")
    with pytest.raises(InputError, match=message):
        preflight.check_monitor(monitored, name=name, schedule_time=schedule_time, secrets={}, output=tmp_path / "m")


@pytest.mark.parametrize("data", [{"logs": ""}, {"columns": {}}])
def test_a_log_without_time_has_no_window(setup, data: dict, capsys: pytest.CaptureFixture) -> None:
    resolved = setup(data=data, window={"end": "2026-03-25"})
    assert resolved[4:7] == ("", "", "")
    assert "window.end 2026-03-25 has no effect" in capsys.readouterr().out


def test_digest_depends_on_the_data_and_not_on_the_gate(setup, tmp_path: Path) -> None:
    first = setup()
    assert setup(gate={"min_queries": 5}) == first
    (tmp_path / "catalogue.csv").write_text("product_id,title\np1,Red sofas\n")
    changed = setup()
    assert changed.data_digest != first.data_digest
    assert changed.code_digest == first.code_digest == artifacts.code_digest()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data": {"logs": "nowhere.csv"}}, r"nowhere\.csv: no such file"),
        ({"data": {"columns": {"timestamp": "when", "brand": "maker"}}}, r"catalogue\.csv: missing column 'maker'"),
        ({"student": {"model": "nowhere"}}, "model 'nowhere': no such folder"),
        ({"preflight": {"free_disk_gib": 1e9}}, r"GiB free, expected at least 1e\+09 \(preflight.free_disk_gib\)"),
        ({"registry": {"uri": "ftp://host/x"}}, "registry 'ftp://host/x': no backend"),
    ],
)
def test_fails_early_by_name(setup, tmp_path: Path, overrides: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        setup(**overrides)
    assert not (tmp_path / "out" / "preflight.json").exists()


@pytest.mark.skipif(hardware.has_gpu(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error_except_in_a_cluster(setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InputError, match=r"compute\.device: is 'cuda', but this machine has no NVIDIA GPU"):
        setup(compute={"device": "cuda"})
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert setup(compute={"device": "cuda"}).data_digest


def test_a_registry_that_lost_its_champion_is_not_taken_for_a_new_one(setup, tmp_path: Path) -> None:
    made = tmp_path / "version"
    artifacts.write_text(made / "student" / "model.safetensors", "weights")
    version = registry.version_id(artifacts.seal(made / "student"))
    artifacts.write_json(made / "manifest.json", {"id": version})
    registry.open(str(tmp_path / "registry")).publish(made, version)
    with pytest.raises(InputError, match=rf"has versions \({version}\) but no champion: its aliases and history were"):
        setup()


def test_the_champion_is_read_from_the_registry_and_checked(setup, tmp_path: Path) -> None:
    backend = registry.open(str(tmp_path / "registry"))
    content = tmp_path / "content"
    artifacts.write_text(content / "student" / "model.safetensors", "weights")
    version = registry.version_id(artifacts.seal(content / "student"))
    artifacts.write_json(content / "manifest.json", {"id": version, "created": "2026-03-01T00:00:00Z"})
    split = {"salt": "distilrank", "dev_share": 0.15, "test_share": 0.25}
    artifacts.write_json(content / "metrics.json", {"protocol": {"split": split}})
    backend.publish(content, version)
    backend.move(registry.CHAMPION, version, expected="")
    assert setup().champion == version
    for changed, message in (
        ({"salt": "x"}, "prepare.salt is 'x', but"),
        ({"test_share": 0.3}, "was trained with 0.25"),
    ):
        with pytest.raises(InputError, match=message):
            setup(prepare=changed)
    weights = tmp_path / "registry" / "versions" / version / "student" / "model.safetensors"
    weights.chmod(0o644)
    weights.write_text("Weights")
    with pytest.raises(InputError, match=r"model\.safetensors: digest \w+ differs"):
        setup()


def test_a_damaged_registry_is_detected_by_preflight(setup, tmp_path: Path) -> None:
    (tmp_path / "registry" / "aliases").mkdir(parents=True)
    (tmp_path / "registry" / "aliases" / "champion.json").write_text("{")
    with pytest.raises(InputError, match=r"champion\.json"):
        setup()


def test_models_are_checked_without_loading(setup, tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json beside the weights"):
        setup()


def test_a_student_that_drift_cannot_embed_with_is_named(setup, tmp_path: Path) -> None:
    shape = DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=4, vocab_size=126)
    DistilBertModel(shape).save_pretrained(tmp_path / "model")
    with pytest.raises(
        InputError, match=r"drift\.encoder: the student, '.*model', is of type 'distilbert', expected bert"
    ):
        setup()
    setup(drift={"encoder": str(tmp_path / "model")})
    setup(drift={"embedding_rows": 0}, gate={"max_embedding_auc": 1})


def test_an_override_that_ends_far_ahead_is_named(setup) -> None:
    override, today = {"by": "Jo", "reason": "because we must ship"}, datetime.now(UTC).date()
    soon, late = (str(today + timedelta(days=days)) for days in (90, 100))
    with pytest.raises(InputError, match=rf"gate\.override\.until is {late}, expected \S+ at the latest, 90 days from"):
        setup(gate={"override": {**override, "until": late}})
    check_override(config.Override.model_validate({**override, "until": soon}), today)


def test_windows_before_the_calendar_and_a_workspace_that_cannot_be_written_are_named(setup, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="begin before year 1"):
        setup(window={"days": 10**7})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"drift\.workspace .*file/workspace: cannot be written"):
        setup(drift={"workspace": str(tmp_path / "file" / "workspace")})


def test_a_secret_that_is_missing_is_named(setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "trust"
    folder.mkdir()
    secrets = {"hub": ["HF_TOKEN_OF_TEST"], "trust": [str(folder)]}
    with pytest.raises(
        InputError, match=r"cluster\.secrets: hub: the environment variable HF_TOKEN_OF_TEST is not set"
    ):
        setup(secrets=secrets)
    monkeypatch.setenv("HF_TOKEN_OF_TEST", "x")
    (folder / "..data").touch()  # what Kubernetes keeps there beside the keys
    with pytest.raises(InputError, match=rf"cluster\.secrets: trust: {folder} has no file, expected the Secret in the"):
        setup(secrets=secrets)
    (folder / "ca.crt").touch()
    assert setup(secrets=secrets).data_digest
