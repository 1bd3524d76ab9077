"""`distilrank data check`: validate the data of a configuration without training or mining."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from distilrank.config import Config
from distilrank.core.errors import InputError, RunStopped
from distilrank.core.problems import Problems
from distilrank.core.schemas import SIDES
from distilrank.core.scratch import scratch_folder
from distilrank.data import log_store, sources, splits
from distilrank.data.corpus import Corpus, read
from distilrank.data.sources.base import Log, Source
from distilrank.data.window import LogWindow, count_rows_by_day, resolve_window

SAMPLE = 100_000
"""Most products that a check of a sample reads."""
FEW = 3
"""Logs of at most this many files are read in full, since a file of searches and one of events belong together."""


@dataclass(frozen=True)
class Checked:
    """Result of a check."""

    problems: Problems
    facts: dict[str, Any]
    """Counts, and what a sample did not read, as JSON values."""


class _Part:
    """A part of a source: the first products, its judgements of them, and some files of its log.

    Args:
        source: the complete source.
        log: the files to read, instead of the whole log.
        most: most products to read; 0: all.
    """

    def __init__(self, source: Source, log: Log | None, most: int) -> None:
        self._source, self._log, self._most = source, log, most
        self.seen: set[str] | None = None
        """The products that were read, unless all were."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def log(self) -> Log | None:
        return self._log

    def products(self, problems: Problems) -> Iterator[pa.RecordBatch]:
        keys: set[str] = set()
        for batch in self._source.products(problems):
            if self._most and len(keys) >= self._most:
                self.seen = keys
                return
            keys.update(batch.column("product_id").to_pylist())
            yield batch

    def judgements(self, problems: Problems) -> pa.Table:
        table = self._source.judgements(problems)
        if self.seen is None:
            return table
        is_known = pa.array([key in self.seen for key in table["product_id"].to_pylist()], pa.bool_())
        return table.filter(is_known)


def _newest(log: Log, data: Any) -> Log:
    """The log with only the last file below each configured path; files are usually named by day."""
    references = [reference for name in ("queries", "events", "logs") if (reference := getattr(data, name, ""))]
    chosen = [
        part
        for reference in references
        for part in [part for part in log.parts if part.name.startswith(reference)][-1:]
    ]
    return replace(log, parts=chosen or log.parts[-1:])


def _readable(log: Log, store: log_store.LogStore, problems: Problems) -> Log:
    """The log without unreadable files, which are reported as problems."""
    good = []
    for part in log.parts:
        try:
            store.summary(part, log.settings)
            good.append(part)
        except InputError as error:
            problems.add(part.name, str(error).removeprefix(f"{part.name}: "))
    return replace(log, parts=good)


def check(config: Config, *, full: bool, schedule_time: str = "") -> Checked:
    """Run all validations of the data and collect the problems.

    Args:
        config: the whole configuration; only `data`, `window` and `prepare` matter.
        full: read everything, instead of the first products and the newest files of the log, which takes seconds.
        schedule_time: as for a run.
    """
    problems = Problems(collect=True)
    facts: dict[str, Any] = {"read": "everything"}
    began = time.monotonic()
    with scratch_folder() as folder:
        try:
            _check(config, full, schedule_time, folder, problems, facts)
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
        return  # a file or a column is missing, so reading on would report nothing new
    prepare = config.prepare
    log_window = LogWindow()
    log = source.log()
    whole_log = log is None or full or len(log.parts) <= FEW
    not_read: list[str] = []
    if log is not None:
        facts["log_files"] = len(log.parts)
        if not whole_log:
            files = len(log.parts)
            log = _newest(log, config.data)
            not_read.append(f"{files - len(log.parts)} of {files} files of the log")
        store = log_store.LogStore(Path(prepare.log_cache_dir) if prepare.log_cache_dir else folder / "log")
        log = _readable(log, store, problems)
        if not log.parts:
            log = None
    if log is not None and log.timed:
        days = count_rows_by_day(store, log)
        first, last = min(days), max(days)
        facts["log_days"] = {"first": str(first), "last": str(last), "days": len(days), "rows": sum(days.values())}
        if whole_log:
            log_window = resolve_window(config.window, schedule_time, days)
        else:  # only the days of these files were read
            log_window = LogWindow.of_days(first, last, last + timedelta(days=1))
    source = _Part(source, log, 0 if full else SAMPLE)
    with log_store.connect(folder) as connection:
        corpus = read(source, prepare, log_window, connection=connection, scratch=folder, problems=problems)
        _describe(corpus, config, facts)
        if source.seen is not None:
            not_read.append(f"products after the first {len(source.seen)}, and with them judgements of such products")
            problems.discard("log", "impressions of products that are not in the catalogue")
        if not_read:
            facts["read"], facts["not_read"] = "a sample", not_read
        elif corpus.logged and not corpus.impressions.any() and not corpus.newest.any():
            what = f"no impression of a known product by a query that may be kept, expected some{corpus.left_out}"
            problems.add("log", what)
        split = splits.split(corpus.judged.query, corpus.position, prepare)
        facts["splits"] = {use: len(places) for use, places in split.queries.items()}
        texts = {side: corpus.queries.take(pa.array(split.queries[side])).to_pylist() for side in SIDES}
        splits.check_leaks(texts, prepare)


def _describe(corpus: Corpus, config: Config, facts: dict[str, Any]) -> None:
    facts["rows"] = corpus.rows
    facts["queries"] = {
        "distinct": len(corpus.query_ids),
        "judged": len(set(corpus.judged.query.tolist())),
        "in the training window": int((corpus.impressions > 0).sum()),
        "in the newest traffic": int((corpus.newest > 0).sum()),
    }
    facts["merged"] = corpus.merged
    if corpus.agreement:
        facts["rater agreement"] = corpus.agreement
    if corpus.logged:
        facts["privacy"] = corpus.privacy
    module = sources.module_of(config.data)
    if hasattr(module, "gain_mappings"):
        facts["gain mappings"] = module.gain_mappings()
