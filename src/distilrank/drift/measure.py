"""The `drift` stage: has search traffic moved away from the candidate's training window, or from the champion's?

Two questions, answered separately. *Candidate*: does the window that the candidate was trained on still represent the
traffic that it will serve? The training window is compared with the newest traffic, with the candidate's scores on
both. The answer can refuse a promotion. *Champion*: has traffic moved away from the champion? The reference stored with
the champion is compared with the newest traffic, with the champion's scores on both. The answer is only reported.

A column has drifted if its distance reaches two bounds. The first is an effect size, so that a large sample does not
turn a trifle into drift: for numeric columns the Wasserstein distance over the reference's standard deviation (0.15
means that values moved by that much of it on average), for categorical columns the Jensen-Shannon distance (natural
logarithm, 0 to 0.83; 0.15 means that 6 % of the rows went to a new category, or that one of 50 % became one of 71 %).
The second is what chance reaches (`columns.noise_bounds`), so that a small sample is not taken at face value. Shifts
that no column shows may be found by a classifier on the embeddings of the texts (`domain`). docs/drift.md has the
measured rates of both kinds of error.

Labels are not compared: the teacher scores candidates rather than traffic, and each run has another teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distilrank import registry as registries
from distilrank.config import Drift, Registry
from distilrank.core import artifacts, progress, schemas
from distilrank.core.errors import InputError
from distilrank.drift import evidently_page, summary_page
from distilrank.drift.compare import (
    COMPARED_COLUMNS,
    REQUIRED_COLUMNS,
    WindowComparison,
    compare_windows,
    drifted_columns,
    not_comparable,
)
from distilrank.drift.embeddings import load_encoder

OUTPUT_FILES = ("drift.html", "champion.html", "snapshot.json", "summary.html", "drift.json")
LIMIT_KEYS = ("numeric", "categorical", "score", "chance")

RUN_CONSEQUENCE = "Only reported: a drifted champion is a reason to retrain."
MONITOR_CONSEQUENCE = "Drift raises an alarm, which may start a new distillation."
"""What a drifted champion leads to, in a run and in `monitor`; the pages say so."""


def measure_drift(
    config: Drift,
    registry: Registry,
    *,
    traffic: Path,
    evaluation: Path,
    student: Path,
    champion: str,
    output: Path,
) -> float:
    """Compare the windows; write `drift.json`, `summary.html`, `drift.html`, `snapshot.json` and `champion.html`.

    Every page is always written; a page with nothing to compare says why.

    Args:
        config: the distances that count as drift, and which columns raise the alarm.
        registry: where the champion is fetched from.
        traffic: folder with `reference.parquet` (training window) and `current.parquet` (newest traffic).
        evaluation: folder with `traffic_scores/`: the student's scores on both, the champion's on the newest traffic.
        student: folder of the candidate, whose encoder computes the embeddings.
        champion: version id; empty if there is no champion.
        output: folder to write to; it is sealed.

    Returns:
        The share of drifted columns for the candidate, in [0, 1].

    Raises:
        InputError: a sample is missing, empty, damaged, or not aligned with its scores.
    """
    inputs = {"traffic": traffic, "evaluation": evaluation, "student": student}
    with artifacts.stage("drift", output, config=config, inputs=inputs) as record:
        record.inputs |= {
            "traffic": artifacts.verify(traffic),
            "evaluation": artifacts.verify(evaluation),
            "student": artifacts.verify(student),
            "champion": champion,
        }
        _remove_outputs(output)
        scores = evaluation / "traffic_scores"
        current = _read_sample(traffic / "current.parquet")
        candidate, candidate_pages = _compare_candidate(config, traffic, current, scores, student)
        artifacts.write_text(output / "drift.html", candidate_pages.page)
        artifacts.write_text(output / "snapshot.json", candidate_pages.snapshot)
        champion_part, page_names = None, ["drift.html"]
        champion_page = summary_page.render_nothing(
            "There is no champion yet, so there is no reference to compare with."
        )
        if champion:
            scored = _with_scores(current, scores / "champion_current.parquet")
            champion_part, champion_pages = _compare_champion(config, registry, champion, scored, RUN_CONSEQUENCE)
            if champion_pages:
                champion_page = champion_pages.page
                page_names.append("champion.html")
            else:
                champion_page = summary_page.render_nothing(champion_part["note"])
        artifacts.write_text(output / "champion.html", champion_page)
        # The gate says where a limit is looser than the default.
        limits = {key: getattr(config, key) for key in LIMIT_KEYS}
        drift = {"candidate": candidate, "champion": champion_part, "limits": limits}
        _write_summary(output, drift, RUN_CONSEQUENCE, page_names, task="drift")
        artifacts.seal(output)
        record.facts.update(candidate["rows"], share=candidate["share"], alarm=candidate["alarm"])
        names = ", ".join(drifted_columns(candidate)) or "no column"
        progress.log_event("drift", "note", f"drifted: {names}")
        return candidate["share"]


def measure_champion_drift(
    config: Drift, registry: Registry, *, traffic: Path, scores: Path, champion: str, output: Path
) -> dict[str, Any]:
    """Answer the question about the champion only; write `drift.json`, `summary.html`, `drift.html`, `snapshot.json`.

    If nothing is comparable, `drift.html` says why and there is no snapshot.

    Args:
        config: the distances that count as drift, and which columns raise the alarm.
        registry: where the champion is fetched from.
        traffic: folder with `current.parquet` (newest traffic).
        scores: the champion's scores on it, a TRAFFIC_SCORES file.
        champion: version id.
        output: folder to write to; the caller seals it.

    Returns:
        The entry `champion` of `drift.json`; `candidate` is null there.

    Raises:
        InputError: the newest traffic or its scores are missing, empty, damaged or not aligned.
    """
    _remove_outputs(output)
    newest = _with_scores(_read_sample(traffic / "current.parquet"), scores)
    part, pages = _compare_champion(config, registry, champion, newest, MONITOR_CONSEQUENCE)
    drift = {"candidate": None, "champion": part}
    _write_summary(output, drift, MONITOR_CONSEQUENCE, ["drift.html"] if pages else [], task="monitor")
    page = pages.page if pages else summary_page.render_nothing(part["note"])
    artifacts.write_text(output / "drift.html", page)
    if pages:
        artifacts.write_text(output / "snapshot.json", pages.snapshot)
    return part


def _remove_outputs(output: Path) -> None:
    """Remove the files of an earlier attempt, which may have had a champion."""
    for name in OUTPUT_FILES:
        (output / name).unlink(missing_ok=True)


def _write_summary(output: Path, drift: dict[str, Any], consequence: str, pages: list[str], *, task: str) -> None:
    artifacts.write_json(output / "drift.json", drift)
    artifacts.write_text(output / "summary.html", summary_page.render(drift, consequence, pages, task=task))


def _read_sample(path: Path, columns: Sequence[str] = COMPARED_COLUMNS) -> pa.Table:
    table = schemas.read(path, schemas.TRAFFIC, columns)
    if not table.num_rows:
        raise InputError(f"{path}: no rows, expected a sample of traffic")
    return table


def _with_scores(sample: pa.Table, path: Path) -> pa.Table:
    """The sample with the column `score` of a TRAFFIC_SCORES file."""
    scores = schemas.read(path, schemas.TRAFFIC_SCORES)
    if scores.num_rows != sample.num_rows:
        raise InputError(
            f"{path}: {scores.num_rows} scores, expected one for each of the {sample.num_rows} traffic rows"
        )
    return sample.append_column("score", scores["score"])


def _compare_candidate(
    config: Drift, traffic: Path, current: pa.Table, scores: Path, student: Path
) -> tuple[dict[str, Any], evidently_page.Pages]:
    """The entry `candidate` of drift.json, and its pages."""
    encoder, encoder_note = load_encoder(config, student)
    comparison = compare_windows(
        config,
        _with_scores(_read_sample(traffic / "reference.parquet"), scores / "reference.parquet"),
        _with_scores(current, scores / "current.parquet"),
        encoder,
    )
    comparison.add_note(encoder_note)
    pages = _render_pages(
        config,
        comparison,
        "Does what the candidate learned from represent the newest traffic?",
        "Reference: the training window. Current: the newest traffic. Score: the candidate's, on both.",
    )
    return comparison.part, pages


def _compare_champion(
    config: Drift, registry: Registry, champion: str, newest: pa.Table, consequence: str
) -> tuple[dict[str, Any], evidently_page.Pages | None]:
    """The entry `champion` of drift.json, and its pages.

    The reference is as old as the champion. If this version cannot read it, the entry says so and there are no pages.
    """
    version = registries.connect(registry).fetch(champion)
    path = version / "traffic" / "reference.parquet"
    try:
        stored = pq.read_schema(path).names if path.is_file() else list(COMPARED_COLUMNS)
        names = [name for name in COMPARED_COLUMNS if name in stored or name in REQUIRED_COLUMNS]
        reference = _with_scores(_read_sample(path, names), version / "traffic" / "reference_scores.parquet")
    except (InputError, pa.ArrowInvalid) as error:
        note = f"not comparable: {error}; the next promotion stores a reference that is"
        progress.log_event("drift", "note", f"champion {champion}: {note}")
        return {**not_comparable(note), "version": champion}, None
    encoder, encoder_note = load_encoder(config, version / "student")
    comparison = compare_windows(config, reference, newest, encoder, names)
    comparison.add_note(encoder_note)
    missing = [name for name in COMPARED_COLUMNS if name not in names]
    if missing:
        comparison.add_note(
            f"{path}: no column {', '.join(missing)}, since an earlier version of distilrank wrote the file: not "
            "compared; the next promotion stores a reference that has them."
        )
    pages = _render_pages(
        config,
        comparison,
        f"Has traffic moved away from the champion, {champion}?",
        "Reference: the traffic that the champion was promoted on. Current: the newest traffic. "
        f"Score: the champion's, on both. {consequence}",
    )
    return {**comparison.part, "version": champion}, pages


def _render_pages(config: Drift, comparison: WindowComparison, title: str, caption: str) -> evidently_page.Pages:
    part = comparison.part
    column_notes = [f"{entry['name']}: {entry['note']}." for entry in part["columns"] if "note" in entry]
    return evidently_page.render(
        comparison.columns,
        comparison.bounds,
        config.share,
        config.page_rows,
        title=title,
        caption=caption,
        notes=[*filter(None, [part["note"]]), *column_notes],
    )
