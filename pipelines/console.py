"""Terminal display of a local run: one line or progress bar per stage; all output goes to a log file."""

from __future__ import annotations

import io
import re
import threading
import time
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from distilrank.core import progress

CACHE_HIT = re.compile(r"Task (?P<task>[\w-]+) cache hit")
PLAIN_INTERVAL = 15.0  # seconds between progress lines of a stage without a terminal


class RunDisplay(io.TextIOBase):
    """Replaces standard output while KFP runs: logs every line, and displays the log events of stages.

    KFP prints from several threads, partly in fragments, so lines are assembled per thread.
    """

    def __init__(self, log: Path, console: Console, stages: dict[str, str]) -> None:
        """
        Args:
            log: file for all lines.
            console: console of the user.
            stages: stage by name of the KFP task.
        """
        self.console, self.stages = console, stages
        self.failures: list[progress.Event] = []
        self.last_error = ""
        self._log: TextIO = log.open("a", encoding="utf-8")
        self._pending = threading.local()
        self._lock = threading.Lock()
        self._bars: dict[str, TaskID] = {}
        self._shown: dict[str, float] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=console,
        )

    def __enter__(self) -> RunDisplay:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self._progress.stop()
        self._log.close()

    def write(self, text: str) -> int:
        pending = getattr(self._pending, "text", "") + text
        *lines, self._pending.text = pending.split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    def writable(self) -> bool:
        return True

    def _line(self, line: str) -> None:
        with self._lock:
            self._log.write(line + "\n")
            self._log.flush()
            event = progress.parse(line)
            hit = CACHE_HIT.search(line)
            if event:
                self._show(event)
            elif hit:
                self._finish(self.stages.get(hit["task"], hit["task"]), "reused from an earlier run")
            elif re.match(r"\s*[\w.]*(Error|Exception|Interrupt|Killed)\b", line):
                self.last_error = line.strip()

    def _show(self, event: progress.Event) -> None:
        if event.event in ("bad input", "stopped"):
            self.failures.append(event)
        elif event.event == "failed":
            self.last_error = event.text
        elif event.event == "started":
            self._begin(event.stage)
        elif event.event == "finished":
            self._finish(event.stage, event.text.replace(" | ", ", "))
        elif event.event == "outcome":
            pass  # for programs; notes say the same to people
        elif event.event == "note":
            self.console.print(
                f"  {event.stage:<12} {event.text}", style="dim", markup=False, highlight=False, soft_wrap=True
            )
        else:
            self._advance(event)

    def _begin(self, stage: str) -> None:
        if self.console.is_terminal:
            self._bars[stage] = self._progress.add_task(stage, total=None, text="")
        else:
            self.console.print(f"  {stage:<12} started", markup=False, highlight=False, soft_wrap=True)
        self._shown[stage] = time.monotonic()

    def _advance(self, event: progress.Event) -> None:
        count = progress.COUNT.match(event.text)
        if count is None:
            return
        if event.stage in self._bars:
            text = f"{count['done']}/{count['total']} {count['unit']}, " + (count["text"] or "").replace(" | ", ", ")
            self._progress.update(
                self._bars[event.stage], total=int(count["total"]), completed=int(count["done"]), text=text
            )
        elif time.monotonic() - self._shown.get(event.stage, 0) >= PLAIN_INTERVAL:
            self._shown[event.stage] = time.monotonic()
            self.console.print(
                f"  {event.stage:<12} {event.text.replace(' | ', ', ')}", markup=False, highlight=False, soft_wrap=True
            )

    def _finish(self, stage: str, text: str) -> None:
        if self.console.is_terminal:
            if stage not in self._bars:
                self._begin(stage)
            self._progress.update(self._bars[stage], total=1, completed=1, text=text)
            self._progress.stop_task(self._bars[stage])
        else:
            self.console.print(f"✓ {stage:<12} {text}", markup=False, highlight=False, soft_wrap=True)
