"""The Unicode script of a text, which reveals a query in another language without a model."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache

NONE = "none"
_NAMES = {"cjk": "han", "fullwidth": "latin", "halfwidth": "katakana", "katakana-hiragana": "katakana"}


def dominant(text: str) -> str:
    """Return the script of most letters: latin, cyrillic, han, hiragana...; `none` for a text without letters.

    Ties go to the script that occurs first.
    """
    letters = Counter(script for script in map(_script, text) if script)
    return letters.most_common(1)[0][0] if letters else NONE


@cache
def _script(character: str) -> str:
    """Return a letter's script, the first word of its Unicode name; empty for other characters."""
    if not character.isalpha():
        return ""
    word = unicodedata.name(character, "").partition(" ")[0].lower()
    return _NAMES.get(word, word)
