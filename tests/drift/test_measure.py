"""The `drift` stage: what it finds, and the pages and files that it writes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import wasserstein_distance

from distilrank.config import Drift, Registry
from distilrank.core import artifacts
from distilrank.core.errors import InputError
from distilrank.drift.measure import measure_champion_drift
from tests.traffic_samples import (
    columns_by_name,
    folders,
    publish_champion,
    run_stage,
    traffic,
    with_texts,
    write_champion_scores,
)


def test_equal_traffic_does_not_drift(tmp_path: Path) -> None:
    result = run_stage(folders(tmp_path, traffic(1500, 1), traffic(1500, 2)))
    part = result["candidate"]
    assert (part["share"], part["drifted"], result["champion"]) == (0, False, None)
    assert result["limits"] == {"numeric": 0.15, "categorical": 0.15, "score": 0.15, "chance": 0.05}
    assert part["rows"] == {"reference": 1500, "current": 1500}
    assert part["new_queries"] == part["new_product_types"] == []
    assert "There is no champion yet" in (tmp_path / "drift" / "champion.html").read_text()
    assert artifacts.sealed_digest(tmp_path / "drift")


def test_what_moved_is_detected_and_nothing_else(tmp_path: Path) -> None:
    reference = traffic(1500, 1)
    types = [*reference["product_type"].to_pylist()[:1200], *["snow <shovel>"] * 300]
    texts = [*reference["query"].to_pylist()[:1400], *["snow shovel"] * 60, *["ice <melt>"] * 40]
    moved = traffic(
        1500,
        1,
        product_type=types,
        query=texts,
        query_id=texts,
        unseen_words=np.repeat([0.0, 0.5], [1300, 200]),
        bm25=np.asarray(reference["bm25"]) * 0.5,
    ).set_column(0, "query_id", pa.array([text.replace("query ", "q") for text in texts]))
    paths = folders(tmp_path, reference, moved)
    part = run_stage(paths)["candidate"]
    columns = columns_by_name(part)
    assert {name for name, column in columns.items() if column["drifted"]} == {"product_type", "unseen_words", "bm25"}
    assert part["share"] == pytest.approx(3 / 12)  # no product has a color, so that column does not count
    assert part["alarm"] and part["why"] == ["unseen_words", "bm25", "product_type"]
    assert part["examples"]["queries"][0] == {"query": "snow shovel", "rows": 60}
    assert part["new_queries"] == ["snow shovel", "ice <melt>"]
    assert part["new_query_share"] == pytest.approx(100 / 1500)
    assert part["new_product_types"] == ["snow <shovel>"]
    assert columns["product_type"]["moved"][0] == {"value": "snow <shovel>", "reference": 0, "current": 0.2}
    assert columns["product_type"]["shift"].startswith("snow <shovel> 20.0 %, was 0.0 %")
    assert columns["query_words"]["shift"] == "mean 3 words, was 3"
    old, new = (np.asarray(table["bm25"]).astype(np.float32) for table in (reference, moved))
    assert columns["bm25"]["value"] == pytest.approx(wasserstein_distance(old, new) / old.std(), rel=1e-5)
    assert columns["bm25"]["reference_mean"] == pytest.approx(old.mean(), rel=1e-5)
    assert columns["bm25"]["current_mean"] == pytest.approx(new.mean(), rel=1e-5)
    assert columns["unseen_words"]["kind"] == "categorical"  # its reference is 0 throughout, without any spread
    assert "0 throughout the reference" in columns["unseen_words"]["note"]
    assert (columns["color"]["value"], columns["color"]["drifted"]) == (None, False)
    page = (paths["output"] / "drift.html").read_text()
    assert "snow <shovel>" not in page and "color: no values, so not counted." in page


def test_degenerate_columns_and_a_handful_of_rows(tmp_path: Path) -> None:
    equal_columns = {"brand": ["one brand"] * 12, "title_words": np.full(12, 7), "bm25": np.full(12, np.nan)}
    constant = traffic(12, 1, **equal_columns, query_words=np.full(12, 2))
    current = traffic(12, 2, **equal_columns, query_words=np.full(12, 3), color=["red"] * 12)
    paths = folders(tmp_path, constant, current, (np.full(12, np.nan), np.full(12, 0.4)))
    part = run_stage(paths)["candidate"]
    columns = columns_by_name(part)
    assert "only 12 rows" in part["note"]
    assert {name for name, column in columns.items() if column["drifted"]} == {"query_words", "color", "score"}
    assert (columns["brand"]["value"], columns["brand"]["note"]) == (0, "'one brand' throughout")
    assert (columns["title_words"]["value"], columns["title_words"]["note"]) == (0, "7 throughout")
    assert columns["bm25"]["value"] is None
    assert part["share"] == pytest.approx(3 / 12)


def test_the_champion_is_compared_with_its_own_reference(tmp_path: Path) -> None:
    old, new = traffic(400, 1), traffic(400, 2, bm25=np.random.default_rng(3).gamma(2, 9, 400))
    scores = np.full(400, 0.9) + np.arange(400) / 1e4
    champion, uri = publish_champion(tmp_path, old, scores), str(tmp_path / "registry")
    paths = folders(tmp_path, new, new)
    path = write_champion_scores(paths, scores)
    result = run_stage(paths, champion=champion, uri=uri)
    assert result["candidate"]["share"] == 0  # the candidate learned from traffic like the newest
    columns = columns_by_name(result["champion"])
    assert {name for name, column in columns.items() if column["drifted"]} == {"bm25"}
    assert columns["score"]["value"] == 0  # the champion's own scores on both samples, never the student's
    assert (result["champion"]["version"], result["champion"]["rows"]["reference"]) == (champion, 400)
    assert champion in (paths["output"] / "champion.html").read_text()
    part = measure_champion_drift(
        Drift(embedding_rows=0), Registry(uri=uri), traffic=paths["traffic"], scores=path, champion=champion,
        output=tmp_path / "monitored",
    )  # fmt: skip
    assert part == result["champion"] and (tmp_path / "monitored" / "snapshot.json").exists()
    page = (tmp_path / "monitored" / "drift.html").read_text()
    assert "raises an alarm" in page and "Only reported" not in page
    summary = (tmp_path / "monitored" / "summary.html").read_text()
    assert "raises an alarm" in summary and "drift.html, by" in summary
    assert "Only reported" not in summary and "champion.html" not in summary
    summary = (paths["output"] / "summary.html").read_text()
    assert "Only reported" in summary and "drift.html and champion.html, by" in summary
    run_stage(paths)
    assert champion not in (paths["output"] / "champion.html").read_text()


def test_a_champion_with_an_old_reference_is_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    new = traffic(100, 2)
    champion = publish_champion(tmp_path, traffic(100, 1).drop_columns(["script", "clicked"]), np.linspace(0, 1, 100))
    paths = folders(tmp_path, new, new)
    write_champion_scores(paths, np.linspace(0, 1, 100))
    part = run_stage(paths, champion=champion, uri=str(tmp_path / "registry"))["champion"]
    names = columns_by_name(part).keys()
    assert part["comparable"] and not {"script", "clicked"} & names and "bm25" in names
    assert "reference.parquet: no column clicked, script" in part["note"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bm25": ["many"] * 100}, r"reference\.parquet: column 'bm25' is string, expected float"),
        ({"query_id": None}, r"reference\.parquet: .*query_id"),
    ],
)
def test_a_champion_whose_reference_does_not_fit_stops_nothing(
    tmp_path: Path, change: dict[str, list[str] | None], message: str
) -> None:
    ((name, values),) = change.items()
    new = traffic(100, 2)
    old = traffic(100, 1, **{name: values}) if values else traffic(100, 1).drop_columns([name])
    champion = publish_champion(tmp_path, old, np.linspace(0, 1, 100))
    paths = folders(tmp_path, new, new)
    write_champion_scores(paths, np.linspace(0, 1, 100))
    part = run_stage(paths, champion=champion, uri=str(tmp_path / "registry"))["champion"]
    assert (part["comparable"], part["alarm"], part["columns"]) == (False, False, [])
    assert re.search(f"not comparable: .*{message}", part["note"])
    for page in ("summary.html", "champion.html"):
        assert "not comparable" in (paths["output"] / page).read_text()


def test_the_page_is_repeatable_needs_no_network_and_runs_no_text(tmp_path: Path) -> None:
    attack = "</script><script>alert(1)</script><!--"
    reference, current = (traffic(60, seed, brand=[attack] * 30 + ["b"] * 30) for seed in (1, 2))
    current = with_texts(current, [attack], 1)
    paths = folders(tmp_path, reference, current)
    run_stage(paths)
    digest = artifacts.sealed_digest(paths["output"])
    page = (paths["output"] / "drift.html").read_text()
    head = page[: page.index("var global")]  # before the library
    assert "alert(1)" in head and head.count("<script") == head.count("</script>") + 1 == 2
    assert "src=" not in head and "<link" not in head and "http" not in head
    run_stage(paths)
    assert artifacts.sealed_digest(paths["output"]) == digest
    summary = (paths["output"] / "summary.html").read_text()
    assert "alert(1)" in summary
    assert not [text for text in ("<script", "</script>", "src=", "http") if text in summary]


def test_bad_input_is_named(tmp_path: Path) -> None:
    paths = folders(tmp_path / "a", traffic(40, 1), traffic(40, 2), (np.zeros(40), np.zeros(39)))
    with pytest.raises(InputError, match=r"current\.parquet: 39 scores, expected one for each of the 40 traffic rows"):
        run_stage(paths)
    paths = folders(tmp_path / "b", traffic(0, 1), traffic(40, 2))
    with pytest.raises(InputError, match=r"reference\.parquet: no rows"):
        run_stage(paths)
    (paths["traffic"] / "current.parquet").write_bytes(b"half a file")
    with pytest.raises(InputError, match=r"current\.parquet: .* the file is corrupt"):
        run_stage(paths)
