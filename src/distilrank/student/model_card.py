"""The student's model card: a README.md with the metadata that the Hugging Face Hub reads.

It tells what the files beside it prove, and says of the rest that it is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distilrank.config import flatten
from distilrank.core import artifacts

FILE = "README.md"
PARITY = Path("onnx") / "parity.json"
TAGS = ["sentence-transformers", "cross-encoder", "reranker", "product-search", "knowledge-distillation", "distilrank"]
MEASURES = {
    "ndcg_at_5": "nDCG@5",
    "ndcg_at_10": "nDCG@10",
    "mrr": "MRR",
    "pair_accuracy": "pair accuracy",
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "recall_at_precision_95": "recall at precision .95",
    "ece": "expected calibration error",
    "brier": "Brier score",
}
NAME = "distilrank student"
EXAMPLE_QUERY = "cordless drill"
EXAMPLE = {
    "title": "18 V drill with two batteries",
    "product_type": "drills",
    "brand": "Acme",
    "color": "black",
    "gender": "unisex",
    "description": "A light drill for the house.",
}
SYSTEMS = {"student": "this model", "teacher": "its teacher", "bm25": "BM25", "random": "random order"}


def read_licence(base: Path) -> str:
    """The license that a pretrained model's own card in `base` states, as the hub abbreviates it; empty: none."""
    path = base / FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    try:
        said = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, RecursionError):
        return ""
    license = said.get("license") if isinstance(said, dict) else None
    return license if isinstance(license, str) else ""


def write(folder: Path, record: Mapping[str, Any], *, teacher: str = "", license: str = "") -> None:
    """Write the card of a student that has not been tested yet into its folder; arguments and errors as `render`."""
    artifacts.write_text(folder / FILE, render(folder, record, teacher=teacher, license=license))


def render(
    folder: Path,
    record: Mapping[str, Any],
    *,
    teacher: str = "",
    license: str = "",
    evaluation: Mapping[str, Any] | None = None,
    verdict: Mapping[str, Any] | None = None,
) -> str:
    """The card of the student in `folder`, Markdown.

    Args:
        folder: holds `distilrank.json`, `metrics.json` and, if it was exported, `onnx/parity.json`.
        record: `config` (the student's section) and `inputs` (digests by name), as in the stage's own record.
        teacher: reference of the pretrained model that its teacher began as; empty: not known.
        license: of the pretrained model that it began as, see `read_licence`; empty: not known.
        evaluation: the `metrics.json` of the evaluate stage; None: the student has not been tested yet.
        verdict: the gate's `verdict.json`; None: it has not been decided on yet.

    Raises:
        InputError: one of the files is missing or damaged.
    """
    description = artifacts.read_json(folder / "distilrank.json")
    dev = artifacts.read_json(folder / "metrics.json")["dev"]
    path = folder / PARITY
    parity = artifacts.read_json(path) if path.is_file() else None
    base = description["base"]
    return (
        "\n\n".join(
            [
                _metadata(base, license, dev, evaluation, exported=parity is not None),
                _introduction(base, description["text"]),
                _usage(description["text"], parity),
                _purpose(),
                _training(base, teacher, record),
                _measured(dev, evaluation),
                *([_promotion(verdict)] if verdict else []),
                _calibration(description["calibration"]),
                *([_files(parity)] if parity else []),
                _licence(base, license),
            ]
        )
        + "\n"
    )


def _metadata(
    base: str, license: str, dev: Mapping[str, Any], evaluation: Mapping[str, Any] | None, *, exported: bool
) -> str:
    measured = [("dev", "ndcg_at_10", dev["student"])]
    if evaluation:
        measured += [("test", measure, value) for measure, value in evaluation["systems"]["student"].items()]
    metrics = [
        {"type": measure, "value": value, "name": f"{MEASURES[measure]} ({split})"}
        for split, measure, value in measured
        if measure in MEASURES and value is not None
    ]
    results = {
        "task": {"type": "text-ranking", "name": "Product ranking"},
        "dataset": {"type": "judgements", "name": "Human judgements of queries that it did not learn from"},
        "metrics": metrics,
    }
    data = {
        **({"license": license} if license else {}),
        **({"base_model": _hub_name(base)} if _hub_name(base) else {}),
        "library_name": "sentence-transformers",
        "pipeline_tag": "text-ranking",
        "tags": [*TAGS, *(["onnx"] if exported else [])],
        "model-index": [{"name": NAME, "results": [results]}],
    }
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"


def _hub_name(base: str) -> str:
    return base.removeprefix("hub:").partition("@")[0] if base.startswith("hub:") else ""


def _introduction(base: str, text: Mapping[str, Any]) -> str:
    return f"""# {NAME}

A cross-encoder that says how relevant a product is to a shop's search query: one raw logit a pair, higher is more
relevant. It began as `{base}` and learned, by distilrank, the margins of
relevance that a larger teacher model sees between products of one query.

It reads the query and the product's {_and(text["fields"])}, at most {text["max_tokens"]} tokens a pair."""


def _usage(text: Mapping[str, Any], parity: Mapping[str, Any] | None) -> str:
    file = "model_O2.onnx" if parity and "model_O2.onnx" in parity["files"] else "model.onnx"
    product = text["separator"].join(EXAMPLE[name] for name in text["fields"])
    exported = (
        f"""

With onnxruntime (`pip install sentence-transformers[onnx]`), from one of the files below:

```python
model = CrossEncoder("FOLDER", backend="onnx", model_kwargs={{"file_name": "{file}"}})
```"""
        if parity
        else ""
    )
    return f"""## How to use it

The product is one string, its fields joined by `{text["separator"]}`; empty fields are left out.
Put your folder, or the name on the hub, for FOLDER.

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("FOLDER")
scores = model.predict([("{EXAMPLE_QUERY}", "{product}")])
```{exported}

distilrank itself also joins the fields, keeps special tokens in raw text from being taken for its own, and shortens the
product, never the query, where a pair is too long:

```python
from pathlib import Path
from distilrank import Scorer

scorer = Scorer.load(Path("FOLDER"))
(scores,) = scorer.score_lists(["{EXAMPLE_QUERY}"], [[{{"title": "{EXAMPLE["title"]}"}}]])
```"""


def _purpose() -> str:
    return """## What it is for, and what not

To rank products that retrieval found, or as a feature of such a ranking, in the shop whose judgements and searches it
learned from.

Scores compare products of one query; across queries they compare as far as the calibration below holds. Other shops,
other languages and other kinds of queries than those it learned from were not measured. It repeats the errors and
preferences of its teacher and of the people who judged; whether it favors some brands or sellers was not measured. It
is not meant for decisions about people."""


def _training(base: str, teacher: str, record: Mapping[str, Any]) -> str:
    settings = {name: value for name, value in record["config"].items() if name not in ("model", "text")}
    knobs = "\n".join(f"| {name} | {_plain(value)} |" for name, value in flatten(settings).items())
    digests = "\n".join(f"| {name} | `{digest}` |" for name, digest in record["inputs"].items())
    return f"""## How it was trained

It began as `{base}`;
its teacher began as {f"`{teacher}`" if teacher else "a model that is not known here"}.
distilrank's settings, which its documentation explains:

| setting | value |
| --- | --- |
{knobs}

What it was made from, by SHA-256; the records of the run tell what each is:

| input | digest |
| --- | --- |
{digests}"""


def _measured(dev: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    lines = "\n".join(f"| {SYSTEMS.get(name, name)} | {value:.4f} |" for name, value in dev.items())
    text = f"""## What was measured

On dev, the judged queries by which the weights were chosen and the calibration fitted:

| system | nDCG@10 |
| --- | --- |
{lines}"""
    if not evaluation:
        return f"{text}\n\nOn test queries: not known when this was written."
    systems = {name: evaluation["systems"][name] for name in SYSTEMS if evaluation["systems"].get(name)}
    shown = [name for name in MEASURES if systems["student"].get(name) is not None]
    head = " | ".join(MEASURES[name] for name in shown)
    rows = "\n".join(
        f"| {SYSTEMS[system]} | {' | '.join(_figure(values.get(name)) for name in shown)} |"
        for system, values in systems.items()
    )
    protocol = "\n".join(f"- {name}: {_plain(value)}" for name, value in evaluation["protocol"].items())
    return f"""{text}

On test, judged queries that nothing was chosen by:

| system | {head} |
| --- |{" --- |" * len(shown)}
{rows}

Protocol:

{protocol}"""


def _promotion(verdict: Mapping[str, Any]) -> str:
    champion, override = verdict["champion"], verdict.get("override")
    checks, failed = verdict["checks"], [check for check in verdict["checks"] if not check["passed"]]
    before = f"in place of `{champion['id']}`" if champion else "as the first of its registry"
    said = [f"## Promotion\n\nIt was promoted {before}: {len(checks) - len(failed)} of {len(checks)} checks passed."]
    if override:
        said.append(f"These did not, and were overridden by {override['by']} until {override['until']}:")
        said.append("\n".join(f"- {check['name']}: {check['detail']}" for check in failed))
        said.append(f"The reason given: {override['reason']}")
    return "\n\n".join(said)


def _calibration(fitted: Mapping[str, Any]) -> str:
    if fitted["method"] == "platt":
        line = f"{fitted['slope']:.4f} * logit {fitted['intercept']:+.4f}"
        said = f"The probability that a pair is relevant is sigmoid({line})."
    elif fitted["method"] == "none":
        said = "It is not calibrated: a logit is no probability."
    else:
        said = f"`distilrank.json` has the curve from logit to probability of relevance ({fitted['method']})."
    return f"## Calibration\n\n{said}"


def _files(parity: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| `onnx/{name}` | {one['bytes'] / 2**20:.1f} | {one['max_difference']:.2g} | {one['mean_difference']:.2g} | "
        f"{_figure(one['spearman'], 5)} | {one['ndcg_loss']:+.4f} |"
        for name, one in parity["files"].items()
    )
    left_out = "".join(f"\n\n`{name}` was left out: {reason}." for name, reason in parity["left_out"].items())
    reference = parity["reference"]
    return f"""## Files for onnxruntime

Beside {reference["system"]}, on {reference["pairs"]} judged pairs of {reference["queries"]} queries:

| file | MiB | largest difference of a logit | mean | rank correlation | loss of nDCG@10 |
| --- | --- | --- | --- | --- | --- |
{rows}{left_out}"""


def _licence(base: str, license: str) -> str:
    known = f"is under `{license}`, as its own card says" if license else "is under a license that is not known here"
    return f"""## License

The pretrained model, `{base}`, {known}. This model may be used only as that license,
the license of the teacher's pretrained model, and the rights in the judgements, catalogue and searches that it learned
from allow together."""


def _figure(value: float | None, places: int = 4) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)


def _and(names: list[str]) -> str:
    words = [name.replace("_", " ") for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
