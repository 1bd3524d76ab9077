"""The prepare stage: from judgements, catalogue and log to splits, candidates, shards, traffic and a data profile.

Queries of the dev and test sides never become candidates, not even those without a judgement: otherwise the student
would be tested on products that it was trained on for the same query. Memory grows with the catalogue's short
fields, the judged pairs and the distinct queries, not with the rows of the log.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from distilrank.config import Data, Prepare
from distilrank.core import artifacts, normalize, progress, schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.core.schemas import SIDES, STRATA
from distilrank.core.scratch import scratch_folder
from distilrank.data import log_store, profile_page, shards, sources, splits
from distilrank.data import profile as data_profile
from distilrank.data import traffic as traffic_samples
from distilrank.data.bm25 import Index
from distilrank.data.candidates import Embedded, Miner
from distilrank.data.corpus import Corpus, read
from distilrank.data.judgements import soft_targets
from distilrank.data.profile import CandidateStats
from distilrank.data.sources.base import Source
from distilrank.data.splits import Split
from distilrank.data.traffic import Traffic
from distilrank.data.window import LogWindow
from distilrank.modeling import references
from distilrank.modeling.bi_encoder import Retriever, TokenCounter
from distilrank.modeling.neighbors import Neighbors

STAGE = "prepare"
_ROWS_AT_ONCE = shards.ROWS_AT_ONCE


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body."""
        began = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 2)


@dataclass(frozen=True)
class _Preparation:
    """Shared state of the phases of one run of the stage."""

    config: Prepare
    data: Data
    window: LogWindow
    source: Source
    problems: Problems
    corpus: Corpus
    split: Split
    index: Index
    tokens: TokenCounter

    def query_texts(self) -> dict[str, list[str]]:
        """The texts of the judged queries, by side."""
        return {side: self.corpus.texts(self.split.queries[side]) for side in SIDES}


def prepare(
    config: Prepare,
    data: Data,
    window: LogWindow,
    *,
    judgements: Path,
    candidates: Path,
    traffic: Path,
    profile: Path,
) -> list[str]:
    """Write the judgements by split, the candidates by shard, both samples of traffic and the data profile.

    Dev and test keep the first `dev_queries` and `test_queries` queries in hash order. Train keeps the first queries
    in hash order whose pairs fit into `judged_pairs` (at least one query); the pairs of its other queries join the log
    without rating, time or click. A judged train query that is also in the log is among both judgements and
    candidates: its ratings train the student by the supervised loss, its other products by the teacher's scores.

    Args:
        config: settings of the stage.
        data: source of the data.
        window: windows of the log to read.
        judgements: folder for train.parquet, dev.parquet, test.parquet and protocol.json.
        candidates: folder for shard-00000.parquet and so on.
        traffic: folder for reference.parquet and current.parquet.
        profile: folder for profile.json, profile.html and stage.json.

    Returns:
        Names of the shards, without suffix.

    Raises:
        InputError: the data is unusable, or a split, a window or the candidates are empty.
        RunStopped: a query is on two sides.
    """
    clock = _Clock()
    with (
        artifacts.stage(STAGE, profile, config=config) as record,
        scratch_folder() as scratch,
        log_store.connect(scratch) as connection,
    ):
        record.inputs["data"] = window.data_digest
        run = _read(config, data, window, connection, scratch, clock)
        with clock.phase("embed"):
            embedded = _embed(run.corpus, config, scratch)
        for folder in (judgements, candidates, traffic):
            _clear(folder)
        with clock.phase("traffic"):
            sampled = _write_traffic(run, traffic)
        with clock.phase("judged"):
            _write_judgements(run, sampled.basis, judgements)
        with clock.phase("candidates"):
            miner = Miner(run.corpus, run.split, run.index, embedded, config)
            written, stats = _write_candidates(run, miner, candidates)
        for name, seconds in miner.seconds.items():
            clock.seconds[f"candidates_{name}"] = round(seconds, 2)
        with clock.phase("profile"):
            summary = _write_profile(run, miner, written, stats, sampled, profile)
        record.facts.update(
            splits=summary["splits"],
            candidates=stats.pairs,
            shards=len(written),
            merged=run.corpus.merged,
            seconds=clock.seconds,
        )
        pairs = ", ".join(f"{side} {len(run.split.rows[side])}" for side in SIDES)
        progress.log_event(
            STAGE, "note", f"judged pairs: {pairs}; {stats.pairs} candidates of {len(miner.queries)} queries"
        )
        return [shard["name"] for shard in written]


def sample_newest(config: Prepare, data: Data, window: LogWindow, *, traffic: Path) -> int:
    """Write only the sample of the newest traffic, as `prepare` would: the input of monitoring.

    Args:
        config: settings of the stage.
        data: source of the data.
        window: windows of the log, which must have times.
        traffic: folder for current.parquet.

    Returns:
        Number of its rows.

    Raises:
        InputError: the data is unusable, or a window is empty.
    """
    with artifacts.stage("sample", traffic, config=config) as record:
        record.inputs["data"] = window.data_digest
        _clear(traffic)
        with scratch_folder() as scratch, log_store.connect(scratch) as connection:
            source, problems = sources.open(data), Problems()
            corpus = read(source, config, window, connection=connection, scratch=scratch, problems=problems)
            sampled = traffic_samples.sample(corpus, config)
            index, tokens = _index(corpus), TokenCounter(config.retriever.model)
            traffic_samples.write(corpus, index, tokens, sampled.current, traffic / "current.parquet")
        artifacts.seal(traffic)
        rows = len(sampled.current.query)
        record.facts.update(rows=rows, basis=sampled.basis)
        return rows


# The phases, in their order


def _read(
    config: Prepare,
    data: Data,
    window: LogWindow,
    connection: duckdb.DuckDBPyConnection,
    scratch: Path,
    clock: _Clock,
) -> _Preparation:
    """Read, check and split the data, and index the catalogue."""
    problems = Problems()
    source = sources.open(data)
    with clock.phase("read"):
        corpus = read(source, config, window, connection=connection, scratch=scratch, problems=problems)
    for problem in problems:
        progress.log_event(STAGE, "note", f"left out or unusual: {problem.line()}")
    split = splits.split(corpus.judged.query, corpus.position, config)
    with progress.timed(STAGE, f"indexed {len(corpus.catalogue)} products"), clock.phase("index"):
        index = _index(corpus)
    tokens = TokenCounter(config.retriever.model)
    return _Preparation(config, data, window, source, problems, corpus, split, index, tokens)


def _index(corpus: Corpus) -> Index:
    try:
        return Index(_product_texts(corpus), corpus.languages)
    except ValueError:
        raise InputError(f"catalogue: none of {len(corpus.catalogue)} products has a word in its title") from None


def _product_texts(corpus: Corpus) -> Iterator[str]:
    for start in range(0, len(corpus.catalogue), _ROWS_AT_ONCE):
        yield from corpus.catalogue.texts(np.arange(start, min(start + _ROWS_AT_ONCE, len(corpus.catalogue))))


def _embed(corpus: Corpus, config: Prepare, scratch: Path) -> Embedded | None:
    """Embed the catalogue, unless its vectors are in `log_cache_dir`; None if no candidates are mined by embeddings."""
    if not config.from_disagreement:
        return None
    settings = config.retriever
    retriever = Retriever(settings.model, max_tokens=settings.max_tokens, precision=settings.precision)
    texts_digest = hashlib.sha256()
    for text in _product_texts(corpus):
        texts_digest.update(text.encode() + b"\0")
    key = artifacts.digest_json(
        [references.digest(settings.model), settings.max_tokens, settings.precision, texts_digest.hexdigest()]
    )
    folder = Path(config.log_cache_dir) if config.log_cache_dir else scratch
    path = folder / "vectors" / f"{key[:32]}.npy"
    if not path.exists():
        artifacts.remove_stale(path.parent)
        _write_vectors(corpus, retriever, path)
    return Embedded(retriever, Neighbors(np.load(path, mmap_mode="r")))


def _write_vectors(corpus: Corpus, retriever: Retriever, path: Path) -> None:
    """Write the products' vectors as the rows of a float16 array in NumPy's format."""
    count, dtype = len(corpus.catalogue), np.dtype(np.float16)
    header = {"descr": dtype.str, "fortran_order": False, "shape": (count, retriever.dimension)}
    counter = progress.Counter(STAGE, count, "products embedded")
    with artifacts.replacing(path) as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        for start in range(0, count, _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, count))
            handle.write(retriever.embed(corpus.catalogue.texts(rows)).astype(dtype, copy=False).tobytes())
            counter.add(len(rows))


def _clear(folder: Path) -> None:
    """Remove the output of an earlier attempt, its seal first, so that no half-written folder looks complete."""
    (folder / artifacts.SEAL).unlink(missing_ok=True)
    for path in (*folder.glob("*.parquet"), *folder.glob(artifacts.PARTIAL)):
        path.unlink()


def _write_traffic(run: _Preparation, folder: Path) -> Traffic:
    """Write reference.parquet and current.parquet."""
    sampled = traffic_samples.sample(run.corpus, run.config)
    for name, impressions in sampled.samples.items():
        traffic_samples.write(run.corpus, run.index, run.tokens, impressions, folder / f"{name}.parquet")
    artifacts.seal(folder)
    return sampled


def _write_judgements(run: _Preparation, basis: str, folder: Path) -> None:
    """Write the judged pairs of each side, and protocol.json."""
    texts = run.query_texts()
    splits.check_leaks(texts, run.config)
    for side in SIDES:
        _write_side(run, run.split.rows[side], folder / f"{side}.parquet")
    counts = splits.near_duplicates({side: texts[side] for side in ("train", "test")}, run.index.stem)["pairs"]
    share = counts["test and train"] / max(len(texts["test"]), 1)  # the gate has a limit
    artifacts.write_json(folder / "protocol.json", _protocol(run, basis) | {"near_duplicates": share})
    artifacts.seal(folder)


def _write_side(run: _Preparation, rows: np.ndarray, path: Path) -> None:
    corpus = run.corpus
    rows = rows[corpus.order_by_product_id(corpus.judged.take(rows))]
    with schemas.Writer(path, schemas.JUDGED) as writer:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            chunk = rows[start : start + _ROWS_AT_ONCE]
            pairs = corpus.judged.take(chunk)
            columns = {
                **corpus.pair_columns(pairs),
                "target": corpus.targets[chunk],
                "gain": corpus.gains[chunk],
                "raters": corpus.raters[chunk],
                "locale": corpus.locales.take(pa.array(chunk)),
                "stratum": shards.to_names(corpus.stratum[pairs.query], STRATA),
                "bm25": corpus.bm25_scores(run.index, pairs),
            }
            writer.write(pa.table(columns))


def _protocol(run: _Preparation, basis: str) -> dict[str, Any]:
    """How the judgements were split and must be evaluated, as JSON values."""
    config, corpus, source = run.config, run.corpus, run.source
    has_own_gains = not np.array_equal(corpus.gains, corpus.targets)
    stems = "English" if run.index.languages == ("en",) else ", ".join(sorted(run.index.languages))
    return {
        "source": run.data.source,
        "rating_range": list(source.rating_range),
        "relevant_from": float(soft_targets(np.array([source.relevant_from]), source.rating_range)[0]),
        "split": {
            "by": "query in normal form, salted SHA-256",
            "salt": config.salt,
            "plurals": config.plurals,
            "dotless_i": config.language in normalize.DOTLESS,
            "dev_share": config.dev_share,
            "test_share": config.test_share,
            "draw": config.test_fold,
        },
        "ties": "broken by product id, ascending",
        "gain": "the source's own, linear" if has_own_gains else "soft target, linear",
        "bm25": f"whole catalogue; title, product type, brand, color, gender; k1 1.2, b 0.75, {stems} stems",
        "strata": splits.CUT if corpus.logged else "there is no log: all queries are tail",
        "traffic": basis,
    }


def _write_candidates(run: _Preparation, miner: Miner, folder: Path) -> tuple[list[dict[str, Any]], CandidateStats]:
    """Write the shards; return their descriptions, and counts of the candidates."""
    splits.check_leaks({"candidates": run.corpus.texts(miner.queries)}, run.config)
    stats = CandidateStats(len(run.corpus.catalogue))
    written = shards.write(run.corpus, miner, run.tokens, run.config.shards, folder, stats)
    artifacts.seal(folder)
    return written, stats


def _write_profile(
    run: _Preparation,
    miner: Miner,
    written: list[dict[str, Any]],
    stats: CandidateStats,
    sampled: Traffic,
    folder: Path,
) -> dict[str, Any]:
    """Write profile.json and its page; return the profile."""
    texts = {**run.query_texts(), "candidates": run.corpus.texts(miner.queries)}
    window = run.window
    summary = {
        "source": run.data.model_dump(mode="json"),
        "data_digest": window.data_digest,
        "windows": {
            "reference_start": window.reference_start,
            "newest_start": window.newest_start,
            "newest_end": window.newest_end,
        },
        **data_profile.describe(run.corpus, run.split, run.index, stats, run.tokens, run.problems, run.config),
        "near_duplicates": splits.near_duplicates(texts, run.index.stem),
        "shards": written,
        "traffic": {
            "basis": sampled.basis,
            "rows": {name: len(impressions.query) for name, impressions in sampled.samples.items()},
        },
    }
    artifacts.write_json(folder / "profile.json", summary)
    artifacts.write_text(folder / "profile.html", profile_page.render(summary))
    artifacts.seal(folder, only=["profile.json", "profile.html"])
    return summary
