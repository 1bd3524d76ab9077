"""Small tables of (query, product) pairs that can be learned, and texts that tokenizers find odd."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

NOUNS = ("sofa", "lamp", "phone", "drill", "shoe", "dress")
COLORS = ("red", "blue", "green", "black", "white")


def pairs(queries: int, per_query: int, seed: int) -> pa.Table:
    """Rows of records.PAIR with a `target`: 1 for the right noun and color, .5 for the noun, else 0."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(queries):
        noun, color = rng.choice(NOUNS), rng.choice(COLORS)
        for product in range(per_query):
            title_noun = noun if product % 2 else rng.choice(NOUNS)
            title_color = color if product % 3 == 0 else rng.choice(COLORS)
            rows.append(
                {
                    "query_id": f"q{seed}-{number:03d}",
                    "query": f"{color} {noun}",
                    "product_id": f"p{product:02d}",
                    "title": f"{title_color} {title_noun} for men",
                    "product_type": str(title_noun) if product % 4 else None,
                    "brand": None,
                    "color": str(title_color),
                    "gender": None,
                    "description": "steel and wood",
                    **dict.fromkeys(
                        ("target", "gain"),
                        ((title_noun == noun) + (title_noun == noun and title_color == color)) / 2,
                    ),
                    "raters": 3,
                    "locale": None,
                    "stratum": "tail",
                    "bm25": 0.0,
                    "provenance": "bm25",
                    "impressions": 0,
                    "clicks": 0,
                }
            )
    return pa.Table.from_pylist(rows)


ODD = (
    "ａ①ﬁ 東京タワー",
    "🛋️ sofa 🔴",
    "cafe\u0301 CAFÉ",
    "zero\u200bwidth \u00a0 blank\t tab",
    '5/8 in. x 3-1/2" #10',
    "[SEP] sofa [CLS][MASK] [sep] [ SEP]",
    "",
    "x" * 300,
    "\u0000 \ufffd ½ ™",
    "مصباح أحمر",
)
