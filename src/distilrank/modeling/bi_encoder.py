"""Embeddings of a BERT bi-encoder on onnxruntime: no torch, no transformers.

A model folder in the sentence-transformers convention may hold `onnx/model.onnx`. Otherwise `bert_graph` builds the
network from the safetensors each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

from distilrank.core import artifacts, hardware
from distilrank.core.errors import InputError
from distilrank.modeling import batching, bert_graph, encoding, references
from distilrank.modeling.bert_graph import Precision
from distilrank.modeling.neighbors import normalize

CHUNK = 8192  # texts tokenized, and sorted by length, at a time
BATCH_TOKENS = 2048  # of one call of the network, padding included; larger batches leave the processor's cache
MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers; others, such as Dense, change the vectors
POOLINGS = {"mean": "mean", "pooling_mode_mean_tokens": "mean", "cls": "cls", "pooling_mode_cls_token": "cls"}
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TokenCounter:
    """Counts the tokens of texts; it reads only the tokenizer from the model's folder.

    Args:
        reference: model, as in `distilrank.modeling.references`; of any architecture.

    Raises:
        InputError: no such model, or no readable tokenizer.json.
    """

    def __init__(self, reference: str) -> None:
        self._tokenizer = _tokenizer(references.resolve(reference))

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text, without the special tokens that a model adds; int64, shape (n,)."""
        counts = np.empty(len(texts), np.int64)
        for start, encoded in _encode(self._tokenizer, texts, special=False):
            counts[start : start + len(encoded)] = [len(item) for item in encoded]
        return counts


class Retriever:
    """A BERT bi-encoder: mean (or [CLS], if the folder says so) of the last layer, L2-normalized.

    Args:
        reference: model, as in `distilrank.modeling.references`: config.json, tokenizer.json and safetensors (F32,
            F16 or BF16).
        max_tokens: most tokens of a text, [CLS] and [SEP] included; the rest of a text is cut off.
        threads: processor threads of the network; 0: as many as this process may use.
        precision: `int8` multiplies 8-bit weights with activations that are rounded token by token, so that a vector
            does not depend on its batch. On a processor with VNNI it is twice as fast; all-MiniLM-L6-v2's vectors of
            product titles keep a cosine of 0.996 to their fp32 selves, on every processor. Always built from the
            safetensors.

    Attributes:
        dimension: of the vectors.

    Raises:
        InputError: no such model, not a BERT, no tokenizer.json, or an unsupported setting.
    """

    def __init__(
        self, reference: str, *, max_tokens: int = 64, threads: int = 0, precision: Precision = "fp32"
    ) -> None:
        folder = references.resolve(reference)
        config = bert_graph.read_config(folder)
        self.dimension: int = config["hidden_size"]
        self._pooling = _pooling(folder)
        self._tokenizer = _tokenizer(folder)
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if not special:
            raise InputError(f"{folder / 'tokenizer.json'}: adds no special tokens, expected [CLS] and [SEP]")
        if max_tokens <= special:
            raise InputError(f"max_tokens {max_tokens}: {special} are special tokens, expected at least {special + 1}")
        self._tokenizer.enable_truncation(min(max_tokens, config["max_position_embeddings"]))

        exported = folder / "onnx" / "model.onnx"
        network = (
            exported if exported.is_file() and precision == "fp32" else bert_graph.build(folder, config, precision)
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or hardware.cores()
        self._session = onnxruntime.InferenceSession(
            network if isinstance(network, bytes) else str(network), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [model_input.name for model_input in self._session.get_inputs()]
        self._output = self._session.get_outputs()[0].name
        if not set(self._inputs) <= set(INPUTS) or len(self._session.get_outputs()[0].shape) != 3:
            raise InputError(f"{exported}: inputs {self._inputs}, expected some of {INPUTS}, and a vector per token")

    def embed(
        self,
        texts: Sequence[str],
        progress: Callable[[int], None] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Vectors of `texts`, float32, shape (n, dimension), of length 1, in their order.

        An empty text has the vector of [CLS] [SEP]. Special tokens within a text are read as ordinary characters.
        Beside the result, memory does not grow with the number of texts.

        Args:
            texts: any number of them.
            progress: called after each batch with its number of texts.
            out: array to fill and return, of the same shape; float16 or a memory-mapped file is possible.

        Raises:
            ValueError: `out` has another shape.
        """
        shape = (len(texts), self.dimension)
        vectors = np.empty(shape, np.float32) if out is None else out
        if vectors.shape != shape:
            raise ValueError(f"out has shape {vectors.shape}, expected {shape}")
        for start, encoded in _encode(self._tokenizer, texts, special=True):
            lengths = np.array([len(tokens) for tokens in encoded], np.int64)
            for rows in batching.by_length(lengths, BATCH_TOKENS):
                vectors[start + rows] = self._embed([encoded[row] for row in rows])
                if progress:
                    progress(len(rows))
        return vectors

    def _embed(self, encoded: Sequence[Encoding]) -> np.ndarray:
        ids = np.zeros((len(encoded), max(map(len, encoded))), np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = tokens.ids
            mask[row, : len(tokens)] = 1
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden_states,) = self._session.run([self._output], {name: values[name] for name in self._inputs})
        # Vectors are normalized, so the sum is as good as the mean.
        return normalize(
            hidden_states[:, 0] if self._pooling == "cls" else (mask[:, None].astype(np.float32) @ hidden_states)[:, 0]
        )


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = encoding.load_tokenizer(folder)
    tokenizer.encode_special_tokens = True  # "[SEP]" within a text becomes its characters
    return tokenizer


def _encode(tokenizer: Tokenizer, texts: Sequence[str], *, special: bool) -> Iterator[tuple[int, list[Encoding]]]:
    for start in range(0, len(texts), CHUNK):
        yield start, tokenizer.encode_batch_fast(list(texts[start : start + CHUNK]), add_special_tokens=special)


def _pooling(folder: Path) -> str:
    """`mean` or `cls`, as sentence-transformers' files in `folder` say; `mean` without them."""
    modules_path, pooling = folder / "modules.json", "mean"
    for module in artifacts.read_json(modules_path, list) if modules_path.is_file() else ():
        kind = module["type"].rpartition(".")[2]
        if kind not in MODULES:
            raise InputError(f"{modules_path}: module {kind}, expected only {', '.join(MODULES)}")
        if kind == "Pooling":
            path = folder / module["path"] / "config.json"
            settings = artifacts.read_json(path)
            flags = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value]
            mode = settings.get("pooling_mode", flags[0] if len(flags) == 1 else flags)
            if str(mode) not in POOLINGS:
                raise InputError(f"{path}: pooling {mode}, expected mean or cls")
            pooling = POOLINGS[mode]
    return pooling


def check(reference: str) -> None:
    """Check a local model as `Retriever` does, without reading its weights.

    Raises:
        InputError: as `Retriever` does.
    """
    folder = references.resolve(reference)
    config = bert_graph.read_config(folder)
    _pooling(folder)
    _tokenizer(folder)
    if not (folder / "onnx" / "model.onnx").is_file():
        bert_graph.check_weights(folder, config)
