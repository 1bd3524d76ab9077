"""The report as a browser shows it."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import browser
from tests.report_runs import folders, render

pytestmark = pytest.mark.skipif(browser.program() is None, reason="no Chromium here, so the report is not looked at")

ATTACK = '<script>document.title = "taken"</script><img src="http://localhost:9/x" onerror="document.title=1">'
FOREST = "document.querySelector('table.forest')"
COLUMN = 7
"""Of the table of slices: the difference."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = folders(tmp_path_factory.mktemp("run"), text=ATTACK)
    render(paths)
    return paths["output"] / "report.html"


@pytest.fixture(scope="module")
def tab(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Tab]:
    with browser.tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def differences(tab: browser.Tab) -> list[float]:
    cells = tab.run(f"[...{FOREST}.tBodies[0].rows].map((row) => row.cells[{COLUMN}].textContent)")
    return [float(cell.strip().replace("\N{MINUS SIGN}", "-")) for cell in cells]


def test_the_page_makes_no_request_and_logs_no_error(tab: browser.Tab, page: Path) -> None:
    tab.width(1200)
    tab.open(page)
    assert tab.run("document.title").startswith("home-depot: ")
    assert tab.requested == [page.resolve().as_uri()]
    assert tab.complaints == []


def test_a_script_that_is_not_its_own_does_not_run(tab: browser.Tab, page: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.html"
    changed.write_text(page.read_text().replace("<main>", "<main><script>document.title = 'taken'</script>", 1))
    tab.open(changed)
    assert tab.run("document.title") != "taken"
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


def test_tables_sort_by_mouse_and_keyboard(tab: browser.Tab, page: Path) -> None:
    tab.open(page)
    written = differences(tab)
    assert len(set(written)) > 2 and written != sorted(written)
    head = f"{FOREST}.tHead.rows[0].cells[{COLUMN}]"
    tab.run(f"{head}.querySelector('button').click()")
    assert differences(tab) == sorted(written)
    assert tab.run(f"{head}.getAttribute('aria-sort')") == "ascending"
    tab.run(f"{head}.querySelector('button').focus()")
    tab.press("Enter")
    assert differences(tab) == sorted(written, reverse=True)
    assert tab.run(f"{head}.getAttribute('aria-sort')") == "descending"
    tab.run(f"{FOREST}.tHead.rows[0].cells[2].querySelector('button').click()")
    assert tab.run(f"{FOREST}.querySelectorAll('[aria-sort]').length") == 1


def test_missing_values_sort_last_and_groups_stay_together(tab: browser.Tab, page: Path) -> None:
    tab.open(page)
    table = "document.querySelector('#drift table')"
    rows = f"[...{table}.rows].slice(1).map((row) => row.cells[0].textContent.trim().split(' ')[0])"
    before = tab.run(rows)
    for _ in range(2):  # ascending, then descending
        tab.run(f"{table}.tHead.rows[0].cells[2].querySelector('button').click()")
        after = tab.run(rows)
        assert after[:3] == before[:3] == ["Products", "product", "color"]  # color has no distance
        assert sorted(after) == sorted(before)


def test_dark_is_dark_and_plots_follow(tab: browser.Tab, page: Path) -> None:
    brightness = {}
    tab.open(page)
    for scheme in ("light", "dark"):
        tab.scheme(scheme)
        colors = tab.run(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
            " getComputedStyle(document.querySelector('figure svg text')).fill]"
        )
        brightness[scheme] = [sum(map(int, color[4:-1].split(","))) for color in colors]
    tab.scheme("light")
    light, dark = brightness["light"], brightness["dark"]
    assert light[0] > 700 > 200 > light[1] and dark[0] < 120 < 600 < dark[1]
    assert light[2] < 330 < 420 < dark[2]


def test_a_phone_scrolls_down_only(tab: browser.Tab, page: Path) -> None:
    tab.width(380)
    tab.open(page)
    wide = "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > innerWidth + 1"
    assert tab.run(f"{wide} && !one.closest('.scroll, figure, pre')).map((one) => one.outerHTML.slice(0, 80))") == []
    assert tab.run("document.documentElement.scrollWidth") <= 380
    tab.width(1200)


def test_the_page_prints_completely(tab: browser.Tab, page: Path) -> None:
    tab.open(page)
    titles = tab.run("[...document.querySelectorAll('h2')].map((title) => title.textContent)")
    inside = tab.run("[...document.querySelectorAll('details dl dt')].map((one) => one.textContent).slice(0, 5)")
    file = base64.b64decode(tab.call("Page.printToPDF")["data"])
    assert file.startswith(b"%PDF") and len(titles) > 9 and len(inside) == 5
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed, so the printed text is not read")
    text = " ".join(" ".join(part.extract_text().split()) for part in pypdf.PdfReader(io.BytesIO(file)).pages)
    text = unicodedata.normalize("NFKC", text)  # fonts draw fi as one glyph
    assert [part for part in (*titles, *inside) if part not in text] == []
