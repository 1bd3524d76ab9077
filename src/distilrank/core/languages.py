"""Languages of shops: the language of a locale, and the stemmer of a word."""

from __future__ import annotations

import re
from typing import NamedTuple

from distilrank.core import unicode_script

DEFAULT = "en"


class Language(NamedTuple):
    """Script of a language, as `unicode_script.dominant` names it, and its Snowball stemmer, if any."""

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
"""Languages by ISO 639-1 code."""

_OTHER_CODES = {
    **dict.fromkeys(("au", "gb", "ie", "nz", "us"), "en"),
    **dict.fromkeys(("cn", "hk", "tw"), "zh"),
    **dict.fromkeys(("nb", "nn"), "no"),
    **{"at": "de", "br": "pt", "cz": "cs", "dk": "da", "gr": "el", "iw": "he", "jp": "ja", "kr": "ko", "mx": "es"},
    **{"se": "sv", "ua": "uk"},
}
"""Language codes by country codes that shops use as locales (ESCI's us and jp), and by older language codes."""

_STEMMERS = {
    "latin": "english",
    "arabic": "arabic",
    "armenian": "armenian",
    "cyrillic": "russian",
    "devanagari": "hindi",
    "greek": "greek",
    "tamil": "tamil",
}
"""Stemmers by script, for words in another script than that of the language, such as an English word in a Japanese
title."""


def of_locale(locale: str) -> str | None:
    """Return the language of a locale as an ISO 639-1 code; None if it is unknown.

    Args:
        locale: `de`, `de-DE`, `pt_BR`, or a country that has one language: `us`, `jp`.
    """
    code = re.split("[-_]", locale.strip().lower(), maxsplit=1)[0]
    code = _OTHER_CODES.get(code, code)
    return code if code in LANGUAGES else None


def stemmer(word: str, language: str) -> str:
    """Return the Snowball stemmer for `word` in a text in `language`; empty if there is none."""
    script = "latin" if word.isascii() else unicode_script.dominant(word)
    properties = LANGUAGES[language]
    return properties.stemmer if script == properties.script else _STEMMERS.get(script, "")
