"""What of a search query is personal data, and the query without it.

People paste the wrong clipboard into a search box: an address, a card, a reset link. None of that may reach a disk,
while the numbers of a shop (parts, barcodes, sizes) must. So a rule is a shape with a proof, such as a check digit, a
numbering plan, or a word before it that says what it is. Where the proof is weak, a long number is taken for a person's
and a short one for a product's. Names and street addresses have no shape and are not looked for.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote

import phonenumbers
from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import ean, iban, isbn, luhn

from distilrank.core import normalize

# `digits` are account, order and tracking numbers, `id_number` a social security number or an IBAN, `url` a link that
# carries more than a page's name, `token` a key, a hash or a session, `device` an IP or MAC address, `plate` a car's.
KINDS = ("email", "phone", "card", "digits", "url", "id_number", "token", "device", "birth_date", "plate")


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A query without its personal data, and the kind of each span that went, in order of appearance.

    `text` is the query itself where nothing went, and empty where nothing is left. Spans that showed only once another
    was gone come last in `kinds`.
    """

    text: str
    kinds: tuple[str, ...]


class _Span(NamedTuple):
    start: int
    end: int
    kind: str


# Which queries to look at, and how ---------------------------------------------------------------------------------

# A query in which none of these is found holds no span: nearly all queries cost no more than these searches.
_SEVEN_DIGITS = re.compile(r"[0-9](?:[^0-9A-Za-z]{0,4}[0-9]){6}").search  # shorter spans have a word before
_MARK = re.compile(
    r"[@:.(\[{%](?:(?<=@)|(?<=:)(?://|[0-9A-Fa-f]{0,4}:)|(?<=\.)[^\W\d_]{2}| ?[Aa][Tt] ?[)\]}]|(?<=%)40)"
).search
_LONG_RUN = re.compile(r"\b[0-9A-Za-z_-]{17,}", re.ASCII).search
_UNFOLDED = re.compile(r"[^\x00-\x7f\u00c0-\u024f]").search
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


def _spells_dot(text: str) -> bool:
    return " dot " in text or " DOT " in text


def _is_suspect(text: str) -> bool:
    if _MARK(text) or _LONG_RUN(text) or _spells_dot(text):
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


def _fold(text: str) -> tuple[str, list[int]]:
    """The text as the patterns read it, and where each of its characters stood.

    White space is a blank, dashes are hyphens, the digits of any script and full-width letters are ASCII, and what
    has no width (`normalize.INVISIBLE`, the marks of keycap emoji) is gone. Superscripts stay: 10² is not 102.
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


def _before(pattern: re.Pattern[str], text: str, at: int, floor: int = 0) -> re.Match[str] | None:
    """The pattern's match that ends at `at`, if it needs no longer a look back than the words we know."""
    return pattern.search(text, max(floor, at - 40), at)


def _past(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where the pattern's match that starts at `at` ends; `at` if there is none."""
    match = pattern.match(text, at)
    return match.end() if match else at


# Links, addresses, secrets -----------------------------------------------------------------------------------------

_URL = re.compile(
    r"""(?<![\w@.+-])(?:
      [a-z][a-z0-9+.-]{1,15}://\S+
    | www\.\S+
    | (?:[^\W_][\w-]*\.)+[^\W\d_]{2,24}(?::[0-9]{1,5})?[/?]\S*
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_URL_END = ".,;:!?'\")]}>"
# A query string, a fragment, or user information (RFC 3986, section 3); a bare ? or # carries nothing.
_URL_CARRIES = re.compile(r"[?#].|@")
_ALNUM_RUN = re.compile(r"[0-9A-Za-z]+")
_CHARACTER_CLASS_RUN = re.compile(r"[0-9]+|[a-z]+|[A-Z]+")


def _mixes(run: str) -> bool:
    return not run.isdigit() and not run.isalpha()


def _is_opaque(segment: str) -> bool:
    """Whether a segment of a path is a token: 16 characters or more that mix letters and digits.

    Of a name made of parts (`cordless-drill-20v-dcd771c2`) three quarters must be in parts that do.
    """
    runs = _ALNUM_RUN.findall(segment)
    mixed = [len(run) for run in runs if _mixes(run)]
    return max(mixed, default=0) >= 16 or (sum(mixed) >= 16 and 4 * sum(mixed) >= 3 * sum(map(len, runs)))


# The local part is RFC 5321's atom less the characters that people put between words. Without a dot after it, or with
# blanks around the @, only the domain of a mail provider is proof enough.
_EMAIL = re.compile(
    r"""(?<![\w+])[\w+](?:[\w.+%&'-]{0,255}[\w+-])?
    (?:
      (?: @ | %40 | [ ]?[(\[{][ ]?(?:at|@)[ ]?[)\]}][ ]? )
      (?:[^\W_][\w-]*(?:\.|[ ]?[(\[{][ ]?dot[ ]?[)\]}][ ]?|[ ]dot[ ]))+ (?:xn--[0-9a-z-]+|[^\W\d_]{2,63})
    | (?:[ ]?@[ ]?|%40|[ ]at[ ])(?:aol|gmail|gmx|googlemail|hotmail|icloud|outlook|proton(?:mail)?|yahoo|ymail)
      (?![^\W_])(?:[ ]?[.,][ ]?(?:com|net|de|fr|in|co[.]uk|ca|me)(?!\w))?
    )
    (?:\?\w+=[^\s)\]>]*)?""",
    re.IGNORECASE | re.VERBOSE,
)

# `joe AT example.com`: shops are at a host too (`coupons at lowes.com`), so the name must look like an address' one, or
# the host be spelt with its dot, or the AT stand out.
_SPOKEN_EMAIL = re.compile(
    r"""(?<![\w.+-])(?:
      (?:[\w+-]+[._][\w.+-]*\w | [^\W\d_]+[0-9]+) [ ](?i:at)[ ] (?:[^\W_][\w-]*(?:\.|[ ]dot[ ]))+ (?i:[a-z]{2,24})
    | [\w.+-]+ [ ](?i:at)[ ] [^\W_][\w-]*(?:[ ](?i:dot)[ ][^\W_][\w-]*)*[ ](?i:dot)[ ](?i:[a-z]{2,24})
    | [a-z][\w.+-]* [ ]AT[ ] (?:[a-z0-9][\w-]*\.)+ [a-z]{2,24}
    )(?![\w-])""",
    re.VERBOSE,
)

# Prefixes by which the issuers themselves have scanners find their keys: Stripe, GitHub, GitLab, Slack, AWS, Google,
# SendGrid, npm, PyPI, Hugging Face, OpenAI and Anthropic. JSON Web Tokens are RFC 7519, their first letters base64
# for `{"`. Case is ignored, as many shops log queries in lower case.
_TOKEN = re.compile(
    r"""(?<![0-9A-Za-z])(?:
      eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)*
    | [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}
    | (?:[prs]k_(?:live|test)|whsec)_\w{10,}
    | gh[oprsu]_\w{16,} | github_pat_\w{20,} | glpat-[\w-]{16,}
    | xox[a-z]-[\w-]{13,}
    | A[KS]IA[0-9A-Z]{16}(?![0-9A-Z])
    | AIza[\w-]{30,} | ya29\.[\w-]{18,} | SG\.[\w-]{18,}\.[\w-]{16,}
    | npm_\w{30,} | pypi-[\w-]{16,} | hf_\w{30,} | sk-(?:proj-|ant-\w+-)?\w{20,}
    )""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
# No word or model number known to us has 24 characters and changes between letters, capitals and digits 6 times; a
# random one of hexadecimal digits does so 11 times on average.
_SECRET_LENGTH, _SECRET_RUNS = 24, 7
_HASH = re.compile(r"[0-9a-f]{32,}", re.IGNORECASE)


def _emails(text: str) -> Iterator[_Span]:
    if "@" in text or _MARK(text) or _spells_dot(text):
        for match in _EMAIL.finditer(text):
            yield _Span(*match.span(), "email")
        for match in _SPOKEN_EMAIL.finditer(text):
            yield _Span(*match.span(), "email")


def _tokens(text: str) -> Iterator[_Span]:
    for match in _TOKEN.finditer(text):
        yield _Span(*match.span(), "token")


def _secrets(text: str) -> Iterator[_Span]:
    for match in _ALNUM_RUN.finditer(text):
        run = match[0]
        if (
            len(run) >= _SECRET_LENGTH
            and _mixes(run)
            and (_HASH.fullmatch(run) or len(_CHARACTER_CLASS_RUN.findall(run)) >= _SECRET_RUNS)
        ):
            yield _Span(*match.span(), "token")


# Devices -----------------------------------------------------------------------------------------------------------

_IPV4 = re.compile(r"(?<![\w.-])((?:[0-9]{1,3}\.){3}[0-9]{1,3})(?::[0-9]{1,5})?(?![\w-]|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9a-f]{0,4}:)[0-9a-f:]{4,39}(?![\w:]|\.[0-9])", re.IGNORECASE)
# IEEE 802: six bytes; with hyphens a row of sizes looks alike, but for its letters.
_MAC = re.compile(
    r"(?<![\w:-])(?:[0-9a-f]{2}(?::[0-9a-f]{2}){5}|(?=[0-9-]*[a-f])[0-9a-f]{2}(?:-[0-9a-f]{2}){5})(?![\w:-])",
    re.IGNORECASE,
)
_SHORT_IPV4 = 7  # digits; with fewer, a version number such as 1.2.10.1 is as likely


def _devices(text: str) -> Iterator[_Span]:
    """Public IP addresses, and MAC addresses; private ones (192.168.1.1) are what people look for routers by."""
    if text.count(".") >= 3:
        for match in _IPV4.finditer(text):
            if sum(map(str.isdigit, match[1])) >= _SHORT_IPV4 and _is_public(match[1]):
                yield _Span(*match.span(), "device")
    if text.count(":") >= 2:
        for match in _IPV6.finditer(text):
            if _is_public(match[0]):
                yield _Span(*match.span(), "device")
    for match in _MAC.finditer(text):
        yield _Span(*match.span(), "device")


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    # Addresses of examples (RFC 5737, RFC 3849) are not assigned to anybody, but nobody sells them either.
    return found.is_global or any(found in network for network in _EXAMPLES if network.version == found.version)


_EXAMPLES = [
    ipaddress.ip_network(network) for network in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]


# Said to be a person's ---------------------------------------------------------------------------------------------

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
# National shapes: Britain; Germany; France and Italy; Spain; the United States.
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


def _birth_dates(text: str) -> Iterator[_Span]:
    for match in _BIRTH_DATE.finditer(text):
        yield _Span(*match.span(), "birth_date")


def _plates(text: str) -> Iterator[_Span]:
    for match in _PLATE.finditer(text):
        yield _Span(*match.span(), "plate")


def _customer_numbers(text: str) -> Iterator[_Span]:
    for match in _CUSTOMER_NUMBER.finditer(text):
        yield _Span(*match.span(match.lastgroup or 0), "digits")


# Numbers with a proof ----------------------------------------------------------------------------------------------

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
_SAID_ID = re.compile(
    r"""(?<!\w)(?:
      (?:nino|national[ ]insurance)(?:[ ](?:no|number))?[ .:#=]*[A-Z]{2}(?:[ ]?[0-9]{2}){3}[ ]?[A-D]
    | pass(?:port[ ]?(?:no|nr|num|number|\#|:)|nummer)[ .:#=]*[A-Z]{0,2}[0-9][0-9A-Z]{5,8}
    )(?!\w)""",
    re.IGNORECASE | re.VERBOSE,
)
# ISO 13616: country, check digits, 11 to 30 letters and digits. Looked ahead, so that one start does not hide the next.
_IBAN = re.compile(r"(?<![0-9A-Z])(?=([A-Z]{2}[0-9]{2}(?:[ -]?[0-9A-Z]){11,30}))", re.IGNORECASE)
_WORD_END = re.compile(r"(?<=[0-9A-Za-z])(?![0-9A-Za-z])")


def _id_numbers(text: str) -> Iterator[_Span]:
    for pattern in (_SSN, _SAID_ID):
        for match in pattern.finditer(text):
            yield _Span(*match.span(), "id_number")
    for match in _IBAN.finditer(text):
        start, limit = match.span(1)
        ends = [end.start() for end in _WORD_END.finditer(text, start, limit + 1) if end.start() <= limit]
        for end in reversed(ends):
            # stdnum's further checks of single countries' banks would let a slip of the pen through.
            if end - start >= 15 and iban.is_valid(text[start:end], check_country=False):
                yield _Span(start, end, "id_number")
                break


# ISO/IEC 7812-1: a primary account number has at most 19 digits, the last by Luhn. The groupings are those printed on
# cards, longest first: UnionPay 19, 16, American Express 15, UATP 15, Diners 14, the first Visa 13.
_DIGITS = re.compile(r"[0-9]+")
_CARD_RUN = re.compile(r"[0-9]+(?:(?:[ ]{1,2}|[.]|[ ]?-[ ]?)[0-9]+)*")
_CARD_GROUPS = ((4, 4, 4, 4, 3), (6, 13), (4, 4, 4, 4), (4, 6, 5), (4, 5, 6), (4, 6, 4), (4, 3, 3, 3), (4, 4, 4, 1))
# Of 13 and 14 digits one number in ten passes Luhn, and barcodes are as long: Visa, Diners Club and Maestro only.
_SHORT_CARD = re.compile(
    r"4[0-9]{12} | 3(?:0[0-59]|[689][0-9])[0-9]{11} | (?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]+", re.VERBOSE
)
_YEAR = re.compile(r"(?:19|20)[0-9]{2}")
# What is typed after a card is as secret.
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
    if any(end - start >= 12 and _is_product_number(text, start, end) for start, end in groups):
        return False
    if len(number) < 15:
        return _SHORT_CARD.fullmatch(number) is not None
    return not all(map(_YEAR.fullmatch, parts))


def _printed(lengths: Sequence[int]) -> list[int]:
    """Of how many groups a card may be, written as it is printed or in one."""
    return [len(shape) for shape in _CARD_GROUPS if tuple(lengths[: len(shape)]) == shape] + [1]


def _careless(lengths: Sequence[int]) -> list[int]:
    """Of how many groups a card may be, written anyhow: of 4 digits or more, the last of 3."""
    counts = range(len(lengths), 1, -1)
    return [count for count in counts if min(lengths[: count - 1]) >= 4 and lengths[count - 1] >= 3]


def _cards(text: str, groupings: Callable[[Sequence[int]], list[int]]) -> Iterator[_Span]:
    for run in _CARD_RUN.finditer(text):
        if run.end() - run.start() < 13:
            continue
        groups = [match.span() for match in _DIGITS.finditer(text, *run.span())]
        lengths = [end - start for start, end in groups]
        free = 0
        for first, (start, _) in enumerate(groups):
            if start < free:
                continue
            for count in groupings(lengths[first : first + 5]):
                if _is_card(text, groups[first : first + count]):
                    free = _past(_EXPIRY, text, groups[first + count - 1][1])
                    yield _Span(start, free, "card")
                    break


# Long numbers ------------------------------------------------------------------------------------------------------

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


def _is_product_number(text: str, start: int, end: int) -> bool:
    """Whether the digits are a barcode (GTIN-12, -13, -14) or said to be a product's, and not said to be a person's."""
    if end - start > 14 or _before(_CUSTOMER_WORD, text, start):
        return False
    return (end - start >= 12 and ean.is_valid(text[start:end])) or _before(_PRODUCT_WORD, text, start) is not None


def _without_barcodes(text: str) -> str:
    def blank(match: re.Match[str]) -> str:
        number = match[0]
        return "\n" * len(number) if ean.is_valid(number) or isbn.is_valid(number) else number

    return _PRINTED_BARCODE.sub(blank, text)


def _grouped_digits(text: str) -> Iterator[_Span]:
    for match in _GROUPED_DIGITS.finditer(text):
        yield _Span(*match.span(), "digits")


def _long_digits(text: str) -> Iterator[_Span]:
    for match in _LONG_DIGITS.finditer(text):
        if len(match[0]) >= 15 or not _is_product_number(text, *match.span()):
            yield _Span(*match.span(), "digits")


# Phone numbers -----------------------------------------------------------------------------------------------------

_PHONE_RUN = re.compile(r"[0-9](?:[ ().\-/]{0,4}[0-9]){6,}")
_SIGN = re.compile(r"(?:\(?\+ ?\(?|\()\Z")
# Words that say that a number is to be dialled; the second kind are products as well.
_DIAL = r"call(?:to)?|contact|dial|ph(?= ?[.:#])|sms|tel(?:ephone)?|text|whatsapp"
_DEVICE = r"cell(?:phone)?|fax|mob(?:ile)?|phone"
_FILLER = r"\.?(?: ?(?:no|nr|num|number|me|us|at|on|is)(?![a-z])\.?)*"
_DIAL_WORD = re.compile(rf"(?<![A-Za-z])(?:{_DIAL}){_FILLER}[ .:#=/-]*\Z", re.IGNORECASE)
_DEVICE_WORD = re.compile(rf"(?<![A-Za-z])(?:{_DEVICE}){_FILLER}[ .:#=/-]*\Z", re.IGNORECASE)
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
_MOST_DIGITS = 17


def _is_number(written: str, region: str | None, leniency: int) -> bool:
    written = re.sub(r"\+[ .-]", "+", written)
    return any(
        match.end - match.start == len(written)
        for match in PhoneNumberMatcher(written, region, leniency=leniency, max_tries=1)
    )


def _is_part(text: str, start: int, end: int) -> bool:
    glued = text[end : end + 1] == "-" or text[start - 1 : start] == "-"
    return glued or _is_product_number(text, start, end)


def _balanced(written: str) -> str:
    """The number without a bracket before it that closes only behind it."""
    return written[1:] if written[0] == "(" and written.count("(") > written.count(")") else written


def _phone_span(text: str, written: str, end: int) -> _Span:
    return _Span(end - len(written), _past(_EXTENSION, text, end), "phone")


def _phone_ends(text: str, groups: list[tuple[int, int]], first: int, abroad: bool) -> list[int]:
    """Where a phone number that starts at group `first` may end, farthest first."""
    ends, digits = [], 0
    for position, (start, end) in enumerate(groups[first:]):
        digits += end - start
        # Inside a number a single digit is the area (+33 6) or the (0) that one leaves out when dialling from abroad.
        area = abroad and position == 1 and start - groups[first][0] <= 5
        lone = position and end - start == 1 and not area and text[start - 1 : end + 1] != "(0)"
        if lone or digits > _MOST_DIGITS:
            break
        if digits >= 7 and (not _GLUED_AFTER.match(text, end) or _EXTENSION.match(text, end)):
            ends.append(end)
    return ends[::-1]


# What a span takes with it -----------------------------------------------------------------------------------------

# Words that mean nothing once the span is gone. Those that are products too go only with their colon.
_LEAD = re.compile(
    rf"(?<![A-Za-z])(?:(?:mailto|e-?mail|iban|ssn|{_DIAL}){_FILLER}(?: address)?[ .:#=]*"
    rf"|(?:account|acct|api key|card|id|key|link|order|ref|token|tracking|url|{_DEVICE}){_FILLER} ?[:#=]+ ?)\Z",
    re.IGNORECASE,
)
_BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">", '"': '"', "'": "'", "“": "”", "‘": "’"}
# Punctuation that only joined the span to its neighbors.
_JOINT_BEFORE = re.compile(r"(?:[\s,;:/|]|\s[-\u2013])+\Z")
_JOINT_BEHIND = re.compile(r"\A(?:[\s,;:/|]|[.!?]+(?=\s|\Z)|[-\u2013](?=\s|\Z))+")


def _widened(text: str, span: _Span, floor: int) -> _Span:
    start, end = span.start, span.end
    while True:
        if start > floor and end < len(text) and _BRACKETS.get(text[start - 1]) == text[end]:
            start, end = start - 1, end + 1
        elif lead := _before(_LEAD, text, start, floor):
            start = lead.start()
        else:
            break
    return _Span(start, end, span.kind)


def _removed(text: str, spans: Iterable[_Span]) -> str:
    kept, at = [], 0
    for span in spans:
        kept.append(_JOINT_BEFORE.sub("", text[at : span.start]))
        at = span.end
    kept.append(text[at:])
    kept[1:] = [_JOINT_BEHIND.sub("", part) for part in kept[1:]]
    words = " ".join(" ".join(kept).split())
    return words if any(map(str.isalnum, words)) else ""


class Scrubber:
    """Takes the personal data out of search queries: e-mail addresses, phone numbers, cards, secrets and the like.

    Phone numbers in international form are found whatever the country, national ones for `regions` (ISO 3166-1
    alpha-2, as in `("US", "GB")`): ten bare digits that the region's numbering plan allows are a phone number, so name
    only regions with customers. ValueError names a region that phonenumbers does not know.

    A query in which nothing is found comes back as it is; scrubbing the result finds nothing more.
    """

    def __init__(self, regions: Sequence[str] = ("US",)) -> None:
        unknown = [region for region in regions if region not in phonenumbers.SUPPORTED_REGIONS]
        if isinstance(regions, str) or unknown:
            raise ValueError(f"regions: {unknown or regions!r}: expected a list of ISO 3166-1 codes such as US, GB, DE")
        self.regions = tuple(regions)
        self._north_american = any(phonenumbers.country_code_for_region(region) == 1 for region in regions)

    def __call__(self, query: str) -> Scrubbed:
        if not (_is_suspect(query) or (not query.isascii() and _UNFOLDED(query))):
            return Scrubbed(query, ())
        text, kinds = query, []
        while spans := self._spans(text):  # what is left may meet over a gap: a card around an address
            kinds += [span.kind for span in spans]
            text = _removed(text, spans)
        return Scrubbed(text, tuple(kinds))

    def _spans(self, text: str) -> list[_Span]:
        """The spans of the text with what goes with them, in order, none over another."""
        folded, origins = _fold(text)
        if not _is_suspect(folded):
            return []
        spans: list[_Span] = []
        for span in sorted(self._find(folded)):
            spans.append(_widened(folded, span, spans[-1].end if spans else 0))
        return [_Span(origins[start], origins[end - 1] + 1, kind) for start, end, kind in spans]

    def _find(self, text: str) -> list[_Span]:
        urls, text = _claimed(text, self._urls)
        return urls + self._find_in_words(text)

    def _find_in_words(self, text: str) -> list[_Span]:
        # The most specific first; each hides what it finds from the next.
        found: list[_Span] = []
        for detect in (
            _emails, _tokens, _devices, _birth_dates, _plates, _id_numbers, _secrets, _grouped_digits,
        ):  # fmt: skip
            spans, text = _claimed(text, detect)
            found += spans
        text = _without_barcodes(text)
        # A phone number before a careless card, which could begin in the middle of one.
        for detect in (
            partial(_cards, groupings=_printed),
            self._phones,
            partial(_cards, groupings=_careless),
            _customer_numbers,
            _long_digits,
        ):
            spans, text = _claimed(text, detect)
            found += spans
        return found

    def _urls(self, text: str) -> Iterator[_Span]:
        """Links that lead to something of one person's; `www.shop.com/garden` is a search like another."""
        for match in _URL.finditer(text):
            url = match[0].rstrip(_URL_END)
            if (
                _URL_CARRIES.search(url)
                or any(map(_is_opaque, unquote(url).split("/")))
                or self._find_in_words(url.replace("/", " "))
            ):
                yield _Span(match.start(), match.start() + len(url), "url")

    def _phones(self, text: str) -> Iterator[_Span]:
        for run in _PHONE_RUN.finditer(text):
            groups = [match.span() for match in _DIGITS.finditer(text, *run.span())]
            free = 0
            for first, (start, _) in enumerate(groups):
                if start >= free and (span := self._phone(text, groups, first)):
                    yield span
                    free = span.end

    def _phone(self, text: str, groups: list[tuple[int, int]], first: int) -> _Span | None:
        start = groups[first][0]
        sign = _before(_SIGN, text, start)
        opening = sign.start() if sign else start
        dial = _before(_DIAL_WORD, text, opening) is not None
        said = dial or _before(_DEVICE_WORD, text, opening) is not None
        if not said and _before(_GLUED_BEFORE, text, opening):
            return None
        ends = _phone_ends(text, groups, first, abroad="+" in text[opening:start] or text.startswith("00", start))
        # First what the numbering plans allow, then what is dialled in spite of them: they change, and people slip.
        for end in ends:
            written = _balanced(text[opening:end])
            if self._is_valid(written, said) and not (written.isdigit() and not said and _is_part(text, start, end)):
                return _phone_span(text, written, end)
        for end in ends:
            written = _balanced(text[opening:end])
            if self._is_possible(written, dial):
                return _phone_span(text, written, end)
        return None

    def _is_valid(self, written: str, said: bool) -> bool:
        if "+" in written:
            return _is_number(written, None, Leniency.VALID)
        bare = written.isdigit()
        if bare and not said and len(written) < _BARE_DIGITS:
            return False
        if written.startswith("00") and len(written) >= 12 and _is_number("+" + written[2:], None, Leniency.VALID):
            return True
        # A trunk prefix, an area code in brackets, or a word before tells enough; else the groups must be the plan's,
        # since a row of sizes has ten digits soon.
        sure = bare or said or written[0] in "0("
        leniency = Leniency.VALID if sure else Leniency.STRICT_GROUPING
        return any(_is_number(written, region, leniency) for region in self.regions)

    def _is_possible(self, written: str, dial: bool) -> bool:
        if "+" in written:
            return sum(map(str.isdigit, written)) >= _BARE_DIGITS and _is_number(written, None, Leniency.POSSIBLE)
        if self._north_american and _NORTH_AMERICAN.fullmatch(written):
            return True
        return dial and any(_is_number(written, region, Leniency.POSSIBLE) for region in self.regions)


def _claimed(text: str, detect: Callable[[str], Iterable[_Span]]) -> tuple[list[_Span], str]:
    """What a detector finds, and the text with line ends, which no pattern crosses, in its place."""
    spans: list[_Span] = []
    for span in detect(text):
        if not any(span.start < other.end and other.start < span.end for other in spans):
            spans.append(span)
    for start, end, _ in spans:
        text = text[:start] + "\n" * (end - start) + text[end:]
    return spans, text
