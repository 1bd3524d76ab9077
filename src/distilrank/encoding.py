"""How a (query, product) pair becomes the tokens that a model sees.

An encoder takes the pair as two segments; a decoder takes a prompt made from a template. In both, special tokens
that occur in raw text are neutralised, and a pair that is too long loses the end of its product, never of its query.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from distilrank.config import Text
from distilrank.errors import InputError

MIN_PRODUCT_TOKENS = 8  # what is left of a product beside a query that fills `max_tokens` by itself


@dataclass(frozen=True)
class Tokens:
    """Tokens of pairs, one after the other without padding: four bytes a token where Python's lists take forty."""

    ids: np.ndarray
    """int32, shape (tokens,)"""
    starts: np.ndarray
    """Where each pair begins, and the end of the last one: int64, shape (pairs + 1,)."""
    queries: np.ndarray
    """A number for each pair's query, the same for pairs of one query: int64, shape (pairs,)."""
    types: np.ndarray | None = None
    """Segment of each token, for models that have segments: int8, shape (tokens,)."""
    truncated: int = 0
    """Pairs whose product was shortened."""

    @classmethod
    def of(
        cls,
        queries: Sequence[str],
        ids: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None = None,
        truncated: int = 0,
    ) -> Tokens:
        """Tokens of one sequence a pair, and the pair's query."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        numbers: dict[str, int] = {}
        query = np.fromiter((numbers.setdefault(text, len(numbers)) for text in queries), np.int64, len(queries))
        starts = np.concatenate([[0], np.cumsum(lengths)])

        def flat(values: Sequence[Sequence[int]], dtype: type) -> np.ndarray:
            return np.fromiter(itertools.chain.from_iterable(values), dtype, int(starts[-1]))

        return cls(flat(ids, np.int32), starts, query, None if types is None else flat(types, np.int8), truncated)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair, int64, shape (pairs,)."""
        return np.diff(self.starts)

    def row(self, pair: int) -> np.ndarray:
        """Token ids of one pair."""
        return self.ids[self.starts[pair] : self.starts[pair + 1]]

    def take(self, pairs: np.ndarray) -> Tokens:
        """The tokens of some pairs, in the order of `pairs`."""
        lengths = self.lengths[pairs]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(starts[-1]) + np.repeat(self.starts[pairs] - starts[:-1], lengths)
        types = None if self.types is None else self.types[at]
        return Tokens(self.ids[at], starts, self.queries[pairs], types)


class Encoder(Protocol):
    """Tokens of pairs."""

    tokenizer: PreTrainedTokenizerBase

    def encode(self, queries: Sequence[str], products: Sequence[str]) -> Tokens:
        """Tokens of each pair, at most `max_tokens` of them unless the query itself is longer."""


def is_encoder(folder: Any) -> bool:
    """Whether the model in `folder` is of an encoder architecture (BERT and its like), by its configuration."""
    return AutoConfig.from_pretrained(folder).model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern that finds the tokenizer's special tokens in raw text."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    # a token of one character has no inside to put a blank into
    tokens = sorted(
        (token for token in added | set(tokenizer.all_special_tokens) if len(token) > 1), key=len, reverse=True
    )
    return re.compile("|".join(re.escape(token) for token in tokens))


def neutralise(text: str, special: re.Pattern[str]) -> str:
    """`text` with a blank within each special token, so that the tokenizer reads it as ordinary characters."""
    previous = None
    while previous != text:  # a blank may have brought another token together, in theory
        previous, text = text, special.sub(lambda match: match[0][0] + " " + match[0][1:], text)
    return text


def render_products(table: pa.Table, text: Text, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """One string a product: its non-empty fields in order, neutralised, within budget, joined by the separator."""
    special = special_tokens(tokenizer)
    columns = []
    for name in text.fields:
        if name not in table.column_names:
            continue
        values = [
            neutralise(" ".join(value.split()), special) if value and value.strip() else ""
            for value in table.column(name).to_pylist()
        ]
        columns.append(_within(values, text.budgets[name], tokenizer) if name in text.budgets else values)
    return [text.separator.join(filter(None, row)) for row in zip(*columns, strict=True)]


def _within(values: list[str], budget: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each text cut after its first `budget` tokens."""
    long = [row for row, value in enumerate(values) if len(value) > budget]  # no token is shorter than a character
    if not long:
        return values
    found = tokenizer(
        [values[row] for row in long],
        add_special_tokens=False,
        truncation=True,
        max_length=budget,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )["offset_mapping"]
    kept = list(values)
    for row, offsets in zip(long, found, strict=True):
        kept[row] = values[row][: offsets[-1][1]].rstrip() if offsets else ""
    return kept


class PairEncoder:
    """(query, product) as two segments, for encoders."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: Text, limit: int) -> None:
        self.tokenizer, self.max_tokens, self.limit = tokenizer, min(text.max_tokens, limit), limit

    def encode(self, queries: Sequence[str], products: Sequence[str]) -> Tokens:
        batch = self.tokenizer(
            list(queries), list(products), truncation=False, return_attention_mask=False, verbose=False
        )
        ids, types = batch["input_ids"], batch.get("token_type_ids")
        whole = [len(tokens) for tokens in ids]
        for row in (row for row, tokens in enumerate(whole) if tokens > self.max_tokens):
            of_product = [at for at, part in enumerate(batch.sequence_ids(row)) if part == 1]
            excess = len(ids[row]) - self.max_tokens
            keep = max(len(of_product) - excess, min(MIN_PRODUCT_TOKENS, len(of_product)))
            dropped = set(of_product[keep:])
            for values in (ids, types) if types else (ids,):
                values[row] = [value for at, value in enumerate(values[row]) if at not in dropped]
            _refuse_long_query(queries[row], len(ids[row]), self.limit)
        return Tokens.of(queries, ids, types, _shorter(ids, whole))


class PromptEncoder:
    """A prompt whose last token judges the product, for decoders."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: Text, template: str, limit: int) -> None:
        self.tokenizer, self.max_tokens, self.limit, self.template = (
            tokenizer,
            min(text.max_tokens, limit),
            limit,
            template,
        )

    def _prompt(self, query: str, product: str) -> str:
        values = {"{query}": query, "{product}": product}
        return re.sub(r"\{query\}|\{product\}", lambda match: values[match[0]], self.template)

    def encode(self, queries: Sequence[str], products: Sequence[str]) -> Tokens:
        prompts = [self._prompt(*pair) for pair in zip(queries, products, strict=True)]
        ids = self.tokenizer(prompts, return_attention_mask=False, verbose=False)["input_ids"]
        whole = [len(tokens) for tokens in ids]
        for row in (row for row, tokens in enumerate(whole) if tokens > self.max_tokens):
            ids[row] = self._shortened(queries[row], products[row], len(ids[row]))
            _refuse_long_query(queries[row], len(ids[row]), self.limit)
        return Tokens.of(queries, ids, truncated=_shorter(ids, whole))

    def _shortened(self, query: str, product: str, tokens: int) -> list[int]:
        ends = [
            end
            for _, end in self.tokenizer(product, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
                "offset_mapping"
            ]
        ]
        keep = len(ends)
        while True:
            # cutting at a token's end may change how the rest is split, hence the loop
            keep = max(keep - max(tokens - self.max_tokens, 1), min(MIN_PRODUCT_TOKENS, len(ends)))
            ids = self.tokenizer(self._prompt(query, product[: ends[keep - 1]] if keep else ""))["input_ids"]
            tokens = len(ids)
            if tokens <= self.max_tokens or keep <= MIN_PRODUCT_TOKENS:
                return ids


def encode_table(encoder: Encoder, table: pa.Table, text: Text) -> Tokens:
    """Tokens of each row's pair, from the column `query` and the product fields that `text` names."""
    special = special_tokens(encoder.tokenizer)
    queries = [neutralise(query, special) for query in table.column("query").to_pylist()]
    return encoder.encode(queries, render_products(table, text, encoder.tokenizer))


def _shorter(ids: Sequence[Sequence[int]], whole: Sequence[int]) -> int:
    return sum(len(tokens) < before for tokens, before in zip(ids, whole, strict=True))


def _refuse_long_query(query: str, tokens: int, limit: int) -> None:
    if tokens > limit:
        raise InputError(
            f"query {query[:60]!r}...: {tokens} tokens with its product shortened, the model takes at most {limit}"
        )
