"""Normal form of queries, and their division into words.

The normal form decides on which side of the split a query falls, so a change of this module changes the test set:
never change it between runs that are compared.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata

_PLAIN = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4\u02bc\u05f3", "'"),  # also acute accent and Hebrew geresh
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u05f4", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    "\u2044": "/",  # the bar that NFKC leaves of a vulgar fraction
    "\u2800": " ",  # Braille without a dot
}


def _ranges(codes: list[int]) -> str:
    """Ascending code points as the inside of a character class."""
    starts = [code for code, before in zip(codes, [-2, *codes], strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -2], strict=True) if code != after - 1]
    return "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in zip(starts, ends, strict=True))


_CATEGORIES = [unicodedata.category(chr(code)) for code in range(0x20000)]  # planes 0 and 1
_JOINERS = "\u200c\u200d"
# Without joiners: format characters, half a surrogate pair, and what else Unicode calls Default_Ignorable_Code_Point
# (variation selectors, tags, fillers of Hangul, the grapheme joiner); some of its code points are not assigned yet.
_INVISIBLE = (
    _ranges([code for code, category in enumerate(_CATEGORIES) if category == "Cf" and chr(code) not in _JOINERS])
    + r"\ud800-\udfff\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    + r"\U000e0000-\U000e0fff"
)
_MARKS = _ranges([code for code, category in enumerate(_CATEGORIES) if category[0] == "M"])
del _CATEGORIES
_ARABIC = "\u0620-\u06ff\u0750-\u077f\u0870-\u08ff\ufb50-\ufdff\ufe70-\ufefc"
_TYPOGRAPHIC = re.compile(f"[{''.join(_PLAIN)}{_INVISIBLE}]")  # ten times as fast as str.translate on text without any
_FRACTIONS = "\u00bc-\u00be\u2150-\u215e"
_SPECIAL = re.compile(f"[{''.join(_PLAIN)}{_INVISIBLE}{_FRACTIONS}]")
_MIXED_FRACTION = re.compile(rf"(?<=\d)(?=[{_FRACTIONS}])")
_NON_JOINER = re.compile(f"(?<=[{_ARABIC}])\u200d*\u200c[{_JOINERS}]*(?=[{_ARABIC}])")
_ANY_JOINER = re.compile(f"[{_JOINERS}]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_JOINER_OR_CONTROL = re.compile(rf"[{_JOINERS}\x00-\x1f\x7f-\x9f]")
_DOTTED_I = re.compile("i\u0307+")
_SENTENCE_END = re.compile(r"[.,;:!?]+(?=\s|$)")
INVISIBLE = re.compile(f"[{_INVISIBLE}{_JOINERS}]")
"""A character that has neither width nor shape: format characters, variation selectors, tags, halves of surrogates."""
_VISIBLE = re.compile(rf"[^\s\x00-\x1f\x7f-\x9f\u2800{_INVISIBLE}{_JOINERS}]")
SEEN = r"[^\P{L}\x{115f}\x{1160}\x{3164}\x{ffa0}]|\p{N}"
"""In RE2's syntax, for Arrow: a letter or digit that `normal_form` keeps, so not a filler of Hangul. A text with one
is not blank; `is_blank` decides on the others."""
DOTLESS = ("az", "tr")
"""Languages in which the capital of the dotless i is I, and that of i is \u0130."""


def normal_form(query: str, language: str = "") -> str:
    """The form in which two spellings of one query agree; empty only for a blank query.

    Unicode NFKC, case folded, runs of white space and control characters collapsed, typographic quotes and dashes made
    plain. Invisible characters are removed: format characters, variation selectors, tags. A zero-width non-joiner
    between Arabic letters becomes a blank, since Persian is typed with either; elsewhere it is removed, like joiners.
    Of the punctuation, only `. , ; : ! ?` at the end of a word is removed. The rest is kept, since it distinguishes
    products: `3.5 in` from `35 in`,
    `6"` from `6'`, `#8` from `8`, `c++` from `c`. Idempotent.

    Args:
        query: as typed.
        language: ISO 639-1 code; it matters where it is one of `DOTLESS`: I is folded to the dotless i there.
    """
    if query.isascii():
        text = query if query.isprintable() else _CONTROL.sub(" ", query)
        text = (text.replace("I", "\u0131") if language in DOTLESS else text).lower()
    else:
        text = compatible(query)
        if _JOINER_OR_CONTROL.search(text):
            text = _ANY_JOINER.sub("", _NON_JOINER.sub(" ", _CONTROL.sub(" ", text)))
            text = unicodedata.normalize("NFKC", text)  # of what a joiner kept apart
        if language in DOTLESS:
            text = text.replace("\u0130", "i").replace("I", "\u0131")
        text = text.casefold()
        if "\u0307" in text:
            text = _DOTTED_I.sub("i", text)  # what folding makes of the capital \u0130
        text = unicodedata.normalize("NFKC", text)  # folding and dropping characters can leave accents apart
    # A query of punctuation alone is still a query.
    return " ".join(_SENTENCE_END.sub(" ", text).split()) or " ".join(text.split())


def is_blank(text: str) -> bool:
    """Whether the text has no visible character, so that its normal form is empty."""
    return not _VISIBLE.search(text)


def compatible(text: str) -> str:
    """Return `text` in Unicode NFKC with plain quotes and dashes and without invisible characters.

    Case and white space are kept. `1½` becomes `1 1/2`, full-width letters become plain ones. Joiners are kept:
    they shape letters and emoji.
    """
    if text.isascii():
        return text
    if _SPECIAL.search(text):
        # Before NFKC, which would make 11/2 of 1½ and two single primes of a double one.
        text = _plain(_MIXED_FRACTION.sub(" ", text))
    return text if unicodedata.is_normalized("NFKC", text) else _plain(unicodedata.normalize("NFKC", text))


def _plain(text: str) -> str:
    return _TYPOGRAPHIC.sub(lambda match: _PLAIN.get(match[0], ""), text)


def split_key(query: str, plurals: str, language: str = "") -> str:
    """Return the key of a query's split: `query_id` or, with `plurals` together, that of the singular form."""
    return query_id(query if plurals == "apart" else singular(normal_form(query, language)), language)


def singular(text: str) -> str:
    """Return `text` without the plural endings of English words (the S stemmer of Harman, JASIS 42(1), 1991)."""
    return " ".join(map(_singular, text.split()))


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


def query_id(query: str, language: str = "") -> str:
    """The key of a query: the first 16 hexadecimal digits of the SHA-256 of its normal form."""
    return hashlib.sha256(normal_form(query, language).encode()).hexdigest()[:16]


# Words ------------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\d+(?:[.,/]\d+)*|[^\W\d_]+")
# Characters that are words by themselves as often as not: Chinese and Japanese Han, Korean syllables.
_SYLLABLES = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff"
# Scripts whose words no blank separates (Korean separates phrases): also Kana, Bopomofo, Thai, Lao, Myanmar, Khmer.
_UNSPACED = (
    _SYLLABLES + "\u3041-\u312f\u31a0-\u31ff\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff\U0001aff0-\U0001b16f"
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
)
_ANY_WORD = re.compile(rf"\d+(?:[.,/]\d+)*|[^\W\d_]+(?:[{_MARKS}]+[^\W\d_]*)*")
_RUN = re.compile(rf"([{_UNSPACED}][{_UNSPACED}{_MARKS}]*)|[^{_UNSPACED}]+(?:[{_MARKS}]+[^{_UNSPACED}]*)*")
_LETTER = re.compile(rf"[^{_MARKS}][{_MARKS}]*")
_SYLLABLE = re.compile(f"[{_SYLLABLES}]")


def words(text: str, language: str = "") -> list[str]:
    """The words of a query or a product, in order: runs of letters, and numbers with their decimals or fraction.

    `5/8 in. x 4ft` gives `5/8`, `in`, `x`, `4`, `ft`. Marks belong to their letter; the digits of all scripts are those
    of ASCII. Of a script that does not separate words (Chinese, Japanese, Korean, Thai, Lao, Myanmar, Khmer), each two
    neighbouring letters are a word: `\u7ea2\u8272\u6c99\u53d1` gives `\u7ea2\u8272`, `\u8272\u6c99`, `\u6c99\u53d1`.

    Args:
        text: any text.
        language: as for `normal_form`.
    """
    return _split(text, language, syllables=False)


def terms(text: str, language: str = "") -> list[str]:
    """Return the index terms of a text: its `words`, and each character of Han and Hangul.

    Pairs alone would not find `\u5973\u58eb\u8fd0\u52a8\u978b` (women's trainers) for `\u5973\u978b` (women's shoes).
    """
    return _split(text, language, syllables=True)


def runs(text: str, language: str = "") -> list[str]:
    """`words`, but with letters of scripts that do not separate words kept together."""
    text = normal_form(text, language)
    return (_WORD if text.isascii() else _ANY_WORD).findall(text)


def _split(text: str, language: str, *, syllables: bool) -> list[str]:
    text = normal_form(text, language)
    if text.isascii():
        return _WORD.findall(text)
    words: list[str] = []
    for word in _ANY_WORD.findall(text):
        if word.isascii():
            words.append(word)
        elif word[0].isdecimal():
            words.append("".join(str(unicodedata.decimal(character, character)) for character in word))
        else:
            for match in _RUN.finditer(word):
                letters = _LETTER.findall(match[0]) if match[1] else [match[0]]
                words += map("".join, itertools.pairwise(letters)) if len(letters) > 1 else letters
                if syllables and len(letters) > 1:
                    words += _SYLLABLE.findall(match[0])
    return words
