from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest

from distilrank.core import schemas
from distilrank.core.problems import Problem
from distilrank.data import profile_page, profile_texts, splits
from distilrank.data.candidates import PROVENANCES
from distilrank.data.privacy import KINDS
from distilrank.rendering import figures, formatting

SECTIONS = [
    "left-out", "privacy", "judgements", "splits", "near-duplicates", "queries", "catalogue", "candidates", "shards",
    "source",
]  # fmt: skip
ATTACK = '<script>alert("x")</script>&amp;'
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tags, and the text by section; what comes before the first section is under an empty name."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.section, self.parts = "", {"": ""}
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = str(values["id"])
            self.parts[self.section] = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th", "p", "li", "dd", "dt"):
            self.parts[self.section] += " "

    def handle_data(self, data: str) -> None:
        if not {"style", "title", "script"} & set(self.open):
            self.parts[self.section] += data

    def section_text(self, section: str) -> str:
        """The text of a section, all white space single blanks."""
        return " ".join(self.parts[section].split())


def spread(*values: float) -> dict[str, float]:
    return dict(zip(("min", "p50", "p95", "max", "mean"), values, strict=True))


def counts(head: int, torso: int, tail: int) -> dict[str, int]:
    return {"head": head, "torso": torso, "tail": tail}


def bare() -> dict[str, Any]:
    """A profile of judgements alone: no log, nothing odd, one rating, no duplicates."""
    target = {"mean": 1.0, "tenths": [0] * 9 + [8]}
    sides = {side: {"queries": 1, "pairs": 8} for side in schemas.SIDES}
    none = {"queries": 0, "pairs": 0}
    strata = {side: counts(0, 0, 1) for side in schemas.SIDES}
    return {
        "source": {"source": "tables", "judgements": "judged.csv", "logs": "", "columns": {"query": "q", "brand": ""}},
        "data_digest": "0f" * 32,
        "windows": {"reference_start": "", "newest_start": "", "newest_end": ""},
        "rows": {"products": 20, "judgements": 24, "log": 0},
        "queries": {
            "distinct": 3, "judged": 3, "training_window": 0, "newest_traffic": 0,
            "newest_traffic_not_in_training_window": 0, "judged_and_logged": 0,
        },
        "impressions": {"training_window": 0, "newest_traffic": 0, "clicks_in_training_window": 0},
        "privacy": {
            "scrub": True, "min_clients": 1, "kept_all": "no_log", "dropped_queries": 0, "dropped_impressions": 0,
            "dropped_pairs": 0, "dropped_pair_impressions": 0, "hidden_clicks": 0, "judged": {},
            "scrub_judgements": False,
            "scrubbed": {},
        },
        "frequency": [],
        "splits": {**sides, "unlabeled_train": none, "beyond_limit": none},
        "ratings": {"3": 24},
        "raters": spread(1.0, 1.0, 1.0, 1.0, 1.0),
        "rater_agreement": None,
        "targets": dict.fromkeys(schemas.SIDES, target),
        "strata": {
            "cut": splits.CUT, "queries": counts(0, 0, 3), "impressions": counts(0, 0, 0), **strata,
            "pairs": {side: counts(0, 0, 8) for side in schemas.SIDES},
            "query_words": {side: spread(2.0, 2.0, 2.0, 2.0, 2.0) for side in schemas.SIDES},
        },
        "candidates": {
            "queries": 1, "pairs": 6, "products": 6, "provenance": dict(zip(PROVENANCES, (0, 4, 0, 0, 2), strict=True)),
            "per_query": spread(6.0, 6.0, 6.0, 6.0, 6.0), "strata": counts(0, 0, 1), "also_judged": 1,
        },
        "lengths": {
            "query_words": spread(2.0, 2.0, 2.0, 2.0, 2.0), "query_tokens": spread(2.0, 3.0, 3.0, 3.0, 2.6667),
            "title_tokens": spread(0.0, 5.0, 9.0, 9.0, 5.1),
        },
        "missing_fields": {"title": 0, "product_type": 20, "brand": 20, "color": 20, "gender": 20, "description": 20},
        "vocabulary": 31,
        "merged": {
            "identical_judgements": 0, "judgements_of_other_spellings": 0, "ratings_averaged_over_spellings": 0,
            "repeated_by_a_rater": 0, "spellings": 0, "repeated_products": 0,
        },
        "dropped": [],
        "near_duplicates": {
            "pairs": dict.fromkeys(
                ("test and train", "test and candidates", "test and dev", "dev and train", "dev and candidates"), 0
            ),
            "examples": [],
        },
        "shards": [{"name": "shard-00000", "rows": 6, "queries": 1, "tokens": 60}],
        "traffic": {
            "basis": "held-out queries (dev and test side) stand in for the newest traffic: there is no log",
            "rows": {"reference": 8, "current": 16},
        },
    }  # fmt: skip


def full(text: str = "") -> dict[str, Any]:
    """A profile of a shop with a log, something in each part; `text` is put into all that comes from the data."""
    profile = bare()
    problems = [
        Problem(f"log{text}.csv", f"left out, expected a time{text}", 61, (f"row 7: time is 'no{text}'",), False),
        Problem("log", "impressions of queries with fewer than 3 clients", 5676, (), False),
    ]
    mixed = {"mean": 0.3825, "tenths": [520, 108, 43, 162, 32, 33, 187, 28, 54, 233]}
    train, dev, test = ({"queries": 14 * size, "pairs": 98_765 * size} for size in (3, 1, 2))
    profile |= {
        "source": {**profile["source"], "logs": f"gs://bucket/http://logs{text}"},
        "windows": {
            "reference_start": "2026-03-01T00:00:00+00:00", "newest_start": "2026-03-29T00:00:00+00:00",
            "newest_end": "2026-04-05T00:00:00+00:00",
        },
        "rows": {"products": 40_933, "judgements": 650_000, "log": 1_234_567},
        "queries": {
            "distinct": 7654, "judged": 84, "training_window": 7600, "newest_traffic": 4000,
            "newest_traffic_not_in_training_window": 1, "judged_and_logged": 30,
        },
        "impressions": {"training_window": 1_000_000, "newest_traffic": 200_000, "clicks_in_training_window": 87_000},
        "privacy": {
            "scrub": True, "kept_all": "", "min_clients": 3, "dropped_queries": 370, "dropped_impressions": 5676,
            "dropped_pairs": 481, "dropped_pair_impressions": 592, "hidden_clicks": 613,
            "judged": {"email": 2, "phone": 1}, "scrub_judgements": False,
            "scrubbed": {kind: {"rows": 1000 + number, "queries": 10 + number} for number, kind in enumerate(KINDS)},
        },
        "frequency": [
            {"rank": rank, "impressions": round(50_000 / rank), "share": share}
            for rank, share in ((1, 0.05), (2, 0.08), (10, 0.2), (100, 0.5), (1000, 0.8), (7600, 1.0))
        ],
        "splits": {
            "train": train, "dev": dev, "test": test,
            "unlabeled_train": {"queries": 9, "pairs": 57_000}, "beyond_limit": {"queries": 0, "pairs": 0},
        },
        "ratings": {"0": 300_000, "0.333333": 1, "1": 49_999, "2": 300_000},
        "raters": spread(1.0, 3.0, 3.0, 5.0, 2.9),
        "targets": dict.fromkeys(schemas.SIDES, mixed),
        "merged": {
            "identical_judgements": 40, "judgements_of_other_spellings": 20, "ratings_averaged_over_spellings": 3,
            "repeated_by_a_rater": 2, "spellings": 5, "repeated_products": 1,
        },
        "missing_fields": {
            "title": 0, "product_type": 1, "brand": 40_931, "color": 40_932, "gender": 20_466, "description": 20,
        },
        "candidates": {
            **profile["candidates"], "queries": 590, "pairs": 9995,
            "provenance": dict(zip(PROVENANCES, (3540, 2331, 1764, 1180, 1180), strict=True)),
            "per_query": spread(13.0, 17.0, 17.0, 17.0, 16.9407),
        },
        "dropped": [problem.to_json() for problem in problems],
        "near_duplicates": {
            "pairs": {**profile["near_duplicates"]["pairs"], "test and train": 2, "dev and candidates": 7},
            "examples": [
                {"uses": "test and train", "test": f"red sofas{text}", "train": f"red sofa{text}"},
                {"uses": "dev and candidates", "dev": "love seat", "candidates": "loveseat"},
            ],
        },
        "shards": [
            {"name": f"shard-{number:05d}", "rows": 4990 + number, "queries": 295, "tokens": 100_000 + 600 * number}
            for number in range(2)
        ],
        "traffic": {
            "basis": "impressions of the training window against those of the newest traffic",
            "rows": {"reference": 2000, "current": 2000},
        },
    }  # fmt: skip
    profile["strata"] = {
        **profile["strata"], "queries": counts(20, 600, 7034), "impressions": counts(333_000, 333_000, 334_000),
        "train": counts(2, 10, 30), "dev": counts(1, 2, 11), "test": counts(0, 0, 28),
    }  # fmt: skip
    return profile


@pytest.fixture(scope="module")
def rich() -> tuple[str, Page]:
    source = profile_page.render(full())
    return source, Page(source)


@pytest.fixture(scope="module")
def sparse() -> Page:
    return Page(profile_page.render(bare()))


def test_every_section_is_present_and_linked(rich: tuple[str, Page], sparse: Page) -> None:
    for page in (rich[1], sparse):
        assert [name for name in page.parts if name] == SECTIONS
        assert not page.open
        links = {values.get("href") for tag, values in page.tags if tag == "a"}
        assert links >= {f"#{name}" for name in SECTIONS}
        assert all(len(page.section_text(name)) > 40 for name in SECTIONS)


def test_the_page_is_self_contained(rich: tuple[str, Page]) -> None:
    source, page = rich
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object"}
    assert [values for tag, values in page.tags if tag == "script"] == [{}]
    script = source[source.index("<script>") + len("<script>") : source.index("</script>")]
    assert f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in source
    assert "default-src 'none'" in source and "@import" not in source
    links = [values.get("href") or values.get("xlink:href") or "#" for _, values in page.tags]
    assert all(link.startswith("#") for link in links)
    assert not [
        address for address in re.findall(r"(?:src=|url\()[\"']?([^\"')]*)", source) if not address.startswith("#")
    ]
    ids = [values["id"] for _, values in page.tags if values.get("id")]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if len(link) > 1} <= set(ids)
    # An address is part of the data here, or names an XML vocabulary; nothing else may look like one.
    for address in re.findall(r"https?://[^\"'<\s]*", source):
        assert address.startswith("http://logs") or address == "http://www.w3.org/1999/xlink"


def test_plots_are_well_formed_with_real_text_and_a_description(rich: tuple[str, Page]) -> None:
    plots = re.findall(r"<svg.*?</svg>", rich[0], re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        root = ET.fromstring(plot.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
        assert len(root.findtext("{http://www.w3.org/2000/svg}title") or "") > 20
        assert root.findall(".//{http://www.w3.org/2000/svg}text")


def test_text_of_other_people_stays_text() -> None:
    source = profile_page.render(full(ATTACK))
    page = Page(source)
    assert source.count("<script") == 1  # its own
    assert page.section_text("left-out").count(ATTACK) == 3
    assert page.section_text("near-duplicates").count(ATTACK) == 2
    assert page.section_text("source").count(ATTACK) == 1


def test_numbers_are_grouped_and_shares_are_shown(rich: tuple[str, Page]) -> None:
    page = rich[1]
    top = page.section_text("")
    # Page.of makes a blank of the narrow one, which does not break.
    assert "1\u202f200\u202f000" in rich[0] and "1 200 000" in top
    assert "40 932" in top and "8.7 % clicked" in top
    assert "Training window, 28 days" in top and "2026-03-01 to 2026-03-28" in top
    assert "2026-03-29 to 2026-04-04" in top and "200 000 impressions of 4 000 queries" in top
    assert "No head or torso query is on the test side" in top
    assert "1 of 4 000 queries of the newest traffic (< 0.1 %) was not seen" in top
    assert "300 000 pairs (46.2 %)" in page.section_text("judgements")
    assert "test train 2 of 28 7.1 %" in page.section_text("near-duplicates")
    assert "“red sofas” ~ “red sofa”" in page.section_text("near-duplicates")
    assert "impression 35.4 % 3 540" in page.section_text("candidates")
    assert "0.6 % more tokens than the smallest" in page.section_text("shards")
    assert "columns.query" in page.section_text("source") and "columns.brand –" in page.section_text("source")


def test_missing_fields_are_shares_of_distinct_products(rich: tuple[str, Page]) -> None:
    text = rich[1].section_text("catalogue")
    assert "title 0 % 0" in text and "product type < 0.1 % 1" in text and "brand > 99.9 % 40 931" in text
    assert "color 100 % 40 932" in text and "gender 50 % 20 466" in text


def test_what_was_left_out_is_reported(rich: tuple[str, Page], sparse: Page) -> None:
    text = rich[1].section_text("left-out")
    assert "left out, expected a time" in text and "row 7: time is 'no'" in text and "61" in text
    assert "impressions of queries with fewer than 3 clients 5 676" in text
    assert "2 kinds of rows left out or unusual" in rich[1].section_text("")
    assert all("Nothing was left out" in sparse.section_text(section) for section in ("left-out", ""))


def test_privacy_names_every_kind_in_words(rich: tuple[str, Page]) -> None:
    assert set(profile_texts.KINDS) == set(KINDS)
    text = rich[1].section_text("privacy")
    for number, kind in enumerate(KINDS):
        assert f"{profile_texts.KINDS[kind]} 1 00{number} {10 + number}" in text
    assert "each of its products, must have in the window 3" in text and "481" in text and "613" in text
    assert "some contain what looks like personal data: e-mail address (2) and phone number (1)" in text
    assert "592 impressions and 613 clicks of fewer on a product" in rich[1].section_text("")
    assert "dropped 370" in text and "dropped 5 676" in text


def test_a_log_of_unknown_clients_is_a_warning() -> None:
    profile = full()
    profile["privacy"] |= {"min_clients": 1, "kept_all": "unknown_clients", "scrubbed": {}}
    page = Page(profile_page.render(profile))
    summary = page.section_text("")
    assert "!Nothing was removed from queries. All queries were kept: the log has no client ids" in summary
    assert "None: the log has no client ids" in page.section_text("privacy")
    profile["privacy"] |= {"kept_all": "made_up", "scrub": False}
    page = Page(profile_page.render(profile))
    summary = page.section_text("")
    assert "✓Queries were not searched for personal data. All queries were kept: its shoppers are simulated" in summary
    assert "scrubbing is switched off" in page.section_text("privacy")


def test_judgements_alone_read_well(sparse: Page) -> None:
    assert "There is no log" in sparse.section_text("privacy") and "There is no log" in sparse.section_text("queries")
    assert "all queries count as tail" in sparse.section_text("splits")
    assert "All 24 judged pairs are rated 3. Every rating is the mean of 1 rater." in sparse.section_text("judgements")
    assert "there is nothing to learn from them" in sparse.section_text("")
    assert "None: no product was listed twice" in sparse.section_text("judgements")
    assert "No dev or test query nearly repeats" in sparse.section_text("")
    assert "Every query has 6 candidates." in sparse.section_text("candidates")
    assert "1 of the queries has judgements" in sparse.section_text("candidates")
    assert "in 1 shard, each" in sparse.section_text("shards") and "smallest" not in sparse.section_text("shards")
    assert not [tag for tag, values in sparse.tags if "window" in (values.get("class") or "").split()]


def test_the_agreement_of_raters_is_shown_and_too_little_of_it_is_a_warning() -> None:
    profile = bare()
    profile["source"]["rating_conflicts"] = "median"
    profile["raters"] = spread(3.0, 3.0, 3.0, 3.0, 3.0)
    agreement = {"rule": "median", "raters": 3, "ratings": 72, "pairs": 24, "unanimous": 18, "alpha": 0.6612}
    profile["rater_agreement"] = agreement
    page = Page(profile_page.render(profile))
    assert "Every rating is the median of 3 raters." in page.section_text("judgements")
    assert (
        "3 raters gave 72 ratings. 24 pairs have two or more, 18 of them (75 %) in agreement. Krippendorff's alpha "
        "(interval) is 0.66, too little for conclusions"
    ) in page.section_text("judgements")
    assert "!Raters agree poorly: Krippendorff's alpha is 0.66" in page.section_text("")
    for alpha, level in ((0.667, "enough for tentative conclusions"), (0.8, "which counts as reliable")):
        assert level in profile_texts.describe_agreement(agreement | {"alpha": alpha})
    alone = {"raters": None, "ratings": 1, "pairs": 0, "alpha": None}
    assert profile_texts.describe_agreement(alone) == "Anonymous raters gave 1 rating. 0 pairs have two or more."


def test_hidden_judgements_that_replace_a_log_are_reported() -> None:
    profile = bare()
    profile["candidates"]["provenance"]["impression"] = 3
    assert "judged pairs whose ratings are hidden" in Page(profile_page.render(profile)).section_text("candidates")


def test_a_log_without_times_is_all_training_window() -> None:
    profile = full()
    profile["windows"] = bare()["windows"]
    profile["queries"]["newest_traffic"] = profile["impressions"]["newest_traffic"] = 0
    profile["traffic"]["basis"] = "held-out queries stand in: the log has no time"
    page = Page(profile_page.render(profile))
    assert "The log has no times: all of it is the training window" in page.section_text("")
    assert "For drift, held-out queries stand in: the log has no time." in page.section_text("")


def test_too_many_ratings_for_bars() -> None:
    profile = full() | {"ratings": None}
    source = profile_page.render(profile)
    assert "too many different values" in Page(source).section_text("judgements") and source.count("<svg") == 2


def test_many_ratings_are_drawn_to_scale() -> None:
    few = figures.plot_ratings({f"{number:g}": 5 for number in range(20)})
    many = figures.plot_ratings({f"{number / 8:g}": 1000 + number for number in range(64)})
    assert few.count(">5<") >= 20 and ">1\u202f063<" not in many


def test_rendering_is_repeatable_and_does_not_change_the_summary() -> None:
    profile = json.loads(json.dumps(full()))
    before = copy.deepcopy(profile)
    assert profile_page.render(profile) == profile_page.render(profile)
    assert profile == before


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (profile_texts.share_text(0, 10), "0\u00a0%"),
        (profile_texts.share_text(1, 10_000), "<\u202f0.1\u00a0%"),
        (profile_texts.share_text(9_999, 10_000), ">\u202f99.9\u00a0%"),
        (profile_texts.share_text(1, 8), "12.5\u00a0%"),
        (profile_texts.share_text(10, 10), "100\u00a0%"),
        (profile_texts.share_text(0, 0), "–"),
        (formatting.format_count(1, "query", "queries"), "1 query"),
        (formatting.format_count(1500, "row"), "1\u202f500 rows"),
    ],
)
def test_numbers_for_people(shown: str, expected: str) -> None:
    assert shown == expected
