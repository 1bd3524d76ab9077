"""The overlap of two sets of test queries, told from a small sample of each.

The sample of a set is that of its lowest hashes (bottom-k, or KMV: Beyer et al., "On synopses for distinct-value
estimation under multiset operations", SIGMOD 2007). Below the highest hash that both samples reach they are complete,
so that part of one set is a random sample of it of which it is known whether the other set has it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import TypeGuard

SIZE = 1024
"""Hashes that are kept: 12 kB for a set of any size; smaller sets are compared exactly. A share of a quarter of two
equally large sets has a standard error of 0.014."""
DIGITS = 12
"""Hexadecimal digits of a hash."""
FEWEST = 16
"""Queries that it takes to estimate an overlap, where the other set is not kept as a whole."""

_FORM = re.compile(rf"([0-9a-f]{{{DIGITS}}}){{1,{SIZE}}}")


def of(query_ids: Iterable[str]) -> str:
    """The sketch of a set of queries, from their ids: hashes of them, ascending, one after the other."""
    hashes = {hashlib.sha256(f"test query:{query_id}".encode()).hexdigest()[:DIGITS] for query_id in query_ids}
    return "".join(sorted(hashes)[:SIZE])


def is_sketch(text: object) -> TypeGuard[str]:
    """Whether `text` has the form of the sketch of a set that is not empty."""
    return isinstance(text, str) and _FORM.fullmatch(text) is not None


def shared(ours: str, theirs: str) -> float:
    """The share of one set's queries that another has too, in [0, 1].

    Where the other set is so much larger that too few of `ours` can be held against its sample, 1: what cannot be
    told apart counts as shared.
    """
    kept, others = _hashes(ours), _hashes(theirs)
    reach = min((found[-1] for found in (kept, others) if len(found) == SIZE), default="g")
    below = [one for one in kept if one <= reach]
    if len(others) == SIZE and len(below) < FEWEST:
        return 1.0
    return len(set(below) & set(others)) / len(below)


def _hashes(sketch: str) -> list[str]:
    return [sketch[start : start + DIGITS] for start in range(0, len(sketch), DIGITS)]
