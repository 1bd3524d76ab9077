"""Several ratings of one pair: what they become, how far raters agree, and that nobody's name comes out."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.csv
import pytest

from distilrank import config
from distilrank.config import Columns, Prepare, Tables
from distilrank.core import schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import corpus, log_store, raters, sources
from distilrank.data.window import LogWindow

CHORUS = Path(__file__).parents[2].parent / "shared" / "data" / "chorus"
NAMES = ("Ada Quist", "Bo Rask", "Cy Tamm")


def read(folder: Path, data: Tables) -> corpus.Corpus:
    with log_store.connect(folder) as connection:
        return corpus.read(
            sources.open(data), Prepare(), LogWindow(), connection=connection, scratch=folder, problems=Problems()
        )


def tables(folder: Path, rows: str, header: str = "query,product_id,rating,who", **settings) -> Tables:
    """A shop of the products p1 to p3 whose judgements are `rows`, rated 0 to 4."""
    (folder / "catalogue.csv").write_text("product_id,title\np1,Sofa\np2,Lamp\np3,Rug\n")
    (folder / "judgements.csv").write_text(f"{header}\n{rows}")
    columns = Columns(**settings.pop("columns", {}))
    paths = {name: str(folder / f"{name}.csv") for name in ("judgements", "catalogue")}
    return Tables(source="tables", **paths, columns=columns, rating_min=0, rating_max=4, relevant_from=3, **settings)


def ratings(shop: corpus.Corpus) -> dict[tuple[str, str], tuple[float, float, int]]:
    """Rating, soft target and raters by query and product."""
    keys = shop.catalogue.column("product_id").to_pylist()
    queries = shop.queries.to_pylist()
    return {
        (queries[query], keys[product]): (rating, target, count)
        for query, product, rating, target, count in zip(
            shop.judged.query, shop.judged.product, shop.ratings, shop.targets, shop.raters
        )
    }


# Rules ------------------------------------------------------------------------------------------------------------


def test_rules_are_those_of_the_standard_library() -> None:
    draw = np.random.default_rng(0)
    group = np.concatenate([np.arange(40), draw.integers(0, 40, 160)])
    rating = draw.integers(0, 7, 200) / 2
    by_group = [rating[group == number].tolist() for number in range(40)]
    expected = {
        "mean": map(statistics.fmean, by_group),
        "median": map(statistics.median, by_group),
        "majority": (statistics.median(statistics.multimode(each)) for each in by_group),
    }
    for rule, values in expected.items():
        reduced = raters.reduce_ratings(rule, group, rating, np.ones(200), 40)
        np.testing.assert_allclose(reduced, list(values), rtol=1e-15, err_msg=rule)


@pytest.mark.parametrize(
    ("rule", "expected", "named"), [("mean", 2.5, True), ("median", 3.0, True), ("majority", 4.0, False)]
)
def test_a_rule_applies_across_the_spellings_of_a_query(
    tmp_path: Path, rule: str, expected: float, named: bool
) -> None:
    rows = "Sofa,p1,4,ann\nsofa,p1,4,bob\nsofa,p1,2,cat\nsofa,p1,0,dan\nsofa,p2,1,ann\n"
    shop = read(tmp_path, tables(tmp_path, rows, columns={"rater": "who"} if named else {}, rating_conflicts=rule))
    assert ratings(shop) == {("sofa", "p1"): (expected, np.float32(expected / 4), 4), ("sofa", "p2"): (1, 0.25, 1)}
    assert shop.merged["judgements_of_other_spellings"] == 1
    assert shop.merged["identical_judgements"] == shop.merged["repeated_by_a_rater"] == 0
    assert shop.agreement is not None
    facts = {name: shop.agreement[name] for name in ("rule", "raters", "ratings", "pairs", "unanimous")}
    assert facts == {"rule": rule, "raters": 4 if named else None, "ratings": 5, "pairs": 1, "unanimous": 0}


def test_a_rater_counts_once_per_pair(tmp_path: Path) -> None:
    rows = "sofa,p1,4,ann\nsofa,p1,4,ann\nSOFA,p1,0,ann\nsofa,p1,1,bob\n"  # again, and another rating: ann's mean is 2
    named = read(tmp_path, tables(tmp_path, rows, columns={"rater": "who"}, rating_conflicts="mean"))
    assert ratings(named) == {("sofa", "p1"): (1.5, 0.375, 2)}
    assert (named.merged["identical_judgements"], named.merged["repeated_by_a_rater"]) == (1, 1)
    unnamed = read(tmp_path, tables(tmp_path, rows, rating_conflicts="mean"))
    assert ratings(unnamed) == {("sofa", "p1"): (2.25, 0.5625, 4)}, "equal rows are people who agree"
    assert unnamed.merged["identical_judgements"] == 0


def test_refusal_counts_raters_that_agree(tmp_path: Path) -> None:
    rows = "sofa,p1,4,ann\nsofa,p1,4,bob\nsofa,p1,4,bob\n"
    named = read(tmp_path, tables(tmp_path, rows, columns={"rater": "who"}))
    assert ratings(named) == {("sofa", "p1"): (4, 1, 2)}
    assert named.agreement is not None and named.agreement["raters"] == 2
    assert named.agreement["alpha"] is None, "nothing but agreement was let in"
    unnamed = read(tmp_path, tables(tmp_path, rows))
    assert ratings(unnamed) == {("sofa", "p1"): (4, 1, 1)} and unnamed.agreement is None


def test_means_of_several_raters_weigh_by_their_number(tmp_path: Path) -> None:
    data = tables(tmp_path, "sofa,p1,4,3\nsofa,p1,0,1\n", columns={"raters": "who"}, rating_conflicts="mean")
    shop = read(tmp_path, data)
    assert ratings(shop) == {("sofa", "p1"): (3, 0.75, 4)}
    assert shop.agreement is not None and shop.agreement["alpha"] is None, "no single rater's rating is known"


# Agreement --------------------------------------------------------------------------------------------------------


def test_alpha_of_the_published_example_with_missing_ratings() -> None:
    # Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section D: interval data, 0.849
    table = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    cells = [(unit, float(value)) for row in table for unit, value in enumerate(row.split()) if value != "."]
    unit, rating = (np.array(column) for column in zip(*cells))
    result = raters.agreement("mean", unit, rating, 12, seed=0)
    assert result == {"pairs": 11, "unanimous": 8, "alpha": pytest.approx(0.849, abs=0.0005)}
    mask = np.arange(12) != 11
    fewer = raters.agreement("mean", unit[mask[unit]], rating[mask[unit]], 12, seed=0)
    assert fewer == result, "a single rating says nothing about agreement"


def test_alpha_has_no_value_without_two_ratings_of_a_pair_or_two_values(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = np.array([0, 0, 1, 1])
    for alone in (raters.agreement("mean", np.arange(4), np.arange(4.0), 4, 0),
                  raters.agreement("mean", pair, np.full(4, 3.0), 2, 0)):  # fmt: skip
        assert alone["alpha"] is None
    draw = np.random.default_rng(1)
    truth = draw.uniform(0, 100, 1000)
    pair, rating = np.tile(np.arange(1000), 2), np.concatenate([truth, truth + draw.normal(0, 20, 1000)])
    expected = 1 - np.mean((rating[:1000] - rating[1000:]) ** 2) / (2 * rating.var())
    monkeypatch.setattr(raters, "_MOST_RATINGS", 100)
    assert raters.agreement("mean", pair, rating, 1000, 0)["alpha"] == pytest.approx(expected, abs=0.001)
    monkeypatch.setattr(raters, "MOST_PAIRS", 500)
    sample = raters.agreement("mean", pair, rating, 1000, 0)
    assert sample["pairs"] == 1000 and 0 < abs(sample["alpha"] - expected) < 0.03


# People -----------------------------------------------------------------------------------------------------------


def test_no_name_of_a_rater_leaves_the_stage(tmp_path: Path) -> None:
    rows = "".join(f"sofa,p{product},{rating},{name}\n" for rating, name in enumerate(NAMES) for product in (1, 2))
    named = {"rater": "who"}
    with pytest.raises(InputError, match=r"rows 1 and 3 rate product 'p1' .* set data\.rating_conflicts") as refused:
        read(tmp_path, tables(tmp_path, rows, columns=named))
    blank = tables(tmp_path, f"{rows}sofa,p3,1, \n", columns=named, rating_conflicts="mean")
    with pytest.raises(
        InputError, match=r"judgements\.csv: row 7: who is empty, expected a value in each row"
    ) as empty:
        read(tmp_path, blank)
    data = tables(tmp_path, rows, columns=named, rating_conflicts="mean")
    table = sources.open(data).judgements(Problems())
    assert table.schema == schemas.JUDGEMENTS and table["rater"].to_pylist() == [0, 0, 1, 1, 2, 2]
    shop = read(tmp_path, data)
    texts = [str(refused.value), str(empty.value), str(table.to_pylist()), json.dumps([shop.agreement, shop.merged])]
    assert shop.agreement is not None and shop.agreement["raters"] == 3
    assert not [name for name in NAMES if any(name in text for text in texts)]


# Configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "rule", "message"),
    [
        ({"rater": "who", "raters": "n"}, "mean", "names both rater and raters"),
        ({"raters": "n"}, "median", "rating_conflicts is median, which needs single ratings"),
        ({"raters": "n"}, "majority", "expected mean or refuse"),
        ({}, "average", "refuse"),
    ],
)
def test_settings_that_contradict_each_other_are_named(columns: dict, rule: str, message: str) -> None:
    files = {"judgements": "j.csv", "catalogue": "c.csv", "rating_min": 0, "rating_max": 4, "relevant_from": 3}
    data = {"source": "tables", **files, "columns": columns, "rating_conflicts": rule}
    with pytest.raises(InputError, match=message):
        config.parse({"data": data}, "test")


def test_the_digest_follows_the_rule_and_the_column(tmp_path: Path) -> None:
    rows = "sofa,p1,4,ann\n"
    plain, mean, named = (
        sources.open(tables(tmp_path, rows, **more)).digest()
        for more in ({}, {"rating_conflicts": "mean"}, {"columns": {"rater": "who"}})
    )
    assert len({plain, mean, named}) == 3


# For real ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CHORUS.exists(), reason=f"the rated queries of Chorus are not in {CHORUS}")
def test_the_raters_of_chorus_for_real(tmp_path: Path) -> None:
    data = Tables(
        source="tables", judgements=str(CHORUS / "ratings.csv"), catalogue=str(CHORUS / "catalogue.parquet"),
        columns=Columns(rater="rater"), rating_min=0, rating_max=3, relevant_from=2, rating_conflicts="median",
    )  # fmt: skip
    shop = read(tmp_path, data)
    assert shop.rows["judgements"] == 9564 and len(shop.ratings) == 3188 and set(shop.raters) == {3}
    final = pyarrow.csv.read_csv(CHORUS / "final.csv").to_pylist()
    medians = {pair: rating for pair, (rating, _, _) in ratings(shop).items()}
    same = sum(medians[row["query"], str(row["product_id"])] == row["rating"] for row in final)
    assert same == 2825, "the project's own adjudication, of which its README says so"

    # Alpha by its definition on complete data: all pairs of ratings within pairs against all pairs of ratings.
    table = pyarrow.csv.read_csv(CHORUS / "ratings.csv").sort_by([(n, "ascending") for n in ("query", "product_id")])
    rating = table["rating"].to_numpy().astype(float)
    triples = rating.reshape(-1, 3)
    within = sum(((triples[:, i] - triples[:, j]) ** 2).sum() for i, j in ((0, 1), (0, 2), (1, 2))) / len(rating)
    across = sum(((rating - value) ** 2).sum() for value in rating) / len(rating) / (len(rating) - 1)
    assert shop.agreement == {
        "rule": "median", "raters": pc.count_distinct(table["rater"]).as_py(), "ratings": 9564, "pairs": 3188,
        "unanimous": int((np.ptp(triples, axis=1) == 0).sum()), "alpha": pytest.approx(1 - within / across, abs=1e-4),
    }  # fmt: skip
