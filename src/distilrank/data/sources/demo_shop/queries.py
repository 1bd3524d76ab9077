"""Queries of the demo shop: what shoppers ask for, how they type it, and the grade of each product."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from distilrank.data.sources.demo_shop.catalogue import Catalogue, Product
from distilrank.data.sources.demo_shop.vocabulary import GENDERS, KINDS, NEW_KIND, SPELLINGS, TRAILING_AXES, Kind

GRADES = ("irrelevant", "complement", "substitute", "exact")
"""Grades by value, 0 to 3, which is also the raters' scale."""
IRRELEVANT, COMPLEMENT, SUBSTITUTE, EXACT = range(4)

_BY_NAME = {kind.name: kind for kind in (*KINDS, NEW_KIND)}
_MISSES = {"gender": 2, "fits": 3}
"""Weight of a wrong value; other attributes have weight 1. A case for another phone is useless."""

_PATIENCE = 500
"""Number of consecutive repetitions after which no new queries are expected."""


@dataclass(frozen=True)
class Query:
    """A text and its meaning: a kind of product, and attributes as (name, value)."""

    text: str
    stratum: str
    kind: str
    asks: tuple[tuple[str, str], ...] = ()


@cache
def _related(name: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Substitutes of `name`, its accessories, and the kinds that it is an accessory of."""
    kind = _BY_NAME[name]
    instead = {*kind.substitutes, *(other.name for other in KINDS if name in other.substitutes)}
    accessories = {other.name for other in KINDS if name in other.hosts}
    return tuple(sorted(instead)), tuple(sorted(accessories)), tuple(sorted(kind.hosts))


def grades(query: Query, catalogue: Catalogue) -> np.ndarray:
    """The ground truth: the grade of every product for `query`, int8, in the catalogue's order.

    A product of the kind asked for, or of one that may do instead, counts its misses: 1 for another kind, 1 for a
    wrong attribute (2 for the wrong gender, 3 for an accessory that does not fit). None is exact, up to 2 still a
    substitute. Accessories of what was asked for, and what the accessory asked for belongs to, are complements,
    unless they fit another brand or model, or the wrong person.
    """
    result = np.full(len(catalogue), IRRELEVANT, dtype=np.int8)
    instead, accessories, hosts = _related(query.kind)

    def satisfied(rows: np.ndarray, name: str, value: str) -> np.ndarray:
        held = catalogue.values[name][rows] if name in catalogue.values else np.full(len(rows), "")
        fine = held == value
        if name == "gender":
            fine |= (held == "unisex") | (held == "")
        elif name in ("fits", "fits_brand"):
            fine |= held == ""
        return fine

    for name in (query.kind, *instead):
        if (rows := catalogue.members.get(name)) is not None:
            misses = np.full(len(rows), int(name != query.kind))
            for attribute, value in query.asks:
                misses += _MISSES.get(attribute, 1) * ~satisfied(rows, attribute, value)
            result[rows] = np.select([misses == 0, misses <= 2], [EXACT, SUBSTITUTE], IRRELEVANT)
    for name in (*accessories, *hosts):
        if (rows := catalogue.members.get(name)) is not None:
            fine = np.ones(len(rows), dtype=bool)
            for attribute, value in query.asks:
                if attribute == "brand" and name in accessories:
                    fine &= satisfied(rows, "fits_brand", value)
                elif attribute in ("gender", "fits"):
                    fine &= satisfied(rows, attribute, value)
            result[rows] = np.where(fine, COMPLEMENT, IRRELEVANT)
    return result


def head(kind: Kind) -> list[Query]:
    """The names of a kind, most common first: those of titles, slang, some plurals."""
    names = [noun.lower() for noun in (*kind.nouns, *kind.slang)]
    texts = dict.fromkeys(names + [_plural(name) for name in names[:2]])
    return [Query(text, "head", kind.name) for text in texts]


def torso(product: Product, draw: random.Random) -> Query:
    """A name and one attribute of `product`."""
    if draw.random() < 0.15:
        return _for_use(product, draw, (), "torso")
    return _phrase(product, draw, _asks(product, draw, 1), "torso")


def tail(product: Product, draw: random.Random) -> Query:
    """Two or three attributes of `product`, often clumsily typed."""
    wishes = draw.choices((1, 2, 3), (15, 50, 35))[0]
    asks = _asks(product, draw, wishes)
    phrase = _for_use if draw.random() < 0.15 else _phrase
    query = phrase(product, draw, asks, "tail")
    text = _mistyped(query.text) if draw.random() < 0.25 else query.text
    return Query(text, "tail", query.kind, query.asks)


def distinct(make: Callable[[], Query], count: int, taken: set[str]) -> list[Query]:
    """Up to `count` queries from `make` whose texts are not in `taken`, which grows; fewer if no new ones come."""
    queries: list[Query] = []
    repeated = 0
    while len(queries) < count and repeated < _PATIENCE:
        query = make()
        if query.text in taken:
            repeated += 1
        else:
            repeated = 0
            taken.add(query.text)
            queries.append(query)
    return queries


def _asks(product: Product, draw: random.Random, wishes: int) -> tuple[tuple[str, str], ...]:
    kind, values = product.kind, product.values
    names = [*kind.axes, *kind.axes, "brand"]  # uses and materials are asked for more often than brands
    names += ["color", "color"] if values["color"] else []
    names += ["gender"] * 3 if values["gender"] in ("women", "men") else []
    names += ["fits"] * 4 if kind.fitted else ["fits"] if kind.name == "smartphone" else []
    draw.shuffle(names)
    chosen = list(dict.fromkeys(names))
    if "fits" in chosen and not kind.fitted:  # `nuvo x2` names both; one of them is enough
        chosen.remove(draw.choice(("fits", "brand")))
    return tuple((name, values[name]) for name in chosen[:wishes])


def _plural(noun: str) -> str:
    if noun.endswith(("ss", "ch", "x")):
        return noun + "es"
    return noun if noun.endswith("s") else noun + "s"


def _called(kind: Kind, draw: random.Random) -> str:
    if kind.slang and draw.random() < 0.15:
        return draw.choice(kind.slang)
    noun = draw.choices(kind.nouns, range(len(kind.nouns) + 1, 1, -1))[0].lower()
    return _plural(noun) if draw.random() < 0.15 else noun


def _typed(name: str, value: str, draw: random.Random) -> str:
    if name == "gender":
        return draw.choice(GENDERS[value])
    if name == "color":
        return "gray" if value == "grey" and draw.random() < 0.4 else value
    if value in SPELLINGS and draw.random() < 0.45:
        return draw.choice(SPELLINGS[value])
    return value.lower()


def _phrase(product: Product, draw: random.Random, asks: tuple[tuple[str, str], ...], stratum: str) -> Query:
    kind = product.kind
    noun = _called(kind, draw)
    before, after = [], []
    for name, value in asks:
        typed = _typed(name, value, draw)
        if name == "fits" and kind.fitted and draw.random() < 0.5:
            after.append(f"for {typed}")
        elif name in TRAILING_AXES or typed.startswith("for "):
            after.append(typed)
        else:
            before.append(typed)
    if any(name == "fits" for name, _ in asks) and kind.fitted and draw.random() < 0.5:
        noun = kind.short
    words = [*before, noun, *after]
    if stratum == "tail" and draw.random() < 0.25:  # `sofa red leather`
        words = [noun, *draw.sample(before, len(before)), *after]
    return Query(" ".join(words), stratum, kind.name, asks)


def _for_use(product: Product, draw: random.Random, asks: tuple[tuple[str, str], ...], stratum: str) -> Query:
    """`slipcover for settee`, `red desk for gaming`: the words after `for` mislead word matching."""
    kind = product.kind
    asks = tuple(ask for ask in asks if ask[0] != "fits")[:1]
    typed = [_typed(name, value, draw).removeprefix("for ") for name, value in asks]
    if kind.short and draw.random() < 0.7:
        host = _BY_NAME[draw.choice(kind.hosts)]
        text = f"{kind.short} for {draw.choice(host.nouns).lower()}"
    else:
        text = f"{_called(kind, draw)} for {draw.choice(kind.uses)}"
    return Query(" ".join([*typed, text]), stratum, kind.name, asks)


def _mistyped(text: str) -> str:
    draw = random.Random(text)  # one typo per text, so that typos do not multiply the queries
    words = text.split()
    long = [number for number, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    number = draw.choice(long)
    word = words[number]
    index = draw.randrange(1, len(word) - 1)
    words[number] = draw.choice(
        (
            word[:index] + word[index + 1 :],
            word[:index] + word[index] + word[index:],
            word[:index] + word[index + 1] + word[index] + word[index + 2 :],
        )
    )
    return " ".join(words)
