"""Languages of shops: which one a locale means, and which stemmer a word of it takes."""

from __future__ import annotations

import re
from typing import NamedTuple

from distilrank.core import unicode_script

DEFAULT = "en"


class Language(NamedTuple):
    """The script that a language is written in, as `scripts.dominant` has it, and its Snowball stemmer, if any."""

    script: str
    stemmer: str = ""


LANGUAGES = {
    "ar": Language("arabic", "arabic"),
    "az": Language("latin"),
    "bg": Language("cyrillic"),
    "ca": Language("latin", "catalan"),
    "cs": Language("latin", "czech"),
    "da": Language("latin", "danish"),
    "de": Language("latin", "german"),
    "el": Language("greek", "greek"),
    "en": Language("latin", "english"),
    "es": Language("latin", "spanish"),
    "et": Language("latin", "estonian"),
    "eu": Language("latin", "basque"),
    "fa": Language("arabic", "persian"),
    "fi": Language("latin", "finnish"),
    "fr": Language("latin", "french"),
    "ga": Language("latin", "irish"),
    "he": Language("hebrew"),
    "hi": Language("devanagari", "hindi"),
    "hr": Language("latin"),
    "hu": Language("latin", "hungarian"),
    "hy": Language("armenian", "armenian"),
    "id": Language("latin", "indonesian"),
    "it": Language("latin", "italian"),
    "ja": Language("han"),
    "ko": Language("hangul"),
    "lt": Language("latin", "lithuanian"),
    "lv": Language("latin"),
    "ms": Language("latin"),
    "ne": Language("devanagari", "nepali"),
    "nl": Language("latin", "dutch"),
    "no": Language("latin", "norwegian"),
    "pl": Language("latin", "polish"),
    "pt": Language("latin", "portuguese"),
    "ro": Language("latin", "romanian"),
    "ru": Language("cyrillic", "russian"),
    "sk": Language("latin"),
    "sl": Language("latin"),
    "sr": Language("cyrillic", "serbian"),
    "sv": Language("latin", "swedish"),
    "ta": Language("tamil", "tamil"),
    "th": Language("thai"),
    "tr": Language("latin", "turkish"),
    "uk": Language("cyrillic"),
    "ur": Language("arabic"),
    "vi": Language("latin"),
    "zh": Language("han"),
}
"""By ISO 639-1 code."""

_OTHER_CODES = {
    **dict.fromkeys(("au", "gb", "ie", "nz", "us"), "en"),
    **dict.fromkeys(("cn", "hk", "tw"), "zh"),
    **dict.fromkeys(("nb", "nn"), "no"),
    **{"at": "de", "br": "pt", "cz": "cs", "dk": "da", "gr": "el", "iw": "he", "jp": "ja", "kr": "ko", "mx": "es"},
    **{"se": "sv", "ua": "uk"},
}
"""Countries by which shops are named (ESCI's us and jp) and that are no code of a language above; older codes."""

_STEMMERS = {
    "latin": "english",
    "arabic": "arabic",
    "armenian": "armenian",
    "cyrillic": "russian",
    "devanagari": "hindi",
    "greek": "greek",
    "tamil": "tamil",
}
"""Of words in another script than that of the language: an English word in a Japanese title, a Russian one in an
English shop."""


def of_locale(locale: str) -> str | None:
    """The language of a locale, as an ISO 639-1 code; None where it is not known.

    Args:
        locale: `de`, `de-DE`, `pt_BR`, or a country that has one language: `us`, `jp`.
    """
    code = re.split("[-_]", locale.strip().lower(), maxsplit=1)[0]
    code = _OTHER_CODES.get(code, code)
    return code if code in LANGUAGES else None


def stemmer(word: str, language: str) -> str:
    """Snowball's stemmer for `word` in a text in `language`; empty where there is none."""
    script = "latin" if word.isascii() else unicode_script.dominant(word)
    known = LANGUAGES[language]
    return known.stemmer if script == known.script else _STEMMERS.get(script, "")
