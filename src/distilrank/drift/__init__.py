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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distilrank import registry as registries
from distilrank.config import Drift, Registry
from distilrank.core import artifacts, progress, schemas
from distilrank.core.arrays import systematic_sample
from distilrank.core.errors import InputError
from distilrank.drift import columns, domain, evidently_page, summary_page
from distilrank.drift.columns import Column, Limits
from distilrank.modeling.bi_encoder import Retriever

MODEL = "student"
"""As `drift.encoder`: the encoder of the model in question, its mean over tokens, without its head."""
EMBEDDING = "embedding"
SMALL = 30
EXAMPLES = 20
TYPICAL = 10
MAX_TOKENS = 64

REPORTED = "Only reported: a drifted champion is a reason to retrain."
WATCHED = "Drift raises an alarm, which may start a new distillation."
"""What follows from a drifted champion, in a run and in `monitor`."""

READ = ("query_id", "query", "title", *schemas.TRAFFIC_NUMERIC, *schemas.TRAFFIC_CATEGORICAL)
_ALWAYS = ("query_id", "query", "title")
_UNITS = {"query_words": "words", "query_characters": "characters", "query_tokens": "tokens", "title_words": "words"}
_SHARES = {"unseen_words": "of the words unseen", "clicked": "clicked"}


def measure(
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
        encoder, unable = _encoder(config, student)
        candidate = compare(
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


def watch(
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


def keep(config: Drift, registry: Registry, *, drift: Path, name: str, newest_end: str) -> None:
    """Add a run's snapshot to the Evidently workspace, where drift is a line over time; once, however often called.

    The verdict does not depend on it: a workspace that cannot be used is one line of warning.

    Args:
        drift: folder with `snapshot.json` and `drift.json`; those of `watch` go into a project of their own, and
            nothing does where nothing was comparable.
        name: the run's.
        newest_end: ISO 8601, the end of the newest traffic, which is the point on the axis; empty: now.

    Raises:
        InputError: the folder is damaged.
    """
    if not config.workspace:
        return
    with artifacts.announcing("snapshot"):
        artifacts.require({"drift": drift})
    found = artifacts.read_json(drift / "drift.json")
    part = found["candidate"] or found["champion"]
    if not part["comparable"]:
        return
    at = datetime.fromisoformat(newest_end) if newest_end else datetime.now(UTC)
    try:
        added = evidently_page.push(
            config.workspace,
            f"distilrank {registry.uri}" + ("" if found["candidate"] else ", champion"),
            drift / "snapshot.json",
            against="the training window" if found["candidate"] else "the champion's reference",
            name=name,
            at=at if at.tzinfo else at.replace(tzinfo=UTC),
            facts={"share": f"{part['share']:.3f}", "alarm": _alarm(part)},
        )
    except InputError as error:
        progress.log_event("drift", "note", f"warning: {error}; the verdict stands, the history lacks this run")
        return
    progress.log_event("drift", "note", f"{config.workspace}: {'added' if added else 'already has'} {name}")


def _alarm(part: dict[str, Any]) -> str:
    """What raised the alarm: columns, or how many of them together."""
    counted = [column["drifted"] for column in part["columns"] if column["value"] is not None]
    return ", ".join(part["why"]) or (f"{sum(counted)} of {len(counted)} columns" if part["alarm"] else "none")


def check_workspace(config: Drift) -> None:
    """Look whether the workspace can be used, long before it is.

    Raises:
        InputError: it cannot.
    """
    if config.workspace:
        evidently_page.check(config.workspace)


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
        names = [name for name in READ if name in there or name in _ALWAYS]
        reference = _scored(_sample(path, names), version / "traffic" / "reference_scores.parquet")
    except (InputError, pa.ArrowInvalid) as error:
        note = f"not comparable: {error}; the next promotion stores a reference that is"
        progress.log_event("drift", "note", f"champion {champion}: {note}")
        return {**_nothing(note), "version": champion}, None
    encoder, unable = _encoder(config, version / "student")
    found = compare(config, reference, newest, encoder, names)
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


@dataclass(frozen=True)
class Compared:
    """Two samples, compared."""

    part: dict[str, Any]
    """Of drift.json."""
    columns: list[Column]
    """Those that have values."""
    bounds: dict[str, float]
    """The distance from which each of them has drifted."""


def compare(
    config: Drift,
    reference: pa.Table,
    current: pa.Table,
    encoder: Encoder | None,
    names: Sequence[str] = READ,
) -> Compared:
    """Say what differs between two samples of traffic.

    Args:
        reference: rows of TRAFFIC with a column `score` beside it; `current` likewise, scored by the same model.
        encoder: embeds the texts; None: they are not compared.
        names: the columns of TRAFFIC that both have.
    """
    queries = _query_codes(reference, current)
    compared = _columns(config, reference, current, names, queries)
    present = [column for column in compared if not column.absent]
    values = {column.name: columns.distance(column) for column in present}
    noise = columns.noise(present, config.chance)
    found = tuple(len(np.unique(side)) for side in queries)
    too_few = config.chance < 1 and min(found) < columns.FEWEST
    if too_few:
        noise = {name: max(bar, columns.beyond(values[name])) for name, bar in noise.items()}
    bounds = {column.name: max(column.threshold, noise[column.name]) for column in present}
    entries = [_entry(column, values.get(column.name), noise, bounds) for column in compared]

    notes = []
    smallest = min(reference.num_rows, current.num_rows)
    if min(found) < SMALL:
        notes.append(f"Samples of only {smallest} rows, {min(found)} queries: shifts that matter may well be missed.")
    if too_few:
        notes.append(f"Fewer than {columns.FEWEST} queries in a sample: chance explains any distance, so none counts.")
    embedding = None
    if encoder and config.embedding_rows:
        embedding = _embedding(config, reference, current, queries, encoder)
        if embedding:
            entries.append(_embedding_entry(embedding))
        else:
            notes.append(f"Embeddings not compared: fewer than {domain.FEWEST} queries in a sample.")

    counted = [entry for entry in entries if entry["value"] is not None]
    share = sum(entry["drifted"] for entry in counted) / len(counted)
    why = [entry["name"] for entry in entries if entry["drifted"] and entry["group"] in config.alarm]
    alarm = bool(why) or share > config.share
    new_queries = _new(reference, current, "query_id", "query")
    types = _new(reference, current, "product_type", "product_type") if "product_type" in names else []
    part = {
        "comparable": True,
        "share": share,
        "drifted": alarm,
        "alarm": alarm,
        "why": why,
        "rows": {"reference": reference.num_rows, "current": current.num_rows},
        "queries": {"reference": found[0], "current": found[1]},
        "columns": entries,
        "embedding": embedding,
        "examples": {"queries": [{"query": query, "rows": rows} for query, rows in new_queries[:EXAMPLES]]},
        "new_queries": [query for query, _ in new_queries[:EXAMPLES]],
        "new_query_share": sum(rows for _, rows in new_queries) / current.num_rows,
        "new_product_types": [name for name, _ in types[:EXAMPLES]],
        "note": " ".join(notes),
    }
    return Compared(part, present, bounds)


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


def _query_codes(reference: pa.Table, current: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The query of each row as a whole number, the same in both."""
    both = pa.chunked_array([*reference["query_id"].chunks, *current["query_id"].chunks], pa.string())
    codes = both.combine_chunks().dictionary_encode().indices.to_numpy()
    return codes[: reference.num_rows], codes[reference.num_rows :]


def _columns(
    config: Drift,
    reference: pa.Table,
    current: pa.Table,
    names: Sequence[str],
    queries: tuple[np.ndarray, np.ndarray],
) -> list[Column]:
    numeric = {name: group for name, group in schemas.TRAFFIC_NUMERIC.items() if name in names} | {"score": "score"}
    texts = {name: group for name, group in schemas.TRAFFIC_CATEGORICAL.items() if name in names}
    limits = Limits(config.numeric, config.categorical)
    of_score = Limits(config.score, config.categorical)
    return [
        *(
            columns.numeric(
                name,
                group,
                of_score if group == "score" else limits,
                (_floats(reference[name]), _floats(current[name])),
                queries,
            )
            for name, group in numeric.items()
        ),
        *(
            columns.categorical(name, group, limits, (reference[name], current[name]), queries)
            for name, group in texts.items()
        ),
    ]


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))


# Entries of drift.json --------------------------------------------------------------------------------------------


def _entry(column: Column, value: float | None, noise: dict[str, float], bounds: dict[str, float]) -> dict[str, Any]:
    bound = bounds.get(column.name, column.threshold)
    entry: dict[str, Any] = {
        "name": column.name,
        "group": column.group,
        "kind": column.kind,
        "statistic": columns.STATISTICS[column.kind],
        "value": value,
        "threshold": bound,
        "noise": noise.get(column.name, 0.0),
        "drifted": value is not None and value >= bound,
        "shift": _shift(column),
    }
    if column.kind == "numeric" and not column.absent:
        entry["reference_mean"] = float(column.reference.mean())
        entry["current_mean"] = float(column.current.mean())
    if column.kind == "categorical":
        entry["moved"] = _moved(column)
    if column.note:
        entry["note"] = column.note
    return entry


def _shift(column: Column) -> str:
    """One plain sentence on what changed."""
    if column.absent:
        return column.note
    if column.kind == "categorical":
        moved = _moved(column)
        if not moved:
            return column.note or "no category changed its share"
        return "; ".join(
            f"{row['value']} {_percent(row['current'])}, was {_percent(row['reference'])}" for row in moved
        )
    before, after = float(column.reference.mean()), float(column.current.mean())
    if column.name in _SHARES:
        return f"{_percent(after)} {_SHARES[column.name]}, was {_percent(before)}"
    unit = f" {_UNITS[column.name]}" if column.name in _UNITS else ""
    spread = (float(column.reference.std()), float(column.current.std()))
    text = f"mean {after:.3g}{unit}, was {before:.3g}"
    return (
        text if abs(spread[0] - spread[1]) < 0.1 * spread[0] else f"{text}; spread {spread[1]:.3g}, was {spread[0]:.3g}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _moved(column: Column) -> list[dict[str, Any]]:
    """The categories whose share changed most, with both shares."""
    if column.absent:
        return []
    before, after = (
        np.bincount(side, minlength=len(column.names)) / side.size for side in (column.reference, column.current)
    )
    order = sorted(
        range(len(column.names)), key=lambda place: (-abs(after[place] - before[place]), column.names[place])
    )
    return [
        {"value": column.names[place], "reference": float(before[place]), "current": float(after[place])}
        for place in order[:3]
        if after[place] != before[place]
    ]


def _new(reference: pa.Table, current: pa.Table, key: str, text: str) -> list[tuple[str, int]]:
    """What occurs in `current` under a `key` that `reference` lacks, with its rows, most frequent first."""
    fresh = pc.and_(
        pc.invert(pc.is_in(current[key], value_set=pc.unique(reference[key]))),
        pc.not_equal(pc.fill_null(current[key], ""), ""),
    )
    rows = pa.table({"key": current[key], "text": current[text]}).filter(fresh)
    counted = rows.group_by("key").aggregate([("text", "min"), ("key", "count")])
    found = zip(counted["text_min"].to_pylist(), counted["key_count"].to_pylist(), strict=True)
    return sorted(found, key=lambda item: (-item[1], item[0]))


# Embeddings -------------------------------------------------------------------------------------------------------


class Encoder(Protocol):
    """What turns texts into vectors."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of `texts`, float32, shape (n, dimension)."""


def _encoder(config: Drift, model: Path) -> tuple[Encoder | None, str]:
    """What embeds the texts, or why nothing does."""
    if not config.embedding_rows:
        return None, ""
    reference = str(model) if config.encoder == MODEL else config.encoder
    try:
        return Retriever(reference, max_tokens=MAX_TOKENS, precision="int8"), ""
    except InputError as error:
        if config.encoder != MODEL:
            raise
        return None, f"Embeddings not compared: {error}; drift.encoder may name a BERT sentence encoder instead."


def _embedding(
    config: Drift, reference: pa.Table, current: pa.Table, queries: tuple[np.ndarray, np.ndarray], encoder: Encoder
) -> dict[str, Any] | None:
    """The part of drift.json on embeddings; None where there are too few queries."""
    rows = [
        systematic_sample(table.num_rows, config.embedding_rows, np.random.default_rng(0))
        for table in (reference, current)
    ]
    samples = [table.take(pa.array(some)) for table, some in zip((reference, current), rows, strict=True)]
    before, after = _embed(encoder, samples)
    told = domain.fit_domain_classifier(before, after, queries[0][rows[0]], queries[1][rows[1]])
    if told is None:
        return None
    return {
        "auc": told.auc,
        "ci_low": told.ci_low,
        "ci_high": told.ci_high,
        "limit": config.embedding,
        "drifted": told.ci_low > config.embedding,
        "rows": {"reference": len(rows[0]), "current": len(rows[1])},
        "examples": _typical(samples[1], told.probability),
    }


def _embed(encoder: Encoder, samples: Sequence[pa.Table]) -> list[np.ndarray]:
    """Vectors of the query and of the title of each row, side by side, of each sample; each text is embedded once."""
    fields = ("query", "title")
    texts = [[text or "" for text in sample[field].to_pylist()] for sample in samples for field in fields]
    known = {text: place for place, text in enumerate(dict.fromkeys(text for some in texts for text in some))}
    vectors = encoder.embed(list(known))
    places = [np.array([known[text] for text in some], np.int64) for some in texts]
    return [np.hstack([vectors[places[2 * side]], vectors[places[2 * side + 1]]]) for side in range(len(samples))]


def _typical(current: pa.Table, probability: np.ndarray) -> list[dict[str, Any]]:
    """Rows that are most likely of the current window, one a query."""
    examples: dict[str, dict[str, Any]] = {}
    for row in np.argsort(-probability, kind="stable").tolist():
        query = current["query_id"][row].as_py()
        if query not in examples:
            examples[query] = {
                "query": current["query"][row].as_py(),
                "title": current["title"][row].as_py() or "",
                "probability": float(probability[row]),
            }
        if len(examples) == TYPICAL:
            break
    return list(examples.values())


def _embedding_entry(embedding: dict[str, Any]) -> dict[str, Any]:
    auc, low, high = (embedding[name] for name in ("auc", "ci_low", "ci_high"))
    return {
        "name": EMBEDDING,
        "group": EMBEDDING,
        "kind": "numeric",
        "statistic": "domain classifier ROC-AUC",
        "value": auc,
        "threshold": embedding["limit"],
        "noise": auc - low,
        "drifted": embedding["drifted"],
        "shift": f"a classifier tells the newest rows from the reference's with ROC-AUC {auc:.3f} ({low:.3f} to "
        f"{high:.3f}); 0.5 is chance",
        "note": "drifted where the lower end of the interval exceeds the limit",
    }
