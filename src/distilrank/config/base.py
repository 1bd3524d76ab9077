"""Base class of every section of the configuration, and the types that several sections share."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from distilrank.core import languages


def _language(value: str) -> str:
    """The code of the language that a locale means; a text that is none is refused."""
    code = languages.of_locale(value) if value else ""
    if code is None:
        raise ValueError(f"{value!r} is no language that is known, expected one of {', '.join(languages.LANGUAGES)}")
    return code


# YAML reads Norwegian's code as false.
LanguageCode = Annotated[
    str, BeforeValidator(lambda value: "no" if value is False else value), AfterValidator(_language)
]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Lift = Annotated[float, Field(ge=-1, le=1)]


Words = Annotated[str, StringConstraints(strip_whitespace=True)]
Day = Annotated[Words, BeforeValidator(lambda value: value.isoformat() if isinstance(value, date) else value)]


ProductField = Literal["title", "product_type", "brand", "color", "gender", "description"]


class Section(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
