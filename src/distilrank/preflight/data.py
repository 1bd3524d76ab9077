"""Checks of the data source and its log, and their pinning by a digest and a window."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from distilrank.config import Config, Prepare
from distilrank.core import artifacts, progress
from distilrank.core.problems import Problems
from distilrank.data import sources
from distilrank.data.log_store import LogStore, make_scrubber
from distilrank.data.log_tables import required_clients
from distilrank.data.sources import base
from distilrank.data.window import LogWindow, count_rows_by_day, resolve_window


def open_source(config: Config) -> tuple[base.Source, base.Log | None]:
    """Open the data source and its log, and check their files, columns and privacy settings."""
    source = sources.open(config.data)
    source.check(Problems())
    log = source.log()
    if log is not None:
        required_clients(log, config.prepare)
        make_scrubber(config.prepare.privacy)
    return source, log


def pin_data(
    config: Config,
    source: base.Source,
    log: base.Log | None,
    *,
    stage: str,
    schedule_time: str,
    retriever_digest: str,
    output: Path,
) -> LogWindow:
    """Resolve the log window, and digest the data within it.

    Args:
        config: the whole configuration.
        source: the data source.
        log: its log, if it has one.
        stage: the stage that logs notes.
        schedule_time: of the run, ISO 8601; used where `window.end` is `schedule`.
        retriever_digest: digest of the model whose tokens and vectors preparation uses.
        output: folder for a temporary log cache, if none is configured.

    Returns:
        The windows, without times where the log has none, and the digest.
    """
    window = LogWindow()
    with progress.timed(stage, "digested the data"), _log_store(config.prepare, output) as store:
        if log is not None and log.timed:
            window = resolve_window(config.window, schedule_time, count_rows_by_day(store, log))
        elif config.window.end != "latest":
            progress.log_event(stage, "note", f"window.end {config.window.end} has no effect: the log has no time")
        content = {
            "source": source.digest(),
            "log": [log.settings, store.digests(log, window.first_day, window.end_day)] if log else None,
            "retriever": retriever_digest,
        }
        return replace(window, data_digest=artifacts.digest_json(content))


@contextlib.contextmanager
def _log_store(prepare: Prepare, output: Path) -> Iterator[LogStore]:
    """Open the configured cache of the log, or a temporary one."""
    if prepare.log_cache_dir:
        yield LogStore(Path(prepare.log_cache_dir))
    else:
        with tempfile.TemporaryDirectory(prefix=".log-", dir=output) as folder:
            yield LogStore(Path(folder))
