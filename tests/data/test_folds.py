"""Fresh test sets from the same judgements: draws of the split."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from distilrank.config import DemoShop, Prepare, parse
from distilrank.core import artifacts, normalize, schemas
from distilrank.core.errors import InputError, RunStopped
from distilrank.data import prepare, splits
from distilrank.data.window import LogWindow
from distilrank.preflight.promotion import check_split

POSITION = np.array([splits.hash_position(f"{number:016x}", "salt") for number in range(20_000)])


@pytest.mark.parametrize(("dev_share", "test_share", "draws"), [(0.15, 0.25, 3), (0.1, 0.3, 3), (0.16, 0.28, 3)])
def test_draws_share_no_query_and_leave_dev_alone(dev_share: float, test_share: float, draws: int) -> None:
    shares = {"dev_share": dev_share, "test_share": test_share}
    sides = [splits.sides(POSITION, Prepare(**shares, test_fold=draw)) for draw in range(draws)]
    for side in sides:
        assert np.bincount(side) / len(side) == pytest.approx(
            [1 - dev_share - test_share, dev_share, test_share], abs=0.01
        )
        assert ((side == splits.DEV) == (sides[0] == splits.DEV)).all()
    for first, other in itertools.combinations(sides, 2):
        assert not ((first == splits.TEST) & (other == splits.TEST)).any()
    with pytest.raises(InputError, match=rf"prepare: test_fold is {draws}, expected 0 to {draws - 1}: test_share"):
        parse({"data": {"source": "demo_shop"}, "prepare": {**shares, "test_fold": draws}}, "run.yaml")


def test_the_message_states_how_many_fit() -> None:
    with pytest.raises(InputError) as error:
        parse({"data": {"source": "demo_shop"}, "prepare": {"test_fold": 7}}, "run.yaml")
    assert str(error.value) == (
        "run.yaml: prepare: test_fold is 7, expected 0 to 2: test_share (0.25) fits 3 times beside dev_share (0.15)"
    )


def test_a_leak_is_judged_by_the_draw_in_use() -> None:
    texts = [f"query {number}" for number in range(200)]
    positions = np.array([splits.hash_position(normalize.query_id(text), "distilrank") for text in texts])
    later = Prepare(test_fold=1)
    side = splits.sides(positions, later)
    queries = {name: [texts[row] for row in np.flatnonzero(side == code)] for code, name in enumerate(schemas.SIDES)}
    splits.check_leaks({**queries, "candidates": queries["train"]}, later)
    with pytest.raises(RunStopped, match="of the train side is among the test queries"):
        splits.check_leaks({"test": queries["test"]}, Prepare())


def test_a_run_trains_on_what_it_tested_before_and_tests_what_it_trained_on(tmp_path: Path) -> None:
    shop = DemoShop(source="demo_shop", products=100, queries=60, judged_queries=50, searches=200)
    queries: dict[int, dict[str, set[str]]] = {}
    for draw in (0, 1):
        folder = tmp_path / str(draw)
        prepare.prepare(
            Prepare(test_fold=draw, shards=1),
            shop,
            LogWindow(data_digest="d"),
            **{name: folder / name for name in ("judgements", "candidates", "traffic", "profile")},
        )
        queries[draw] = {
            side: set(schemas.read(folder / "judgements" / f"{side}.parquet", schemas.JUDGED)["query_id"].to_pylist())
            for side in schemas.SIDES
        }
        queries[draw]["candidates"] = set(
            schemas.read(folder / "candidates" / "shard-00000.parquet", schemas.CANDIDATES)["query_id"].to_pylist()
        )
        assert artifacts.read_json(folder / "judgements" / "protocol.json")["split"]["draw"] == draw
    assert queries[0]["dev"] == queries[1]["dev"]
    assert queries[0]["test"] <= queries[1]["train"] and queries[1]["test"] <= queries[0]["train"]
    for draw in (0, 1):
        assert queries[draw]["test"].isdisjoint(queries[draw]["candidates"] | queries[draw]["train"])


def champion(folder: Path, **split: object) -> Path:
    before = {"salt": "distilrank", "plurals": "apart", "dev_share": 0.15, "test_share": 0.25, "draw": 0, **split}
    artifacts.write_json(folder / "metrics.json", {"protocol": {"split": before}})
    return folder


@pytest.mark.parametrize(("before", "now"), [(0, 1), (1, 0), (1, 2)])
def test_another_draw_is_allowed_and_reported(
    tmp_path: Path, before: int, now: int, capsys: pytest.CaptureFixture[str]
) -> None:
    check_split(Prepare(test_fold=now), "champion v1", champion(tmp_path, draw=before), stage="preflight")
    assert f"test fold {now}, the champion v1 was trained with {before}" in capsys.readouterr().out
    check_split(Prepare(test_fold=now), "champion v1", champion(tmp_path, draw=now), stage="preflight")
    assert "test fold" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "before", "message"),
    [
        ({"salt": "x"}, {"draw": 1}, "prepare.salt is 'x', but the champion v1 was trained with 'distilrank'"),
        ({"plurals": "together"}, {}, "prepare.plurals is 'together', but"),
        ({"language": "tr"}, {}, "prepare.language is 'tr', but the champion v1 was trained with I folded to i:"),
        ({"language": "de"}, {"dotless_i": True}, "prepare.language is 'de', but .* the dotless i of Turkish"),
        ({"test_share": 0.3}, {}, "it learned from some of the test queries"),
        ({"test_share": 0.2, "test_fold": 1}, {}, "with test_fold 1 after 0 the sets would overlap"),
        ({"test_share": 0.2}, {"draw": 1}, "with test_fold 0 after 1 the sets would overlap"),
    ],
)
def test_a_draw_excuses_no_other_change(tmp_path: Path, settings: dict, before: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_split(Prepare(**settings), "champion v1", champion(tmp_path, **before), stage="preflight")
