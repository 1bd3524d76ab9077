"""Split of queries into train, dev and test, and into strata by frequency.

A query's side depends only on its text and a salt, so new judgements and new logs do not move a query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distilrank.config import Prepare
from distilrank.core import normalize
from distilrank.core.errors import InputError, RunStopped
from distilrank.core.schemas import SIDES, STRATA

TRAIN, DEV, TEST = range(len(SIDES))
"""Places in SIDES."""
HEAD, TORSO, TAIL = range(len(STRATA))
"""Places in STRATA."""

CUT = (
    "by impressions in the training window, most frequent queries first: head is the first third of all impressions, "
    "torso the second, tail the rest; queries seen at most once are tail"
)


def hash_position(query_id: str, salt: str) -> float:
    """Position of a query in hash order, uniform in [0, 1): it depends only on the query and the salt."""
    digest = hashlib.sha256(f"{salt}:{query_id}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def sides(position: np.ndarray, config: Prepare) -> np.ndarray:
    """TRAIN, DEV or TEST for each position in hash order.

    Test takes the low end and dev the high end, so that changing one share moves no query of the other. Each further
    test fold takes the next interval of the same length and leaves dev unchanged.
    """
    low, high = config.test_fold * config.test_share, (config.test_fold + 1) * config.test_share
    is_test = (position >= low) & (position < high)
    return np.where(position >= 1 - config.dev_share, DEV, np.where(is_test, TEST, TRAIN))


def strata(impressions: np.ndarray) -> np.ndarray:
    """Index in STRATA of each query, by its number of impressions.

    The stratum follows from the share of impressions of all more frequent queries: less than one third, less than two
    thirds, or more. Equally frequent queries share a stratum; half of them are counted as more frequent.
    """
    often, group = np.unique(impressions, return_inverse=True)
    queries = np.bincount(group)
    mass = often * queries
    ahead = mass[::-1].cumsum()[::-1] - mass + often * (queries - 1) / 2
    code = np.searchsorted([1 / 3, 2 / 3], ahead / max(mass.sum(), 1), side="right")
    code[often <= 1] = TAIL
    return code[group]


@dataclass(frozen=True)
class Split:
    """What the judgements are used for, by use.

    The uses are train, dev and test; `unlabeled_train`, train-side pairs beyond the budget, whose ratings are ignored;
    and `beyond_limit`, dev and test queries beyond the configured number, which are not used at all.
    """

    queries: dict[str, np.ndarray]
    """Indices of the queries."""
    rows: dict[str, np.ndarray]
    """Indices of the judged pairs."""


def split(pair_query: np.ndarray, position: np.ndarray, config: Prepare) -> Split:
    """Assign the judged pairs to their uses, query by query and in hash order.

    Args:
        pair_query: index of each judged pair's query.
        position: position in hash order of each query, in [0, 1).
        config: shares, limits and the budget of judged training pairs.

    Raises:
        InputError: train has no query, or dev or test has none although its share is not 0; the message names the
            setting to change.
    """
    judged_queries, pairs = np.unique(pair_query, return_counts=True)
    order = np.argsort(position[judged_queries], kind="stable")
    judged_queries, pairs = judged_queries[order], pairs[order]
    side = sides(position[judged_queries], config)
    masks = {name: side == code for code, name in enumerate(SIDES)}
    shares = {"train": 1.0, "dev": config.dev_share, "test": config.test_share}
    for name, mask in masks.items():
        if shares[name] and not mask.any():
            remedy = {
                "train": f"lower prepare.dev_share ({config.dev_share}) or prepare.test_share ({config.test_share})",
                "dev": f"raise prepare.dev_share ({config.dev_share})",
                "test": f"raise prepare.test_share ({config.test_share})",
            }
            raise InputError(
                f"none of the {len(judged_queries)} judged queries falls into {name}; {remedy[name]} or bring more "
                "judgements"
            )
    queries = {name: judged_queries[mask] for name, mask in masks.items()}
    budget = config.judged_pairs
    in_budget = max(int((pairs[masks["train"]].cumsum() <= budget).sum()), 1) if budget else len(queries["train"])
    queries["train"], queries["unlabeled_train"] = np.split(queries["train"], [in_budget])
    queries["dev"], dev_rest = np.split(queries["dev"], [config.dev_queries or len(queries["dev"])])
    queries["test"], test_rest = np.split(queries["test"], [config.test_queries or len(queries["test"])])
    queries["beyond_limit"] = np.concatenate([dev_rest, test_rest])
    rows = {use: np.flatnonzero(np.isin(pair_query, chosen)) for use, chosen in queries.items()}
    return Split(queries, rows)


def near_duplicates(texts: Mapping[str, Sequence[str]], stem: Callable[[str], str]) -> dict[str, Any]:
    """Find queries on different sides that differ only in word order, grammatical number or spacing.

    Two queries are near duplicates if their words have the same set of stems, or the same letters and digits
    in the same order. They are reported but not moved, since moving them would change the splits from run to run.

    Args:
        texts: queries by use: any of train, dev, test, candidates; dev and test are compared with the others and with
            each other.
        stem: returns the stem of a word.

    Returns:
        `pairs`: for each pair of uses, the number of queries of the first with a near duplicate in the second;
        `examples`: the first of them.
    """
    forms: dict[str, dict[str, str]] = {}
    pairs: dict[str, int] = {}
    examples: list[dict[str, str]] = []
    for use, queries in texts.items():
        forms[use] = {form: query for query in queries for form in _forms(query, stem) if form}
    for use, other in (
        ("test", "train"),
        ("test", "candidates"),
        ("test", "dev"),
        ("dev", "train"),
        ("dev", "candidates"),
    ):
        if not {use, other} <= set(texts):
            continue
        twins = [
            (query, forms[other][form])
            for query in texts[use]
            for form in [next((form for form in _forms(query, stem) if form in forms[other]), None)]
            if form is not None
        ]
        pairs[f"{use} and {other}"] = len(twins)
        examples += [{"uses": f"{use} and {other}", use: query, other: twin} for query, twin in twins[:5]]
    return {"pairs": pairs, "examples": examples}


def _forms(query: str, stem: Callable[[str], str]) -> tuple[str, str]:
    words = normalize.words(query)
    # The order of numbers matters: 2 x 4 is not 4 x 2.
    order = [word for word in words if word[0].isdigit()]
    return " ".join([*sorted({stem(word) for word in words}), *order]), "".join(normalize.runs(query))


def check_leaks(queries: Mapping[str, Iterable[str]], config: Prepare) -> None:
    """Recompute each query's side from its text and check it before anything is written.

    Args:
        queries: texts by use: train, dev, test, candidates.
        config: the split.

    Raises:
        RunStopped: a query is not on the side of its use (candidates belong to the train side).
    """
    for use, texts in queries.items():
        allowed = "train" if use == "candidates" else use
        for text in texts:
            position = np.array(hash_position(normalize.split_key(text, config.plurals, config.language), config.salt))
            side = SIDES[int(sides(position, config))]
            if side != allowed:
                raise RunStopped(f"query {text!r} of the {side} side is among the {use} queries; nothing was written")
