"""When two spellings are one query, and what a word is.

The normal form decides on which side of the split a query falls, so a change here is a change of test set: never
between runs that are to be compared.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        "\u2044": "/",  # the bar that NFKC leaves of a vulgar fraction
        **dict.fromkeys("\u200b\ufeff\u00ad", None),  # zero-width space, byte order mark, soft hyphen
    }
)
_MIXED_FRACTION = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])")
_SENTENCE_END = re.compile(r"[.,;:!?]+(?=\s|$)")
_WORD = re.compile(r"\d+(?:[.,/]\d+)*|[^\W\d_]+")


def normal_form(query: str) -> str:
    """The form in which two spellings of one query agree; empty only for a blank query.

    Unicode NFKC, case folded, runs of white space made one blank, typographic quotes and dashes made plain. Of the
    punctuation only `. , ; : ! ?` at the end of a word goes. All else stays, since it tells products apart:
    `3.5 in` from `35 in`, `6"` from `6'`, `#8` from `8`, `c++` from `c`. Idempotent.
    """
    # Before NFKC, which would make 11/2 of 1½ and two single primes of a double one.
    text = _MIXED_FRACTION.sub(" ", query).translate(_TYPOGRAPHY)
    text = unicodedata.normalize("NFKC", text).casefold().translate(_TYPOGRAPHY)
    text = unicodedata.normalize("NFKC", text)  # folding and dropping characters can leave accents apart
    # A query of punctuation alone is still a query.
    return " ".join(_SENTENCE_END.sub(" ", text).split()) or " ".join(text.split())


def query_id(query: str) -> str:
    """The key of a query: the first 16 hexadecimal digits of the SHA-256 of its normal form."""
    return hashlib.sha256(normal_form(query).encode()).hexdigest()[:16]


def words(text: str) -> list[str]:
    """The words of a query or a product, in order: runs of letters, and numbers with their decimals or fraction.

    `5/8 in. x 4ft` gives `5/8`, `in`, `x`, `4`, `ft`.
    """
    return _WORD.findall(normal_form(text))
