"""The student's model card: a README.md with the metadata that the Hugging Face Hub reads.

It states what the files beside it prove, and says of everything else that it is not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distilrank.config import flatten
from distilrank.core import artifacts
from distilrank.rendering.formatting import format_plain, join_words, readable_name
from distilrank.rendering.labels import BASELINES, METRICS

FILE = "README.md"
PARITY = Path("onnx") / "parity.json"
TAGS = ["sentence-transformers", "cross-encoder", "reranker", "product-search", "knowledge-distillation", "distilrank"]
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
SYSTEMS = {"student": "this model"} | {name: BASELINES[name] for name in ("teacher", "bm25", "random")}
"""What the card calls the systems, in the order of its tables."""


def read_licence(base: Path) -> str:
    """The license that the card of the pretrained model in the folder `base` states, by its id on the hub.

    Empty where there is no card, or where it states none.
    """
    path = base / FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    try:
        metadata = yaml.safe_load(head[1]) if head else None
    except (yaml.YAMLError, RecursionError):
        return ""
    license = metadata.get("license") if isinstance(metadata, dict) else None
    return license if isinstance(license, str) else ""


def write(folder: Path, record: Mapping[str, Any], *, teacher: str = "", license: str = "") -> None:
    """Write the card of a student that has not been evaluated yet into its folder; see `render` for the arguments."""
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
    """The card of the student in `folder`, as Markdown.

    Args:
        folder: holds `distilrank.json`, `metrics.json` and, if it was exported, `onnx/parity.json`.
        record: `config` (the student's section) and `inputs` (digests by name), as in the record of its stage.
        teacher: reference of the pretrained model that its teacher was fine-tuned from; empty: not known.
        license: of the pretrained model that the student was fine-tuned from, see `read_licence`; empty: not known.
        evaluation: the `metrics.json` of the evaluate stage; None: the student has not been evaluated yet.
        verdict: the gate's `verdict.json`; None: there is no decision yet.

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
        measured += [("test", key, value) for key, value in evaluation["systems"]["student"].items()]
    metrics = [
        {"type": key, "value": value, "name": f"{METRICS[key].label} ({split})"}
        for split, key, value in measured
        if key in METRICS and value is not None
    ]
    results = {
        "task": {"type": "text-ranking", "name": "Product ranking"},
        "dataset": {"type": "judgements", "name": "Human judgements of queries that the model was not trained on"},
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
    fields = join_words([readable_name(field) for field in text["fields"]])
    return f"""# {NAME}

A cross-encoder that predicts how relevant a product is to a search query of a shop. It gives one logit per pair;
higher is more relevant. It was fine-tuned from `{base}`
with distilrank: it learned the differences in relevance that a larger teacher model sees between the products of a
query.

It reads the query and the product's {fields}, at most {text["max_tokens"]} tokens per pair."""


def _usage(text: Mapping[str, Any], parity: Mapping[str, Any] | None) -> str:
    file = "model_O2.onnx" if parity and "model_O2.onnx" in parity["files"] else "model.onnx"
    product = text["separator"].join(EXAMPLE[name] for name in text["fields"])
    exported = (
        f"""

With onnxruntime (`pip install sentence-transformers[onnx]`), using one of the files below:

```python
model = CrossEncoder("FOLDER", backend="onnx", model_kwargs={{"file_name": "{file}"}})
```"""
        if parity
        else ""
    )
    return f"""## How to use it

The product is one string: its fields, joined by `{text["separator"]}`. Empty fields are left out.
Replace FOLDER by the model's folder, or by its name on the hub.

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("FOLDER")
scores = model.predict([("{EXAMPLE_QUERY}", "{product}")])
```{exported}

distilrank's own `Scorer` joins the fields, treats special tokens in raw text as plain text, and truncates the product,
never the query, if a pair is too long:

```python
from pathlib import Path
from distilrank import Scorer

scorer = Scorer.load(Path("FOLDER"))
(scores,) = scorer.score_lists(["{EXAMPLE_QUERY}"], [[{{"title": "{EXAMPLE["title"]}"}}]])
```"""


def _purpose() -> str:
    return """## Intended use and limits

The model ranks products that retrieval has found, or is a feature of such a ranking, in the shop whose judgements and
searches it was trained on.

Scores compare products of the same query. Across queries they are comparable only as far as the calibration below
holds. The model was not evaluated on other shops, languages or kinds of queries. It reproduces errors and preferences
of its teacher and of the people who judged. Whether it favors some brands or sellers was not measured. It is not meant
for decisions about people."""


def _training(base: str, teacher: str, record: Mapping[str, Any]) -> str:
    settings = {name: value for name, value in record["config"].items() if name not in ("model", "text")}
    setting_rows = "\n".join(f"| {name} | {_plain(value)} |" for name, value in flatten(settings).items())
    digests = "\n".join(f"| {name} | `{digest}` |" for name, digest in record["inputs"].items())
    return f"""## How it was trained

The student was fine-tuned from `{base}`.
Its teacher was fine-tuned from {f"`{teacher}`" if teacher else "a model that is not known here"}.
The settings, which distilrank's documentation explains:

| setting | value |
| --- | --- |
{setting_rows}

The inputs, by SHA-256; the records of the run say what each is:

| input | digest |
| --- | --- |
{digests}"""


def _measured(dev: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    lines = "\n".join(f"| {SYSTEMS.get(name, name)} | {format_plain(value)} |" for name, value in dev.items())
    text = f"""## Evaluation

On dev, the judged queries that the checkpoint was chosen and the calibration was fitted by:

| system | nDCG@10 |
| --- | --- |
{lines}"""
    if not evaluation:
        return f"{text}\n\nOn test queries: not known when this card was written."
    systems = {name: evaluation["systems"][name] for name in SYSTEMS if evaluation["systems"].get(name)}
    shown = [name for name in METRICS if systems["student"].get(name) is not None]
    head = " | ".join(METRICS[name].label for name in shown)
    rows = "\n".join(
        f"| {SYSTEMS[system]} | {' | '.join(format_plain(values.get(name)) for name in shown)} |"
        for system, values in systems.items()
    )
    protocol = "\n".join(f"- {name}: {_plain(value)}" for name, value in evaluation["protocol"].items())
    return f"""{text}

On test, judged queries that were used for nothing else:

| system | {head} |
| --- |{" --- |" * len(shown)}
{rows}

Protocol:

{protocol}"""


def _promotion(verdict: Mapping[str, Any]) -> str:
    champion, override = verdict["champion"], verdict.get("override")
    checks, failed = verdict["checks"], [check for check in verdict["checks"] if not check["passed"]]
    replaced = f"in place of `{champion['id']}`" if champion else "as the first of its registry"
    passed = f"{len(checks) - len(failed)} of {len(checks)} checks passed"
    paragraphs = [f"## Promotion\n\nThe model was promoted {replaced}: {passed}."]
    if override:
        paragraphs.append(f"These failed and were overridden by {override['by']}, until {override['until']}:")
        paragraphs.append("\n".join(f"- {check['name']}: {check['detail']}" for check in failed))
        paragraphs.append(f"Reason: {override['reason']}")
    return "\n\n".join(paragraphs)


def _calibration(fitted: Mapping[str, Any]) -> str:
    if fitted["method"] == "platt":
        line = f"{format_plain(fitted['slope'])} * logit {format_plain(fitted['intercept'], sign='+')}"
        text = f"The probability that a pair is relevant is sigmoid({line})."
    elif fitted["method"] == "none":
        text = "The model is not calibrated: its logits cannot be turned into probabilities."
    else:
        text = f"`distilrank.json` has the curve from logit to probability of relevance ({fitted['method']})."
    return f"## Calibration\n\n{text}"


def _files(parity: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| `onnx/{name}` | {file['bytes'] / 2**20:.1f} "
        f"| {file['max_difference']:.2g} | {file['mean_difference']:.2g} | "
        f"{format_plain(file['spearman'], 5)} | {format_plain(file['ndcg_loss'], sign='+')} |"
        for name, file in parity["files"].items()
    )
    left_out = "".join(f"\n\n`{name}` was left out: {reason}." for name, reason in parity["left_out"].items())
    reference = parity["reference"]
    return f"""## Files for onnxruntime

Compared with {reference["system"]}, on {reference["pairs"]} judged pairs of {reference["queries"]} queries:

| file | MiB | largest difference of a logit | mean difference | rank correlation | loss of nDCG@10 |
| --- | --- | --- | --- | --- | --- |
{rows}{left_out}"""


def _licence(base: str, license: str) -> str:
    terms = f"the license `{license}`, as its own card says" if license else "a license that is not known here"
    return f"""## License

The pretrained model, `{base}`, has {terms}. This model may be used only
as allowed by that license, by the license of the teacher's pretrained model, and by the rights in the judgements,
catalogue and searches that it was trained on."""


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)
