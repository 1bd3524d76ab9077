"""When two spellings are one query, and what a word is.

The normal form decides on which side of the split a query falls, so a change here is a change of test set: never
between runs that are to be compared.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

_PLAIN = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    "\u2044": "/",  # the bar that NFKC leaves of a vulgar fraction
    **dict.fromkeys("\u200b\ufeff\u00ad", ""),  # zero-width space, byte order mark, soft hyphen
}
_TYPOGRAPHIC = re.compile(f"[{''.join(_PLAIN)}]")  # ten times as fast as str.translate on text without any
_FRACTIONS = "\u00bc-\u00be\u2150-\u215e"
_MIXED_FRACTION = re.compile(rf"(?<=\d)(?=[{_FRACTIONS}])")
_SPECIAL = re.compile(f"[{''.join(_PLAIN)}{_FRACTIONS}]")
_SENTENCE_END = re.compile(r"[.,;:!?]+(?=\s|$)")
_WORD = re.compile(r"\d+(?:[.,/]\d+)*|[^\W\d_]+")


def normal_form(query: str) -> str:
    """The form in which two spellings of one query agree; empty only for a blank query.

    Unicode NFKC, case folded, runs of white space made one blank, typographic quotes and dashes made plain. Of the
    punctuation only `. , ; : ! ?` at the end of a word goes. All else stays, since it tells products apart:
    `3.5 in` from `35 in`, `6"` from `6'`, `#8` from `8`, `c++` from `c`. Idempotent.
    """
    text = _plain(compatible(query).casefold())
    text = unicodedata.normalize("NFKC", text)  # folding and dropping characters can leave accents apart
    # A query of punctuation alone is still a query.
    return " ".join(_SENTENCE_END.sub(" ", text).split()) or " ".join(text.split())


def compatible(text: str) -> str:
    """`text` in Unicode NFKC with plain quotes and dashes; case and white space stay.

    `1½` becomes `1 1/2`, full-width letters become plain ones.
    """
    if text.isascii():
        return text
    if _SPECIAL.search(text):
        # Before NFKC, which would make 11/2 of 1½ and two single primes of a double one.
        text = _plain(_MIXED_FRACTION.sub(" ", text))
    return text if unicodedata.is_normalized("NFKC", text) else _plain(unicodedata.normalize("NFKC", text))


def _plain(text: str) -> str:
    return _TYPOGRAPHIC.sub(lambda match: _PLAIN[match[0]], text)


def split_key(query: str, plurals: str) -> str:
    """What decides on the side of the split: `query_id`, or, with `plurals` together, that of the singular form."""
    return query_id(query if plurals == "apart" else singular(normal_form(query)))


def singular(text: str) -> str:
    """`text` with the plural endings of English words taken off (the S stemmer of Harman, JASIS 42(1), 1991)."""
    return " ".join(map(_singular, text.split()))


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


def query_id(query: str) -> str:
    """The key of a query: the first 16 hexadecimal digits of the SHA-256 of its normal form."""
    return hashlib.sha256(normal_form(query).encode()).hexdigest()[:16]


def words(text: str) -> list[str]:
    """The words of a query or a product, in order: runs of letters, and numbers with their decimals or fraction.

    `5/8 in. x 4ft` gives `5/8`, `in`, `x`, `4`, `ft`.
    """
    return _WORD.findall(normal_form(text))
