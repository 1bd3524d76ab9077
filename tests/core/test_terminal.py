"""What commands print is whole wherever it goes: a pipe has no width, and a terminal continues on the next line."""

from __future__ import annotations

import io
import logging
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from distilrank import config
from distilrank.core import artifacts, progress
from distilrank.registry import connect
from distilrank.serving import server
from pipelines import __main__, summary
from tests.promotions import fill

DIGEST = "0123456789abcdef" * 4
PRINT = f"""
from distilrank.core import terminal
out = terminal.console()
table = terminal.new_table("what", "digest", "path", title="/folder" * 30 + ": ready")
table.add_row("model", "{DIGEST}", "/models" * 30)
out.print(table)
out.print("see " + "/report" * 30)
"""


@pytest.fixture(autouse=True)
def no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A folder whose path has more than 200 characters."""
    folder = tmp_path / ("a" * 100) / ("b" * 100)
    folder.mkdir(parents=True)
    return folder


def command(module: str, *arguments: object) -> str:
    """What `python -m module` prints into a pipe."""
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    ended = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "…" not in ended.stdout
    return ended.stdout


@pytest.mark.parametrize("columns", ["", "40"])
def test_a_pipe_gets_every_cell_and_title_on_one_line(columns: str) -> None:
    environment = os.environ | ({"COLUMNS": columns} if columns else {})
    printed = subprocess.run([sys.executable, "-c", PRINT], env=environment, capture_output=True, text=True).stdout
    for text in (DIGEST, "/models" * 30, "/folder" * 30 + ": ready", "see " + "/report" * 30):
        assert text in printed
    assert len(printed.splitlines()) == 7


@pytest.mark.parametrize("columns", [30, 80])
def test_a_terminal_continues_long_words_on_the_next_line(columns: int) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen([sys.executable, "-c", PRINT], stdout=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    printed = b""
    try:
        while piece := os.read(ours, 4096):
            printed += piece
    except OSError:  # how Linux tells that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", printed.decode()).splitlines()
    assert max(map(len, lines)) <= columns and "…" not in "".join(lines)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert ["".join(cells) for cells in zip(*rows, strict=True)] == ["model", DIGEST, "/models" * 30]
    title = "".join(line.strip() for line in lines[: next(i for i, line in enumerate(lines) if line.startswith("┏"))])
    assert title.replace(" ", "") == "/folder" * 30 + ":ready"


@pytest.mark.usefixtures("warm_workers")
def test_preflight_and_data_check_print_whole_digests_and_paths(deep: Path, models: Path) -> None:
    data = {"source": "demo_shop", "products": 200, "queries": 40, "judged_queries": 20, "searches": 300}
    values = {
        "data": data,
        "registry": {"uri": str(deep / "registry")},
        "teacher": {"model": str(models / "decoder")},
        "student": {"model": str(models / "encoder"), "export": {"onnx": False}},
    }
    path = deep / "run.yaml"
    artifacts.write_json(path, values)
    printed = command("distilrank", "preflight", "--config", path)
    assert re.search(r"data digest +│ [0-9a-f]{64} ", printed) and f"{path}: ready to run" in printed
    assert f"{path}: " in command("distilrank", "data", "check", "--config", path)


def test_the_registry_prints_whole_versions_and_paths(deep: Path) -> None:
    uri = str(deep / "registry")
    first, second = fill(config.Registry(uri=uri), deep, "a", "b")
    digests = set(re.findall(r"[0-9a-f]{64}", str(connect(config.Registry(uri=uri)).manifest(second)["lineage"])))
    assert digests
    listed = command("distilrank", "registry", "list", "--registry", uri)
    assert f"registry {uri}\n" in listed and first in listed and second in listed
    shown = command("distilrank", "registry", "show", "champion", "--registry", uri)
    assert digests & set(re.findall(r"[0-9a-f]{64}", shown))
    assert f"registry {uri}\n" in command("distilrank", "registry", "verify", "--registry", uri)
    compared = command("distilrank", "registry", "diff", first, second, "--registry", uri)
    assert first in compared and second in compared


def test_the_summary_of_a_run_is_whole(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.write_json(deep / "metrics.json", {"systems": {"student" * 20: dict.fromkeys(summary.METRICS, 0.5)}})
    artifacts.write_json(deep / "timings.json", {"seconds": 1, "peak_memory_mib": 1})
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    path = deep / "run.yaml"
    artifacts.write_json(path, {"data": {"source": "demo_shop"}, "name": "n" * 40})
    with __main__._local_run("distill", path, None, "n" * 100, "") as (console, _, name):
        summary.show_run(console, deep, {"outcome": "refused", "checks": []})
    output = printed.getvalue()
    assert f"distill {name}: " in output and str(deep / "report.html") in output
    assert "student" * 20 + "  0.5000" in output and "recall at 95 % precision" in output and "…" not in output


CONTROLS = "\x00\x07\b\r\x1b[2J\x7f\x9b31m"


@pytest.mark.parametrize("form", [server._Text, server._Json])
def test_no_text_of_a_request_commands_the_terminal_that_shows_the_log(form: type[logging.Formatter]) -> None:
    record = logging.LogRecord("app", logging.INFO, "", 1, f"refused {CONTROLS}", None, None)
    record.facts = {"path": f"/v1/{CONTROLS}"}
    line = form().format(record)
    assert not set(line) & set(CONTROLS.replace("[2J", "").replace("31m", "")) and "[2J" in line


def test_no_text_of_the_data_commands_the_terminal_that_shows_a_stage() -> None:
    line = progress.line("prepare", "note", f"title {CONTROLS}", "東京\u00a0🛋️")
    assert line == r"distilrank | prepare | note | title \x00\x07\x08 \x1b[2J\x7f\x9b31m | 東京 🛋️"
    assert progress.printable("a\tb\nc") == "a\tb\nc"
