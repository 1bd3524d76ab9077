"""Scores (query, product) pairs with a model folder that the teacher or the student stage wrote.

Neither torch nor transformers is imported here: a backend imports the module that it needs when it is loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Compute, TeacherText, Text, parse
from distilrank.core import artifacts, normalize, progress
from distilrank.core.errors import InputError, RunStopped
from distilrank.core.prefetch import prefetch
from distilrank.modeling import calibration, encoding
from distilrank.modeling.cache import Cache

DESCRIPTION = "distilrank.json"
METRICS = "metrics.json"
CHUNK_ROWS = 20_000  # rows whose tokens are in memory at a time, while the next ones are tokenized
BYTES_PER_TOKEN = 4  # UTF-8, in ordinary text: a word in English, a character or two in Chinese
BACKENDS = ("auto", "torch", "onnx", "onnx-int8")
AUTOMATIC = Compute()
CACHED_PRODUCTS = 50_000
"""Products whose tokens are cached: 25 MB with 50 tokens each, 120 MB with 512."""


class Backend(Protocol):
    """Computes logits."""

    @property
    def name(self) -> str:
        """One of BACKENDS."""

    def score(self, tokens: encoding.Tokens, budget: int, counter: progress.Counter | None = None) -> np.ndarray:
        """Raw logits of pairs, float32, shape (n,), in the order given; a batch has at most `budget` tokens."""

    def describe(self) -> str:
        """A readable description in one line."""


def load_encoder(
    folder: Path, text: Text, kind: str = "auto", inputs: encoding.Inputs | None = None
) -> encoding.Encoder:
    """Text settings of the model in `folder`; its tokenizer pads with eos if it has no pad token."""
    if kind == "encoder" or (kind == "auto" and encoding.is_encoder(folder)):
        return encoding.PairEncoder(folder, text, inputs)
    if not isinstance(text, TeacherText):
        raise InputError(f"{folder}: a decoder needs a prompt template; expected an encoder such as BERT")
    return encoding.PromptEncoder(folder, text, inputs)


def _load_backend(folder: Path, compute: Compute, name: str) -> Backend:
    if name not in BACKENDS:
        raise InputError(f"backend {name!r}: unknown, expected one of {', '.join(BACKENDS)}")
    if name == "auto":
        name = "torch" if importlib.util.find_spec("torch") else "onnx"
    if name == "torch":
        if not importlib.util.find_spec("torch"):
            raise InputError("backend torch: torch is not installed here, expected the backend onnx or onnx-int8")
        from distilrank.modeling.torch_backend import TorchBackend

        return TorchBackend.load(folder, compute)
    from distilrank.modeling.onnx_backend import OnnxBackend

    return OnnxBackend.load(folder, compute, name)


class Scorer:
    """A model folder that scores pairs.

    Example:
        scorer = Scorer.load(Path("runs/latest/student"))
        logits = scorer.score(table)  # columns: query, and the product fields
        by_query = scorer.score_lists(["red sofa"], [[{"title": "Sofa, red"}, {"title": "Lamp"}]])
    """

    def __init__(
        self, backend: Backend, encoder: encoding.Encoder, description: dict[str, Any], tokens: int, cached: int
    ) -> None:
        self.backend, self.encoder, self.tokens = backend, encoder, tokens
        self.description = description
        """Content of `distilrank.json`: role, text, calibration."""
        self._calibration: dict[str, Any] = description.get("calibration", {"method": "none"})
        self.text = encoder.text
        self.products: Cache[bytes, np.ndarray] = Cache(cached)
        """Cache of the tokens of products that `score_lists` has scored, by digest of the text."""

    @classmethod
    def load(
        cls,
        folder: Path,
        compute: Compute = AUTOMATIC,
        *,
        backend: str = "auto",
        tokens: int = 0,
        cached_products: int = CACHED_PRODUCTS,
    ) -> Scorer:
        """Load a folder that the teacher or student stage wrote.

        Args:
            folder: holds the weights, the tokenizer and `distilrank.json`; every byte is checked against its seal. A
                folder without a seal (the user's, or one being written) is not checked.
            compute: device, precision and threads; the backends of onnxruntime are for processors.
            backend: `torch`; `onnx`, the exported network; `onnx-int8`, the same in 8 bits; `auto`: torch if it is
                installed, otherwise onnx.
            tokens: most tokens of one forward pass; 0: the folder's setting.
            cached_products: most products whose tokens `score_lists` keeps.

        Raises:
            InputError: the folder is not one of ours, is damaged, or lacks what the backend reads.
        """
        path = folder / DESCRIPTION
        if artifacts.is_sealed(folder):
            artifacts.verify(folder)
        description = artifacts.read_json(path)
        if not isinstance(description.get("text"), dict):
            raise InputError(f"{path}: has no section 'text', expected what the teacher or student stage writes")
        missing = [name for name in ("kind", "score_tokens") if name not in description]
        if missing:
            raise InputError(f"{path}: lacks {missing[0]!r}, expected what the teacher or student stage writes")
        text = parse(description["text"], str(path), TeacherText if "template" in description["text"] else Text)
        return cls(
            _load_backend(folder, compute, backend),
            load_encoder(folder, text, description["kind"]),
            description,
            tokens or description["score_tokens"],
            cached_products,
        )

    def render(self, table: pa.Table) -> list[str]:
        """Each row's product as the single string that the model reads, for use with other libraries."""
        return self.encoder.render(encoding.columns(table, self.text))

    def pairs(self, table: pa.Table) -> list[tuple[str, str]]:
        """Each row's query and product as the two strings that the model reads, for use with other libraries."""
        queries = [encoding.neutralize(query, self.encoder.special) for query in table.column("query").to_pylist()]
        return list(zip(queries, self.render(table), strict=True))

    def score(self, table: pa.Table, counter: progress.Counter | None = None) -> np.ndarray:
        """Raw logits, float32, in row order.

        Args:
            table: columns `query` and those of schemas.PRODUCT_FIELDS that the model was trained with; an absent or
                null field is left out.
            counter: is advanced after every batch.

        Raises:
            InputError: a query is empty, or longer than what the model takes.
            RunStopped: a logit is not finite.
        """
        queries = table.column("query")
        is_visible = pc.fill_null(pc.match_substring_regex(queries, normalize.SEEN), False)
        suspects = pc.unique(queries.filter(pc.invert(is_visible))).to_pylist()
        blank = [text for text in suspects if text is None or normalize.is_blank(text)]
        if blank:
            row = pc.index(pc.is_in(queries, value_set=pa.array(blank, queries.type)), True).as_py() + 1
            raise InputError(f"row {row}: query is empty, expected a text")
        scores = []
        for tokens in prefetch(
            encoding.encode_table(self.encoder, table.slice(start, CHUNK_ROWS), self.text)
            for start in range(0, table.num_rows, CHUNK_ROWS)
        ):
            scores.append(self.backend.score(tokens, self.tokens, counter))
        logits = np.concatenate(scores) if scores else np.empty(0, np.float32)
        _require_finite(logits, lambda row: f"row {row + 1}, query {queries[row].as_py()!r}")
        return logits

    def score_lists(
        self, queries: Sequence[str], products: Sequence[Sequence[Mapping[str, str | None]]]
    ) -> list[np.ndarray]:
        """Raw logits of each query's products, float32, in the order given.

        All lists are scored together, pairs of similar length in one batch. Tokens of products are kept in `products`.

        Args:
            queries: shape (n,).
            products: of each query, its products: those of schemas.PRODUCT_FIELDS that the model was trained with;
                an absent or null field is left out.

        Raises:
            InputError: a query is empty, or longer than what the model takes.
            RunStopped: a logit is not finite.
        """
        if not queries:
            return []
        for position, query in enumerate(queries):
            if normalize.is_blank(query):
                raise InputError(f"query {position + 1} of {len(queries)} is empty, expected a text")
        sizes = [len(product_list) for product_list in products]
        texts, list_of = encoding.distinct([encoding.neutralize(query, self.encoder.special) for query in queries])
        query_of = np.repeat(list_of, sizes)
        field_values = [
            tuple(product.get(name) for name in self.text.fields)
            for product_list in products
            for product in product_list
        ]
        keys, product_of = encoding.distinct(field_values)
        if isinstance(self.encoder, encoding.PairEncoder):
            tokens = self.encoder.join(texts, query_of, self._tokens_of(keys), product_of)
        else:
            rendered = self._render(keys)
            tokens = self.encoder.encode(
                [texts[index] for index in query_of], [rendered[index] for index in product_of]
            )
        logits = self.backend.score(tokens, self.tokens)
        ends = np.cumsum(sizes)

        def name(row: int) -> str:
            position = int(np.searchsorted(ends, row, side="right"))
            return f"product {row - ends[position] + sizes[position] + 1} of query {queries[position]!r}"

        _require_finite(logits, name)
        return np.split(logits, ends[:-1])

    def cut(self, product: Mapping[str, str | None]) -> dict[str, str]:
        """Return the fields that the model reads, shortened to what it can read, which does not change the score."""
        return {name: text for name in self.text.fields if (text := self.encoder.cut(name, product.get(name)))}

    def estimate_tokens(self, query: str, products: Sequence[Mapping[str, str | None]]) -> int:
        """Tokens of the pairs of a query and its products by their length, without tokenizing them: their cost."""
        shared = 3 + len(query.encode()) // BYTES_PER_TOKEN  # with the model's special tokens
        sizes = [sum(len((product.get(name) or "").encode()) for name in self.text.fields) for product in products]
        return sum(min(shared + size // BYTES_PER_TOKEN, self.encoder.max_tokens) for size in sizes)

    def _render(self, field_values: Sequence[tuple[str | None, ...]]) -> list[str]:
        if not field_values:
            return []
        return self.encoder.render(dict(zip(self.text.fields, zip(*field_values, strict=True), strict=True)))

    def _tokens_of(self, distinct_values: Sequence[tuple[str | None, ...]]) -> list[np.ndarray]:
        """Tokens of distinct products, cached or new."""
        encoder = cast(encoding.PairEncoder, self.encoder)
        # By digest: a text may be a thousand times as large as the tokens that the model reads of it.
        by_digest = {
            hashlib.blake2b(repr(values).encode(), digest_size=16).digest(): values for values in distinct_values
        }

        def tokenize(missing: list[bytes]) -> list[np.ndarray]:
            texts = self._render([by_digest[digest] for digest in missing])
            # a copy: a view would keep the rest of a long description in memory
            return [ids[: encoder.max_tokens].copy() for ids in encoder.tokenize(texts)]

        return self.products.get(list(by_digest), tokenize)

    def probability(self, logits: np.ndarray) -> np.ndarray | None:
        """Calibrated probability of relevance; None if the model is not calibrated."""
        return None if self._calibration["method"] == "none" else self.estimate(logits)

    def estimate(self, logits: np.ndarray) -> np.ndarray:
        """Probability of relevance, float64; the logistic function where the model was not calibrated."""
        return calibration.probability(self._calibration, logits)


def _require_finite(logits: np.ndarray, name: Callable[[int], str]) -> None:
    bad = np.flatnonzero(~np.isfinite(logits))
    if len(bad):
        raise RunStopped(
            f"{name(int(bad[0]))}: its score is {logits[bad[0]]}, and {len(bad)} of {len(logits)} scores are not "
            "finite; the model's weights are damaged, or overflow in its precision"
        )


def describe(folder: Path, *, role: str, encoder: encoding.Encoder, text: Text, tokens: int, base: str) -> None:
    """Write the settings that `Scorer.load` needs besides transformers' files; the model is not calibrated yet."""
    artifacts.write_json(
        folder / DESCRIPTION,
        {
            "role": role,
            "kind": "encoder" if isinstance(encoder, encoding.PairEncoder) else "decoder",
            "base": base,
            "text": text.model_dump(mode="json"),
            "score_tokens": tokens,
            "calibration": {"method": "none"},
        },
    )


def calibrate(folder: Path, dev: pa.Table, method: str, compute_config: Compute) -> np.ndarray:
    """Fit the calibration of the model saved in `folder` on judged pairs, save it there, and return their raw logits.

    The saved model is measured: the folder is loaded as its users will load it.
    """
    logits = Scorer.load(folder, compute_config).score(dev)
    fitted = calibration.fit(method, logits, dev.column("target").to_numpy(), dev.column("query_id").to_numpy())
    artifacts.write_json(folder / DESCRIPTION, artifacts.read_json(folder / DESCRIPTION) | {"calibration": fitted})
    return logits
