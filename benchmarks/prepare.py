"""Preparation at the scale of a shop: time, memory, and the cost of one more day of log.

`python -m benchmarks.prepare [--quick] [--only ubi|esci|scrub] [--events N ...] [--work DIR]`; see README.md.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import machine
from benchmarks.machine import Failed, Measured, measure
from benchmarks.result import at_most, bar, report, say
from distilrank import config
from distilrank.core import artifacts, normalize
from distilrank.data import splits
from distilrank.data.privacy import Scrubber

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("duckdb", "numpy", "pandas", "pyarrow")
SEED = 20
FIRST_DAY = date(2026, 3, 1)
DAYS, NEWEST_DAYS = 35, 7
FEWEST_EVENTS = 10_000  # of fewer, next to no query would have enough clients
GIB = 2**30


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    events: tuple[int, ...] = (1_000_000, 4_000_000)
    queries: int = 200_000
    products: int = 100_000
    judged_queries: int = 500
    esci_examples: int = 2_600_000
    esci_products: int = 1_800_000
    esci_queries: int = 130_000
    scrubbed: int = 200_000
    secrets: int = 5_000


QUICK = Scale((20_000, 80_000), 2_000, 5_000, 200, 40_000, 30_000, 2_000, 20_000, 500)


# Words ------------------------------------------------------------------------------------------------------------

_ONSETS = "b br c cl d dr f fl g gr h k l m n p pr qu r s sh st t tr v w z".split()
_RHYMES = "a al am an ar e el en er i ic il in o ol on or u um us".split()
_SIZES = "10 12 16oz 18v 2 2.5 24 3/4 32gb 4 4x4 5 55 6 64 8 8ft xl 100 1000ml".split()
_ACCENTED = str.maketrans({"a": "á", "n": "ñ", "u": "ü"})
_KANA = [chr(code) for code in range(0x30A2, 0x30F4)] + [chr(code) for code in range(0x4E00, 0x4F00)]
_MARKUP = ("<b>{}</b>", "<br>{}", "{} &amp;", "<li>{}</li>", "<p>{}</p>", "{}&nbsp;")


class Words:
    """Texts of a made-up language; how often a word comes follows Zipf's law.

    Args:
        count: different words.
        seed: of their choice.
        style: `plain`, `accented` or `kana`.
    """

    def __init__(self, count: int, seed: int, style: str = "plain") -> None:
        draw = np.random.default_rng([seed, 1])
        syllables = np.array(_KANA if style == "kana" else [onset + rhyme for onset in _ONSETS for rhyme in _RHYMES])
        words: dict[str, None] = dict.fromkeys(_SIZES)
        while len(words) < count:
            lengths = draw.integers(2, 4, count)
            picked = syllables[draw.integers(0, len(syllables), (count, 3))]
            generated = ("".join(row[:length]) for row, length in zip(picked.tolist(), lengths.tolist(), strict=True))
            words |= dict.fromkeys(word.translate(_ACCENTED) if style == "accented" else word for word in generated)
        plain = np.array(list(words)[:count], object)
        draw.shuffle(plain)
        marked = [mark.format(word) for word, mark in zip(plain, np.resize(_MARKUP, count), strict=True)]
        self.count = count
        self.words = pa.array([*plain, *marked], pa.string())  # the second half is the first with HTML around it
        # One look-up a word instead of a search in the cumulated frequencies: texts have hundreds of millions.
        share = 1 / (np.arange(count) + 5)
        often = np.maximum(share / share.sum() * 2**16, 1).astype(int)
        self._table = np.repeat(np.arange(count, dtype=np.int32), often)

    def texts(self, draw: np.random.Generator, lengths: np.ndarray, marked: np.ndarray | None = None) -> pa.StringArray:
        """Texts of so many words each; with HTML in every eighth word or so of the texts that are `marked`."""
        ends = np.cumsum(lengths)
        picked = self._table[draw.integers(0, len(self._table), int(ends[-1]))]
        if marked is not None:
            picked = picked + self.count * (np.repeat(marked, lengths) & (draw.random(len(picked), np.float32) < 0.125))
        offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
        return pc.binary_join(pa.ListArray.from_arrays(offsets, self.words.take(pa.array(picked))), " ")

    def sample(self, draw: np.random.Generator, count: int, kinds: int) -> pa.StringArray:
        """One of the first `kinds` words, so many times: brands, colors."""
        return self.words.take(pa.array(draw.integers(0, kinds, count)))


def _without(draw: np.random.Generator, column: pa.Array, share: float) -> pa.Array:
    """The column with this share of it null."""
    return pc.if_else(pa.array(draw.random(len(column)) < share), pa.scalar(None, column.type), column)


def _joined(*pieces: pa.Array | str) -> pa.StringArray:
    """Columns and constants, one after the other."""
    return pc.binary_join_element_wise(*(pa.scalar(piece) if isinstance(piece, str) else piece for piece in pieces), "")


def _padded(prefix: str, numbers: np.ndarray, width: int) -> pa.StringArray:
    return _joined(prefix, pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0"))


def _fixed(text: np.ndarray) -> pa.StringArray:
    """ASCII codes, shape (rows, width), as texts."""
    rows, width = text.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * width
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text)))


def _uuids(draw: np.random.Generator, count: int) -> pa.StringArray:
    text = np.full((count, 36), ord("-"), np.uint8)
    places = [position for position in range(36) if position not in (8, 13, 18, 23)]
    text[:, places] = np.frombuffer(draw.bytes(16 * count).hex().encode(), np.uint8).reshape(count, 32)
    return _fixed(text)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Scrambled whole numbers (SplitMix64)."""
    with np.errstate(over="ignore"):
        mixed = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


# Secrets ----------------------------------------------------------------------------------------------------------

_AREAS = "202 206 212 303 305 312 404 415 503 512 602 617 702 713 718 808 907".split()


def _digits(draw: np.random.Generator, count: int) -> str:
    return "".join(map(str, draw.integers(0, 10, count)))


def _letters(draw: np.random.Generator, count: int) -> str:
    return "".join(map(chr, draw.integers(97, 123, count)))


def _email(draw: np.random.Generator) -> str:
    person = draw.choice([f"{_letters(draw, 5)}.{_letters(draw, 7)}", f"{_letters(draw, 6)}{_digits(draw, 2)}"])
    return f"{person}@{draw.choice(['gmail.com', 'example.org', f'{_letters(draw, 6)}.co.uk', 'mail.example.net'])}"


def _phone(draw: np.random.Generator) -> str:
    area, line = draw.choice(_AREAS), _digits(draw, 4)
    exchange = f"{draw.integers(2, 10)}{draw.integers(2, 10)}{draw.integers(0, 10)}"
    mobile = f"{draw.integers(6, 8)}{_digits(draw, 8)}"
    return str(
        draw.choice(
            [
                f"({area}) {exchange}-{line}",
                f"{area}-{exchange}-{line}",
                f"{area}.{exchange}.{line}",
                f"+1 {area} {exchange} {line}",
                f"+33 {mobile[0]} {mobile[1:3]} {mobile[3:5]} {mobile[5:7]} {mobile[7:9]}",
                f"+44 20 7{_digits(draw, 3)} {_digits(draw, 4)}",
            ]
        )
    )


def _card(draw: np.random.Generator) -> str:
    start, length = [("4", 16), (f"5{draw.integers(1, 6)}", 16), ("37", 15)][draw.integers(0, 3)]
    body = start + _digits(draw, length - 1 - len(start))
    # Luhn: from the right, every second digit is doubled, and the digits of what results count.
    total = sum(sum(divmod(int(digit) * (2 - position % 2), 10)) for position, digit in enumerate(reversed(body)))
    number = body + str(-total % 10)
    bounds = [0, 4, 10, 15] if length == 15 else [0, 4, 8, 12, 16]
    return str(draw.choice(["", " ", "-"])).join(number[start:end] for start, end in pairwise(bounds))


def _url(draw: np.random.Generator) -> str:
    token = artifacts.digest_bytes(draw.bytes(8))[:32]
    site = f"{_letters(draw, 7)}.example.com"
    return str(
        draw.choice(
            [
                f"https://{site}/reset?token={token}",
                f"http://{site}/invite/{token}",
                f"www.{site}/account?user={_letters(draw, 6)}",
            ]
        )
    )


SECRETS: dict[str, Callable[[np.random.Generator], str]] = {
    "email": _email,
    "phone": _phone,
    "card": _card,
    "url": _url,
}
"""One maker for each kind of personal data, by the kind's name in distilrank.data.privacy."""


def clean_queries(count: int, seed: int = SEED) -> list[str]:
    """So many made-up queries, most of them different, without personal data."""
    draw = np.random.default_rng([seed, 2])
    return Words(20_000, seed).texts(draw, draw.integers(1, 6, count)).to_pylist()


def seeded_secrets(count: int, seed: int = SEED) -> Iterator[tuple[str, str, str]]:
    """So many personal data of each kind: the kind, the secret, and a query with the secret in it."""
    draw = np.random.default_rng([seed, 3])
    phrases = iter(clean_queries(2 * count * len(SECRETS), seed))
    for _ in range(count):
        for kind, make in SECRETS.items():
            secret = make(draw)
            # Digits beside digits are another number, so the words around have none.
            before, after = (
                " ".join(word for word in next(phrases).split() if not any(map(str.isdigit, word))) for _ in range(2)
            )
            yield kind, secret, " ".join(filter(None, (before, secret, after)))


# A shop with a UBI log --------------------------------------------------------------------------------------------

_LIST = 10  # products on a page
_STRANGERS = 0.005  # share of products that the catalogue lacks: sold out
_SPELLINGS = (0.85, 0.08, 0.05, 0.02)  # as it is, in Title Case, with a blank too many, with a full stop


def _day(number: int) -> date:
    return FIRST_DAY + timedelta(days=number)


class Shop:
    """Queries and products that logs of any length share."""

    def __init__(self, scale: Scale, seed: int = SEED) -> None:
        self.scale, self.seed = scale, seed
        self.words = Words(20_000, seed)
        draw = np.random.default_rng([seed, 4])
        texts = self.words.texts(draw, draw.integers(1, 6, scale.queries)).to_pylist()
        # One query in 500 has personal data in it, one in 5,000 is nothing else.
        self.private = draw.random(scale.queries) < 0.002
        for row in np.flatnonzero(self.private):
            secret = SECRETS[str(draw.choice(list(SECRETS)))](draw)
            texts[row] = secret if draw.random() < 0.1 else f"{texts[row]} {secret}"
        self.queries = pa.array(texts, pa.string())
        share = np.cumsum(1 / (np.arange(scale.queries) + 10.0))
        self._share = share / share[-1]

    def draw_queries(self, draw: np.random.Generator, count: int) -> np.ndarray:
        """Places of queries as searched for, by Zipf's law."""
        return np.searchsorted(self._share, draw.random(count), side="right")

    def shown(self, query: np.ndarray, slot: np.ndarray) -> np.ndarray:
        """Number of the product that stands at `slot` of the results of a query; from `scale.products` on: sold out."""
        product_count = np.uint64(self.scale.products * (1 + _STRANGERS))
        return (_mixed(query * 256 + slot) % product_count).astype(int)

    def write_tables(self, folder: Path) -> None:
        """Write catalogue.parquet and judgements.parquet."""
        draw, count = np.random.default_rng([self.seed, 5]), self.scale.products
        words = self.words
        catalogue = {
            "product_id": _padded("P", np.arange(count), 7),
            "title": words.texts(draw, draw.integers(4, 13, count)),
            "product_type": words.sample(draw, count, 300),
            "brand": _without(draw, words.sample(draw, count, 2000), 0.1),
            "color": _without(draw, words.sample(draw, count, 40), 0.4),
            "description": _without(draw, words.texts(draw, draw.integers(20, 80, count)), 0.2),
        }
        pq.write_table(pa.table(catalogue), folder / "catalogue.parquet")
        judged = np.flatnonzero(~self.private[: 20 * self.scale.judged_queries])
        judged = np.sort(draw.choice(judged, self.scale.judged_queries, replace=False))
        query, slot = np.repeat(judged, _LIST), np.tile(np.arange(_LIST), len(judged))
        product = self.shown(query, slot)
        table = pa.table(
            {
                "query": self.queries.take(pa.array(query)),
                "product_id": _padded("P", product, 7),
                "rating": draw.integers(1, 5, len(query)),
            }
        ).filter(pa.array(product < count))
        firsts = table.append_column("row", pa.array(np.arange(len(table)))).group_by(["query", "product_id"])
        rows = np.sort(firsts.aggregate([("row", "min")])["row_min"].to_numpy())
        pq.write_table(table.take(pa.array(rows)), folder / "judgements.parquet")


def write_log(shop: Shop, folder: Path, events: int, clients: int, day: int) -> None:
    """Write one day of a UBI log with exactly so many events: queries/DAY.ndjson and events/DAY.ndjson.

    A search shows ten products as a rule; what is clicked is clicked on the same day. Events know their query by the
    key of the search alone.

    Args:
        events: impressions and clicks together.
        clients: how many people there are.
        day: number of the day; the log is a function of it and the shop, whatever other days there are.
    """
    draw = np.random.default_rng([shop.seed, 6, events, day])
    most = events // 5 + 1  # searches; more than are needed
    size = draw.choice([2, 5, 8, _LIST, 2 * _LIST], most, p=[0.05, 0.05, 0.1, 0.72, 0.08])
    search = np.repeat(np.arange(most), size)
    rank = np.arange(len(search)) - np.repeat(np.cumsum(size) - size, size)
    clicked = np.flatnonzero(draw.random(len(search)) < 0.2 / (1 + rank))
    # Clicks stand behind the list that they belong to.
    search, rank = np.append(search, search[clicked]), np.append(rank, rank[clicked])
    click = np.arange(len(search)) >= len(search) - len(clicked)
    order = np.lexsort((rank, click, search))[:events]
    search, rank, click = search[order], rank[order], click[order]
    count = int(search[-1]) + 1

    query = shop.draw_queries(draw, count)
    start = np.datetime64(_day(day), "ms")
    times = start + np.sort(draw.integers(0, 86_400_000, count)).astype("timedelta64[ms]")
    later = (times[search] + (2_000 + draw.integers(0, 60_000, len(search))) * click).astype("datetime64[ms]")
    stamps = np.minimum(later, start + np.timedelta64(86_399_999, "ms"))
    product = shop.shown(query[search], rank + draw.integers(0, 4, count)[search])
    ids, sessions = _uuids(draw, count), _uuids(draw, count)
    people = _uuids(np.random.default_rng([shop.seed, 7]), clients).take(pa.array(draw.integers(0, clients, count)))
    texts = shop.queries.take(pa.array(query))
    spelling = pa.array(draw.choice(len(_SPELLINGS), count, p=_SPELLINGS))
    texts = pc.choose(spelling, texts, pc.utf8_title(texts), _joined(texts, " "), _joined(texts, "."))

    products = _padded("P", product, 7)
    impressions = np.flatnonzero(~click)
    offsets = np.searchsorted(search[impressions], np.arange(count + 1))
    hits = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), products.take(pa.array(impressions)))
    rows = pa.array(search)
    lines = {
        "queries": _joined(
            '{"application":"shop","query_id":"', ids, '","client_id":"', people, '","user_query":"', texts,
            '","query_attributes":{},"timestamp":"', _times(times), '","query_response_id":"', _uuids(draw, count),
            '","query_response_hit_ids":["', pc.binary_join(hits, '","'), '"]}\n',
        ),
        "events": _joined(
            '{"application":"shop","action_name":"',
            pc.if_else(pa.array(click), "click", "impression"), '","query_id":"', ids.take(rows), '","session_id":"',
            sessions.take(rows), '","client_id":"', people.take(rows), '","timestamp":"', _times(stamps),
            '","message_type":null,"message":null,"event_attributes":{"object":{"object_id":"', products,
            '","object_id_field":"product_id"},"position":{"ordinal":', pa.array(rank).cast(pa.string()), "}}}\n",
        ),
    }  # fmt: skip
    for name, column in lines.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        offsets = np.frombuffer(column.buffers()[1], np.int32)
        (folder / name / f"{_day(day)}.ndjson").write_bytes(column.buffers()[2][: int(offsets[len(column)])])


def _times(times: np.ndarray) -> pa.StringArray:
    text = np.datetime_as_string(times, unit="ms").astype("S23").view(np.uint8).reshape(len(times), 23)
    return _joined(_fixed(text), "Z")


def write_shop(folder: str, events: int, scale: Scale) -> None:
    """Write catalogue, judgements, `DAYS` days of log with so many events, and under `later` one day more."""
    target = Path(folder)
    shop = Shop(scale)
    target.mkdir(parents=True, exist_ok=True)
    shop.write_tables(target)
    clients = max(events // 50, 10)
    whole, rest = divmod(events, DAYS)
    for day in range(DAYS):
        write_log(shop, target, whole + (day < rest), clients, day)
    write_log(shop, target / "later", whole, clients, DAYS)


# ESCI -------------------------------------------------------------------------------------------------------------

_LOCALES = {"us": 0.67, "es": 0.14, "jp": 0.19}
_CHUNK = 50_000
_ROW_GROUP = 1 << 20  # as pandas writes by default: a reader must not take a row group at once
_LABELS = {"E": 0.65, "S": 0.22, "C": 0.03, "I": 0.10}
_STRIDE = 7919  # prime, so that a query's products differ


def _esci_sizes(scale: Scale) -> dict[str, int]:
    sizes = {locale: int(share * scale.esci_products) for locale, share in _LOCALES.items()}
    return sizes | {"us": scale.esci_products - sizes["es"] - sizes["jp"]}


def write_esci(folder: str, scale: Scale) -> None:
    """Write examples.parquet and products.parquet in the schema of the Shopping Queries Dataset, all three locales."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    words = {
        "us": Words(40_000, SEED),
        "es": Words(20_000, SEED + 1, "accented"),
        "jp": Words(20_000, SEED + 2, "kana"),
    }
    _write_groups(target / "products.parquet", _esci_products(scale, words))
    _write_groups(target / "examples.parquet", _esci_examples(scale, words))


def _write_groups(path: Path, tables: Iterator[pa.Table]) -> None:
    writer, buffered = None, []
    for table in tables:
        writer = writer or pq.ParquetWriter(path, table.schema)
        buffered.append(table)
        if sum(map(len, buffered)) + len(table) > _ROW_GROUP:
            writer.write_table(pa.concat_tables(buffered), row_group_size=_ROW_GROUP)
            buffered = []
    if writer:
        if buffered:
            writer.write_table(pa.concat_tables(buffered), row_group_size=_ROW_GROUP)
        writer.close()


def _esci_ids(numbers: np.ndarray) -> pa.StringArray:
    """Ten characters, as Amazon has them; locales share numbers."""
    text = np.empty((len(numbers), 10), np.uint8)
    left = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F)  # odd: a permutation of what the last 40 bits can be
    for position in range(9, 1, -1):
        text[:, position] = np.frombuffer(b"0123456789ABCDEFGHJKLMNPQRSTUVWX", np.uint8)[left & np.uint64(31)]
        left >>= np.uint64(5)
    text[:, :2] = np.frombuffer(b"B0", np.uint8)
    return _fixed(text)


def _esci_products(scale: Scale, words: dict[str, Words]) -> Iterator[pa.Table]:
    for number, (locale, size) in enumerate(_esci_sizes(scale).items()):
        vocabulary = words[locale]
        for start in range(0, size, _CHUNK):
            draw = np.random.default_rng([SEED, 8, number, start])
            count = min(_CHUNK, size - start)
            titles = vocabulary.texts(draw, draw.integers(6, 22, count))
            # Brackets and marks beyond ASCII are common in titles of any locale.
            titles = pc.if_else(pa.array(draw.random(count) < 0.1), _joined("【", titles, "】™"), titles)
            html = draw.random(count) < 1 / 3
            describe = draw.gamma(2.0, 35.0, count).astype(int) + 5
            points = draw.gamma(4.0, 20.0, count).astype(int) + 5
            yield pa.table(
                {
                    "product_id": _esci_ids(np.arange(start, start + count)),
                    "product_title": titles,
                    "product_description": _without(draw, vocabulary.texts(draw, describe, html), 0.45),
                    "product_bullet_point": _without(draw, vocabulary.texts(draw, points, html), 0.15),
                    "product_brand": _without(draw, vocabulary.sample(draw, count, 5000), 0.05),
                    "product_color": _without(draw, vocabulary.sample(draw, count, 60), 0.3),
                    "product_locale": pa.repeat(locale, count),
                }
            )


def _esci_examples(scale: Scale, words: dict[str, Words]) -> Iterator[pa.Table]:
    draw = np.random.default_rng([SEED, 9])
    sizes = _esci_sizes(scale)
    locales = np.array(list(sizes))
    locale = np.searchsorted(np.cumsum(list(_LOCALES.values()))[:-1], draw.random(scale.esci_queries), side="right")
    texts = [words[name].texts(draw, draw.integers(2, 7, scale.esci_queries)) for name in locales]
    queries = pc.choose(pa.array(locale), *texts)
    again = np.ones(scale.esci_queries, bool)
    again[np.unique(np.array(queries.to_pylist()), return_index=True)[1]] = False
    # The same query twice could contradict itself.
    numbered = _joined(queries, " ", pa.array(np.arange(scale.esci_queries)).cast(pa.string()))
    queries = pc.if_else(pa.array(again), numbered, queries)
    bounds = np.linspace(0, scale.esci_examples, scale.esci_queries + 1).astype(int)
    first = _mixed(np.arange(scale.esci_queries) + 2**32)
    product_counts = np.array(list(sizes.values()))
    for start in range(0, scale.esci_queries, _CHUNK):
        query_numbers = np.arange(start, min(start + _CHUNK, scale.esci_queries))
        query = np.repeat(query_numbers, np.diff(bounds)[query_numbers])
        slot = np.arange(bounds[query_numbers[0]], bounds[query_numbers[-1] + 1]) - bounds[query]
        locale_of_query = locale[query]
        product = (first[query] % product_counts[locale_of_query].astype(np.uint64)).astype(int) + _STRIDE * slot
        yield pa.table(
            {
                "example_id": np.arange(bounds[query_numbers[0]], bounds[query_numbers[-1] + 1]),
                "query": queries.take(pa.array(query)),
                "query_id": query,
                "product_id": _esci_ids(product % product_counts[locale_of_query]),
                "product_locale": pa.array(locales[locale_of_query]),
                "esci_label": pa.array(draw.choice(list(_LABELS), len(query), p=list(_LABELS.values()))),
                "small_version": (_mixed(query) % np.uint64(100) < 43).astype(int),
                "large_version": np.ones(len(query), int),
                "split": pa.array(np.where(_mixed(query + 1) % np.uint64(10) < 2, "test", "train")),
            }
        )


# The stage --------------------------------------------------------------------------------------------------------


def run_stage(
    data: dict[str, Any], settings: dict[str, Any], window: tuple[str, str, str], folder: str
) -> dict[str, Any]:
    """Prepare `data` into `folder`; the profile, the seconds by phase, and what the store had to read."""
    from distilrank.data import log_store, prepare
    from distilrank.data.window import LogWindow

    store = log_store.LogStore
    ingest, seconds = store.ingest, [0.0]

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return ingest(*arguments, **named)
        finally:
            seconds[0] += time.perf_counter() - began

    store.ingest = timed  # type: ignore[method-assign]
    began, target = time.time(), Path(folder)
    outputs = {name: target / name for name in ("judgements", "candidates", "traffic", "profile")}
    prepare.prepare(
        config.Prepare(**settings),
        config.parse({"data": data}, "benchmark").data,
        LogWindow(*window),
        **outputs,
    )
    parts = list(Path(settings["log_cache_dir"]).glob("parts/*/part.json")) if settings.get("log_cache_dir") else []
    return {
        "profile": artifacts.read_json(outputs["profile"] / "profile.json"),
        "phases": artifacts.read_record(outputs["profile"])["facts"]["seconds"],
        "ingest": seconds[0],
        "rows_ingested": sum(
            sum(artifacts.read_json(part)["days"].values()) for part in parts if part.stat().st_mtime >= began
        ),
    }


def _phase_peaks(measured: Measured) -> dict[str, int]:
    """Largest memory seen in each phase; they follow one another in the order in which they are recorded."""
    peaks, elapsed = {}, 0.0
    for name, seconds in measured.result["phases"].items():
        if not name.startswith("candidates_"):  # a part of the phase of that name
            peaks[name] = measured.peak_between(elapsed, elapsed + seconds)
            elapsed += seconds
    return {name: peak for name, peak in peaks.items() if peak}  # none of a phase too short to be looked at


def _summary(measured: Measured) -> dict[str, Any]:
    return {
        "seconds": round(measured.seconds, 1),
        "cpu_seconds": round(measured.cpu_seconds, 1),
        "peak_gib": _gib(measured.peak_bytes),
        "phases": measured.result["phases"],
        "phase_peaks_gib": {name: _gib(peak) for name, peak in _phase_peaks(measured).items()},
    }


def _gib(size: int) -> float:
    return round(size / GIB, 3)


# The straightforward way ------------------------------------------------------------------------------------------


def pandas_pool(folder: str, output: str) -> dict[str, Any]:
    """What one would write first for the same log: read all of it, join, filter, count, sample, write; no BM25.

    Scrubbing, normal form and the side of the split are the project's own, applied to distinct queries.
    """
    import pandas as pd

    shop, target, settings = Path(folder), Path(output), config.Prepare()
    target.mkdir(parents=True)
    queries = pd.concat([pd.read_json(path, lines=True) for path in sorted((shop / "queries").glob("*.ndjson"))])
    parts = []
    for path in sorted((shop / "events").glob("*.ndjson")):
        events = pd.read_json(path, lines=True)
        attributes = pd.json_normalize(events["event_attributes"].tolist())
        events = events[["action_name", "query_id", "client_id", "timestamp"]].join(attributes["object.object_id"])
        parts.append(events.rename(columns={"object.object_id": "product_id"}))
    events = pd.concat(parts, ignore_index=True).merge(queries[["query_id", "user_query"]], on="query_id")
    events["timestamp"] = pd.to_datetime(events["timestamp"], utc=True)
    start, middle, end = (pd.Timestamp(day, tz="UTC") for day in WINDOW)
    events = events[(events["timestamp"] >= start) & (events["timestamp"] < end)]

    scrubber = Scrubber(settings.privacy.phone_regions)
    typed = {query: " ".join(scrubber(query).text.split()) for query in events["user_query"].unique()}
    events["text"] = events["user_query"].map(typed)
    events["key"] = events["text"].map({text: normalize.query_id(text) for text in typed.values() if text})
    events = events.dropna(subset="key")
    clients = events.groupby("key")["client_id"].nunique()
    enough = events["key"].isin(clients.index[clients >= settings.privacy.min_clients])
    events["shown"] = (events["action_name"] == "impression").astype(int)
    events["clicked"] = (events["action_name"] == "click").astype(int)
    dropped, events = events[~enough], events[enough]
    pair, least = ["key", "product_id"], settings.privacy.min_clients
    events = events[events.groupby(pair)["client_id"].transform("nunique") >= least]
    clickers = events["client_id"].where(events["clicked"] > 0).groupby([events[name] for name in pair])
    events.loc[clickers.transform("nunique") < least, "clicked"] = 0
    texts = events.groupby(["key", "text"]).size().rename("typed").reset_index()
    texts = texts.sort_values(["typed", "text"]).drop_duplicates("key", keep="last")[["key", "text"]]

    catalogue = pd.read_parquet(shop / "catalogue.parquet")
    events = events[events["product_id"].isin(catalogue["product_id"])]
    newest = events["timestamp"] >= middle
    counts = events[~newest].groupby(["key", "product_id"], as_index=False)[["shown", "clicked"]].sum()
    for name, window in {"reference": events[~newest], "current": events[newest]}.items():
        sample = window[window["shown"] == 1].sample(settings.traffic_sample, random_state=settings.seed, replace=True)
        sample.merge(catalogue, on="product_id").to_parquet(target / f"{name}.parquet")

    keys = counts["key"].unique()
    positions = np.array([splits.hash_position(key, settings.salt) for key in keys])
    train = keys[splits.sides(positions, settings) == splits.TRAIN]
    best = counts[counts["key"].isin(train)].sort_values(["key", "shown"], ascending=[True, False])
    best = best.groupby("key").head(settings.from_impressions)
    other = catalogue["product_id"].sample(len(train) * settings.from_random, replace=True, random_state=settings.seed)
    random = pd.DataFrame({"key": np.repeat(train, settings.from_random), "product_id": other.to_numpy()})
    candidates = pd.concat([best, random.assign(shown=0, clicked=0)]).drop_duplicates(["key", "product_id"])
    candidates = candidates.merge(texts, on="key").merge(catalogue, on="product_id")
    shard = candidates["key"].map(dict(zip(train, np.arange(len(train)) % settings.shards, strict=True)))
    for number, rows in candidates.groupby(shard):
        rows.to_parquet(target / f"shard-{number:05d}.parquet")

    by_query = counts.groupby("key")["shown"].sum()
    often = by_query[by_query > 0].sort_values(ascending=False).to_numpy()
    return {
        "queries": len(often),
        "queries_newest": int(events[newest & (events["shown"] == 1)]["key"].nunique()),
        "impressions": int(counts["shown"].sum()),
        "impressions_newest": int(events[newest]["shown"].sum()),
        "clicks": int(counts["clicked"].sum()),
        "dropped_queries": int(dropped["key"].nunique()),
        "dropped_impressions": int(dropped["shown"].sum()),
        "candidate_queries": len(train),
        "candidates_from_impressions": len(best),
        "by_query": often.tolist(),
    }


def _differences(profile: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Where the stage's counts and those of the straightforward way are not the same."""
    ours = {
        "queries": profile["queries"]["training_window"],
        "queries_newest": profile["queries"]["newest_traffic"],
        "impressions": profile["impressions"]["training_window"],
        "impressions_newest": profile["impressions"]["newest_traffic"],
        "clicks": profile["impressions"]["clicks_in_training_window"],
        "dropped_queries": profile["privacy"]["dropped_queries"],
        "dropped_impressions": profile["privacy"]["dropped_impressions"],
        "candidate_queries": profile["candidates"]["queries"],
        "candidates_from_impressions": profile["candidates"]["provenance"]["impression"],
    }
    differences = [f"{name}: {value}, pandas {theirs[name]}" for name, value in ours.items() if value != theirs[name]]
    for point in profile["frequency"]:
        often = theirs["by_query"][point["rank"] - 1]
        if often != point["impressions"]:
            differences.append(
                f"impressions of the query of rank {point['rank']}: {point['impressions']}, pandas {often}"
            )
    return differences


# Measurements -----------------------------------------------------------------------------------------------------

GENERATION = 1
"""Goes up with any change of what is generated, so that `--work` does not reuse what an older version wrote."""

WINDOW = tuple(_day(number).isoformat() for number in (0, DAYS - NEWEST_DAYS, DAYS))
_STAGE_IMPORTS = ("distilrank.data.prepare", "distilrank.data.sources.esci", "distilrank.data.sources.ubi")


def _generated(work: Path, name: str, scale: Scale, write: Callable[..., None], *arguments: Any) -> Path:
    """The folder of data that `write` makes, from an earlier run if it is there."""
    folder, marker = work / "data" / name, work / "data" / name / "complete.json"
    description = {"generation": GENERATION, "seed": SEED, "scale": asdict(scale) | {"events": None}}
    if marker.exists() and json.loads(marker.read_text()) == description:
        say(f"{name}: reusing {folder}")
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    measured = measure(write, str(folder), *arguments, scale, scratch=work)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    say(f"{name}: generated {_gib(size)} GiB in {measured.seconds:.0f} s")
    marker.write_text(json.dumps(description))
    return folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _link(source: Path, target: Path) -> None:
    """Show the log in `source` in `target` too, beside what is there."""
    for name in ("queries", "events"):
        (target / name).mkdir(parents=True, exist_ok=True)
        for path in sorted((source / name).glob("*.ndjson")):
            os.link(path, target / name / path.name)


def measure_ubi(scale: Scale, work: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Prepare logs of each size, the largest also in the straightforward way and again with one more day."""
    figures: dict[str, Any] = {}
    peaks: dict[int, int] = {}
    bars: list[dict[str, Any]] = []
    for events in sorted(scale.events):
        shop = _generated(work, f"ubi-{events}", scale, write_shop, events)
        folder = work / "run"
        shutil.rmtree(folder, ignore_errors=True)
        _link(shop, folder / "log")
        data = {
            "source": "ubi",
            "queries": str(folder / "log" / "queries"),
            "events": str(folder / "log" / "events"),
            "judgements": str(shop / "judgements.parquet"),
            "catalogue": str(shop / "catalogue.parquet"),
            "columns": {name: name for name in ("product_type", "brand", "color", "description")},
            "rating_min": 1,
            "rating_max": 4,
            "relevant_from": 3,
        }
        settings = {"log_cache_dir": str(folder / "store")}
        say(f"ubi-{events}: preparing")
        ours = measure(
            run_stage, data, settings, WINDOW, str(folder / "first"), scratch=work, imports=_STAGE_IMPORTS,
            warm=_files(shop),
        )  # fmt: skip
        peaks[events] = ours.peak_bytes
        profile, phases = ours.result["profile"], ours.result["phases"]
        figures[str(events)] = {
            **_summary(ours),
            "ingest_seconds": round(ours.result["ingest"], 1),
            "rows_ingested": ours.result["rows_ingested"],
            "log_gib": _gib(sum(path.stat().st_size for path in _files(folder / "log"))),
            "queries": profile["queries"]["training_window"],
            "candidates": profile["candidates"]["pairs"],
        }
        if events < max(scale.events):
            shutil.rmtree(folder)
    first, last = min(peaks), max(peaks)
    if first < last:
        bars.append(at_most("ubi_memory_flat", peaks[last] / peaks[first], 1.2))
    else:
        say("ubi_memory_flat: left out, one size only")
    bars.append(at_most("ubi_memory_gib", peaks[last] / GIB, 3))

    say(f"ubi-{last}: the straightforward way, in pandas")
    theirs = measure(
        pandas_pool, str(shop), str(folder / "pandas"), scratch=work, imports=("pandas", "pyarrow.parquet"),
        warm=_files(shop),
    )  # fmt: skip
    differences = _differences(profile, theirs.result)
    if differences:
        raise Failed(f"the two ways do not agree: {'; '.join(differences)}")
    without_bm25 = ours.seconds - phases["index"] - phases["candidates_bm25"]
    figures["pandas"] = {
        "seconds": round(theirs.seconds, 1),
        "cpu_seconds": round(theirs.cpu_seconds, 1),
        "peak_gib": _gib(theirs.peak_bytes),
        "ours_without_bm25_seconds": round(without_bm25, 1),
    }
    speedup = theirs.seconds / without_bm25
    bars.append(bar("ubi_speedup", speedup, 5, speedup >= 5))

    figures["one_more_day"], more = _one_more_day(shop, folder, data, settings, ours, work)
    shutil.rmtree(folder)
    return figures, bars + more


def _one_more_day(
    shop: Path, folder: Path, data: dict[str, Any], settings: dict[str, Any], ours: Measured, work: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Prepare once more with the store of the run before, the window a day later, and that day's files."""
    say("one more day, with the store of the run before")
    _link(shop / "later", folder / "log")
    new = sum(path.read_bytes().count(b"\n") for path in _files(shop / "later"))
    window = tuple((date.fromisoformat(day) + timedelta(days=1)).isoformat() for day in WINDOW)
    second = measure(
        run_stage, data, settings, window, str(folder / "second"), scratch=work, imports=_STAGE_IMPORTS,
        warm=_files(shop),
    )  # fmt: skip
    share = ours.result["ingest"] / DAYS
    figures = {
        **_summary(second),
        "ingest_seconds": round(second.result["ingest"], 2),
        "one_day_of_first_ingest_seconds": round(share, 2),
        "rows_ingested": second.result["rows_ingested"],
        "rows_new": new,
    }
    rows = second.result["rows_ingested"] / new
    return figures, [
        bar("ubi_one_more_day_rows", rows, 1, rows == 1),
        at_most("ubi_one_more_day", second.result["ingest"] / share, 3),
    ]


def measure_esci(scale: Scale, work: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Load, join and split a pair of files of the size of the Shopping Queries Dataset."""
    files = _generated(work, f"esci-{scale.esci_examples}", scale, write_esci)
    folder = work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    data = {
        "source": "esci",
        "examples": str(files / "examples.parquet"),
        "products": str(files / "products.parquet"),
        "locale": "all",
        "version": "large",
        "expected_rows": scale.esci_examples,
    }
    settings = {"log_queries": 500}
    say("esci: preparing")
    ours = measure(
        run_stage, data, settings, ("", "", ""), str(folder), scratch=work, imports=_STAGE_IMPORTS, warm=_files(files)
    )
    profile, phases, peaks = ours.result["profile"], ours.result["phases"], _phase_peaks(ours)
    seconds = phases["read"] + phases["judged"]
    figures = {
        **_summary(ours),
        "read_and_judged_seconds": round(seconds, 1),
        "index_and_mining_seconds": round(phases["index"] + phases["candidates"], 1),
        "rows": profile["rows"],
        "splits": profile["splits"],
        "files_gib": _gib(sum(path.stat().st_size for path in _files(files))),
        "written_gib": _gib(sum(path.stat().st_size for path in _files(folder))),
    }
    shutil.rmtree(folder)
    memory = max(peaks.get(name, 0) for name in ("read", "judged")) / GIB
    return figures, [at_most("esci_seconds", seconds, 180), at_most("esci_memory_gib", memory, 4)]


def real_queries(shared: Path) -> set[str]:
    """The distinct queries that people typed in the data sets under `shared`; empty where it is not there."""
    queries: set[str] = set()
    home_depot, wands = shared / "data/home-depot/train.csv.gz", shared / "data/wands/query.csv"
    esci, ubi = shared / "data/esci-sample/examples.parquet", shared / "data/ubi/ubi_queries_events.ndjson.gz"
    if home_depot.exists():
        with gzip.open(home_depot, "rt", encoding="latin-1", newline="") as lines:
            queries |= {row["search_term"] for row in csv.DictReader(lines)}
    if wands.exists():
        with wands.open(encoding="utf-8", newline="") as lines:
            queries |= {row["query"] for row in csv.DictReader(lines, delimiter="\t")}
    if esci.exists():
        queries |= set(pq.read_table(esci, columns=["query"])["query"].to_pylist())
    if ubi.exists():
        with gzip.open(ubi, "rt", encoding="utf-8") as lines:
            queries |= {row["user_query"] for row in map(json.loads, lines) if "user_query" in row}
    return queries


def measure_scrub(scale: Scale, shared: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Speed of the scrubber, real queries that it changes, and made-up secrets that it finds."""
    scrubber, bars = Scrubber(), []
    clean = list(dict.fromkeys(clean_queries(scale.scrubbed)))
    began = time.perf_counter()
    for query in clean:
        scrubber(query)
    speed = len(clean) / (time.perf_counter() - began)
    real = sorted(real_queries(shared))
    altered = [query for query in real if scrubber(query).kinds]
    if real:
        for query in altered[:10]:
            say(f"scrub: a real query is altered: {query!r} becomes {scrubber(query).text!r}")
        bars.append(at_most("scrub_altered", len(altered) / len(real), 0.003))
    else:
        say(f"scrub_altered: left out, no real queries in {shared}")
    missed: dict[str, int] = dict.fromkeys(SECRETS, 0)
    for kind, secret, query in seeded_secrets(scale.secrets):
        scrubbed = scrubber(query)
        # Nothing of it may stay: what it is made of, digits and words, is not in the phrase around it.
        left = set(normalize.words(scrubbed.text)) - set(normalize.words(query.replace(secret, " ")))
        if not scrubbed.kinds or left:
            missed[kind] += 1
            if missed[kind] <= 5:
                say(f"scrub: missed {kind} in {query!r}: {scrubbed.text!r}")
    total = scale.secrets * len(SECRETS)
    share = 1 - sum(missed.values()) / total
    figures = {
        "queries_per_second": round(speed),
        "real_queries": len(real),
        "real_queries_altered": len(altered),
        "secrets": total,
        "secrets_missed": missed,
    }
    return figures, [*bars, bar("scrub_found", share, 1, share == 1)]


# Command ----------------------------------------------------------------------------------------------------------


def _needed_bytes(scale: Scale, parts: Sequence[str]) -> int:
    """Disk that the data and the runs take, with room to spare."""
    ubi = sum(scale.events) * 800 + max(scale.events) * 800 if "ubi" in parts else 0
    esci = scale.esci_products * 4000 + scale.esci_examples * 1500 if "esci" in parts else 0
    return ubi + esci


def _table(figures: dict[str, Any]) -> None:
    def show(name: str, values: dict[str, Any]) -> None:
        plain = [f"{key} {value}" for key, value in values.items() if not isinstance(value, dict)]
        say(f"{name}: {', '.join(plain)}" if plain else f"{name}:")
        for key, value in values.items():
            if isinstance(value, dict):
                show(f"  {name} {key}", value)

    show("prepare", figures)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__)
    parts = ("ubi", "esci", "scrub")
    parser.add_argument("--quick", action="store_true", help="small sizes: a minute, and figures without meaning")
    parser.add_argument("--only", choices=parts, help="one part alone")
    parser.add_argument("--events", type=int, nargs="+", metavar="N", help="sizes of the UBI log")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep generated data here, and use what is there")
    options = parser.parse_args()
    if options.events and min(options.events) < FEWEST_EVENTS:
        parser.error(f"--events {min(options.events)}: expected at least {FEWEST_EVENTS}")
    scale = QUICK if options.quick else Scale()
    if options.events:
        scale = Scale(**asdict(scale) | {"events": tuple(sorted(set(options.events)))})
    chosen = [options.only] if options.only else list(parts)
    described = machine.describe(PACKAGES)
    figures: dict[str, Any] = {"quick": options.quick}
    bars: list[dict[str, Any]] = []
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-prepare-", dir=options.work) as temporary:
        work = options.work or Path(temporary)
        free, needed = shutil.disk_usage(work).free, _needed_bytes(scale, chosen)
        if free < needed:
            say(f"{work}: {_gib(free)} GiB free, expected {_gib(needed)}; name another folder with --work")
            return 2
        measures: dict[str, Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]]] = {
            "ubi": lambda: measure_ubi(scale, work),
            "esci": lambda: measure_esci(scale, work),
            "scrub": lambda: measure_scrub(scale, ROOT.parent / "shared"),
        }
        for name in chosen:
            try:
                figures[name], held = measures[name]()
            except Failed as error:
                say(f"{name}: {error}")
                return 1
            bars += held
    _table(figures)
    report("prepare", described, figures, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
