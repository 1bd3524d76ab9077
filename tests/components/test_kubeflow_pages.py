"""Every page that people review on Kubeflow, as the frame of its UI shows it.

The frame is that of kubeflow/pipelines 2.17.0, frontend/src/components/viewers/HTMLViewer.tsx: the artifact's text as
`srcdoc`, scripts allowed, no origin of its own; around it a page whose address has a fragment (`#/runs/details/ID`).
"""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from kfp import dsl
from PIL import Image

from components.drift import measure_drift
from components.monitor import watch_champion
from components.prepare import prepare_data
from components.report import render_report
from distilrank.core import artifacts, schemas
from distilrank.drift import champion_scores
from pipelines.distill import distill
from pipelines.monitor import monitor
from tests import browser, report_runs, traffic_samples

PAGES = {
    ("prepare", "profile_html"),
    ("drift", "summary_html"),
    ("drift", "drift_html"),
    ("drift", "champion_html"),
    ("monitor", "summary_html"),
    ("monitor", "drift_html"),
    ("report", "report_html"),
}
"""Task, as the UI names it, and artifact."""

needs_browser = pytest.mark.skipif(browser.program() is None, reason="no Chromium here, so no page is looked at")

UI = """<!doctype html><title>Runs</title><body style="margin:0">
<iframe src="about:blank" sandbox="allow-scripts" style="border:0;width:100%;height:900px"></iframe>
<script>
const show = async (address) => {
  const frame = document.querySelector("iframe");
  const text = await (await fetch(address)).text();
  await new Promise((loaded) => { frame.onload = loaded; frame.srcdoc = text; });
};
</script>"""


@dataclass
class Output:
    """An output artifact as KFP hands it to a component: only the folder around its path exists."""

    path: str
    metadata: dict[str, float] = field(default_factory=dict)

    def log_metric(self, name: str, value: float) -> None:
        self.metadata[name] = value


def outputs(folder: Path, *names: str) -> dict[str, Any]:
    folder.mkdir(parents=True)
    return {name: Output(str(folder / name)) for name in names}


def inputs(paths: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [dsl.Artifact(uri=str(part)) for part in path] if isinstance(path, list) else dsl.Artifact(uri=str(path))
        for name, path in paths.items()
    }


def drift_pages(root: Path, *, champion: bool, comparable: bool = True) -> dict[tuple[str, str], Path]:
    """What the tasks drift and, with a champion, monitor leave as pages."""
    old, new = traffic_samples.traffic(200, 1), traffic_samples.traffic(200, 2)
    if not comparable:
        old = old.drop_columns(["query_id"])
    scores = np.linspace(0, 1, 200)
    version = traffic_samples.publish_champion(root, old, scores) if champion else ""
    paths = traffic_samples.folders(root, new, new)
    if champion:
        traffic_samples.write_champion_scores(paths, scores)
    del paths["output"]
    config, registry = {"embedding_rows": 0}, {"uri": str(root / "registry")}
    made = outputs(root / "made", "drift", "summary_html", "drift_html", "champion_html", "metrics")
    measure_drift.python_func(**inputs(paths), champion=version, config=config, registry=registry, **made)
    pages = {("drift", name): Path(made[name].path) for name in made if name.endswith("_html")}
    if not champion:
        return pages
    schemas.write(pa.table({"score": scores}), root / "scores" / champion_scores.SCORES, schemas.TRAFFIC_SCORES)
    artifacts.seal(root / "scores")
    watched = outputs(root / "seen", "watched", "summary_html", "drift_html")
    alarm = watch_champion.python_func(
        **inputs({"traffic": paths["traffic"], "scores": root / "scores"}), champion=version, name="monday",
        newest_end="2026-03-01T00:00:00Z", config={"retrain": "on_alarm"}, drift=config, registry=registry, **watched,
    )  # fmt: skip
    assert alarm is not comparable
    return pages | {("monitor", name): Path(watched[name].path) for name in watched if name.endswith("_html")}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The pages of a run with a champion, by task and artifact, made by the components themselves."""
    root = tmp_path_factory.mktemp("run")
    pages = drift_pages(root / "drift", champion=True)
    made = outputs(root / "prepared", "judgements", "candidates", "traffic", "profile", "profile_html")
    prepare_data.python_func(
        reference_start="", newest_start="", newest_end="", data_digest="d" * 64, cache_since="",
        config={"traffic_sample": 50, "from_impressions": 3, "from_bm25": 2, "from_random": 1},
        data={"source": "demo_shop", "products": 100, "queries": 60, "judged_queries": 40, "searches": 200}, **made,
    )  # fmt: skip
    pages["prepare", "profile_html"] = Path(made["profile_html"].path)
    paths = report_runs.folders(root / "report")
    paths["drift"].joinpath("summary.html").touch()
    report_runs.seal(paths)
    del paths["output"]
    made = outputs(root / "reported", "report", "report_html")
    render_report.python_func(name="home-depot", **inputs(paths), config={}, **made)
    return pages | {("report", "report_html"): Path(made["report_html"].path)}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Tab]:
    with browser.tab(tmp_path_factory.mktemp("profile")) as opened:
        opened.width(1200)
        yield opened


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    """Serves the page around the frame, and below /file the files of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.asked.append(self.path)  # type: ignore[attr-defined]
            _, is_file, path = self.path.partition("/file")
            body = Path(path).read_bytes() if is_file else UI.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *values: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def show(tab: browser.Tab, server: ThreadingHTTPServer, page: Path, expected: Sequence[str] = ()) -> str:
    """Show the page in the frame, wait for the expected parts of its text, and return all text that a reader sees."""
    tab.complaints.clear()
    tab.open(f"http://127.0.0.1:{server.server_port}/pipeline/?{time.monotonic_ns()}#/runs/details/1")
    tab.run(f"show('/file{page}')")
    assert tab.run("[location.href, window.origin]", framed=True) == ["about:srcdoc", "null"]
    deadline = time.monotonic() + 30
    while True:  # Evidently's page draws itself after it is loaded
        text = " ".join(tab.run("document.body.innerText", framed=True).split())
        missing = [part for part in expected if part not in text]
        if not missing:
            return text
        assert time.monotonic() < deadline, f"{page}: {missing} not in {text[:2000]}"
        time.sleep(0.2)


def colors(tab: browser.Tab) -> int:
    """How many colors the screen shows: a blank one has one, text on white some dozens."""
    shot = base64.b64decode(tab.call("Page.captureScreenshot")["data"])
    return len(Image.open(io.BytesIO(shot)).convert("RGB").getcolors(1 << 24) or ())


def test_each_page_is_a_separate_artifact() -> None:
    declared = set()
    for pipeline in (distill, monitor):
        spec = pipeline.pipeline_spec
        groups = [spec.root, *spec.components.values()]
        for task in (task for group in groups for task in group.dag.tasks.values()):
            for name, kind in spec.components[task.component_ref.name].output_definitions.artifacts.items():
                if kind.artifact_type.schema_title == "system.HTML":
                    declared.add((task.task_info.name, name))
    assert declared == PAGES


def test_the_artifacts_have_the_bytes_of_the_folders(pages: dict[tuple[str, str], Path]) -> None:
    folders = {"prepare": "profile", "drift": "drift", "monitor": "watched", "report": "report"}
    assert set(pages) == PAGES
    for (task, name), path in pages.items():
        folder = path.parent / folders[task]
        assert path.read_bytes() == (folder / name.replace("_html", ".html")).read_bytes()
        assert {page.stem for page in folder.glob("*.html")} == {
            artifact.removesuffix("_html") for stage, artifact in PAGES if stage == task
        }


@needs_browser
@pytest.mark.parametrize(
    ("task", "name", "expected"),
    [
        ("prepare", "profile_html", ["Data profile", "Judgements", "Candidates"]),
        ("drift", "summary_html", ["Does what it learned from represent the newest traffic?", "product type"]),
        ("drift", "drift_html", ["Does what the candidate learned from", "Dataset Drift is NOT detected", "bm25"]),
        ("drift", "champion_html", ["Has traffic moved away from the champion", "Dataset Drift is NOT", "brand"]),
        ("monitor", "summary_html", ["Has traffic moved away from it?", "raises an alarm", "product type"]),
        ("monitor", "drift_html", ["Has traffic moved away from the champion", "Dataset Drift is NOT", "brand"]),
        ("report", "report_html", ["home-depot", "Checks", "Does the candidate's training data represent"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_is_rendered_in_the_frame(
    tab: browser.Tab,
    server: ThreadingHTTPServer,
    pages: dict[tuple[str, str], Path],
    task: str,
    name: str,
    expected: list[str],
) -> None:
    show(tab, server, pages[task, name], expected)
    assert tab.complaints == []
    assert colors(tab) > 30
    assert tab.run("document.documentElement.scrollWidth <= innerWidth", framed=True)
    marks = "[...document.querySelectorAll('svg use')].map((mark) => mark.getBBox())"  # of plots, by reference
    assert tab.run(f"{marks}.every((box) => box.width + box.height > 0)", framed=True)


@needs_browser
@pytest.mark.parametrize(("task", "name"), [("prepare", "profile_html"), ("report", "report_html")])
def test_links_into_a_page_stay_in_it(
    tab: browser.Tab, server: ThreadingHTTPServer, pages: dict[tuple[str, str], Path], task: str, name: str
) -> None:
    show(tab, server, pages[task, name])
    requests = len(server.asked)  # type: ignore[attr-defined]
    links = tab.run("[...document.querySelectorAll('nav a')].map((link) => link.getAttribute('href'))", framed=True)
    assert len(links) > 8
    for link in links[1:]:
        tab.run(f"scrollTo(0, 0); document.querySelector('nav a[href=\"{link}\"]').click()", framed=True)
        time.sleep(0.1)  # a navigation would begin
        assert tab.run("location.href", framed=True) == "about:srcdoc"
        assert tab.run("scrollY", framed=True) > 100
    assert len(server.asked) == requests  # type: ignore[attr-defined]


@needs_browser
@pytest.mark.parametrize(
    ("task", "name", "expected"),
    [
        (
            "report",
            "report_html",
            [
                "summary.html (on Kubeflow: task drift, artifact summary_html)",
                "drift.html (on Kubeflow: task drift, artifact drift_html)",
                "champion.html (on Kubeflow: task drift, artifact champion_html)",
                "profile.html beside this page in the run's folder (on Kubeflow: task prepare, artifact profile_html)",
            ],
        ),
        ("drift", "summary_html", ["(on Kubeflow: task drift, artifacts drift_html and champion_html)"]),
        ("monitor", "summary_html", ["drift.html, by Evidently (on Kubeflow: task monitor, artifact drift_html)"]),
        ("drift", "drift_html", []),
        ("prepare", "profile_html", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_frame_cannot_reach_is_named_without_a_link(
    tab: browser.Tab,
    server: ThreadingHTTPServer,
    pages: dict[tuple[str, str], Path],
    task: str,
    name: str,
    expected: list[str],
) -> None:
    show(tab, server, pages[task, name], expected)
    assert tab.run("document.querySelectorAll('a[href]:not([href^=\"#\"])').length", framed=True) == 0


@needs_browser
def test_the_report_links_to_the_pages_beside_it(tab: browser.Tab, pages: dict[tuple[str, str], Path]) -> None:
    tab.open(pages["report", "report_html"].parent / "report" / "report.html")
    links = tab.run("[...document.querySelectorAll('#drift a')].map((link) => link.getAttribute('href'))")
    assert links == ["summary.html", "drift.html", "champion.html"]
    assert "(on Kubeflow: task drift, artifact summary_html)" in tab.run("document.body.innerText")


@needs_browser
@pytest.mark.parametrize(
    ("champion", "task", "name", "reason"),
    [
        (False, "drift", "champion_html", "There is no champion yet"),
        (True, "drift", "champion_html", "not comparable: "),
        (True, "monitor", "drift_html", "not comparable: "),
    ],
)
def test_a_page_with_nothing_to_compare_explains_why(
    tab: browser.Tab, server: ThreadingHTTPServer, tmp_path: Path, champion: bool, task: str, name: str, reason: str
) -> None:
    pages = drift_pages(tmp_path, champion=champion, comparable=False)
    show(tab, server, pages[task, name], ["Nothing to compare", reason])
    assert tab.complaints == [] and colors(tab) > 10
    summary = show(tab, server, pages[task, "summary_html"])
    assert name not in summary
