"""Estimates the overlap of two sets of test queries from a small sample of each.

The sample of a set holds its lowest hashes (bottom-k, or KMV: Beyer et al., "On synopses for distinct-value estimation
under multiset operations", SIGMOD 2007). Up to the highest hash that both samples reach, both are complete, so these
hashes of one set are a random sample whose membership in the other set is known.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import TypeGuard

SIZE = 1024
"""Hashes in a sketch: 12 kB for a set of any size; smaller sets are compared exactly. For two equally large sets that
share a quarter, the standard error is 0.014."""
DIGITS = 12
"""Hexadecimal digits of a hash."""
FEWEST = 16
"""Fewest hashes for an estimate, where the sketch of the other set is incomplete."""

_FORM = re.compile(rf"([0-9a-f]{{{DIGITS}}}){{1,{SIZE}}}")


def from_ids(query_ids: Iterable[str]) -> str:
    """Return the sketch of a set of queries from their ids: ascending hashes, concatenated."""
    hashes = {hashlib.sha256(f"test query:{query_id}".encode()).hexdigest()[:DIGITS] for query_id in query_ids}
    return "".join(sorted(hashes)[:SIZE])


def is_sketch(text: object) -> TypeGuard[str]:
    """Whether `text` has the form of the sketch of a non-empty set."""
    return isinstance(text, str) and _FORM.fullmatch(text) is not None


def shared(ours: str, theirs: str) -> float:
    """Return the share of the queries of `ours` that are in `theirs` too, in [0, 1].

    It is 1 where the other set is so much larger that too few of `ours` can be compared with its sample.
    """
    our_hashes, their_hashes = _hashes(ours), _hashes(theirs)
    reach = min((hashes[-1] for hashes in (our_hashes, their_hashes) if len(hashes) == SIZE), default="g")
    comparable = [value for value in our_hashes if value <= reach]
    if len(their_hashes) == SIZE and len(comparable) < FEWEST:
        return 1.0
    return len(set(comparable) & set(their_hashes)) / len(comparable)


def _hashes(sketch: str) -> list[str]:
    return [sketch[start : start + DIGITS] for start in range(0, len(sketch), DIGITS)]
