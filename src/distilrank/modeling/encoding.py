"""How a (query, product) pair becomes the tokens that a model sees.

An encoder takes the pair as two segments; a decoder takes a prompt made from a template. In both, special tokens
that occur in raw text are neutralized, and a pair that is too long loses the end of its product, never of its query.
Needs the tokenizers library only, so that a service scores without torch and transformers.
"""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import AddedToken, Tokenizer

from distilrank.config import ProductField, TeacherText, Text
from distilrank.core import artifacts
from distilrank.core.errors import InputError, one_line

NESTED_POSITIONS = 8192
"""Maximum length of a model whose nested configuration omits it; all such models accept more."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""Names of a model's inputs, the last one for models with segments only."""
MIN_PRODUCT_TOKENS = 8  # tokens of a product to keep if its query alone fills `max_tokens`
CHARACTERS_PER_TOKEN = 32
"""Most characters of a text to tokenize per token that the model may read of it.

Ordinary text has two to five characters per token, and no wordpiece of BERT has more than eighteen. The margin covers
characters that a normalizer drops (control characters, accents) and unknown words, which are one token of any length.
"""
TOKENIZED_CHARACTERS = 2**18
"""Characters to tokenize in one call: the library needs about 140 bytes per character until its result is copied."""

ENCODERS = frozenset(
    "albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie eurobert "
    "flaubert fnet funnel gte ibert layoutlm longformer luke megatron-bert mobilebert modernbert mpnet mra nomic_bert "
    "nystromformer rembert roberta roberta-prelayernorm roformer squeezebert xlm xlm-roberta xlm-roberta-xl xmod "
    "yoso".split()
)
"""Values of `model_type` in config.json that are encoders of text; all others are treated as decoders."""
OFFSET_POSITIONS = frozenset(
    "camembert data2vec-text ibert longformer luke mpnet roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl "
    "xmod".split()
)
"""Encoders whose first token has the position pad_token_id + 1, so that earlier positions are unused."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of pairs, concatenated without padding: four bytes per token, instead of forty in Python lists."""

    ids: np.ndarray
    """int32, shape (tokens,)"""
    starts: np.ndarray
    """Index of the first token of each pair, and the end of the last pair: int64, shape (pairs + 1,)."""
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
        """Build from one sequence of token ids per pair, and the pair's query."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        starts = np.concatenate([[0], np.cumsum(lengths)])

        def flat(values: Sequence[Sequence[int]], dtype: type) -> np.ndarray:
            return np.fromiter(itertools.chain.from_iterable(values), dtype, int(starts[-1]))

        segments = None if types is None else flat(types, np.int8)
        return cls(flat(ids, np.int32), starts, distinct(queries)[1], segments, truncated)

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
        starts, source = _gathered(self.starts[pairs], self.lengths[pairs])
        types = None if self.types is None else self.types[source]
        return Tokens(self.ids[source], starts, self.queries[pairs], types)

    def padded(self, pairs: np.ndarray, pad_token: int) -> dict[str, np.ndarray]:
        """Pad the pairs on the right to the longest; keys are the models' input names.

        Returns:
            `input_ids`, `attention_mask` and, for models with segments, `token_type_ids`: int64, shape
            (pairs, tokens).
        """
        lengths = self.lengths[pairs]
        column = np.arange(lengths.max())[None]
        real = column < lengths[:, None]
        source = self.starts[pairs][:, None] + np.minimum(column, lengths[:, None] - 1)
        batch = {
            "input_ids": np.where(real, self.ids[source], pad_token).astype(np.int64),
            "attention_mask": real.astype(np.int64),
        }
        if self.types is not None:
            batch["token_type_ids"] = np.where(real, self.types[source], 0).astype(np.int64)
        return batch


def distinct(values: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """The distinct values in order of appearance, and the index of each value among them: int64, shape (n,)."""
    position_of_value: dict[Any, int] = {}
    positions = np.fromiter(
        (position_of_value.setdefault(value, len(position_of_value)) for value in values), np.int64, len(values)
    )
    return list(position_of_value), positions


def _gathered(begins: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate runs of a flat array: the start of each run in the result, with the end, and the source indices."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return starts, np.arange(starts[-1]) + np.repeat(begins - starts[:-1], lengths)


# The model's folder -----------------------------------------------------------------------------------------------


def is_encoder(folder: Path) -> bool:
    """Whether the model in `folder` is of an encoder architecture (BERT and its like), by its configuration."""
    return artifacts.read_json(folder / "config.json").get("model_type") in ENCODERS


def require_encoder(folder: Path) -> None:
    """Refuse a student that is not an encoder.

    Raises:
        InputError: naming the model's type.
    """
    if not is_encoder(folder):
        kind = artifacts.read_json(folder / "config.json").get("model_type")
        raise InputError(
            f"{folder / 'config.json'}: model_type {kind!r} is no encoder of text, and a student must be one (BERT, "
            "MiniLM, RoBERTa, DeBERTa, ModernBERT, ...); decoders can be teachers"
        )


ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Inputs:
    """Properties of a model's inputs that are not in tokenizer.json.

    For a folder that a stage saved, `read` finds all of them in the folder's JSON. The JSON of other models omits
    defaults of transformers, see `pretrained.inputs`.
    """

    config: Mapping[str, Any]
    """Content of config.json."""
    special_tokens: Mapping[str, str]
    """The tokenizer's special tokens by role, one of ROLES."""
    names: tuple[str, ...] | None = None
    """Names of the arrays passed to the model; None: all that it accepts."""

    @classmethod
    def read(cls, folder: Path) -> Inputs:
        """Read the JSON files of `folder`; older models store special tokens in a separate file."""
        paths = [folder / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
        settings = {
            name: value
            for path in paths
            if path.is_file()
            for name, value in artifacts.read_json(path).items()
            if value is not None
        }
        tokens = {role: settings[role] for role in ROLES if role in settings}
        special = {role: token["content"] if isinstance(token, dict) else str(token) for role, token in tokens.items()}
        names = settings.get("model_input_names")
        return cls(artifacts.read_json(folder / "config.json"), special, None if names is None else tuple(names))


def load_tokenizer(folder: Path, special_tokens: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer in `folder`, which neither pads nor truncates.

    Args:
        special_tokens: tokens that a base model's tokenizer.json may omit; transformers adds them too.

    Raises:
        InputError: no tokenizer.json, or it cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected the tokenizer beside the model (tokenizers' own format)")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path}: not a tokenizer ({one_line(error)})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    existing = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    missing = [token for token in dict.fromkeys(special_tokens) if token not in existing]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    return tokenizer


def _pad_token_id(folder: Path, tokenizer: Tokenizer, inputs: Inputs) -> int:
    """Return the padding token: the pad token or, without one, the end token."""
    token = inputs.special_tokens.get("pad_token", inputs.special_tokens.get("eos_token"))
    token_id = inputs.config.get("pad_token_id") if token is None else tokenizer.token_to_id(token)
    if not isinstance(token_id, int) or token_id < 0 or tokenizer.id_to_token(token_id) is None:
        raise InputError(f"{folder}: its tokenizer has neither a pad token nor an end token, expected one to pad with")
    return token_id


def text_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the text model, which models that also read images have in a separate section of config.json."""
    nested = config.get("text_config")
    return {**config, "max_position_embeddings": NESTED_POSITIONS, **nested} if isinstance(nested, dict) else {**config}


def _positions(path: Path, config: Mapping[str, Any]) -> int:
    """Most tokens that the model of `config` accepts."""
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if not isinstance(positions, int) or positions < 1:
        raise InputError(
            f"{path}: max_position_embeddings is {positions!r}, expected the most tokens that the model takes"
        )
    if config.get("model_type") in OFFSET_POSITIONS:
        positions -= (config["pad_token_id"] if isinstance(config.get("pad_token_id"), int) else 1) + 1
    return positions


# Text -------------------------------------------------------------------------------------------------------------


def special_tokens(tokenizer: Tokenizer) -> re.Pattern[str]:
    """A pattern that finds the tokenizer's special tokens in raw text."""
    special = (token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
    # a token of one character cannot be split by a blank
    tokens = sorted((token for token in special if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in tokens) or r"(?!)")


def neutralize(text: str, special: re.Pattern[str]) -> str:
    """`text` with a blank within each special token, so that the tokenizer reads it as ordinary characters.

    Example:
        >>> neutralize("sofa [SEP] red", re.compile(re.escape("[SEP]")))
        'sofa [ SEP] red'
    """
    previous = None
    while previous != text:  # in theory, a blank may form another token
        previous, text = text, special.sub(lambda match: match[0][0] + " " + match[0][1:], text)
    return text


class Encoder(ABC):
    """Tokens of pairs for the model in a folder.

    Args:
        folder: `config.json` and `tokenizer.json` are read, and the tokenizer's settings if there are any.
        text: how a pair is shown to the model.
        inputs: properties of the inputs; None: read from the folder's JSON.

    Raises:
        InputError: one of them is missing or unreadable, they do not fit each other, there is no padding token,
            or `text` leaves no room for a query.
    """

    def __init__(self, folder: Path, text: Text, inputs: Inputs | None = None) -> None:
        inputs = inputs or Inputs.read(folder)
        config = text_settings(inputs.config)
        self.folder, self.text, self.special_tokens = folder, text, inputs.special_tokens
        self.tokenizer = load_tokenizer(folder, inputs.special_tokens.values())
        self.pad_token_id = _pad_token_id(folder, self.tokenizer, inputs)
        self.special = special_tokens(self.tokenizer)
        self.limit = _positions(folder / "config.json", config)
        self.max_tokens = min(text.max_tokens, self.limit)
        self.has_types = int(config.get("type_vocab_size") or 0) > 1 and (
            inputs.names is None or "token_type_ids" in inputs.names
        )
        self._vocabulary_size = config.get("vocab_size")
        # Neutralized texts contain no special token, so Gemma 3's <image_soft_token>, which has no embedding, is
        # harmless.
        added = self.tokenizer.get_added_tokens_decoder()
        absent = {number for number, token in added.items() if self.special.fullmatch(token.content)}
        self._require_embeddings(set(self.tokenizer.get_vocab().values()) - absent)

    def _require_embeddings(self, ids: Iterable[int]) -> None:
        """Refuse token ids beyond the model's embeddings."""
        largest = max(ids, default=-1)
        if self._vocabulary_size is not None and largest >= self._vocabulary_size:
            raise InputError(
                f"{self.folder / 'tokenizer.json'}: its largest token id is {largest}, but config.json's vocab_size is "
                f"{self._vocabulary_size}; expected a tokenizer of this model"
            )

    @abstractmethod
    def encode(self, queries: Sequence[str], products: Sequence[str]) -> Tokens:
        """Tokens of each pair, at most `max_tokens` of them unless the query itself is longer.

        Args:
            queries: neutralized, shape (n,).
            products: as `render` gives them, shape (n,).

        Raises:
            InputError: a query is longer than what the model takes.
        """

    def render(self, columns: Mapping[str, Sequence[str | None]]) -> list[str]:
        """Render one string per product: its non-empty fields in order, neutralized, within budget, and joined.

        Args:
            columns: values by field, each of shape (n,); fields that `text` does not name are ignored.
        """
        shown = []
        for name in self.text.fields:
            if name in columns:
                values = [neutralize(self.cut(name, value), self.special) for value in columns[name]]
                shown.append(self._within(values, self.text.budgets[name]) if name in self.text.budgets else values)
        return [self.text.separator.join(filter(None, row)) for row in zip(*shown, strict=True)]

    def cut(self, field: ProductField, value: str | None) -> str:
        """Shorten a field to the part that the model can read at most, with runs of white space collapsed.

        Tokenizing the rest would cost time and memory for tokens that are dropped. Idempotent; scores of the cut value
        are those of `value` while its tokens have at most CHARACTERS_PER_TOKEN characters on average.
        """
        if not value:
            return ""
        limit = CHARACTERS_PER_TOKEN * min(self.text.budgets.get(field, self.max_tokens), self.max_tokens)
        # No more words than characters are needed; the last piece of such a split is the whole rest of the text.
        return " ".join(value.split(None, limit)[:limit])[:limit].rstrip()

    def _within(self, values: list[str], budget: int) -> list[str]:
        """Each text cut after its first `budget` tokens."""
        long = [row for row, value in enumerate(values) if len(value) > budget]  # a token has at least one character
        shortened = list(values)
        encodings = self.tokenizer.encode_batch([values[row] for row in long], add_special_tokens=False)
        for row, encoding in zip(long, encodings, strict=True):
            offsets = encoding.offsets[:budget]
            shortened[row] = values[row][: offsets[-1][1]].rstrip() if offsets else ""
        return shortened

    @property
    def pad_token(self) -> str:
        """The token of `pad_token_id`."""
        return str(self.tokenizer.id_to_token(self.pad_token_id))

    def _refuse_long(self, query: str, tokens: int) -> None:
        if tokens > self.limit:
            raise InputError(
                f"query {query[:60]!r}...: {tokens} tokens with its product shortened, the model takes at most "
                f"{self.limit}"
            )

    def _require_room(self, taken: int) -> None:
        """Refuse a limit within which the shortest query does not fit beside `taken` tokens and a product."""
        if self.max_tokens < taken + MIN_PRODUCT_TOKENS + 1:
            raise InputError(
                f"{self.folder}: takes {self.max_tokens} tokens of a pair, of which {taken} are not text; expected at "
                f"least {taken + MIN_PRODUCT_TOKENS + 1}, for a query and {MIN_PRODUCT_TOKENS} tokens of its product"
            )


class PairEncoder(Encoder):
    """(query, product) as two segments, for encoders.

    They are tokenized separately, so that tokens can be reused, and joined as by the tokenizer: with the tokens that
    its post-processor puts before, between and after them.
    """

    def __init__(self, folder: Path, text: Text, inputs: Inputs | None = None) -> None:
        super().__init__(folder, text, inputs)
        self._pieces, self._types = self._template()
        self._require_embeddings(np.concatenate([*self._pieces, [self.pad_token_id]]))
        self._require_room(sum(map(len, self._pieces)))

    def _template(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The special tokens before, between and after the segments; and the types of those and of the segments."""
        path = self.folder / "tokenizer.json"
        probe = self.tokenizer.encode("red sofa", "blue lamp")
        segment = [-1 if index is None else index for index in probe.sequence_ids]
        if 0 not in segment or 1 not in segment:
            raise InputError(f"{path}: returns no tokens for 'red sofa' or 'blue lamp', expected some for each")
        ends = [end for index in (0, 1) for end in (segment.index(index), len(segment) - segment[::-1].index(index))]
        if ends != sorted(ends):
            raise InputError(f"{path}: puts the product before the query, expected a pair in its order")
        ids = np.split(np.array(probe.ids, np.int32), ends)
        types = np.split(np.array(probe.type_ids, np.int8), ends)
        return ids[::2], [types[0], types[1][:1], types[2], types[3][:1], types[4]]

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of texts by themselves, without special tokens of the model's own: int32 each."""
        ends = np.cumsum([len(text) for text in texts])
        ids: list[np.ndarray] = []
        while len(ids) < len(texts):  # each call takes at least one text, of any length
            first = len(ids)
            end = int(np.searchsorted(ends, (ends[first - 1] if first else 0) + TOKENIZED_CHARACTERS, side="right"))
            part = list(texts[first : max(end, first + 1)])
            encoded = self.tokenizer.encode_batch_fast(part, add_special_tokens=False)
            ids += [np.array(encoding.ids, np.int32) for encoding in encoded]
        return ids

    def encode(self, queries: Sequence[str], products: Sequence[str]) -> Tokens:
        (query_texts, query_of), (product_texts, product_of) = distinct(queries), distinct(products)
        return self.join(query_texts, query_of, self.tokenize(product_texts), product_of)

    def join(
        self, queries: Sequence[str], query_of: np.ndarray, products: Sequence[np.ndarray], product_of: np.ndarray
    ) -> Tokens:
        """Tokens of pairs with tokenized products.

        Args:
            queries: distinct queries, neutralized.
            query_of: index of each pair's query among them, int64, shape (n,).
            products: token ids of distinct products.
            product_of: index of each pair's product among them, int64, shape (n,).

        Raises:
            InputError: a query is longer than what the model takes.
        """
        pool = [*self._pieces, *self.tokenize(queries), *products]
        sizes = np.fromiter(map(len, pool), np.int64, len(pool))
        begins = np.cumsum(sizes) - sizes
        pairs = len(query_of)
        before, between, after = (np.full(pairs, piece) for piece in range(3))
        parts = np.stack([before, 3 + query_of, between, 3 + len(queries) + product_of, after], axis=1)
        lengths = sizes[parts]
        product_lengths = lengths[:, 3].copy()
        excess = lengths.sum(axis=1) - self.max_tokens
        shortest = np.minimum(product_lengths, MIN_PRODUCT_TOKENS)
        lengths[:, 3] = np.where(excess > 0, np.maximum(product_lengths - excess, shortest), product_lengths)
        for row in np.flatnonzero(lengths.sum(axis=1) > self.limit):
            self._refuse_long(queries[query_of[row]], int(lengths[row].sum()))
        _, source = _gathered(begins[parts].ravel(), lengths.ravel())
        types = None
        if self.has_types:
            first, query, middle, product, last = self._types
            of_text = np.repeat([query[0], product[0]], [len(queries), len(products)])
            of_pool = np.concatenate([first, middle, last, np.repeat(of_text, sizes[3:])])
            types = of_pool[source]
        starts = np.concatenate([[0], np.cumsum(lengths.sum(axis=1))])
        truncated = int((lengths[:, 3] < product_lengths).sum())
        return Tokens(np.concatenate(pool)[source], starts, query_of, types, truncated)


class PromptEncoder(Encoder):
    """A prompt whose last token judges the product, for decoders."""

    def __init__(self, folder: Path, text: TeacherText, inputs: Inputs | None = None) -> None:
        super().__init__(folder, text, inputs)
        self.template = text.template
        (prompt,) = self._tokenize([self._prompt("", "")])
        self._require_room(len(prompt))
        self.pad_token_id = self._padding()
        self._require_embeddings([*prompt, self.pad_token_id])

    def _padding(self) -> int:
        """Id to pad with: transformers reads the last token that differs from it, so no prompt may end in it."""
        (prompt,) = self._tokenize([self._prompt("red sofa", "blue lamp")])
        special = [number for number, token in self.tokenizer.get_added_tokens_decoder().items() if token.special]
        for number in (self.pad_token_id, *special):
            # a token of a single character may be the end of a query
            if number != prompt[-1] and len(str(self.tokenizer.id_to_token(number))) > 1:
                return number
        raise InputError(
            f"{self.folder}: its prompts end in {self.pad_token!r}, which it pads with, and it has no other special "
            "token; expected a tokenizer with a separate pad token"
        )

    def _prompt(self, query: str, product: str) -> str:
        values = {"{query}": query, "{product}": product}
        return re.sub(r"\{query\}|\{product\}", lambda match: values[match[0]], self.template)

    def _tokenize(self, prompts: list[str]) -> list[list[int]]:
        return [encoded.ids for encoded in self.tokenizer.encode_batch_fast(prompts)]

    def encode(self, queries: Sequence[str], products: Sequence[str]) -> Tokens:
        ids = self._tokenize([self._prompt(*pair) for pair in zip(queries, products, strict=True)])
        whole = [len(tokens) for tokens in ids]
        for row in (row for row, tokens in enumerate(whole) if tokens > self.max_tokens):
            ids[row] = self._shortened(queries[row], products[row], len(ids[row]))
            self._refuse_long(queries[row], len(ids[row]))
        truncated = sum(len(tokens) < before for tokens, before in zip(ids, whole, strict=True))
        return Tokens.of(queries, ids, truncated=truncated)

    def _shortened(self, query: str, product: str, tokens: int) -> list[int]:
        ends = [end for _, end in self.tokenizer.encode(product, add_special_tokens=False).offsets]
        keep = len(ends)
        while True:
            # cutting at the end of a token may change the tokenization of the rest, hence the loop
            keep = max(keep - max(tokens - self.max_tokens, 1), min(MIN_PRODUCT_TOKENS, len(ends)))
            (ids,) = self._tokenize([self._prompt(query, product[: ends[keep - 1]] if keep else "")])
            tokens = len(ids)
            if tokens <= self.max_tokens or keep <= MIN_PRODUCT_TOKENS:
                return ids


def encode_table(encoder: Encoder, table: pa.Table, text: Text) -> Tokens:
    """Tokens of each row's pair, from the column `query` and the product fields that `text` names.

    Raises:
        InputError: a query is longer than what the model takes.
    """
    queries, query_of = distinct(table.column("query").to_pylist())
    queries = [neutralize(query, encoder.special) for query in queries]
    return encoder.encode([queries[index] for index in query_of], encoder.render(columns(table, text)))


def columns(table: pa.Table, text: Text) -> dict[str, list[str | None]]:
    """The product fields that `text` names and `table` has, for `Encoder.render`."""
    return {name: table.column(name).to_pylist() for name in text.fields if name in table.column_names}
