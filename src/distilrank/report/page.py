"""The report stage: everything that a run found, as one self-contained page that needs no network.

The page can be read fully without its only script, which sorts tables and repairs links in a frame. The page's
Content-Security-Policy allows that script by its hash, and no other.
"""

from __future__ import annotations

from pathlib import Path

from distilrank.config import Report
from distilrank.core import artifacts
from distilrank.rendering import inline_script, templating
from distilrank.report import comparisons, data, models, provenance, ranking, traffic
from distilrank.report import verdict as decision
from distilrank.teacher import label_manifest


def render(
    config: Report,
    *,
    name: str,
    profile: Path,
    judgements: Path,
    teacher: Path,
    labels: list[Path],
    student: Path,
    evaluation: Path,
    drift: Path,
    verdict: Path,
    output: Path,
) -> None:
    """Write `report.html`, which links to a `drift.html` beside it, and `inputs.json`: the folders that it is based on.

    Args:
        name: the run's name, which is the heading unless `config.title` gives another.
        labels: the label stage's folders, one per shard.

    Other paths are the folders of the stages. Metrics, a champion or a calibration that a run does not have are
    shown as missing. Of a teacher without `quality.json`, only the labels are described.

    Raises:
        InputError: a folder lacks a file that its stage always writes.
    """
    sealed = {
        "judgements": judgements, "teacher": teacher, "student": student, "evaluation": evaluation, "drift": drift,
    }  # fmt: skip
    inputs: artifacts.Inputs = {"profile": profile, **sealed, "labels": labels, "verdict": verdict}
    teacher_files = [file for file in ("metrics.json", "quality.json") if (teacher / file).exists()]
    files = {"teacher": teacher_files, "student": ["metrics.json"], "labels": [artifacts.MANIFEST]}
    with artifacts.stage("report", output, config=config, inputs=inputs, only=files) as record:
        manifest = label_manifest.combine(labels)
        record.inputs |= {key: artifacts.verify(folder, files.get(key)) for key, folder in sealed.items()}
        record.inputs["labels"] = label_manifest.identity(labels)
        record.inputs["verdict"] = artifacts.digest_file(verdict / "verdict.json")
        decided = artifacts.read_json(verdict / "verdict.json")
        metrics = comparisons.drop_duplicates(artifacts.read_json(evaluation / "metrics.json"), decided)
        drifted = artifacts.read_json(drift / "drift.json")
        trained = {
            "teacher": artifacts.read_json(teacher / "metrics.json"),
            "student": artifacts.read_json(student / "metrics.json"),
        }
        environment = templating.environment()
        sections = {
            "title": config.title or name,
            "name": name,
            "script": inline_script.load(environment, "sort.js.j2", "frame.js.j2"),
            "verdict": decision.verdict_section(decided, metrics, name),
            "incumbents": decision.incumbent_rows(decided, metrics),
            "tiles": decision.headline_tiles(metrics, drifted),
            "relevance": ranking.relevance_section(metrics),
            "slices": ranking.slices_section(metrics),
            "queries": ranking.queries_section(evaluation, metrics),
            "training": models.training_section(trained),
            "calibration": models.calibration_section(metrics, evaluation),
            "teacher": models.teacher_section(teacher, manifest, metrics),
            "latency": models.latency_section(metrics),
            "drift": traffic.drift_section(drifted, has_summary=(drift / "summary.html").exists()),
            "data": data.data_section(profile, judgements, manifest),
            "test_set": decision.test_set_section(metrics, decided),
            "tasks": provenance.tasks_section([profile, teacher, *labels, student, evaluation, drift, verdict]),
            "lineage": provenance.lineage_rows(decided, record.inputs),
            "protocol": provenance.setting_rows(metrics.get("protocol", {})),
        }
        artifacts.write_text(output / "report.html", environment.get_template("report.html.j2").render(sections))
        folders = {key: [paths] if isinstance(paths, Path) else list(paths) for key, paths in inputs.items()}
        artifacts.write_json(
            output / "inputs.json", {key: [str(path) for path in paths] for key, paths in folders.items()}
        )
        artifacts.seal(output)
