"""Detectors of links, e-mail addresses, secrets and addresses of devices."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from distilrank.data.privacy.spans import MARK, Span, spells_dot

URL = re.compile(
    r"""(?<![\w@.+-])(?:
      [a-z][a-z0-9+.-]{1,15}://\S+
    | www\.\S+
    | (?:[^\W_][\w-]*\.)+[^\W\d_]{2,24}(?::[0-9]{1,5})?[/?]\S*
    )""",
    re.IGNORECASE | re.VERBOSE,
)
URL_END = ".,;:!?'\")]}>"
# A query string, a fragment, or user information (RFC 3986, section 3); a bare ? or # carries nothing.
URL_CARRIES = re.compile(r"[?#].|@")
_ALNUM_RUN = re.compile(r"[0-9A-Za-z]+")
_CHARACTER_CLASS_RUN = re.compile(r"[0-9]+|[a-z]+|[A-Z]+")


def _mixes_letters_and_digits(run: str) -> bool:
    return not run.isdigit() and not run.isalpha()


def is_opaque(segment: str) -> bool:
    """Whether a segment of a path is a token: 16 characters or more that mix letters and digits.

    In a hyphenated name (`cordless-drill-20v-dcd771c2`), three quarters must be in parts that mix them.
    """
    runs = _ALNUM_RUN.findall(segment)
    mixed = [len(run) for run in runs if _mixes_letters_and_digits(run)]
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


def find_emails(text: str) -> Iterator[Span]:
    if "@" in text or MARK(text) or spells_dot(text):
        for match in _EMAIL.finditer(text):
            yield Span(*match.span(), "email")
        for match in _SPOKEN_EMAIL.finditer(text):
            yield Span(*match.span(), "email")


def find_tokens(text: str) -> Iterator[Span]:
    for match in _TOKEN.finditer(text):
        yield Span(*match.span(), "token")


def find_secrets(text: str) -> Iterator[Span]:
    for match in _ALNUM_RUN.finditer(text):
        run = match[0]
        if (
            len(run) >= _SECRET_LENGTH
            and _mixes_letters_and_digits(run)
            and (_HASH.fullmatch(run) or len(_CHARACTER_CLASS_RUN.findall(run)) >= _SECRET_RUNS)
        ):
            yield Span(*match.span(), "token")


_IPV4 = re.compile(r"(?<![\w.-])((?:[0-9]{1,3}\.){3}[0-9]{1,3})(?::[0-9]{1,5})?(?![\w-]|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?=[0-9a-f]{0,4}:)[0-9a-f:]{4,39}(?![\w:]|\.[0-9])", re.IGNORECASE)
# IEEE 802: six bytes; with hyphens, a row of sizes looks the same except for the letters.
_MAC = re.compile(
    r"(?<![\w:-])(?:[0-9a-f]{2}(?::[0-9a-f]{2}){5}|(?=[0-9-]*[a-f])[0-9a-f]{2}(?:-[0-9a-f]{2}){5})(?![\w:-])",
    re.IGNORECASE,
)
_MIN_IPV4_DIGITS = 7  # digits; with fewer, a version number such as 1.2.10.1 is as likely


def find_devices(text: str) -> Iterator[Span]:
    """Find public IP addresses and MAC addresses; private IP addresses (192.168.1.1) are searches for routers."""
    if text.count(".") >= 3:
        for match in _IPV4.finditer(text):
            if sum(map(str.isdigit, match[1])) >= _MIN_IPV4_DIGITS and _is_public(match[1]):
                yield Span(*match.span(), "device")
    if text.count(":") >= 2:
        for match in _IPV6.finditer(text):
            if _is_public(match[0]):
                yield Span(*match.span(), "device")
    for match in _MAC.finditer(text):
        yield Span(*match.span(), "device")


def _is_public(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    # Addresses of examples (RFC 5737, RFC 3849) are not assigned to anyone, but are not products either.
    return ip.is_global or any(ip in network for network in _EXAMPLE_NETWORKS if network.version == ip.version)


_EXAMPLE_NETWORKS = [
    ipaddress.ip_network(network) for network in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]
