"""Scrubbing: removes personal data from search queries.

People paste the wrong text into a search box: an address, a card, a reset link. None of it may be stored, while the
numbers of a shop (parts, barcodes, sizes) must be kept. So each rule combines a form with evidence, such as a check
digit, a numbering plan, or a preceding word that names it. Where the evidence is weak, a long number counts as
personal and a short one as a product's. Names and street addresses have no fixed form and are not detected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import unquote

from distilrank.data.privacy.links import (
    URL,
    URL_CARRIES,
    URL_END,
    find_devices,
    find_emails,
    find_secrets,
    find_tokens,
    is_opaque,
)
from distilrank.data.privacy.numbers import (
    blank_barcodes,
    careless_groups,
    find_birth_dates,
    find_cards,
    find_customer_numbers,
    find_grouped_digits,
    find_id_numbers,
    find_long_digits,
    find_plates,
    printed_groups,
)
from distilrank.data.privacy.phones import DEVICE, DIAL, FILLER, PhoneDetector
from distilrank.data.privacy.spans import UNFOLDED, Span, fold, is_suspect, match_before

# `digits` are account, order and tracking numbers, `id_number` a social security number or an IBAN, `url` a link with
# more than the name of a page, `token` a key, a hash or a session, `device` an IP or MAC address, `plate` a car's.
KINDS = ("email", "phone", "card", "digits", "url", "id_number", "token", "device", "birth_date", "plate")


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A query without its personal data, and the kind of each removed span, in order of appearance.

    `text` is the query itself if nothing was removed, and empty if nothing is left. Spans that became visible only
    after others were removed come last in `kinds`.
    """

    text: str
    kinds: tuple[str, ...]


# Words without meaning once the span is removed. Those that also name products are removed only with a colon.
_LEAD = re.compile(
    rf"(?<![A-Za-z])(?:(?:mailto|e-?mail|iban|ssn|{DIAL}){FILLER}(?: address)?[ .:#=]*"
    rf"|(?:account|acct|api key|card|id|key|link|order|ref|token|tracking|url|{DEVICE}){FILLER} ?[:#=]+ ?)\Z",
    re.IGNORECASE,
)
_BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">", '"': '"', "'": "'", "“": "”", "‘": "’"}
# Punctuation that only joined the span to its neighbors.
_JOINT_BEFORE = re.compile(r"(?:[\s,;:/|]|\s[-\u2013])+\Z")
_JOINT_BEHIND = re.compile(r"\A(?:[\s,;:/|]|[.!?]+(?=\s|\Z)|[-\u2013](?=\s|\Z))+")


def _widen(text: str, span: Span, floor: int) -> Span:
    """Extend a span, not beyond `floor`, by brackets around it and by words before it that only introduce it."""
    start, end = span.start, span.end
    while True:
        if start > floor and end < len(text) and _BRACKETS.get(text[start - 1]) == text[end]:
            start, end = start - 1, end + 1
        elif lead := match_before(_LEAD, text, start, floor):
            start = lead.start()
        else:
            break
    return Span(start, end, span.kind)


def _remove(text: str, spans: Iterable[Span]) -> str:
    """Remove spans, and the punctuation that joined them to their neighbors; empty if no word is left."""
    pieces, end = [], 0
    for span in spans:
        pieces.append(_JOINT_BEFORE.sub("", text[end : span.start]))
        end = span.end
    pieces.append(text[end:])
    pieces[1:] = [_JOINT_BEHIND.sub("", piece) for piece in pieces[1:]]
    words = " ".join(" ".join(pieces).split())
    return words if any(map(str.isalnum, words)) else ""


_BEFORE_BARCODES = (
    find_emails,
    find_tokens,
    find_devices,
    find_birth_dates,
    find_plates,
    find_id_numbers,
    find_secrets,
    find_grouped_digits,
)


class Scrubber:
    """Removes personal data from search queries: e-mail addresses, phone numbers, cards, secrets and the like.

    A query in which nothing is found is returned as it is; scrubbing the result finds nothing more.

    Args:
        regions: where customers live, ISO 3166-1 alpha-2. Phone numbers in international form are found for every
            country, national ones only for these regions: ten bare digits that a region's numbering plan allows are
            a phone number, so name only regions with customers.

    Raises:
        ValueError: phonenumbers does not know a region.

    Example:
        >>> Scrubber()("cordless drill joe@example.com")
        Scrubbed(text='cordless drill', kinds=('email',))
    """

    def __init__(self, regions: Sequence[str] = ("US",)) -> None:
        self._phones = PhoneDetector(regions)

    def __call__(self, query: str) -> Scrubbed:
        if not (is_suspect(query) or (not query.isascii() and UNFOLDED(query))):
            return Scrubbed(query, ())
        text, kinds = query, []
        while spans := self._spans(text):  # the remaining parts may form another span, such as a card around an address
            kinds += [span.kind for span in spans]
            text = _remove(text, spans)
        return Scrubbed(text, tuple(kinds))

    def _spans(self, text: str) -> list[Span]:
        """The spans of the text, extended by `_widen`, in order and without overlaps."""
        folded, origins = fold(text)
        if not is_suspect(folded):
            return []
        spans: list[Span] = []
        for span in sorted(self._find(folded)):
            spans.append(_widen(folded, span, spans[-1].end if spans else 0))
        return [Span(origins[start], origins[end - 1] + 1, kind) for start, end, kind in spans]

    def _find(self, text: str) -> list[Span]:
        urls, text = _claim(text, self._find_urls)
        return urls + self._find_in_words(text)

    def _find_in_words(self, text: str) -> list[Span]:
        """Find spans other than links, the most specific first: each detector hides its spans from the next."""
        spans: list[Span] = []
        for detect in _BEFORE_BARCODES:
            claimed, text = _claim(text, detect)
            spans += claimed
        text = blank_barcodes(text)
        for detect in (
            partial(find_cards, groupings=printed_groups),
            # Phone numbers before loosely grouped cards, which could begin in the middle of one.
            self._phones.find,
            partial(find_cards, groupings=careless_groups),
            find_customer_numbers,
            find_long_digits,
        ):
            claimed, text = _claim(text, detect)
            spans += claimed
        return spans

    def _find_urls(self, text: str) -> Iterator[Span]:
        """Find links to personal data; `www.shop.com/garden` is an ordinary search."""
        for match in URL.finditer(text):
            url = match[0].rstrip(URL_END)
            if (
                URL_CARRIES.search(url)
                or any(map(is_opaque, unquote(url).split("/")))
                or self._find_in_words(url.replace("/", " "))
            ):
                yield Span(match.start(), match.start() + len(url), "url")


def _claim(text: str, detect: Callable[[str], Iterable[Span]]) -> tuple[list[Span], str]:
    """Return the spans of a detector, and the text with them replaced by line breaks, which no pattern crosses."""
    spans: list[Span] = []
    for span in detect(text):
        if not any(span.start < other.end and other.start < span.end for other in spans):
            spans.append(span)
    for start, end, _ in spans:
        text = text[:start] + "\n" * (end - start) + text[end:]
    return spans, text
