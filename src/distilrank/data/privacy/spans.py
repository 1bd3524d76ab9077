"""Shared parts of the detectors of personal data: spans, folded texts, and a fast test of which texts to inspect."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from distilrank.core import normalize


class Span(NamedTuple):
    """A range of a text that is personal data of one of privacy.KINDS."""

    start: int
    end: int
    kind: str


# A query without any of these has no span, so nearly all queries cost only these searches.
_SEVEN_DIGITS = re.compile(r"[0-9](?:[^0-9A-Za-z]{0,4}[0-9]){6}").search  # shorter spans have a preceding word
MARK = re.compile(
    r"[@:.(\[{%](?:(?<=@)|(?<=:)(?://|[0-9A-Fa-f]{0,4}:)|(?<=\.)[^\W\d_]{2}| ?[Aa][Tt] ?[)\]}]|(?<=%)40)"
).search
_LONG_RUN = re.compile(r"\b[0-9A-Za-z_-]{17,}", re.ASCII).search
UNFOLDED = re.compile(r"[^\x00-\x7f\u00c0-\u024f]").search
_DIGIT = re.compile(r"[0-9]").search
_TWO_DIGITS = re.compile(r"[0-9]{2}").search
_FIVE_DIGITS = re.compile(r"[0-9]{5}").search
# The words before a date of birth, a plate, an insurance's or a passport's number. A look-up of each word is five times
# as fast as a pattern.
_PERSON_WORDS = frozenset(
    "birth birthdate birthday born d.o.b d.o.b. dob geb geb. geboren geburtsdatum immatriculation insurance kennzeichen"
    " matricula matrícula nacimiento naissance né née nino passnummer passport plate plates reg registration rego"
    " targa vrm".split()
)
_AROUND_WORDS = str.maketrans(dict.fromkeys(":=#([{\"'", " "))
_CUSTOMER_PART = re.compile(
    r"ac(?:count|ct)|c(?:lient|ommand|onfirm|ustomer)|factur|invoice|loyal|member|nummer|ord(?:er|ine)|p(?:edido|olicy)"
    r"|reward|track"
).search


def spells_dot(text: str) -> bool:
    return " dot " in text or " DOT " in text


def is_suspect(text: str) -> bool:
    if MARK(text) or _LONG_RUN(text) or spells_dot(text):
        return True
    if not _DIGIT(text):
        return False
    if _SEVEN_DIGITS(text):
        return True
    if not _TWO_DIGITS(text):
        return False
    lower = text.lower()
    if not _PERSON_WORDS.isdisjoint(lower.translate(_AROUND_WORDS).split()):
        return True
    return bool(_FIVE_DIGITS(lower) and _CUSTOMER_PART(lower))


def fold(text: str) -> tuple[str, list[int]]:
    """Fold a text for the patterns; return it, and the original index of each of its characters.

    White space is a blank, dashes are hyphens, the digits of any script and full-width letters are ASCII, and
    characters without width (`normalize.INVISIBLE`, the marks of keycap emoji) are removed. Superscripts are kept: 10²
    is not 102.
    """
    folded, origins = [], []
    for origin, character in enumerate(text):
        if character.isspace():
            plain = " "
        elif character.isascii():
            plain = character
        else:
            category = unicodedata.category(character)
            compatible = unicodedata.normalize("NFKC", character)
            if character == "\u20e3" or normalize.INVISIBLE.match(character):
                continue
            elif category == "Nd":
                plain = str(unicodedata.decimal(character))
            elif category == "Pd" or character == "\u2212":
                plain = "-"
            elif category != "No" and len(compatible) == 1 and compatible.isascii():
                plain = compatible
            else:
                plain = character
        folded.append(plain)
        origins.append(origin)
    return "".join(folded), origins


def match_before(pattern: re.Pattern[str], text: str, end: int, floor: int = 0) -> re.Match[str] | None:
    """The pattern's match in the 40 characters before `end`; the pattern must end at its position."""
    return pattern.search(text, max(floor, end - 40), end)


def end_of_match(pattern: re.Pattern[str], text: str, start: int) -> int:
    """End of the pattern's match at `start`; `start` if there is none."""
    match = pattern.match(text, start)
    return match.end() if match else start
