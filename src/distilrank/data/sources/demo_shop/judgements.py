"""Judgements of the demo shop: the pairs that raters see, and their ratings."""

from __future__ import annotations

import numpy as np

from distilrank.data.sources.demo_shop.queries import GRADES, IRRELEVANT, SUBSTITUTE

_AT_LEAST = (2, 1, 1, 1)
_SHARES = (0.4, 0.2, 0.2, 0.2)
"""Products judged per query: minimum of each grade, irrelevant to exact, and shares of the remainder."""
_HARD = 0.9
"""Share of products that word matching tends to rank wrongly, whose judgements are most informative."""


def pick(grades: np.ndarray, lexical: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Rows of `count` products for the raters, ascending; all grades occur as far as the catalogue has them.

    Args:
        grades: ground truth of every product for the query.
        lexical: how well its words match, 0 to 1.
    """
    # Accessories and look-alikes with many of the query's words, good products with few of them.
    misleading = np.where(grades >= SUBSTITUTE, -lexical, lexical) + draw.gumbel(0, 0.1, len(grades))
    whim = draw.random(len(grades))
    left = np.ones(len(grades), dtype=bool)

    def take(grade: int, size: int) -> None:
        hard = draw.binomial(size, _HARD)
        for order, number in ((misleading, hard), (whim, size - hard)):
            rows = np.flatnonzero(left & (grades == grade))
            left[rows[highest(order[rows], number)]] = False

    fewest = np.minimum(_AT_LEAST, count // len(GRADES))
    for grade, size in enumerate(fewest + draw.multinomial(max(count - fewest.sum(), 0), _SHARES)):
        take(grade, int(size))
    take(IRRELEVANT, count - int(np.count_nonzero(~left)))
    return np.flatnonzero(~left)


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest values, unordered; all indices if there are fewer."""
    if count >= len(values):
        return np.arange(len(values))
    return np.argpartition(values, len(values) - max(count, 1))[len(values) - count :]


def rate(grades: np.ndarray, raters: int, noise: float, draw: np.random.Generator) -> np.ndarray:
    """The mean of `raters` ratings per pair; each is off by one level, up or down, with probability `noise`."""
    shape = (len(grades), raters)
    slips = np.where(draw.random(shape) < noise, draw.choice([-1, 1], shape), 0)
    return np.clip(grades[:, None] + slips, 0, len(GRADES) - 1).mean(axis=1)
