"""Which script a text is written in: what tells a query in another language before any model has seen it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache

NONE = "none"
_NAMES = {"cjk": "han", "fullwidth": "latin", "halfwidth": "katakana", "katakana-hiragana": "katakana"}


def dominant(text: str) -> str:
    """The script of most letters of `text`: latin, cyrillic, han, hiragana...; `none` where it has no letter.

    Of scripts with as many letters, the one that comes first.
    """
    letters = Counter(script for script in map(_script, text) if script)
    return letters.most_common(1)[0][0] if letters else NONE


@cache
def _script(character: str) -> str:
    """The first word of a letter's Unicode name, which is its script; empty for what is not a letter."""
    if not character.isalpha():
        return ""
    word = unicodedata.name(character, "").partition(" ")[0].lower()
    return _NAMES.get(word, word)
