"""Base class of every section of the configuration, and the value types that several sections share."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from distilrank.core import languages


class Section(BaseModel):
    """Base class of all sections: instances are immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _language_code(locale: str) -> str:
    """Return the language code of a locale; refuse a text that names no known language."""
    code = languages.of_locale(locale) if locale else ""
    if code is None:
        raise ValueError(f"{locale!r} is not a known language, expected one of {', '.join(languages.LANGUAGES)}")
    return code


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Lift = Annotated[float, Field(ge=-1, le=1)]
Words = Annotated[str, StringConstraints(strip_whitespace=True)]
# YAML reads an unquoted day as a date.
Day = Annotated[Words, BeforeValidator(lambda value: value.isoformat() if isinstance(value, date) else value)]
# YAML reads the code of Norwegian as false.
LanguageCode = Annotated[
    str, BeforeValidator(lambda value: "no" if value is False else value), AfterValidator(_language_code)
]
ProductField = Literal["title", "product_type", "brand", "color", "gender", "description"]
