"""Detector of phone numbers, by the numbering plans of the world and the habits of North America."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import phonenumbers
from phonenumbers import Leniency, PhoneNumberMatcher

from distilrank.data.privacy.numbers import DIGITS, is_product_number
from distilrank.data.privacy.spans import Span, end_of_match, match_before

_PHONE_RUN = re.compile(r"[0-9](?:[ ().\-/]{0,4}[0-9]){6,}")
_SIGN = re.compile(r"(?:\(?\+ ?\(?|\()\Z")
# Words that announce a number to dial; the second kind are products as well.
DIAL = r"call(?:to)?|contact|dial|ph(?= ?[.:#])|sms|tel(?:ephone)?|text|whatsapp"
DEVICE = r"cell(?:phone)?|fax|mob(?:ile)?|phone"
FILLER = r"\.?(?: ?(?:no|nr|num|number|me|us|at|on|is)(?![a-z])\.?)*"
_DIAL_WORD = re.compile(rf"(?<![A-Za-z])(?:{DIAL}){FILLER}[ .:#=/-]*\Z", re.IGNORECASE)
_DEVICE_WORD = re.compile(rf"(?<![A-Za-z])(?:{DEVICE}){FILLER}[ .:#=/-]*\Z", re.IGNORECASE)
# As one writes them there (nationalnanpa.com: area and exchange start with 2 to 9), assigned or not.
_NORTH_AMERICAN = re.compile(
    r"(?:1[ .-]?)?(?:\([2-9][0-9]{2}\)[ -]{0,2}|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[ .-][0-9]{4}",
)
_EXTENSION = re.compile(r"(?:[ ,;]{0,2}ext(?:ension)?[.:=]? ?|x)[0-9]{1,6}(?!\w)", re.IGNORECASE)
# Latin letters only: other scripts write without blanks.
_GLUED_BEFORE = re.compile(r"(?:[0-9A-Za-z_\u00c0-\u024f]|[0-9][-.]|[$€£¥%])\Z")
_GLUED_AFTER = re.compile(r"[0-9A-Za-z_\u00c0-\u024f]|[-.][0-9]|%")
# Alone, a row of digits is a phone number only if it has the ten of most national plans.
_BARE_DIGITS = 10
# ITU-T E.164 allows 15; two more for the zeros of a prefix.
_MAX_DIGITS = 17


def _is_number(written: str, region: str | None, leniency: int) -> bool:
    """Whether phonenumbers accepts the whole text as a number of the region (None: in international form)."""
    written = re.sub(r"\+[ .-]", "+", written)
    return any(
        match.end - match.start == len(written)
        for match in PhoneNumberMatcher(written, region, leniency=leniency, max_tries=1)
    )


def _is_part_number(text: str, start: int, end: int) -> bool:
    """Whether bare digits belong to a longer number, or are a product's."""
    is_glued = text[end : end + 1] == "-" or text[start - 1 : start] == "-"
    return is_glued or is_product_number(text, start, end)


def _without_unclosed_bracket(written: str) -> str:
    """Strip an opening bracket that closes only after the number."""
    return written[1:] if written[0] == "(" and written.count("(") > written.count(")") else written


def _phone_span(text: str, written: str, end: int) -> Span:
    return Span(end - len(written), end_of_match(_EXTENSION, text, end), "phone")


def _phone_ends(text: str, groups: list[tuple[int, int]], first: int, is_international: bool) -> list[int]:
    """Possible ends of a phone number that starts at group `first`, farthest first."""
    ends, digits = [], 0
    for position, (start, end) in enumerate(groups[first:]):
        digits += end - start
        # Inside a number a single digit is the area (+33 6) or the (0) that one leaves out when dialling from abroad.
        is_area = is_international and position == 1 and start - groups[first][0] <= 5
        is_lone_digit = position and end - start == 1 and not is_area and text[start - 1 : end + 1] != "(0)"
        if is_lone_digit or digits > _MAX_DIGITS:
            break
        if digits >= 7 and (not _GLUED_AFTER.match(text, end) or _EXTENSION.match(text, end)):
            ends.append(end)
    return ends[::-1]


class PhoneDetector:
    """Finds phone numbers: those in international form everywhere, national ones of some regions.

    Args:
        regions: ISO 3166-1 alpha-2 codes.

    Raises:
        ValueError: phonenumbers does not know a region; it is named.
    """

    def __init__(self, regions: Sequence[str]) -> None:
        unknown = [region for region in regions if region not in phonenumbers.SUPPORTED_REGIONS]
        if isinstance(regions, str) or unknown:
            raise ValueError(f"regions: {unknown or regions!r}: expected a list of ISO 3166-1 codes such as US, GB, DE")
        self.regions = tuple(regions)
        self._north_american = any(phonenumbers.country_code_for_region(region) == 1 for region in regions)

    def find(self, text: str) -> Iterator[Span]:
        """Find the phone numbers of a folded text, without overlaps."""
        for run in _PHONE_RUN.finditer(text):
            groups = [match.span() for match in DIGITS.finditer(text, *run.span())]
            end_of_last = 0
            for first, (start, _) in enumerate(groups):
                if start >= end_of_last and (span := self._find_at(text, groups, first)):
                    yield span
                    end_of_last = span.end

    def _find_at(self, text: str, groups: list[tuple[int, int]], first: int) -> Span | None:
        """The phone number that starts at group `first` of a row of groups of digits."""
        start = groups[first][0]
        sign = match_before(_SIGN, text, start)
        opening = sign.start() if sign else start
        is_dialed = match_before(_DIAL_WORD, text, opening) is not None
        is_announced = is_dialed or match_before(_DEVICE_WORD, text, opening) is not None
        if not is_announced and match_before(_GLUED_BEFORE, text, opening):
            return None
        ends = _phone_ends(
            text, groups, first, is_international="+" in text[opening:start] or text.startswith("00", start)
        )
        # First by the numbering plans, then by announced numbers outside of them: plans change, and people mistype.
        for end in ends:
            written = _without_unclosed_bracket(text[opening:end])
            if self._is_valid(written, is_announced) and not (
                written.isdigit() and not is_announced and _is_part_number(text, start, end)
            ):
                return _phone_span(text, written, end)
        for end in ends:
            written = _without_unclosed_bracket(text[opening:end])
            if self._is_possible(written, is_dialed):
                return _phone_span(text, written, end)
        return None

    def _is_valid(self, written: str, is_announced: bool) -> bool:
        """Whether a numbering plan has the number; `is_announced`: a preceding word announces it."""
        if "+" in written:
            return _is_number(written, None, Leniency.VALID)
        is_bare = written.isdigit()
        if is_bare and not is_announced and len(written) < _BARE_DIGITS:
            return False
        if written.startswith("00") and len(written) >= 12 and _is_number("+" + written[2:], None, Leniency.VALID):
            return True
        # A trunk prefix, an area code in brackets, or a word before tells enough; else the groups must be the plan's,
        # since a row of sizes has ten digits soon.
        is_proven = is_bare or is_announced or written[0] in "0("
        leniency = Leniency.VALID if is_proven else Leniency.STRICT_GROUPING
        return any(_is_number(written, region, leniency) for region in self.regions)

    def _is_possible(self, written: str, is_dialed: bool) -> bool:
        """Whether it is written as a phone number, assigned or not; `is_dialed`: a preceding word asks to dial it."""
        if "+" in written:
            return sum(map(str.isdigit, written)) >= _BARE_DIGITS and _is_number(written, None, Leniency.POSSIBLE)
        if self._north_american and _NORTH_AMERICAN.fullmatch(written):
            return True
        return is_dialed and any(_is_number(written, region, Leniency.POSSIBLE) for region in self.regions)
