"""Hooks of the documentation site: pages from outside docs/, links into the repository, and formulas as MathML.

MkDocs calls the functions `on_*` (https://www.mkdocs.org/dev-guide/plugins/#events). The Markdown files are written for
a reader of the repository, so their links are relative to the file. On the site a link out of docs/ leads to the page
made of that file, else to the file in the repository; a link to a file that does not exist fails the build.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "helm/distilrank/README.md": "chart-values.md",
}
"""Files outside docs/ that are pages of the site, by their path in the repository."""
SOURCES = {page: source for source, page in PAGES.items()}
NAMED = re.compile(r"\[(?:[\w./-]*/)?([\w-]+)\.md\](?=\()")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point each relative link at a page of the site or at the repository, and name it by the page."""
    name = page.file.src_uri
    source = SOURCES.get(name, f"docs/{name}")

    def resolve(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        anchor = link[2] or ""
        if target.startswith("docs/"):
            return posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(name) or ".") + anchor
        if target in PAGES:
            return PAGES[target] + anchor
        if not os.path.exists(ROOT / target):
            raise PluginError(f"{source}: link to {link[1]}, but {target} does not exist")
        return f"{config.extra['repository']}/{'tree' if (ROOT / target).is_dir() else 'blob'}/main/{target}{anchor}"

    def convert(prose: str) -> str:
        # A reader of the repository looks for a file, one of the site for a page
        prose = NAMED.sub(lambda text: f"[{text[1].replace('-', ' ')}]", prose)
        return LINK.sub(resolve, prose)

    parts, end = [], 0
    for code in CODE.finditer(markdown):  # what looks like a link in code is none
        parts += [convert(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, convert(markdown[end:])])


def on_page_content(content: str, **_: Any) -> str:
    """Turn LaTeX into MathML, which browsers draw by themselves."""

    def convert(formula: re.Match[str]) -> str:
        display = "block" if formula[2] == "[" else "inline"
        return latex2mathml.converter.convert(html.unescape(formula[3]).strip(), display=display)

    return FORMULA.sub(convert, content)
