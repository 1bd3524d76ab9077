"""Detectors of numbers that identify a person: by preceding words, check digits or length."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from stdnum import ean, iban, isbn, luhn

from distilrank.data.privacy.spans import Span, end_of_match, match_before

_DATE = r"""(?:
    [0-9]{1,2}[ ./-]{1,2}[0-9]{1,2}[ ./-]{1,2}(?:19|20)?[0-9]{2} | (?:19|20)[0-9]{2}[./-][0-9]{1,2}[./-][0-9]{1,2}
    | [0-9]{1,2}(?:st|nd|rd|th|er|\.)?[ ](?:of[ ]|de[ ])?[^\W\d_]{3,10}\.?,?[ ](?:de[ ])?(?:19|20)[0-9]{2}
    | [^\W\d_]{3,10}\.?[ ][0-9]{1,2}(?:st|nd|rd|th)?,?[ ](?:19|20)[0-9]{2}
    )"""
_BIRTH_DATE = re.compile(
    rf"""(?<![A-Za-z])
    (?:dob|d\.o\.b\.?|date[ ]of[ ]birth|birth[ ]?da(?:te|y)|born(?:[ ]on)?|geburtsdatum|geb(?:oren)?(?:[ ]am)?
      |née?[ ]le|(?:date|fecha)[ ]de[ ](?:naissance|nacimiento))
    [ .:=#-]*(?:is[ ])?{_DATE}(?![0-9])""",
    re.IGNORECASE | re.VERBOSE,
)
# National formats: Britain; Germany; France and Italy; Spain; the United States.
_PLATE = re.compile(
    r"""(?<![A-Za-z])(?:(?:licen[cs]e|number|registration|reg)[ ]plates?|(?:vehicle|car)[ ]reg(?:istration)?|vrm|rego
      |reg(?:istration)?[ ](?:no|number)|kennzeichen|immatriculation|matr[ií]cula|targa)
    (?:[ ](?:no|number|is))?[ .:#=]*
    (?:[A-Z]{2}[0-9]{2}[ ]?[A-Z]{3} | [A-ZÄÖÜ]{1,3}[ -][A-Z]{1,2}[ -]?[0-9]{2,4}[EH]?
      | [A-Z]{2}[ -]?[0-9]{3}[ -]?[A-Z]{2} | [0-9]{4}[ -]?[BCDFGHJ-NPR-TV-Z]{3} | [0-9]?[A-Z]{3}[ -]?[0-9]{3,4}
    )(?!\w)""",
    re.IGNORECASE | re.VERBOSE,
)
_CUSTOMER = r"""(?<![A-Za-z])(?:
    account|acct|client|confirmation|customer|invoice|loyalty(?:[ ]card)?|member(?:ship)?|order|policy|rewards?|tracking
    |(?:auftrags|bestell|kunden|rechnungs|sendungs)(?=n)|commande|facture|pedido|cliente|factura|ordine)"""
# A number after such a word: of five digits where a sign says that it is one, else of seven.
_CUSTOMER_NUMBER = re.compile(
    rf"""{_CUSTOMER}
      (?:[ ]?(?:id|no|nr|num|number|nummer|n[°º]|numero|número)\.?(?![a-z])[ :\#=]*(?:is[ ])?|[ ]?[:\#=]+[ ]?)
      (?:[A-Z]{{0,3}}-?[0-9]{{5,}}|[0-9]{{2,}}-[0-9]{{5,}})(?:-[0-9]+)*(?!\w|[.,/][0-9])
    | {_CUSTOMER}[ ](?P<bare>[0-9]{{7,}})(?!\w|[-.,/][0-9])""",
    re.IGNORECASE | re.VERBOSE,
)


def find_birth_dates(text: str) -> Iterator[Span]:
    for match in _BIRTH_DATE.finditer(text):
        yield Span(*match.span(), "birth_date")


def find_plates(text: str) -> Iterator[Span]:
    for match in _PLATE.finditer(text):
        yield Span(*match.span(), "plate")


def find_customer_numbers(text: str) -> Iterator[Span]:
    for match in _CUSTOMER_NUMBER.finditer(text):
        yield Span(*match.span(match.lastgroup or 0), "digits")


# Never issued: areas 000 and 666, group 00, serial 0000 (ssa.gov, "SSN randomization"). Areas of 900 and more are
# taxpayer numbers (ITIN), as personal. With blanks they must stand apart from other numbers, which sizes seldom do;
# without either only the words before tell.
_SSN = re.compile(
    r"""(?<!\w)(?<!\w-)(?!000|666)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}(?!\w|-\w)
    | (?<![\w.,/$-])(?<![0-9][ ])(?!000|666|9)[0-9]{3}[ ](?!00)[0-9]{2}[ ](?!0000)[0-9]{4}
      (?![\w"'/%]|[-.,][0-9]|[ ][0-9])
    | (?<!\w)(?:ssn|social[ ]security(?:[ ](?:no|number))?)[ ]?(?:is|[.:#=-])*[ ]?[0-9]{3}[ -]?[0-9]{2}[ -]?[0-9]{4}
      (?![0-9])""",
    re.IGNORECASE | re.VERBOSE,
)
# Britain's National Insurance number (gov.uk, NIM39110), and passports: both look like part numbers.
_NAMED_ID = re.compile(
    r"""(?<!\w)(?:
      (?:nino|national[ ]insurance)(?:[ ](?:no|number))?[ .:#=]*[A-Z]{2}(?:[ ]?[0-9]{2}){3}[ ]?[A-D]
    | pass(?:port[ ]?(?:no|nr|num|number|\#|:)|nummer)[ .:#=]*[A-Z]{0,2}[0-9][0-9A-Z]{5,8}
    )(?!\w)""",
    re.IGNORECASE | re.VERBOSE,
)
# ISO 13616: country, check digits, 11 to 30 letters and digits. Looked ahead, so that one start does not hide the next.
_IBAN = re.compile(r"(?<![0-9A-Z])(?=([A-Z]{2}[0-9]{2}(?:[ -]?[0-9A-Z]){11,30}))", re.IGNORECASE)
_WORD_END = re.compile(r"(?<=[0-9A-Za-z])(?![0-9A-Za-z])")


def find_id_numbers(text: str) -> Iterator[Span]:
    for pattern in (_SSN, _NAMED_ID):
        for match in pattern.finditer(text):
            yield Span(*match.span(), "id_number")
    for match in _IBAN.finditer(text):
        start, limit = match.span(1)
        ends = [end.start() for end in _WORD_END.finditer(text, start, limit + 1) if end.start() <= limit]
        for end in reversed(ends):
            # stdnum's checks of national bank codes are skipped, since they would miss an IBAN with a typo.
            if end - start >= 15 and iban.is_valid(text[start:end], check_country=False):
                yield Span(start, end, "id_number")
                break


# ISO/IEC 7812-1: a primary account number has at most 19 digits, the last by Luhn. The groupings are those printed on
# cards, longest first: UnionPay 19, 16, American Express 15, UATP 15, Diners 14, the first Visa 13.
DIGITS = re.compile(r"[0-9]+")
_CARD_RUN = re.compile(r"[0-9]+(?:(?:[ ]{1,2}|[.]|[ ]?-[ ]?)[0-9]+)*")
_CARD_GROUPS = ((4, 4, 4, 4, 3), (6, 13), (4, 4, 4, 4), (4, 6, 5), (4, 5, 6), (4, 6, 4), (4, 3, 3, 3), (4, 4, 4, 1))
# Of 13 and 14 digits one number in ten passes Luhn, and barcodes are as long: Visa, Diners Club and Maestro only.
_SHORT_CARD = re.compile(
    r"4[0-9]{12} | 3(?:0[0-59]|[689][0-9])[0-9]{11} | (?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]+", re.VERBOSE
)
_YEAR = re.compile(r"(?:19|20)[0-9]{2}")
# Expiry date and security code after a card are just as secret.
_EXPIRY = re.compile(
    r"""(?:,?[ ]?(?:exp[a-z]*[.:]*[ ]?)?(?:0[1-9]|1[0-2])[ ]?/[ ]?(?:20)?[0-9]{2}(?![0-9]))?
    (?:,?[ ]?(?:cvv|cvc)2?[: ]*[0-9]{3,4}(?![0-9]))?""",
    re.IGNORECASE | re.VERBOSE,
)


def _is_card(text: str, groups: Sequence[tuple[int, int]]) -> bool:
    parts = [text[start:end] for start, end in groups]
    number = "".join(parts)
    # None starts with 0, and a + starts a phone number.
    if not 13 <= len(number) <= 19 or number[0] == "0" or text[groups[0][0] - 1 : groups[0][0]] == "+":
        return False
    if not luhn.is_valid(number):
        return False
    if any(end - start >= 12 and is_product_number(text, start, end) for start, end in groups):
        return False
    if len(number) < 15:
        return _SHORT_CARD.fullmatch(number) is not None
    return not all(map(_YEAR.fullmatch, parts))


def printed_groups(lengths: Sequence[int]) -> list[int]:
    """Possible numbers of groups of a card, written as printed or without separators."""
    return [len(shape) for shape in _CARD_GROUPS if tuple(lengths[: len(shape)]) == shape] + [1]


def careless_groups(lengths: Sequence[int]) -> list[int]:
    """Possible numbers of groups of a loosely grouped card: groups of 4 digits or more, the last of 3 or more."""
    counts = range(len(lengths), 1, -1)
    return [count for count in counts if min(lengths[: count - 1]) >= 4 and lengths[count - 1] >= 3]


def find_cards(text: str, groupings: Callable[[Sequence[int]], list[int]]) -> Iterator[Span]:
    for run in _CARD_RUN.finditer(text):
        if run.end() - run.start() < 13:
            continue
        groups = [match.span() for match in DIGITS.finditer(text, *run.span())]
        lengths = [end - start for start, end in groups]
        free = 0
        for first, (start, _) in enumerate(groups):
            if start < free:
                continue
            for count in groupings(lengths[first : first + 5]):
                if _is_card(text, groups[first : first + count]):
                    free = end_of_match(_EXPIRY, text, groups[first + count - 1][1])
                    yield Span(start, free, "card")
                    break


# A marketplace's order number (3-7-7), a UPS tracking number (1Z), a USPS one as printed on receipts (22 digits).
_GROUPED_DIGITS = re.compile(
    r"""(?<![0-9A-Z])(?:
      [0-9]{3}-[0-9]{7}-[0-9]{7} | 1Z[0-9A-Z]{16} | 9[1-5][0-9]{2}(?:[ -][0-9]{4}){4}[ -][0-9]{2}
    )(?![0-9A-Z])""",
    re.IGNORECASE | re.VERBOSE,
)
_LONG_DIGITS = re.compile(r"[0-9]{11,}")
_CUSTOMER_WORD = re.compile(
    r"(?<![A-Za-z])(?:account|acct|customer|invoice|member|order|tracking)(?: (?:id|no|nr|num|number))?\.?[ :#=]*\Z",
    re.IGNORECASE,
)
_PRODUCT_WORD = re.compile(
    r"(?<![A-Za-z])(?:asin|ean|gtin|isbn(?:-1[03])?|model|mpn|part|sku|upc)(?: (?:no|nr|num|number))?\.?[ :#=]*\Z",
    re.IGNORECASE,
)
# Barcodes as printed under the bars (GS1 General Specifications), and ISBNs with their four or five parts.
_PRINTED_BARCODE = re.compile(
    r"""(?<![0-9])(?<![0-9][-.])(?:
      [0-9](?P<gap>[ -])[0-9]{5}(?P=gap)[0-9]{5}(?P=gap)[0-9]
    | [0-9](?P<wide>[ -])[0-9]{10}(?P=wide)[0-9]
    | [0-9](?P<ean>[ -])[0-9]{6}(?P=ean)[0-9]{6}
    | (?:97[89](?P<isbn>[ -]))[0-9]{1,5}(?P=isbn)[0-9]{1,7}(?P=isbn)[0-9]{1,7}(?P=isbn)[0-9]
    | [0-9]{1,5}-[0-9]{1,7}-[0-9]{1,7}-[0-9]
    )(?![0-9]|[-.][0-9])""",
    re.VERBOSE,
)


def is_product_number(text: str, start: int, end: int) -> bool:
    """Whether the digits are a barcode (GTIN-12, -13, -14) or announced as a product's, and not as a person's."""
    if end - start > 14 or match_before(_CUSTOMER_WORD, text, start):
        return False
    return (end - start >= 12 and ean.is_valid(text[start:end])) or match_before(_PRODUCT_WORD, text, start) is not None


def blank_barcodes(text: str) -> str:
    def blank(match: re.Match[str]) -> str:
        number = match[0]
        return "\n" * len(number) if ean.is_valid(number) or isbn.is_valid(number) else number

    return _PRINTED_BARCODE.sub(blank, text)


def find_grouped_digits(text: str) -> Iterator[Span]:
    for match in _GROUPED_DIGITS.finditer(text):
        yield Span(*match.span(), "digits")


def find_long_digits(text: str) -> Iterator[Span]:
    for match in _LONG_DIGITS.finditer(text):
        if len(match[0]) >= 15 or not is_product_number(text, *match.span()):
            yield Span(*match.span(), "digits")
