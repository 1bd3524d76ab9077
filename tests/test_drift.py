from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import wasserstein_distance

from distilrank import artifacts, drift, records, registry
from distilrank.config import Drift, Registry
from distilrank.errors import InputError

TYPES = ["drill", "saw", "hammer", "tap"]


def traffic(rows: int, seed: int, **changes: object) -> pa.Table:
    """Traffic of a small shop; `changes` replace whole columns."""
    rng = np.random.default_rng(seed)
    query = rng.integers(0, 60, rows)
    columns: dict[str, object] = {
        "query_id": [f"q{number}" for number in query],
        "query": [f"query {number}" for number in query],
        "product_id": [f"p{number}" for number in rng.integers(0, 500, rows)],
        "title": ["a title"] * rows,
        "product_type": rng.choice(TYPES, rows, p=[0.4, 0.3, 0.2, 0.1]).tolist(),
        "brand": [f"brand {rank}" for rank in rng.zipf(1.5, rows).clip(max=60)],
        "color": [None] * rows,
        "gender": [None] * rows,
        "description": [None] * rows,
        "query_words": rng.poisson(2, rows) + 1,
        "query_characters": rng.poisson(14, rows) + 3,
        "unseen_words": np.zeros(rows),
        "title_words": rng.poisson(9, rows) + 1,
        "bm25": rng.gamma(2, 3, rows),
    }
    return pa.table({**columns, **changes})


def folders(
    root: Path,
    reference: pa.Table,
    current: pa.Table,
    scores: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, Path]:
    """The folders that `measure` reads, sealed."""
    rng = np.random.default_rng(5)
    scores = scores or (rng.beta(2, 3, reference.num_rows), rng.beta(2, 3, current.num_rows))
    for name, table, score in zip(("reference", "current"), (reference, current), scores, strict=True):
        records.write(table, root / "traffic" / f"{name}.parquet", records.TRAFFIC)
        path = root / "evaluation" / "traffic_scores" / f"{name}.parquet"
        records.write(pa.table({"score": score}), path, records.TRAFFIC_SCORES)
    for name in ("traffic", "evaluation"):
        artifacts.seal(root / name)
    return {"traffic": root / "traffic", "evaluation": root / "evaluation", "output": root / "drift"}


def measure(paths: dict[str, Path], config: Drift | None = None, champion: str = "", uri: str = "") -> dict:
    share = drift.measure(config or Drift(), Registry(uri=uri or "registry"), champion=champion, **paths)
    result = json.loads((paths["output"] / "drift.json").read_text())
    assert share == result["candidate"]["share"]
    return result


def by_name(part: dict) -> dict[str, dict]:
    return {column["name"]: column for column in part["columns"]}


def test_equal_traffic_does_not_drift(tmp_path: Path) -> None:
    result = measure(folders(tmp_path, traffic(1500, 1), traffic(1500, 2)))
    part = result["candidate"]
    assert (part["share"], part["drifted"], result["champion"]) == (0, False, None)
    assert part["rows"] == {"reference": 1500, "current": 1500}
    assert part["new_queries"] == part["new_product_types"] == []
    assert not (tmp_path / "drift" / "champion.html").exists()
    assert artifacts.sealed_digest(tmp_path / "drift")


def test_what_moved_is_found_and_nothing_else(tmp_path: Path) -> None:
    reference = traffic(1500, 1)
    kinds = [*reference["product_type"].to_pylist()[:1200], *["snow <shovel>"] * 300]
    texts = [*reference["query"].to_pylist()[:1400], *["snow shovel"] * 60, *["ice <melt>"] * 40]
    moved = traffic(
        1500,
        1,
        product_type=kinds,
        query=texts,
        query_id=texts,
        unseen_words=np.repeat([0.0, 0.5], [1300, 200]),
        bm25=np.asarray(reference["bm25"]) * 0.5,
    ).set_column(0, "query_id", pa.array([text.replace("query ", "q") for text in texts]))
    paths = folders(tmp_path, reference, moved)
    part = measure(paths)["candidate"]
    columns = by_name(part)
    assert {name for name, column in columns.items() if column["drifted"]} == {"product_type", "unseen_words", "bm25"}
    assert part["share"] == pytest.approx(3 / 8)  # no product has a colour, so that column does not count
    assert part["new_queries"] == ["snow shovel", "ice <melt>"]
    assert part["new_query_share"] == pytest.approx(100 / 1500)
    assert part["new_product_types"] == ["snow <shovel>"]
    assert columns["product_type"]["moved"][0] == {"value": "(other)", "reference": 0, "current": 0.2}
    old, new = (np.asarray(table["bm25"]).astype(np.float32) for table in (reference, moved))
    assert columns["bm25"]["value"] == pytest.approx(wasserstein_distance(old, new) / old.std(), rel=1e-5)
    assert columns["bm25"]["reference_mean"] == pytest.approx(old.mean(), rel=1e-5)
    assert columns["bm25"]["current_mean"] == pytest.approx(new.mean(), rel=1e-5)
    assert columns["unseen_words"]["kind"] == "categorical"  # its reference is 0 throughout, without any spread
    assert "0 throughout the reference" in columns["unseen_words"]["note"]
    assert (columns["color"]["value"], columns["color"]["drifted"]) == (None, False)
    page = (paths["output"] / "drift.html").read_text()
    assert "snow <shovel>" not in page and "color: no values, so not counted." in page


def test_small_samples_do_not_drift_by_chance(tmp_path: Path) -> None:
    paths = folders(tmp_path, traffic(150, 1), traffic(150, 2))
    part = measure(paths)["candidate"]
    columns = by_name(part)
    assert columns["brand"]["value"] > Drift().categorical  # the plain threshold would have called it drift
    assert columns["brand"]["threshold"] == columns["brand"]["noise"] > columns["brand"]["value"]
    assert part["share"] == 0
    assert measure(paths, Drift(chance=1))["candidate"]["share"] > 0


def test_large_samples_do_not_make_drift_of_a_trifle(tmp_path: Path) -> None:
    reference = traffic(8000, 1)
    shifted = reference.set_column(
        reference.column_names.index("bm25"), "bm25", pa.array(np.asarray(reference["bm25"]) + 0.2)
    )
    column = by_name(measure(folders(tmp_path, reference, shifted))["candidate"])["bm25"]
    assert column["noise"] < column["value"] < column["threshold"] == 0.1
    assert not column["drifted"]


def test_degenerate_columns_and_a_handful_of_rows(tmp_path: Path) -> None:
    same = {"brand": ["one brand"] * 12, "title_words": np.full(12, 7), "bm25": np.full(12, np.nan)}
    constant = traffic(12, 1, **same, query_words=np.full(12, 2))
    current = traffic(12, 2, **same, query_words=np.full(12, 3), color=["red"] * 12)
    paths = folders(tmp_path, constant, current, (np.full(12, np.nan), np.full(12, 0.4)))
    part = measure(paths)["candidate"]
    columns = by_name(part)
    assert "only 12 rows" in part["note"]
    assert {name for name, column in columns.items() if column["drifted"]} == {"query_words", "color", "score"}
    assert (columns["brand"]["value"], columns["brand"]["note"]) == (0, "'one brand' throughout")
    assert (columns["title_words"]["value"], columns["title_words"]["note"]) == (0, "7 throughout")
    assert columns["bm25"]["value"] is None
    assert part["share"] == pytest.approx(3 / 8)


def test_the_champion_is_compared_with_its_own_reference(tmp_path: Path) -> None:
    old, new = traffic(400, 1), traffic(400, 2, bm25=np.random.default_rng(3).gamma(2, 9, 400))
    version = tmp_path / "version"
    artifacts.write_text(version / "student" / "config.json", "{}")
    champion = registry.version_id(artifacts.seal(version / "student"))
    records.write(old, version / "traffic" / "reference.parquet", records.TRAFFIC)
    scores = pa.table({"score": np.full(400, 0.9) + np.arange(400) / 1e4})
    records.write(scores, version / "traffic" / "reference_scores.parquet", records.TRAFFIC_SCORES)
    uri = str(tmp_path / "registry")
    registry.open(uri).publish(version, champion)

    paths = folders(tmp_path, new, new)
    path = paths["evaluation"] / "traffic_scores" / "champion_current.parquet"
    records.write(scores, path, records.TRAFFIC_SCORES)
    artifacts.seal(paths["evaluation"])
    result = measure(paths, champion=champion, uri=uri)
    assert result["candidate"]["share"] == 0  # the candidate learned from traffic like the newest
    columns = by_name(result["champion"])
    assert {name for name, column in columns.items() if column["drifted"]} == {"bm25"}
    assert columns["score"]["value"] == 0  # the champion's own scores on both sides, never the student's
    assert (result["champion"]["version"], result["champion"]["rows"]["reference"]) == (champion, 400)
    assert champion in (paths["output"] / "champion.html").read_text()
    measure(paths)
    assert not (paths["output"] / "champion.html").exists()


def test_the_page_is_repeatable_needs_no_network_and_runs_no_text(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><!--"
    reference, current = (traffic(60, seed, brand=[attack] * 30 + ["b"] * 30) for seed in (1, 2))
    paths = folders(tmp_path, reference, current)
    measure(paths)
    digest = artifacts.sealed_digest(paths["output"])
    page = (paths["output"] / "drift.html").read_text()
    own = page[: page.index("var global")]  # before the library
    assert "alert(1)" in own and own.count("<script") == own.count("</script>") + 1 == 2
    assert "src=" not in own and "<link" not in own and "http" not in own
    measure(paths)
    assert artifacts.sealed_digest(paths["output"]) == digest


def test_bad_input_is_named(tmp_path: Path) -> None:
    paths = folders(tmp_path / "a", traffic(40, 1), traffic(40, 2), (np.zeros(40), np.zeros(39)))
    with pytest.raises(InputError, match=r"current\.parquet: 39 scores, expected one for each of the 40 traffic rows"):
        measure(paths)
    paths = folders(tmp_path / "b", traffic(0, 1), traffic(40, 2))
    with pytest.raises(InputError, match=r"reference\.parquet: no rows"):
        measure(paths)
    (paths["traffic"] / "current.parquet").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"current\.parquet: .* the file is corrupt"):
        measure(paths)
