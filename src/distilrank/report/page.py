"""The `report` stage: all results of a run as one self-contained page that needs no network.

The page can be read fully without its only script, which sorts tables and repairs links in a frame. The page's
Content-Security-Policy allows that script by its hash, and no other.
"""

from __future__ import annotations

from pathlib import Path

from distilrank.config import Report
from distilrank.core import artifacts
from distilrank.core.run_folders import RunFolders
from distilrank.rendering import inline_script, templating
from distilrank.report import comparisons, data, models, provenance, ranking, traffic
from distilrank.report import verdict as decision
from distilrank.teacher import label_manifest


def render(config: Report, folders: RunFolders, *, name: str, output: Path) -> None:
    """Write `report.html`, which links to a `drift.html` beside it, and `inputs.json`: the folders that it is based on.

    Args:
        config: title of the page.
        folders: all folders of the run except `resolved`, `candidates`, `traffic` and `report`.
        name: name of the run, which is the heading unless `config.title` is set.
        output: folder for the files.

    Metrics, a champion or a calibration that a run does not have are shown as missing. Of a teacher without
    `quality.json`, only the labels are described.

    Raises:
        InputError: a folder lacks a file that its stage always writes.
    """
    sealed = folders.select("judgements", "teacher", "student", "evaluation", "drift")
    labels = list(folders.labels)
    inputs: artifacts.Inputs = {"profile": folders.profile, **sealed, "labels": labels, "verdict": folders.verdict}
    teacher_files = [file for file in ("metrics.json", "quality.json") if (folders.teacher / file).exists()]
    files = {"teacher": teacher_files, "student": ["metrics.json"], "labels": [artifacts.MANIFEST]}
    with artifacts.stage("report", output, config=config, inputs=inputs, only=files) as record:
        manifest = label_manifest.combine(labels)
        record.inputs |= {key: artifacts.verify(folder, files.get(key)) for key, folder in sealed.items()}
        record.inputs["labels"] = label_manifest.identity(labels)
        record.inputs["verdict"] = artifacts.digest_file(folders.verdict / "verdict.json")
        decided = artifacts.read_json(folders.verdict / "verdict.json")
        metrics = comparisons.drop_duplicates(artifacts.read_json(folders.evaluation / "metrics.json"), decided)
        drifted = artifacts.read_json(folders.drift / "drift.json")
        trained = {
            "teacher": artifacts.read_json(folders.teacher / "metrics.json"),
            "student": artifacts.read_json(folders.student / "metrics.json"),
        }
        environment = templating.environment()
        stages = [
            *(folders.profile, folders.teacher, *labels, folders.student),
            *(folders.evaluation, folders.drift, folders.verdict),
        ]
        sections = {
            "title": config.title or name,
            "name": name,
            "script": inline_script.load(environment, "sort.js.j2", "frame.js.j2"),
            "verdict": decision.verdict_section(decided, metrics, name),
            "incumbents": decision.incumbent_rows(decided, metrics),
            "tiles": decision.headline_tiles(metrics, drifted),
            "relevance": ranking.relevance_section(metrics),
            "slices": ranking.slices_section(metrics),
            "queries": ranking.queries_section(folders.evaluation, metrics),
            "training": models.training_section(trained),
            "calibration": models.calibration_section(metrics, folders.evaluation),
            "teacher": models.teacher_section(folders.teacher, manifest, metrics),
            "latency": models.latency_section(metrics),
            "drift": traffic.drift_section(drifted, has_summary=(folders.drift / "summary.html").exists()),
            "data": data.data_section(folders.profile, folders.judgements, manifest),
            "test_set": decision.test_set_section(metrics, decided),
            "tasks": provenance.tasks_section(stages),
            "lineage": provenance.lineage_rows(decided, record.inputs),
            "protocol": provenance.setting_rows(metrics.get("protocol", {})),
        }
        artifacts.write_text(output / "report.html", environment.get_template("report.html.j2").render(sections))
        paths = {key: [value] if isinstance(value, Path) else value for key, value in inputs.items()}
        artifacts.write_json(output / "inputs.json", {key: list(map(str, paths[key])) for key in paths})
        artifacts.seal(output)
