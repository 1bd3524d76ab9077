"""Two questions about drift, kept apart.

*Candidate*: does what the candidate learned from still represent the traffic that it will meet? Training window
against newest traffic, the candidate's own scores on both: this can refuse a promotion. *Champion*: has traffic moved
away from the champion? Its stored reference against newest traffic, its own scores on both: this only reports.

A column has drifted once its distance reaches two bars. One is an effect size, so that a large sample does not turn a
trifle into drift: for numeric columns the Wasserstein distance over the reference's standard deviation (0.15: values
moved by that much of it on average), for categorical ones the Jensen-Shannon distance (natural logarithm, 0 to 0.83;
0.15: 6 % of the rows went to a category that is new, or one of 50 % became one of 71 %). The other is what chance
reaches (`columns.noise`), so that a small sample is not taken at its word. What no column shows, a classifier may find
in the embeddings of the texts (`domain`). docs/drift.md has the measured rates of both kinds of error.

What the labels say is left out: the teacher scores candidates, not traffic, and each run's teacher is another one.
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
from distilrank.drift.compare import ALWAYS, READ, Compared, compare_windows
from distilrank.drift.embeddings import encoder_of

REPORTED = "Only reported: a drifted champion is a reason to retrain."
WATCHED = "Drift raises an alarm, which may start a new distillation."
"""What follows from a drifted champion, in a run and in `monitor`."""


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

    Each page is always written; where there is nothing to compare it says why.

    Args:
        traffic: folder with `reference.parquet` (training window) and `current.parquet` (newest traffic).
        evaluation: folder with `traffic_scores/`: the student's scores on both, the champion's on the newest.
        student: folder of the candidate, whose encoder the embeddings come from.
        champion: the champion's version id; empty: there is none.

    Returns:
        The share of drifted columns for the candidate, in [0, 1].

    Raises:
        InputError: a sample is missing, empty, damaged, or is not aligned with its scores.
    """
    inputs = {"traffic": traffic, "evaluation": evaluation, "student": student}
    with artifacts.stage("drift", output, config=config, inputs=inputs) as record:
        record.inputs |= {
            "traffic": artifacts.verify(traffic),
            "evaluation": artifacts.verify(evaluation),
            "student": artifacts.verify(student),
            "champion": champion,
        }
        _clear(output)
        scores = evaluation / "traffic_scores"
        current = _sample(traffic / "current.parquet")
        encoder, unable = encoder_of(config, student)
        candidate = compare_windows(
            config,
            _scored(_sample(traffic / "reference.parquet"), scores / "reference.parquet"),
            _scored(current, scores / "current.parquet"),
            encoder,
        )
        _note(candidate, unable)
        pages = _render(
            config,
            candidate,
            "Does what the candidate learned from represent the newest traffic?",
            "Reference: the training window. Current: the newest traffic. Score: the candidate's, on both.",
        )
        artifacts.write_text(output / "drift.html", pages.page)
        artifacts.write_text(output / "snapshot.json", pages.snapshot)
        against_champion, names = None, ["drift.html"]
        champion_page = summary_page.render_nothing(
            "There is no champion yet, so there is no reference to compare with."
        )
        if champion:
            newest = _scored(current, scores / "champion_current.parquet")
            against_champion, its_pages = _against(config, registry, champion, newest, REPORTED)
            champion_page = its_pages.page if its_pages else summary_page.render_nothing(against_champion["note"])
            names += ["champion.html"] if its_pages else []
        artifacts.write_text(output / "champion.html", champion_page)
        part = candidate.part
        drift = {"candidate": part, "champion": against_champion, "limits": _limits(config)}
        artifacts.write_json(output / "drift.json", drift)
        artifacts.write_text(output / "summary.html", summary_page.render(drift, REPORTED, names, task="drift"))
        artifacts.seal(output)
        record.facts.update(part["rows"], share=part["share"], alarm=part["alarm"])
        drifted = [column["name"] for column in part["columns"] if column["drifted"]]
        progress.log_event("drift", "note", f"drifted: {', '.join(drifted) or 'no column'}")
        return part["share"]


def _limits(config: Drift) -> dict[str, float]:
    """What counted as drifted, for the gate, which says where that is looser than the default."""
    return {name: getattr(config, name) for name in ("numeric", "categorical", "score", "chance")}


def measure_champion_drift(
    config: Drift, registry: Registry, *, traffic: Path, scores: Path, champion: str, output: Path
) -> dict[str, Any]:
    """Ask the second question alone; write `drift.json`, `summary.html`, `drift.html` and `snapshot.json`.

    Where nothing is comparable `drift.html` says why, and there is no snapshot.

    Args:
        traffic: folder with `current.parquet` (newest traffic).
        scores: the champion's scores of it, a TRAFFIC_SCORES file.
        champion: version id.
        output: folder that the caller seals.

    Returns:
        The champion's part of `drift.json`, of which there is no other.

    Raises:
        InputError: the newest traffic or its scores are missing, empty, damaged or not aligned.
    """
    _clear(output)
    newest = _scored(_sample(traffic / "current.parquet"), scores)
    part, pages = _against(config, registry, champion, newest, WATCHED)
    drift = {"candidate": None, "champion": part}
    artifacts.write_json(output / "drift.json", drift)
    names = ["drift.html"] if pages else []
    artifacts.write_text(output / "summary.html", summary_page.render(drift, WATCHED, names, task="monitor"))
    page = pages.page if pages else summary_page.render_nothing(part["note"])
    artifacts.write_text(output / "drift.html", page)
    if pages:
        artifacts.write_text(output / "snapshot.json", pages.snapshot)
    return part


def _clear(output: Path) -> None:
    for name in ("drift.html", "champion.html", "snapshot.json", "summary.html", "drift.json"):
        (output / name).unlink(missing_ok=True)


def _sample(path: Path, columns: Sequence[str] = READ) -> pa.Table:
    table = schemas.read(path, schemas.TRAFFIC, columns)
    if not table.num_rows:
        raise InputError(f"{path}: no rows, expected a sample of traffic")
    return table


def _scored(sample: pa.Table, path: Path) -> pa.Table:
    scores = schemas.read(path, schemas.TRAFFIC_SCORES)
    if scores.num_rows != sample.num_rows:
        raise InputError(
            f"{path}: {scores.num_rows} scores, expected one for each of the {sample.num_rows} traffic rows"
        )
    return sample.append_column("score", scores["score"])


def _against(
    config: Drift, registry: Registry, champion: str, newest: pa.Table, consequence: str
) -> tuple[dict[str, Any], evidently_page.Pages | None]:
    """The champion's part of drift.json. Its reference is as old as the champion: what cannot be read is said."""
    version = registries.connect(registry).fetch(champion)
    path = version / "traffic" / "reference.parquet"
    try:
        there = pq.read_schema(path).names if path.is_file() else list(READ)
        names = [name for name in READ if name in there or name in ALWAYS]
        reference = _scored(_sample(path, names), version / "traffic" / "reference_scores.parquet")
    except (InputError, pa.ArrowInvalid) as error:
        note = f"not comparable: {error}; the next promotion stores a reference that is"
        progress.log_event("drift", "note", f"champion {champion}: {note}")
        return {**_nothing(note), "version": champion}, None
    encoder, unable = encoder_of(config, version / "student")
    found = compare_windows(config, reference, newest, encoder, names)
    _note(found, unable)
    lacking = [name for name in READ if name not in names]
    if lacking:
        _note(
            found,
            f"{path}: no column {', '.join(lacking)}, as an earlier version of distilrank wrote it: not compared; the "
            "next promotion stores a reference that has them.",
        )
    pages = _render(
        config,
        found,
        f"Has traffic moved away from the champion, {champion}?",
        "Reference: the traffic that the champion was promoted on. Current: the newest traffic. "
        f"Score: the champion's, on both. {consequence}",
    )
    return {**found.part, "version": champion}, pages


def _note(found: Compared, text: str) -> None:
    found.part["note"] = f"{found.part['note']} {text}".strip()


def _nothing(note: str) -> dict[str, Any]:
    """A part of drift.json that compares nothing."""
    none = {"reference": 0, "current": 0}
    return {
        "comparable": False, "share": 0.0, "drifted": False, "alarm": False, "why": [], "rows": none, "queries": none,
        "columns": [], "embedding": None, "examples": {"queries": []}, "new_queries": [], "new_query_share": 0.0,
        "new_product_types": [], "note": note,
    }  # fmt: skip


def _render(config: Drift, found: Compared, title: str, caption: str) -> evidently_page.Pages:
    part = found.part
    told = [f"{entry['name']}: {entry['note']}." for entry in part["columns"] if "note" in entry]
    return evidently_page.render(
        found.columns,
        found.bounds,
        config.share,
        config.page_rows,
        title=title,
        caption=caption,
        notes=[*filter(None, [part["note"]]), *told],
    )
