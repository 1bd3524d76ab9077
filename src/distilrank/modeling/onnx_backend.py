"""The exported network's forward pass in onnxruntime, on processors, without torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from distilrank.config import Compute
from distilrank.core import artifacts, hardware, progress
from distilrank.core.errors import InputError, one_line
from distilrank.modeling import batching
from distilrank.modeling.encoding import INPUTS, Tokens

FILES = {"onnx": "onnx/model.onnx", "onnx-int8": "onnx/model_qint8_avx512_vnni.onnx"}
"""File that each backend reads in a student's folder, by sentence-transformers' names.

onnxruntime fuses operators when it loads a graph; a graph that is already fused is no faster on CPUs.
"""
BATCH_TOKENS = 512
"""Most tokens of a batch: the activations of a layer then fit into a core's cache; larger batches are slower."""
MIN_BATCH_TOKENS = 128
"""Batches are not cut below this to give each thread one: reading the weights would cost more than it gains."""


class OnnxBackend:
    """An ONNX model as one of the backends of `scorer.Scorer`.

    Batches run concurrently, one thread each, so that no thread spins while it waits for another within an operator.
    Safe between threads.

    Args:
        path: the model.
        name: name of the backend, one of scorer.BACKENDS.
        pad_token: id that the model was trained to see after a pair's end.
        threads: number of batches that run concurrently.

    Raises:
        InputError: no such file, not a readable ONNX model, or its inputs or outputs are not those of a cross-encoder.
    """

    def __init__(self, path: Path, name: str, pad_token: int, threads: int) -> None:
        self.path, self.name, self.pad_token, self.threads = path, name, pad_token, threads
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only, which are raised anyway
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # otherwise a memory pattern is kept for every shape
        if not path.is_file():
            raise InputError(
                f"{path}: no such file, which the backend {name} reads; the student stage exports it, and "
                "`distilrank.student.export` for a student of an earlier run"
            )
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no narrower common base
            raise InputError(f"{path}: not a readable ONNX model ({one_line(error)})") from None
        self._inputs = [item.name for item in self._session.get_inputs()]
        outputs = self._session.get_outputs()
        if not {"input_ids", "attention_mask"} <= set(self._inputs) <= set(INPUTS) or len(outputs[0].shape) != 2:
            raise InputError(f"{path}: inputs {', '.join(self._inputs)}, expected {', '.join(INPUTS)} and one logit")
        self._output = outputs[0].name
        self._map = ThreadPoolExecutor(threads, "score").map if threads > 1 else map

    @classmethod
    def load(cls, folder: Path, compute: Compute, name: str) -> OnnxBackend:
        """Open the model of `folder` that the backend `name` reads.

        Raises:
            InputError: it is missing or unreadable, or the configuration asks for what onnxruntime does not do here.
        """
        if compute.device not in ("auto", "cpu"):
            raise InputError(f"compute.device: {compute.device!r} with the backend {name}, which runs on cpu")
        if compute.precision == "bf16":
            raise InputError(f"compute.precision: 'bf16' with the backend {name}, expected auto or fp32")
        pad_token = artifacts.read_json(folder / "config.json").get("pad_token_id") or 0
        return cls(folder / FILES[name], name, pad_token, compute.threads or hardware.cores())

    def score(self, tokens: Tokens, budget: int, counter: progress.Counter | None = None) -> np.ndarray:
        """Raw logits of pairs, float32, shape (n,), in the order given; a batch has at most `budget` tokens."""
        logits = np.empty(len(tokens), np.float32)
        share = -(-len(tokens.ids) // self.threads)
        budget = min(budget, BATCH_TOKENS, max(share, MIN_BATCH_TOKENS))

        def run(batch: np.ndarray) -> int:
            values = tokens.padded(batch, self.pad_token)
            logits[batch] = self._session.run([self._output], {name: values[name] for name in self._inputs})[0][:, 0]
            return len(batch)

        for pairs in self._map(run, batching.by_length(tokens.lengths, budget)):
            if counter:
                counter.add(pairs)
        return logits

    def describe(self) -> str:
        """A readable description in one line."""
        return f"onnxruntime {onnxruntime.__version__} on cpu, {self.path.name}, {self.threads} threads"
