"""What the pages name exists: files, modules, settings, commands, tests."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from distilrank import cli
from distilrank.config.loading import RENAMED
from pipelines import __main__ as pipelines_cli

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
GENERATED = ("configuration.md",)
WRITTEN = [page for page in PAGES if page.name not in GENERATED]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")
FOLDERS = "src|tests|components|pipelines|configs|images|helm|benchmarks|docs"
FILE = re.compile(rf"(?:{FOLDERS})/[\w./-]+")
MADE = ("benchmarks/containers.yaml", "images/wheels/", "docs/site")
"""Paths that are there only after a command, or that name a folder of the reader's."""
TABLE_OF_SETTINGS = re.compile(r"^\| `([\w.*]+)` \|", re.MULTILINE)
SECTION_FILES = ("html", "json", "md", "parquet", "csv", "yaml", "pt", "npy", "run", "txt", "prom")

by_page = pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)


def _inline(page: Path) -> list[str]:
    """Everything in backticks outside of code blocks."""
    return INLINE.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))


@by_page
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {path for code in _inline(page) for path in FILE.findall(code) if code.startswith(path)}
    linked = {os.path.relpath(page.parent / target, ROOT) for target in LINK.findall(BLOCK.sub("", text))}
    missing = sorted(path for path in named | linked if not path.startswith(MADE) and not (ROOT / path).exists())
    assert not missing, f"{page.name} names files that do not exist: {missing}"


@by_page
def test_modules_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"\b((?:distilrank|components|pipelines|benchmarks|helm)(?:\.[a-z_]\w*)+)", _code(page)))
    missing = sorted(name for name in named if not _is_module(name) and not name.endswith(SECTION_FILES))
    assert not missing, f"{page.name} names modules that do not exist: {missing}"


def _code(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    directives = re.findall(r"^::: (\S+)", text, re.MULTILINE)
    commands = re.findall(r"-m,? (\S+)", " ".join(code for _, code in BLOCK.findall(text)))
    return "\n".join([*_inline(page), *directives, *commands])


def _is_module(name: str) -> bool:
    """Whether it is a module, or a name that a module defines."""
    parts = name.split(".")
    base = ROOT / "src" if parts[0] == "distilrank" else ROOT
    if parts[0] == "helm" and (ROOT / "helm" / f"{parts[1]}.py").exists() is False:
        return True  # Helm's own words, such as helm.sh
    for length in range(len(parts), 0, -1):
        path = base.joinpath(*parts[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.exists():
                rest = parts[length:]
                return not rest or re.search(rf"\b{rest[0]}\b", file.read_text(encoding="utf-8")) is not None
    return False


@by_page
def test_tests_that_are_named_exist(page: Path) -> None:
    named = {code for code in _inline(page) if re.fullmatch(r"test(_[a-z0-9]+){3,}", code)}  # `test_set` is a check
    missing = sorted(named - _tests())
    assert not missing, f"{page.name} names tests that do not exist: {missing}"


@cache
def _tests() -> frozenset[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return frozenset(name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE))


@by_page
def test_settings_that_are_named_exist(page: Path) -> None:
    settings = _settings()
    sections = {key.split(".")[0] for key in settings if "." in key}
    named = {
        re.sub(r"^cluster\.stages\.[a-z]+", "cluster.stages", match[1])
        for code in _inline(page)
        if (match := re.match(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?=$|[:=\s])", code))
        and match[1].split(".")[0] in sections
        and match[1].split(".")[-1] not in SECTION_FILES
    }
    if page.name == "decisions.md":
        named -= set(RENAMED)  # a decision may say what a setting was called before
    chart = (ROOT / "helm" / "distilrank" / "README.md").read_text(encoding="utf-8")
    missing = sorted(
        key for key in named if key not in settings and f"`{key}`" not in chart and not _is_chart(key, chart)
    )
    assert not missing, f"{page.name} names settings that do not exist: {missing}"


def _is_chart(key: str, chart: str) -> bool:
    return f"`{key}." in chart


@cache
def _settings() -> frozenset[str]:
    """Every key of the configuration, sections and stages among them."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    keys = set(TABLE_OF_SETTINGS.findall(page))
    keys |= {
        f"cluster.{kind}.{key.split('.')[-1]}" for kind in ("train", "stages") for key in keys if "cluster.ops." in key
    }
    return frozenset(key.rsplit(".", up)[0] for key in keys for up in range(key.count(".") + 1))


COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?(distilrank|python -m pipelines) ", re.MULTILINE)


@by_page
def test_commands_can_be_called(page: Path) -> None:
    apps = {
        "distilrank": typer.main.get_command(cli.app),
        "python -m pipelines": typer.main.get_command(pipelines_cli.app),
    }
    for line in _command_lines(page):
        match = COMMAND.match(line)
        assert match is not None
        words = shlex.split(line[match.end() :].replace("[NAME...]", "NAME"), comments=True)
        _resolve(apps[match[1]], words, f"{page.name}: {line}")


def _command_lines(page: Path) -> Iterator[str]:
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language in ("", "sh", "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                for part in re.split(r"\s&&\s|\s\|\s", line):
                    if COMMAND.match(part):
                        yield part


def _resolve(command: Any, words: list[str], line: str) -> None:
    """Follow the words to a command, and find each option among those that it takes."""
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, f"{line}: no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        option = word.split("=")[0]
        assert not option.startswith("--") or option in options | {"--help"}, f"{line}: no option {option}"


@by_page
def test_targets_of_make_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    lines = [line for _, code in BLOCK.findall(page.read_text(encoding="utf-8")) for line in code.splitlines()]
    named = {
        word
        for text in [*_inline(page), *lines]
        if (match := re.match(r"make ((?:[a-z0-9-]+ ?)+)", text.split("#")[0]))
        for word in match[1].split()
    }
    assert named <= targets, f"{page.name} names targets of make that do not exist: {sorted(named - targets)}"


def test_the_site_is_built_from_every_page() -> None:
    """`make docs` refuses a page without an entry; here it is known before the site is built."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"- {page.name}\n" not in navigation]
    assert not missing


def test_the_library_declares_that_it_is_typed() -> None:
    spec = importlib.util.find_spec("distilrank")
    assert spec is not None and spec.origin is not None and (Path(spec.origin).parent / "py.typed").exists()


def test_decisions_are_numbered_and_dated() -> None:
    page = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    entries = re.findall(r"^## (\d+)\. [^\n]+\n\n\*(\d{4}-\d\d-\d\d)\.\*", page, re.MULTILINE)
    assert [int(number) for number, _ in entries] == list(range(1, page.count("\n## ") + 1))
    assert [date for _, date in entries] == sorted(date for _, date in entries)
