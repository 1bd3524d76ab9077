from __future__ import annotations

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pytest

from distilrank.config import Gate, Report
from distilrank.core import artifacts, schemas
from distilrank.core.errors import InputError
from distilrank.rendering import formatting
from distilrank.rendering.labels import METRICS
from distilrank.report import comparisons, ranking, verdict
from tests.report_runs import ANCHOR, CHAMPION, VERSION, Page, folders, render


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, Page]:
    paths = folders(tmp_path_factory.mktemp("run"), skill=1.5)
    return paths, *render(paths)


def test_the_verdict_comes_first_in_words(promoted: tuple[dict, str, Page]) -> None:
    _, _, page = promoted
    assert page.text.index("Promoted") < page.text.index("Checks")
    assert f"The student {VERSION} replaces {CHAMPION} as the champion: its nDCG@10 is 0.028 higher than" in page.text
    assert "Better than BM25" in page.text and "✕ failed" not in page.text


def deltas(paths: dict) -> pd.Series:
    """nDCG@10 of the student minus the champion's, by query."""
    table = schemas.read(paths["evaluation"] / "per_query.parquet", schemas.PER_QUERY).to_pandas()
    by_system = table.pivot(index="query_id", columns="system", values="ndcg_at_10")
    return by_system["student"] - by_system["champion"]


def test_figures_are_those_of_the_files(promoted: tuple[dict, str, Page]) -> None:
    paths, source, page = promoted
    metrics = json.loads((paths["evaluation"] / "metrics.json").read_text())
    assert set(metrics["systems"]["student"]) == set(METRICS)
    for values in metrics["systems"].values():
        for key in ("ndcg_at_10", "pair_accuracy", "roc_auc"):
            assert f"{values[key]:.3f}" in page.text
    delta = deltas(paths)
    assert f"the student ranks {(delta > 1e-9).sum()} of {len(delta)} queries better" in page.text
    assert "snow shovel 11.8 %, was 0.0 %" in page.text and "mean 6.11, was 6.31" in page.text
    assert "ROC-AUC of 0.612 (CI [0.581, 0.643])" in page.text and "snow shovel 84" in page.text
    best = max(values["ndcg_at_10"] for values in metrics["systems"].values())
    assert f'<span class="best">{formatting.format_metric(best)}</span>' in source
    assert "2 min 20 s" in page.text and "6 240 more pairs of 520 queries" in page.text


def test_examples_show_how_both_systems_rank(promoted: tuple[dict, str, Page]) -> None:
    paths, source, page = promoted
    best = deltas(paths).idxmax()
    scores = schemas.read(paths["evaluation"] / "pair_scores.parquet", schemas.PAIR_SCORES).to_pandas()
    top = (
        scores[(scores["system"] == "student") & (scores["query_id"] == best)]
        .sort_values("score", ascending=False)
        .iloc[0]
    )
    test = schemas.read(paths["judgements"] / "test.parquet", schemas.JUDGED).to_pandas()
    title = test[(test["query_id"] == best) & (test["product_id"] == top["product_id"])].iloc[0]["title"]
    assert page.text.count("Student") > page.text.count("Largest wins") == 1
    example = source[source.index('class="example"') :]
    first = example[example.index("<li>") : example.index("</li>")]
    assert title in first and formatting.format_metric(top["target"], 2) in first


def test_the_teacher_is_compared_with_people(promoted: tuple[dict, str, Page]) -> None:
    paths, source, page = promoted
    quality = json.loads((paths["teacher"] / "quality.json").read_text())
    part = page.text[page.text.index("The teacher and its labels") :]
    assert f"Evaluated on {quality['pairs']} judged pairs of {quality['queries']} dev queries" in part
    for slice in quality["agreement"].values():
        for value in (*slice["ndcg_at_10"].values(), *slice["pair_accuracy"].values()):
            assert formatting.format_metric(value) in part
    calibrated = quality["calibration"]
    assert f"Expected calibration error {formatting.format_metric(calibrated['ece'])}" in part
    assert formatting.format_metric(calibrated["chosen_by"]["log_loss"]["platt"], 4) in part
    assert "6 240 pairs of 520 queries, in 2 shards" in part and "84.0 s on cpu" in part
    assert "402 800 tokens; 1.2 % of the pairs truncated to fit" in part and "Price" not in part
    surest = quality["disagreements"]["top"][0]
    section = source[source.index("Strongest disagreements with people") :]
    first = section[section.index("<tbody>") : section.index("</tr>", section.index("<tbody>"))]
    values = [formatting.format_metric(surest[key], 2) for key in ("target", "probability")]
    assert all(f">{shown}<" in first for shown in (surest["query"], surest["title"], *values))
    assert f"All {quality['disagreements']['count']} are in disagreements.csv" in part
    assert "often human errors" in part


def test_a_stratum_of_few_queries_is_marked(tmp_path: Path) -> None:
    paths = folders(tmp_path)
    quality = json.loads((paths["teacher"] / "quality.json").read_text())
    quality["agreement"]["tail"] |= {"ranked_queries": 0, "ndcg_at_10": dict.fromkeys(quality["roc_auc"])}
    artifacts.write_json(paths["teacher"] / "quality.json", quality)
    source, page = render(paths)
    assert "fewer than 20 queries, too few to judge by" in page.text
    small_row = source[source.index('<tr class="small">') :]
    assert '<th scope="row">tail</th>' in small_row[: small_row.index("</tr>")]
    assert source.count('<tr class="small') == 1


def test_a_teacher_without_quality_still_has_labels(tmp_path: Path) -> None:
    paths = folders(tmp_path)
    for name in ("quality.json", "disagreements.csv"):
        (paths["teacher"] / name).unlink()
    artifacts.seal(paths["teacher"])
    _, page = render(paths)
    assert "The labels that the student was trained on." in page.text and "6 240 pairs of 520 queries" in page.text
    assert "Agreement with people" not in page.text and "disagreements.csv" not in page.text


def test_the_page_is_self_contained(promoted: tuple[dict, str, Page]) -> None:
    _, source, page = promoted
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object"}
    assert [values for tag, values in page.tags if tag == "script"] == [{}]
    links = [values.get("href") or values.get("xlink:href") or "" for _, values in page.tags]
    assert {link for link in links if link and not link.startswith("#")} == {"drift.html", "champion.html"}
    script = source[source.index("<script>") + len("<script>") : source.index("</script>")]
    assert f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in source
    assert "default-src 'none'" in source and "@import" not in source and len(source) < 3_000_000
    for address in re.findall(r"(?:src=|url\()[\"']?([^\"')]*)", source):
        assert address.startswith("#")
    ids = [values["id"] for _, values in page.tags if values.get("id")]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_plots_are_well_formed_with_real_text_and_a_description(promoted: tuple[dict, str, Page]) -> None:
    _, source, _ = promoted
    plots = [plot for plot in re.findall(r"<svg.*?</svg>", source, re.DOTALL) if 'role="img"' in plot]
    assert len(plots) > 20
    for plot in plots:
        root = ET.fromstring(plot.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
        if root.attrib.get("class", "").startswith("interval "):  # of a table's row, which says the rest
            assert re.fullmatch(r"interval \[\S+, \S+\]", root.attrib["aria-label"])
            continue
        assert all(len(root.findtext(f"{{http://www.w3.org/2000/svg}}{part}") or "") > 9 for part in ("title", "desc"))
        assert root.findall(".//{http://www.w3.org/2000/svg}text")
        assert not re.findall(r": (#[0-9a-f]{3,8})", plot), "a color that does not follow the page's"


def test_text_of_other_people_stays_text(tmp_path: Path) -> None:
    attack = '<script>alert("x")</script>&amp;'
    source, page = render(folders(tmp_path, text=attack), Report(title=f"Run {attack}"))
    assert source.count("<script") == 1
    assert page.text.count(attack) >= 6  # title, new query, product type, moved category, a disagreement's two
    contradicted = page.text[page.text.index("disagreements with people") :]
    assert attack in contradicted[: contradicted.index("Training")]


def test_a_refusal_explains_why(tmp_path: Path) -> None:
    _, page = render(folders(tmp_path, skill=0.1, champion=False))
    assert f"Refused The student {VERSION} was not promoted because" in page.text
    assert "There is still no champion." in page.text
    assert "✕ failed" in page.text and "so not counted" in page.text
    assert "because it is not clearly better than BM25 (\N{MINUS SIGN}0." in page.text
    assert "must be above 0)" in page.text
    assert "worse than" in page.text


def test_an_unchanged_student_is_no_refusal(tmp_path: Path) -> None:
    source, page = render(folders(tmp_path, skill=1.5, unchanged=True, promoted_by="earlier"))
    assert "<title>home-depot: Unchanged</title>" in source and '<div class="verdict good">' in source
    assert (
        f"Unchanged The student {VERSION} is byte for byte identical to the champion, which was promoted by the run "
        "earlier. There is nothing to promote, and it remains the champion."
    ) in page.text
    assert "✕ failed" not in page.text and "= unchanged" in page.text and "Refused" not in page.text
    assert "The student is the champion itself: no check decides, and none compares the two." in page.text
    # Its figures are told once: as the student's.
    assert '<tr class="champion">' not in source and "vs Champion" not in source and "Against BM25" in page.text
    assert "Against the champion" not in page.text and f"<td><code>{ANCHOR}</code>" in source
    assert f"<td><code>{VERSION}</code>" not in source


def test_an_unchanged_student_that_would_fail_today_is_a_warning(tmp_path: Path) -> None:
    policy = Gate.model_validate(
        {"min_metrics": {"ndcg_at_10": 0.9999}, "max_drift_share": 0.5, "champion": "superior"}
    )
    paths = folders(tmp_path, skill=1.5, unchanged=True, promoted_by="home-depot", policy=policy)
    source, page = render(paths)
    assert '<div class="verdict warn">' in source
    assert (
        f"{VERSION} is byte for byte identical to the champion, which was promoted by a run of the same name."
        in page.text
    )
    assert (
        "it remains the champion, although today's policy would not promote it: its nDCG@10 is too low (" in page.text
    )
    assert page.text.count("✕ failed") == 1, "no comparison with itself"


def test_the_caption_of_raw_scores_speaks_of_scores(tmp_path: Path) -> None:
    """A student without probabilities beside a champion that has them."""
    paths = folders(tmp_path)
    metrics = json.loads((paths["evaluation"] / "metrics.json").read_text())
    del metrics["reliability"]["student"]
    artifacts.write_json(paths["evaluation"] / "metrics.json", metrics)
    _, page = render(paths)
    assert "How well the raw score separates relevant pairs from the others" in page.text


def test_a_run_without_champion_or_calibration(tmp_path: Path) -> None:
    paths = folders(tmp_path, champion=False, calibrated=False)
    artifacts.write_json(paths["profile"] / "profile.json", {})
    metrics = json.loads((paths["evaluation"] / "metrics.json").read_text())
    for key in ("latency", "slices", "reliability", "agreement", "examples", "distribution", "test_set"):
        del metrics[key]
    artifacts.write_json(paths["evaluation"] / "metrics.json", metrics)
    verdict = json.loads((paths["verdict"] / "verdict.json").read_text())
    for key in ("anchor", "override", "test_set", "policy"):
        del verdict[key]
    artifacts.write_json(paths["verdict"] / "verdict.json", verdict)
    _, page = render(paths)
    assert "they are not probabilities" in page.text
    for absent in (
        "Has traffic moved away", "p95 of a request", "Slices of queries", "Compared with the versions in use",
        "The test set", "Largest wins", "Promotion policy of this run", "Spread of the scores",
        "Agreement of student and teacher", "summary.html",
    ):  # fmt: skip
        assert absent not in page.text


def test_an_override_and_an_overused_test_set_are_named_first(tmp_path: Path) -> None:
    override = {"by": "maria@shop.example", "reason": "the sale <starts> on Friday", "until": "2026-12-01"}
    strict = Gate.model_validate(
        {"min_metrics": {"ndcg_at_10": 0.999}, "warn_after_test_evaluations": 4, "override": override}
    )
    paths = folders(tmp_path, skill=1.5, policy=strict)
    _, page = render(paths)
    top = page.text[: page.text.index("Checks")]
    assert "Promoted by override" in top and "although its nDCG@10 is too low" in top
    assert all(part in top for part in override.values())
    assert "7 candidates have been evaluated on the same test queries" in top and "comes after 4" in top
    looser = page.text[page.text.index("Looser than the default:") : page.text.index("Promotion policy of this run")]
    assert "gate.min_resamples 200 instead of 1 000; evaluate.bootstrap 200 instead of 2 000;" in looser
    assert "min metrics, ndcg at 10" in page.text[page.text.index("Promotion policy of this run") :]


def test_a_fresh_test_set_raises_no_alarm(promoted: tuple[dict, str, Page]) -> None:
    paths, _, page = promoted
    digest = json.loads((paths["evaluation"] / "metrics.json").read_text())["test_set"]["digest"]
    assert "Overused test set" not in page.text
    assert "7 candidates have been evaluated on it" in page.text and digest in page.text


def test_slices_are_marked_by_what_holm_leaves(promoted: tuple[dict, str, Page]) -> None:
    paths, source, _ = promoted
    metrics = json.loads((paths["evaluation"] / "metrics.json").read_text())
    rows = metrics["slices"]["rows"]
    assert len(rows) >= 3 and source.count('class="interval ') % len(rows) == 0
    for number, row in enumerate(rows):
        for entry in row["comparisons"]:
            entry |= {"delta": 0.05 if number else -0.05, "p_holm": 0.0499 if number < 2 else 0.0501}
    forest = ranking.slices_section(metrics)["forests"][0]
    assert [row["tone"] for row in forest["rows"]] == ["worse", "better", *["level"] * (len(rows) - 2)]
    first = forest["rows"][0]
    named = f"worse than the champion for {first['column'].lower()} = {first['value']} (\N{MINUS SIGN}0.050)"
    assert named in forest["sentence"]
    assert all(0 <= row[f"{end}_percent"] <= 100 for row in forest["rows"] for end in ("ci_low", "ci_high"))


def test_an_anchor_that_is_the_champion_is_shown_once(promoted: tuple[dict, str, Page]) -> None:
    paths, source, page = promoted
    assert '<tr class="anchor">' in source and "vs Anchor" in source
    assert "also the anchor" not in page.text
    metrics = json.loads((paths["evaluation"] / "metrics.json").read_text())
    decided = {"champion": {"id": CHAMPION}, "anchor": {"id": CHAMPION}}
    distinct = comparisons.drop_duplicates(metrics, decided)
    assert "anchor" not in distinct["systems"].keys() | distinct["latency"].keys()
    assert not [entry for entry in distinct["comparisons"] if entry["baseline"] == "anchor"]
    assert [(row["label"], row["is_anchor_too"]) for row in verdict.incumbent_rows(decided, distinct)] == [
        ("Champion", True)
    ]
    assert not [part for part in ranking.slices_section(distinct)["forests"] if part["baseline"] == "Anchor"]


def test_the_same_run_gives_the_same_page(promoted: tuple[dict, str, Page]) -> None:
    paths, source, _ = promoted
    assert render(paths)[0] == source


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    paths = folders(tmp_path)
    (paths["drift"] / "drift.json").unlink()
    with pytest.raises(
        InputError, match=r"input drift \(.*\): lacks 1 of its 1 files, drift\.json for one; its files were deleted"
    ):
        render(paths, changed=False)
