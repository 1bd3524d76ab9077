"""Forward passes without padding: the pairs of a batch form one row, with the common prefix of a query's prompts once.

Everything that works token by token (nine tenths of a model) then sees no padding. A prompt begins with its query, so
the prompts of a query's products share their first tokens, and a causal model computes the same states for them: they
are computed once, and each pair's remaining tokens attend to them and to themselves. An encoder attends in both
directions, so its pairs share nothing. Attention is computed with one segment per row (a shared prefix, the rest of a
pair, or a whole pair), padded to the longest of the batch; it is a few per cent of the work.

The result equals that of a padded batch up to rounding, for models that leave attention to transformers' attention
interface and add nothing to it. The tests verify it for DECODERS and ENCODERS. Other models are padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from distilrank.core.errors import InputError
from distilrank.modeling.encoding import Tokens

ATTENTION = "distilrank_packed"
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
ENCODERS = ("bert",)
MODEL_TYPES = DECODERS + ENCODERS


@dataclass(frozen=True)
class Packed:
    """A batch of pairs as one row of tokens, and the segments that attention works on."""

    ids: Tensor
    """int64, shape (1, tokens)."""
    positions: Tensor
    """Position of each token in its own pair, int64, shape (1, tokens)."""
    queries: Tensor
    """Index of the token at each position of a segment, int64, shape (segments, longest)."""
    keys: Tensor
    """Index of each token that a segment attends to, shared first: int64, shape (segments, longest with shared)."""
    mask: Tensor
    """0 where a token may see a key, else -inf: float32, shape (segments, 1, longest, longest with shared), or with 1
    for longest where all tokens of a segment see the same."""
    slots: Tensor
    """Index of each token among the positions of all segments, int64, shape (tokens,)."""
    read: Tensor
    """The token of each pair whose state is its result, the last one of a decoder and the first one of an encoder:
    int64, shape (pairs,), in the order of the rows that were asked for."""
    types: Tensor | None = None
    """Segment of each token in the tokenizer's sense, int64, shape (1, tokens), for models that have them."""

    def to(self, device: torch.device) -> Packed:
        """The batch on `device`; from pinned memory to a GPU, so that the copy overlaps with computation."""
        if device.type == "cpu":
            return self
        tensors = {name: value for name, value in vars(self).items() if value is not None}
        pinned = {name: value.pin_memory() if device.type == "cuda" else value for name, value in tensors.items()}
        return Packed(**{name: value.to(device, non_blocking=True) for name, value in pinned.items()})


def pack_encoder_batch(tokens: Tokens, rows: np.ndarray) -> Packed:
    """Concatenate the pairs `rows` without padding, for a model that attends in both directions."""
    begins, lengths = tokens.starts[rows], tokens.lengths[rows]
    offset = np.concatenate([[0], np.cumsum(lengths)])
    longest = int(lengths.max())
    pair = np.repeat(np.arange(len(rows)), lengths)
    inside = np.arange(offset[-1]) - offset[pair]
    source = begins[pair] + inside
    column = np.arange(longest)[None]
    token = torch.from_numpy(offset[:-1, None] + np.minimum(column, lengths[:, None] - 1))
    mask = np.where(column < lengths[:, None], np.float32(0), -np.float32(np.inf))
    return Packed(
        ids=torch.from_numpy(tokens.ids[source].astype(np.int64))[None],
        positions=torch.from_numpy(inside)[None],
        queries=token,
        keys=token,
        mask=torch.from_numpy(mask)[:, None, None],
        slots=torch.from_numpy(pair * longest + inside),
        read=torch.from_numpy(offset[:-1]),
        types=None if tokens.types is None else torch.from_numpy(tokens.types[source].astype(np.int64))[None],
    )


def pack_decoder_batch(tokens: Tokens, rows: np.ndarray) -> Packed:
    """Concatenate the pairs `rows` without padding, those of a query adjacent and their common prefix once.

    For a causal model.
    """
    order = np.argsort(tokens.queries[rows], kind="stable")
    begins, lengths = tokens.starts[rows][order], tokens.lengths[rows][order]
    shared = _shared_prefixes(tokens, rows[order])
    heads = np.flatnonzero(shared.first & (shared.length > 0))  # a separate segment for each shared prefix

    # segments: first all shared prefixes, then the rest of each pair
    parent = np.where(shared.length > 0, np.searchsorted(heads, shared.leader), -1)
    start = np.concatenate([begins[heads], begins + shared.length])
    length = np.concatenate([shared.length[heads], lengths - shared.length])
    position = np.concatenate([np.zeros(len(heads), np.int64), shared.length])
    parent = np.concatenate([np.full(len(heads), -1), parent])
    offset = np.concatenate([[0], np.cumsum(length)])
    before = np.where(parent >= 0, length[parent], 0)

    segment = np.repeat(np.arange(len(length)), length)
    inside = np.arange(offset[-1]) - offset[segment]
    longest, widest = int(length.max()), int((before + length).max())
    column, key = np.arange(longest)[None], np.arange(widest)[None]
    queries = offset[:-1, None] + np.minimum(column, length[:, None] - 1)
    own = np.clip(key - before[:, None], 0, length[:, None] - 1)
    keys = np.where(key < before[:, None], offset[parent][:, None] + key, offset[:-1, None] + own)
    # positions beyond a segment's end attend like its last token; their results are never read
    visible = before[:, None] + np.minimum(column, length[:, None] - 1)
    last = np.empty(len(rows), np.int64)
    last[order] = (offset[1:] - 1)[len(heads) :]
    return Packed(
        ids=torch.from_numpy(tokens.ids[start[segment] + inside].astype(np.int64))[None],
        positions=torch.from_numpy(position[segment] + inside)[None],
        queries=torch.from_numpy(queries),
        keys=torch.from_numpy(keys),
        mask=torch.from_numpy(np.where(key[None] <= visible[:, :, None], np.float32(0), -np.float32(np.inf)))[:, None],
        slots=torch.from_numpy(segment * longest + inside),
        read=torch.from_numpy(last),
    )


@dataclass(frozen=True)
class _SharedPrefixes:
    """For each of a batch's pairs, sorted by query."""

    length: np.ndarray
    """Number of tokens that it shares with all pairs of its query; 0 if it is alone."""
    leader: np.ndarray
    """The first pair of its query."""
    first: np.ndarray
    """Whether it is itself the first pair of its query."""


def _shared_prefixes(tokens: Tokens, rows: np.ndarray) -> _SharedPrefixes:
    query = tokens.queries[rows]
    first = np.concatenate([[True], query[1:] != query[:-1]])
    starts = np.flatnonzero(first)
    sizes = np.diff(np.append(starts, len(rows)))
    common = np.zeros(len(starts), np.int64)
    for group in np.flatnonzero(sizes > 1):
        members = rows[starts[group] : starts[group] + sizes[group]]
        width = int(tokens.lengths[members].min()) - 1  # the last token is each pair's own: its state is the result
        if width > 0:
            table = tokens.ids[tokens.starts[members][:, None] + np.arange(width)]
            same = (table == table[0]).all(axis=0)
            common[group] = width if same.all() else int(same.argmin())
    return _SharedPrefixes(np.repeat(common, sizes), np.repeat(starts, sizes), first)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one packed row, as transformers' attention interface calls it.

    Args:
        query: shape (1, heads, tokens, width); `key` and `value`: (1, key heads, tokens, width).
        kwargs: `queries`, `keys`, `mask` and `slots` of a Packed among them.
    """
    window = kwargs.get("sliding_window")
    keys, queries, mask = kwargs["keys"], kwargs["queries"], kwargs["mask"]
    if window and keys.shape[1] > window:
        raise InputError(f"a pair of {keys.shape[1]} tokens, the model's attention window has {window}")
    heads, key_heads, width = query.shape[1], key.shape[1], query.shape[3]
    segments, longest = queries.shape
    per_key = heads // key_heads
    q = _take(query, queries).view(segments, longest, key_heads, per_key, width)
    k, v = (_take(states, keys).transpose(1, 2) for states in (key, value))  # (segments, key heads, keys, width)
    if query.is_cuda:
        q = q.flatten(2, 3).transpose(1, 2)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=per_key > 1
        )
        out = out.transpose(1, 2)
    else:
        # On CPUs the backward of PyTorch's fused attention is slow; the heads of one key head are one matrix here
        q = q.permute(0, 2, 3, 1, 4).reshape(segments, key_heads, per_key * longest, width)
        scores = torch.matmul(q * scaling, k.transpose(2, 3)).view(segments, key_heads, per_key, longest, -1)
        weights = torch.dropout((scores + mask[:, :, None]).softmax(-1), dropout, module.training)
        weights = weights.view(segments, key_heads, -1, k.shape[2])
        out = torch.matmul(weights, v).view(segments, key_heads, per_key, longest, width).permute(0, 3, 1, 2, 4)
    flat = out.reshape(segments * longest, heads, width)
    return flat.index_select(0, kwargs["slots"])[None], None


def _take(states: Tensor, token: Tensor) -> Tensor:
    """Select states at token indices of shape (segments, longest) from an array of shape (1, heads, tokens, width)."""
    # the backward of index_select adds whole rows, that of plain indexing sorts all indices first
    return states[0].transpose(0, 1).index_select(0, token.flatten()).unflatten(0, token.shape)


AttentionInterface.register(ATTENTION, attend)


def is_packed(model: nn.Module) -> bool:
    """Whether `model` takes packed batches."""
    return model.config._attn_implementation == ATTENTION


def plain(model: nn.Module) -> nn.Module:
    """The classifier itself, within peft's wrapper if it is in one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def logits(model: nn.Module, tokens: Tokens, rows: np.ndarray, device: torch.device) -> Tensor:
    """Raw logits of the pairs `rows`, shape (pairs,), of a model that takes packed batches."""
    classifier = plain(model)
    if classifier.config.model_type in ENCODERS:
        return _encode(classifier, pack_encoder_batch(tokens, rows).to(device))
    batch = pack_decoder_batch(tokens, rows).to(device)
    states = classifier.base_model(
        input_ids=batch.ids, position_ids=batch.positions, use_cache=False, **_segments(batch, classifier.dtype)
    ).last_hidden_state
    return classifier.score(states[0].index_select(0, batch.read))[:, 0]


def _segments(batch: Packed, dtype: torch.dtype) -> dict[str, Tensor]:
    """Arguments of `attend` besides the states."""
    return {"queries": batch.queries, "keys": batch.keys, "mask": batch.mask.to(dtype), "slots": batch.slots}


def _encode(classifier: nn.Module, batch: Packed) -> Tensor:
    """Logits of an encoder, which reads the state of each pair's first token: its last layer computes no other one."""
    base, segments = classifier.base_model, _segments(batch, classifier.dtype)
    states = base.embeddings(input_ids=batch.ids, token_type_ids=batch.types, position_ids=batch.positions)
    *before, last = base.encoder.layer
    for layer in before:
        states = layer(states, None, **segments)
    own = last.attention.self
    first = states[0].index_select(0, batch.read)
    query = own.query(first).view(len(first), own.num_attention_heads, 1, -1)
    key, value = (
        project(states)[0].index_select(0, batch.keys.flatten()).view(*batch.keys.shape, *query.shape[1::2])
        for project in (own.key, own.value)
    )
    scores = torch.matmul(query * own.scaling, key.permute(0, 2, 3, 1)) + segments["mask"]
    weights = torch.dropout(scores.softmax(-1), own.dropout.p, own.training)
    attended = last.attention.output(torch.matmul(weights, value.transpose(1, 2)).flatten(1), first)
    result = last.output(last.intermediate(attended), attended)
    return classifier.classifier(classifier.dropout(base.pooler(result[:, None])))[:, 0]


def layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a model that takes packed batches."""
    base = plain(model).base_model
    return base.encoder.layer if plain(model).config.model_type in ENCODERS else base.layers
