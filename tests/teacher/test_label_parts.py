"""Labeling part by part: exactly once whatever is killed, from known inputs only, and at a known cost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.machine import measure
from distilrank.config import Compute
from distilrank.core import schemas
from distilrank.core.errors import InputError, RunStopped
from distilrank.teacher import label_parts
from tests import label_victims as victims

ROOT = Path(__file__).parents[2]
COMPUTE = Compute(device="cpu", precision="fp32", threads=1)
SHARDS = ("shard-00000", "shard-00001")
ROWS = 75
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard.parquet"
    schemas.write(victims.candidates(victims.ROWS), path, schemas.CANDIDATES)
    return path


# Kills ------------------------------------------------------------------------------------------------------------


def test_a_kill_before_any_change_on_the_disk_costs_at_most_what_was_not_saved(tmp_path: Path) -> None:
    result = measure(victims.kill_before_each_change, str(tmp_path), scratch=tmp_path).result
    assert result["faults"] == []
    assert result["changes"] > 3 * result["windows"], "each part is opened, renamed and tidied up after"


def test_kills_at_random_moments_lose_and_double_no_row(tmp_path: Path) -> None:
    result = measure(victims.kill_at_random, str(tmp_path), 25, 3, scratch=tmp_path).result
    assert result["kills"] >= 25 and result["rows"] == victims.ROWS
    assert (result["lost"], result["doubled"], result["different"]) == (0, 0, 0)


def test_two_attempts_at_once_give_the_same_labels(tmp_path: Path) -> None:
    result = measure(victims.label_twice_at_once, str(tmp_path), scratch=tmp_path).result
    assert result["ended"] == [0, 0] and result["same"] == [True, True]
    scored = result["scored"]  # by whom depends on who is ahead: each takes over what the other has saved
    assert set(scored["fast"]) | set(scored["slow"]) == set(range(victims.WINDOWS))
    assert all(len(set(windows)) == len(windows) for windows in scored.values())


def test_parts_that_another_attempt_removes_are_not_missed(tmp_path: Path, shard: Path) -> None:
    unbroken = victims.label(tmp_path / "unbroken")

    def tidied(rows: pa.Table, counter) -> label_parts.Scored:
        shutil.rmtree(tmp_path / "parts", ignore_errors=True)
        return victims.score(rows, counter)

    labeled = victims.label(tmp_path / "labels", parts=tmp_path / "parts", scorer=tidied)
    assert victims.digest(tmp_path / "labels") == victims.digest(tmp_path / "unbroken")
    assert (labeled.work.pairs, labeled.resumed) == (unbroken.work.pairs, 0)


def test_a_full_disk_is_named_and_finished_parts_stay(tmp_path: Path) -> None:
    script = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -m tests.label_victims {tmp_path}"
    probe = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True
    )
    if probe.returncode:
        pytest.skip(f"no file system of our own can be mounted here: {probe.stderr.decode().strip()}")
    ended = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    outcome = json.loads(ended.stdout.splitlines()[-1])
    assert outcome["message"].startswith(f"{tmp_path}/labels/parts/part-0") and "No space left" in outcome["message"]
    assert 0 < len(outcome["finished"]) < victims.WINDOWS and outcome["left"] == []
    assert outcome["rows"]
    repeated = len(outcome["scored"]) - victims.WINDOWS
    assert outcome["finished"] == outcome["scored"][: len(outcome["finished"])] and 1 <= repeated <= 2


def test_a_file_that_cannot_grow_is_named(tmp_path: Path) -> None:
    message = measure(victims.refuse_large_files, str(tmp_path), scratch=tmp_path).result
    assert message == f"{tmp_path}/labels/parts/part-00000.parquet: cannot be written (File too large)"


# Windows and parts ------------------------------------------------------------------------------------------------


@SLOW
@given(rows=st.integers(1, 200), group=st.integers(1, 70), size=st.integers(1, 80))
def test_windows_hold_exactly_so_many_rows_wherever_row_groups_end(
    rows: int, group: int, size: int, tmp_path: Path
) -> None:
    table = victims.candidates(rows)
    pq.write_table(table, tmp_path / "shard.parquet", row_group_size=group)
    chunks = list(label_parts.windows(tmp_path / "shard.parquet", ["product_id", "title"], size))
    assert [chunk.num_rows for chunk in chunks] == [size] * (rows // size) + [rows % size] * (rows % size > 0)
    assert pa.concat_tables(chunks).equals(table.select(["product_id", "title"]))


def _parts(tmp_path: Path, inputs: dict | None = None) -> tuple[label_parts.LabelCheckpoints, pa.Table, np.ndarray]:
    rows = victims.candidates(10)
    parts = label_parts.LabelCheckpoints(tmp_path / "parts", inputs or victims.INPUTS)
    logits = np.linspace(-1, 1, 10, dtype=np.float32)
    parts.keep(3, rows, logits, label_parts.Work(10, 70, 2, 0.25))
    return parts, rows, logits


def test_a_part_is_used_for_its_own_rows_only(tmp_path: Path) -> None:
    parts, rows, logits = _parts(tmp_path)
    taken = parts.take(3, rows)
    assert taken is not None
    np.testing.assert_array_equal(taken[0], logits)
    assert taken[1] == label_parts.Work(10, 70, 2, 0.25)
    assert parts.take(4, rows) is None
    assert parts.take(3, rows.slice(0, 9)) is None
    assert parts.take(3, rows.take(np.arange(10)[::-1])) is None
    assert parts.take(3, victims.candidates(10, seed=1)) is None


@SLOW
@given(data=st.data())
def test_a_damaged_part_is_never_used(data: st.DataObject, tmp_path: Path) -> None:
    parts, rows, logits = _parts(tmp_path)
    path = tmp_path / "parts" / "part-00003.parquet"
    whole = path.read_bytes()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for position in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=3)) if damaged else ():
        damaged[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    taken = parts.take(3, rows)
    if taken:  # not every byte of a Parquet file matters
        np.testing.assert_array_equal(taken[0], logits)
        assert taken[1] == label_parts.Work(10, 70, 2, 0.25)
    else:
        parts.keep(3, rows, logits, label_parts.Work(10, 70, 2, 0.25))
        assert path.read_bytes() == whole


@pytest.mark.parametrize("what", ["logit", "query_id", "account", "digest"])
def test_a_part_changed_by_hand_is_not_used(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, rows, _ = _parts(tmp_path)
    path = tmp_path / "parts" / "part-00003.parquet"
    table = pq.read_table(path)
    account = json.loads(table.schema.metadata[label_parts.METADATA])
    if what == "logit":
        table = table.set_column(2, schemas.LABELS.field("logit"), pa.array(np.zeros(10, np.float32)))
    elif what == "query_id":
        rows = rows.set_column(0, "query_id", pa.array(["other"] * 10))
        table = table.set_column(0, schemas.LABELS.field("query_id"), rows["query_id"])
    elif what == "account":
        account["work"]["seconds"] = 0.0
    else:
        del account["digest"]
    pq.write_table(table.replace_schema_metadata({label_parts.METADATA: json.dumps(account)}), path)
    assert parts.take(3, rows) is None
    assert f"{path} is damaged or has other rows: scoring its rows again" in capsys.readouterr().out
    assert parts.take(4, rows) is None and not capsys.readouterr().out, "what is not there yet is no damage"


def test_parts_of_other_inputs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, rows, _ = _parts(tmp_path)
    folder = tmp_path / "parts"
    with pytest.raises(InputError, match=rf"{folder}/inputs.json: .*other inputs \(teacher tttttttttttt, expected uuu"):
        label_parts.LabelCheckpoints(folder, victims.INPUTS | {"teacher": "u" * 64})
    with pytest.raises(InputError, match=r"other inputs \(part_rows 8, expected None\)"):
        label_parts.LabelCheckpoints(
            folder, {name: value for name, value in victims.INPUTS.items() if name != "part_rows"}
        )
    other = label_parts.LabelCheckpoints(tmp_path / "other", victims.INPUTS | {"teacher": "u" * 64})
    shutil.copy(folder / "part-00003.parquet", tmp_path / "other")
    with pytest.raises(InputError, match=rf"{tmp_path}/other/part-00003.parquet: made from other inputs"):
        other.take(3, rows)
    capsys.readouterr()
    (folder / "inputs.json").write_text("{")  # each part says for itself what it was made from
    assert label_parts.LabelCheckpoints(folder, victims.INPUTS).take(3, rows) is not None
    assert f"{folder}/inputs.json: not JSON" in capsys.readouterr().out
    assert json.loads((folder / "inputs.json").read_text()) == victims.INPUTS


# What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.append_column("colour", table["color"]), r"unknown column 'colour', expected query_id, "),
        (lambda table: table.drop_columns(["clicks", "title"]), r"missing column 'title', 'clicks', expected query_id"),
        (lambda table: table.slice(0, 0), "no rows, expected at least one candidate"),
        (
            lambda table: table.set_column(1, "query", pa.array(["x"] * 19 + [None] * 71)),
            "8 rows after the first 16: column 'query' is empty in row 4",
        ),
        (lambda table: table.set_column(3, "title", pa.array([[]] * 90)), "column 'title' is list"),
    ],
)
def test_a_shard_that_does_not_fit_is_named(change, message: str, tmp_path: Path) -> None:
    pq.write_table(change(victims.candidates(victims.ROWS)), tmp_path / "shard.parquet")
    with pytest.raises(InputError, match=rf"^{tmp_path}/shard.parquet.*{message}"):
        victims.label(tmp_path / "labels")
    assert not (tmp_path / "labels" / "labels.parquet").exists()


@pytest.mark.parametrize("length", [0, 50, -3000])
def test_a_damaged_shard_is_named(length: int, tmp_path: Path, shard: Path) -> None:
    whole = shard.read_bytes()
    shard.write_bytes(
        whole[:length] if length >= 0 else whole[:500] + bytes(length + len(whole) - 500) + whole[length:]
    )
    with pytest.raises(InputError, match=rf"^{shard}: corrupt or not Parquet"):
        victims.label(tmp_path / "labels")


def _changed(change):
    def score(rows: pa.Table, counter) -> label_parts.Scored:
        scored = victims.score(rows, counter)
        start = int(rows["product_id"][0].as_py()[1:])
        return replace(scored, logits=change(scored.logits.copy(), np.arange(start, start + rows.num_rows)))

    return score


def test_logits_that_are_not_finite_stop_the_run_and_are_named(tmp_path: Path, shard: Path) -> None:
    def broken(logits: np.ndarray, row: np.ndarray) -> np.ndarray:
        logits[row >= 19] = np.nan
        logits[(row >= 19) & (row % 2 == 1)] = np.inf
        return logits

    with pytest.raises(
        RunStopped,
        match=r"^shard: 5 of 8 logits are not finite: query 'red \w+' with product p00019 \(inf\), query 'red \w+' "
        r"with product p00020 \(nan\), query 'red \w+' with product p00021 \(inf\); the teacher is broken",
    ):
        victims.label(tmp_path / "labels", scorer=_changed(broken))
    assert victims.finished_windows(tmp_path / "labels") == {0, 1}


@pytest.mark.parametrize(
    ("change", "windows", "message"),
    [
        (lambda logits, row: logits * 0 + 1, 3, r"standard deviation of 24 logits is 0, expected 0\.01 or more"),
        (
            lambda logits, row: np.where(row < 24, logits, 0.5) * 0.06,
            victims.WINDOWS,
            r"standard deviation of 90 logits is 0\.00\d+, expected 0\.01 or more \(label\.min_deviation",
        ),
        (
            lambda logits, row: np.where(row < 40, row, 40) % 30 if row[0] < 24 else row * 0 + 5,
            victims.WINDOWS,
            r"24 of the first 90 logits are distinct, expected 45 or more",
        ),
    ],
)
def test_a_collapsed_teacher_stops_the_run_as_soon_as_it_shows(
    change, windows: int, message: str, tmp_path: Path, shard: Path
) -> None:
    scorer = _changed(lambda logits, row: np.asarray(change(logits, row), np.float32))
    label_settings = {"min_distinct": 0.5} if "distinct" in message else {}
    with pytest.raises(RunStopped, match=f"^shard: .*{message}.*the teacher has collapsed"):
        victims.label(tmp_path / "labels", scorer=scorer, **label_settings)
    assert len(victims.scored_windows(tmp_path / "labels")) == windows
    assert not (tmp_path / "labels" / "labels.parquet").exists()
    victims.label(tmp_path / "labels", scorer=scorer, min_deviation=0, min_distinct=0)


def test_few_logits_do_not_show_whether_a_teacher_has_collapsed(tmp_path: Path) -> None:
    schemas.write(victims.candidates(19), tmp_path / "shard.parquet", schemas.CANDIDATES)
    victims.label(tmp_path / "labels", scorer=_changed(lambda logits, row: logits * 0))


# Cost -------------------------------------------------------------------------------------------------------------


def test_its_cost_is_logged_summed_over_attempts_and_priced(tmp_path: Path, shard: Path, capsys) -> None:
    def dying(rows: pa.Table, counter) -> label_parts.Scored:
        if rows["product_id"][0].as_py() >= "p00040":
            raise KeyboardInterrupt
        time.sleep(0.02)
        return victims.score(rows, counter)

    with pytest.raises(KeyboardInterrupt):
        victims.label(tmp_path / "labels", scorer=dying)
    labeled = victims.label(tmp_path / "labels")
    assert labeled.resumed == 40
    assert replace(labeled.work, seconds=0) == label_parts.Work(victims.ROWS, 3 * victims.ROWS, victims.WINDOWS, 0)
    assert labeled.work.seconds > 5 * 0.02
    bill = label_parts.Device("cpu", 2.0).cost_summary(replace(labeled.work, seconds=1800.0))
    assert bill == {
        "pairs": 90, "tokens": 270, "truncated": 12, "seconds": 1800.0, "rows_per_second": 0.1, "device": "cpu",
        "device_hours": 0.5, "price": 1.0,
    }  # fmt: skip
    assert label_parts.Device("cpu").cost_summary(labeled.work)["price"] is None
    assert "90/90 pairs" in (last := capsys.readouterr().out.splitlines()[-1])
    assert "pairs/s" in last and "0 s left" in last and "270 tokens, 0 s of cpu, price " in last
