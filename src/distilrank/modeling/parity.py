"""Checks on every run that a saved model scores like the trained one: here, in onnxruntime and in plain transformers.

Tokens are compared before anything is trained, scores once the model is saved. Pairs of the dev split are mixed with
text that libraries read in different ways: case, accents, symbols that Unicode normalization rewrites, other scripts,
special tokens in raw text, empty fields, and a product that has to be shortened.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from distilrank.config import Compute
from distilrank.core import artifacts
from distilrank.core.errors import InputError, RunStopped
from distilrank.modeling import encoding
from distilrank.modeling.encoding import PairEncoder, encode_table
from distilrank.modeling.runtime import Runtime
from distilrank.modeling.scorer import AUTOMATIC, Scorer
from distilrank.modeling.torch_backend import save_tokenizer, score_encoded

FILE = "parity.json"
BOUND = 1e-4
"""Largest difference of a logit in fp32, in units of the logit where that is above 1."""
BF16_SHARE = 0.25
"""The same in bf16, in units of the logits' standard deviation where that is above 1: four roundings of 2^-8 a layer
add up to some hundredths."""
DEV_PAIRS = 24
BATCH = 16
SPECIAL_TOKENS = 4  # around and between two segments, at most
TEXTS = (
    "Red Leather SOFA",
    "Café Crème ÉTAGÈRE cafe\u0301",
    "Tyvek™ 3½″ №5 ﬁt ² ①",
    "İstanbul Straße ǅungla Ωmega",
    "沙发 ソファー 소파 кресло أريكة",
    "6' x 8\", 10,000.50 ``quoted'' 50% off!!",
    "🛋️ sofa\u200b bed\u00ad \u00a0 end",
    "tab\there  two   blanks\nline",
)


def sample(encoder: PairEncoder, dev: pa.Table) -> pa.Table:
    """Pairs to compare on: the first ones of `dev` and odd text, with the columns that the encoder reads.

    Queries of more than half of the tokens are left out: other libraries shorten them too, and leave fewer than
    MIN_PRODUCT_TOKENS of a product.
    """
    fields = encoder.text.fields
    special = [token for token in encoder.special_tokens.values() if len(token) > 1]
    texts = [*TEXTS, *(f"red {token} sofa{token}" for token in dict.fromkeys(special)), "table " * encoder.max_tokens]
    rows = dev.slice(0, DEV_PAIRS).select(["query", *fields]).to_pylist()
    for number, text in enumerate(texts):
        values = [text, "", None, texts[number - 1].upper()]
        product = {str(name): values[(number + position) % len(values)] for position, name in enumerate(fields)}
        rows += [product | {"query": "sofa", fields[0]: text}, product | {"query": text[:60]}]
    table = pa.Table.from_pylist(rows, pa.schema([(name, pa.string()) for name in ("query", *fields)]))
    room = encoder.max_tokens - SPECIAL_TOKENS
    longest = min(room // 2, room - encoding.MIN_PRODUCT_TOKENS)
    queries = [query for query, _ in _pairs(encoder, table)]
    return table.filter(pa.array([len(tokens) <= longest for tokens in encoder.tokenize(queries)]))


def check(encoder: PairEncoder, model: PreTrainedModel, dev: pa.Table) -> None:
    """Check, before training, the part of the agreement that does not depend on it.

    The saved tokenizer must give the same tokens in transformers as in `encoder`. In fp32, the score of a pair must
    not depend on the rest of its batch, as it would if the model attended to padding.

    Raises:
        InputError: one of these does not hold.
    """
    table = sample(encoder, dev)
    tokens, pairs = encode_table(encoder, table, encoder.text), _pairs(encoder, table)
    with tempfile.TemporaryDirectory() as name:
        model.config.save_pretrained(name)
        save_tokenizer(encoder, Path(name))
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    read = tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True)
    for row, pair in enumerate(pairs):
        expected = tokens.take(np.array([row]))
        if expected.ids.tolist() != read["input_ids"][row] or (
            expected.types is not None and expected.types.tolist() != read["token_type_ids"][row]
        ):
            raise InputError(
                f"{encoder.folder}: transformers reads the pair {_shown(pair)} as "
                f"{' '.join(tokenizer.convert_ids_to_tokens(read['input_ids'][row])[:12])} ..., tokenizer.json as "
                f"{' '.join(map(str, map(encoder.tokenizer.id_to_token, expected.ids[:12])))} ...; expected a "
                "tokenizer that all libraries read alike"
            )
    if model.dtype != torch.float32:
        return
    subset = tokens.take(np.argsort(tokens.lengths)[:: -(-len(tokens) // 8)])
    alone, together = (score_encoded(model, subset, model.device, budget) for budget in (1, 2**20))
    worst = int(np.abs(alone - together).argmax())
    if not np.abs(alone - together)[worst] <= BOUND * max(abs(alone[worst]), 1):
        raise InputError(
            f"{encoder.folder}: a pair has the logit {alone[worst]:.5f} alone, {together[worst]:.5f} beside longer "
            f"ones; expected a model that ignores padding, which {model.config.model_type} does not"
        )


def prove(
    folder: Path, model: PreTrainedModel, encoder: PairEncoder, dev: pa.Table, compute: Compute = AUTOMATIC
) -> dict[str, Any]:
    """Check that the student saved in `folder` scores as `model` does, and write parity.json there.

    Args:
        folder: with ONNX files if they were exported.
        model: the trained model in memory, with fp32 weights; it is moved to the CPU.
        encoder: encoder of the training.
        dev: pairs to compare on, besides unusual text.
        compute: threads.

    Returns:
        Content of parity.json: the largest difference of each way to score.

    Raises:
        RunStopped: a difference is above BOUND.
    """
    compute = compute.model_copy(update={"device": "cpu", "precision": "fp32"})
    table = sample(encoder, dev)
    tokens = encode_table(encoder, table, encoder.text)
    with torch.compiler.set_stance("force_eager"):  # layers may be compiled for another precision
        trained = score_encoded(model.cpu(), tokens, torch.device("cpu"), 4096)
    pairs = _pairs(encoder, table)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "scorer, torch": lambda: Scorer.load(folder, compute, backend="torch").score(table),
        "transformers": lambda: _transformers(folder, pairs),
    }
    if (folder / "onnx").is_dir():
        ways["scorer, onnx"] = lambda: Scorer.load(folder, compute, backend="onnx").score(table)
    differences = {way: _differ(folder, way, score(), trained, pairs) for way, score in ways.items()}
    parity = {
        "reference": "the trained network, fp32",
        "pairs": len(pairs),
        "bound": BOUND,
        "max_difference": differences,
    }
    artifacts.write_json(folder / FILE, parity)
    return parity


def compare(folder: Path, trained: np.ndarray, saved: np.ndarray, runtime: Runtime) -> float:
    """The largest difference of the saved teacher's logits from those that it had before it was merged and saved.

    Raises:
        RunStopped: the difference is more than rounding.
    """
    difference = float(np.abs(saved - trained).max())
    if runtime.bf16:
        bound = BF16_SHARE * max(float(trained.std()), 1.0)
    else:
        bound = BOUND * max(float(np.abs(trained).max()), 1.0)
    if not difference <= bound:
        raise RunStopped(
            f"{folder}: a logit of the saved teacher differs by {difference:.3g} from the trained one's, expected at "
            f"most {bound:.3g} ({'bf16' if runtime.bf16 else 'fp32'})"
        )
    return difference


def _pairs(encoder: PairEncoder, table: pa.Table) -> list[tuple[str, str]]:
    queries = [encoding.neutralize(query, encoder.special) for query in table.column("query").to_pylist()]
    return list(zip(queries, encoder.render(encoding.columns(table, encoder.text)), strict=True))


def _transformers(folder: Path, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Logits of pairs, the longest last, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    model.eval()
    logits = np.empty(len(pairs), np.float32)
    order = np.argsort([len(query) + len(product) for query, product in pairs])
    with torch.inference_mode():
        for rows in np.array_split(order, -(-len(order) // BATCH)):
            queries, products = map(list, zip(*(pairs[row] for row in rows), strict=True))
            batch = tokenizer(queries, products, padding=True, truncation=True, return_tensors="pt")
            logits[rows] = model(**batch).logits[:, 0].numpy()
    return logits


def _differ(folder: Path, way: str, scores: np.ndarray, trained: np.ndarray, pairs: list[tuple[str, str]]) -> float:
    """The largest difference of `scores` from those of the trained network; refused above BOUND."""
    difference = np.abs(scores - trained) / np.maximum(np.abs(trained), 1)
    worst = int(difference.argmax())
    if not difference[worst] <= BOUND:  # NaN is refused too
        raise RunStopped(
            f"{folder}: {way} gives the pair {_shown(pairs[worst])} the logit {scores[worst]:.5f}, the trained network "
            f"{trained[worst]:.5f}; expected a difference of at most {BOUND:g}"
        )
    return float(difference[worst])


def _shown(pair: tuple[str, str]) -> str:
    return " / ".join(repr(text if len(text) <= 40 else f"{text[:40]}...") for text in pair)
