"""Everything that is wrong with the data of a configuration, found without training or mining anything."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa

from distilrank import logstore, preflight, sources, splits
from distilrank.config import Config
from distilrank.corpus import Corpus, read
from distilrank.errors import InputError, RunStopped
from distilrank.problems import Problems
from distilrank.splits import SIDES

SAMPLE = 100_000
"""Products that a check of a sample reads."""
FEW = 3
"""Files of a log that it reads in any case: one of searches and one of events belong together."""


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    problems: Problems
    facts: dict[str, Any]
    """Counts, and what a sample left unseen, as JSON values."""


class _Sample:
    """The first products of a source, its judgements of them, and the newest files of its log."""

    def __init__(self, source: sources.Source) -> None:
        self._source = source
        self.left_out: list[str] = []
        self._cut: set[str] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def products(self, problems: Problems) -> Iterator[pa.RecordBatch]:
        keys: set[str] = set()
        for batch in self._source.products(problems):
            if len(keys) >= SAMPLE:
                self.left_out.append(f"products after the first {len(keys)}, and with them judgements of such products")
                self._cut = keys
                return
            keys.update(batch.column("product_id").to_pylist())
            yield batch

    def judgements(self, problems: Problems) -> pa.Table:
        table = self._source.judgements(problems)
        if self._cut is None:
            return table
        known = pa.array([key in self._cut for key in table["product_id"].to_pylist()], pa.bool_())
        return table.filter(known)

    def log(self) -> sources.Log | None:
        log = self._source.log()
        if log is None or len(log.parts) <= FEW:
            return log
        # Files are named by day as a rule, so the last one of each folder is the newest.
        newest = list({part.name.rpartition("/")[0]: part for part in log.parts}.values())
        self.left_out.append(f"{len(log.parts) - len(newest)} of {len(log.parts)} files of the log")
        return replace(log, parts=newest)


def check(config: Config, *, full: bool, schedule_time: str = "") -> Checked:
    """Run every validation of the data and collect what it finds.

    Args:
        config: the whole configuration; only `data`, `window` and `prepare` matter.
        full: read everything; else the first products and the newest files of the log, which takes seconds.
        schedule_time: as for a run.
    """
    problems = Problems(collect=True)
    facts: dict[str, Any] = {"read": "everything"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".check-", dir=".") as folder:
        try:
            _check(config, full, schedule_time, Path(folder), problems, facts)
        except (InputError, RunStopped) as error:
            where, separator, what = str(error).partition(": ")
            problems.add(where if separator else "data", what or str(error))
    facts["seconds"] = round(time.monotonic() - began, 1)
    return Checked(problems, facts)


def _check(
    config: Config, full: bool, schedule_time: str, folder: Path, problems: Problems, facts: dict[str, Any]
) -> None:
    source: Any = sources.open(config.data)
    source.check(problems)
    if problems.fatal:
        return  # a file or a column is missing: nothing that could be read would tell more
    if not full:
        source = _Sample(source)
    prepare = config.prepare
    bounds = "", "", ""
    log = source.log()
    whole_log = full or not source.left_out
    if log is not None:
        facts["log_files"] = len(log.parts)
    if log is not None and log.timed:
        store = logstore.LogStore(Path(prepare.store) if prepare.store else folder / "log")
        days = preflight.days_of(store, log)
        facts["log_days"] = {
            "first": str(min(days)),
            "last": str(max(days)),
            "days": len(days),
            "rows": sum(days.values()),
        }
        if whole_log:
            bounds = preflight.resolve_window(config.window, schedule_time, days)
        else:  # the days of these files are all that there is to see
            bounds = _midnight(min(days)), _midnight(max(days)), _midnight(date.fromordinal(max(days).toordinal() + 1))
    with logstore.connect(folder) as connection:
        corpus = read(source, prepare, *bounds, connection=connection, scratch=folder, problems=problems)
        _describe(corpus, config, facts)
        if not full and source.left_out:
            facts["read"], facts["not_read"] = "a sample", source.left_out
        if corpus.logged and not corpus.impressions.any() and not corpus.newest.any():
            problems.add("log", "no impression of a known product by a query that may be kept, expected some")
        split = splits.split(corpus.judged.query, corpus.position, prepare)
        facts["splits"] = {use: len(places) for use, places in split.queries.items()}
        texts = {side: corpus.queries.take(pa.array(split.queries[side])).to_pylist() for side in SIDES}
        splits.check_leaks(texts, prepare)


def _midnight(day: date) -> str:
    return f"{day}T00:00:00+00:00"


def _describe(corpus: Corpus, config: Config, facts: dict[str, Any]) -> None:
    facts["rows"] = corpus.rows
    facts["queries"] = {
        "distinct": len(corpus.query_ids),
        "judged": len(set(corpus.judged.query.tolist())),
        "in the training window": int((corpus.impressions > 0).sum()),
        "in the newest traffic": int((corpus.newest > 0).sum()),
    }
    facts["merged"] = corpus.merged
    if corpus.logged:
        facts["privacy"] = corpus.privacy
    module = sources.module_of(config.data)
    if hasattr(module, "gain_mappings"):
        facts["gain mappings"] = module.gain_mappings()
