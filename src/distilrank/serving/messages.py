"""What goes over the wire: the requests that are taken, the answers, and the one line that tells what is wrong."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from distilrank.core import normalize

SHOWN = 60  # characters of a refused value that its message repeats

EXAMPLE: dict[str, Any] = {
    "query": "cordless drill",
    "products": [
        {"id": "100", "title": "20V cordless drill driver kit", "brand": "Acme", "product_type": "power tools"},
        {"id": "200", "title": "Drill bit set, 21 pieces", "color": "black"},
    ],
    "probability": True,
}
VERSION = "v0123456789ab"


def _not_blank(text: str) -> str:
    if normalize.is_blank(text):
        raise ValueError("is empty, expected text")
    return text


Text = Annotated[str, Field(min_length=1), AfterValidator(_not_blank)]


class Message(BaseModel):
    """Base of all requests: of the declared types, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, values: Any) -> Any:
        # pydantic would make an error of each unknown field, and a body has room for a million of them
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise PydanticCustomError("unknown_field", "unknown field", {"name": _cut(name)})
        return values


class Product(Message):
    """A product as the catalogue has it; the model is shown those of the fields that it was trained with."""

    id: str | None = Field(None, min_length=1, description="Your key of the product; it has no influence on the score.")
    title: Text = Field(description="The product's title.")
    product_type: str | None = Field(None, description="The product's type.")
    brand: str | None = Field(None, description="The product's brand.")
    color: str | None = Field(None, description="The product's color.")
    gender: str | None = Field(None, description="Whom the product is for.")
    description: str | None = Field(None, description="The long description; most models are not shown it.")


class Request(Message):
    """A query, and the products to score for it."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    query: Text = Field(description="The query as it was typed.")
    products: Annotated[list[Product], Field(min_length=1)] = Field(description="The products, in any order.")
    probability: bool = Field(False, description="Tell the calibrated probabilities of relevance too.")


class IdentifiedProduct(Product):
    """A product of a ranking, which needs a key."""

    id: str = Field(min_length=1, description="Your key of the product, different from those of all others.")


class RankRequest(Request):
    """A query, and the products to rank for it."""

    products: Annotated[list[IdentifiedProduct], Field(min_length=1)] = Field(  # type: ignore[assignment]
        description="The products, in any order."
    )


class Answer(BaseModel):
    """What all answers tell: by which version every score of theirs was made."""

    version: str = Field(description="Id of the version that made all of these scores.")
    alias: str | None = Field(description="The alias that pointed to it; null where the service stays at a version.")


class Scores(Answer):
    """Scores in the order of the request's products."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"version": VERSION, "alias": "champion", "scores": [2.31, -0.87], "probabilities": [0.91, 0.3]}
            ]
        }
    )

    scores: list[float] = Field(
        description="Raw scores (logits); a higher one is more relevant. Comparable among products of one query and "
        "version."
    )
    probabilities: list[float] | None = Field(
        None,
        description="Probabilities of relevance in [0, 1], if asked for; null where the version has no calibration.",
    )


class Ranked(BaseModel):
    """One product of a ranking."""

    id: str = Field(description="The product's key.")
    score: float = Field(description="Raw score (logit).")
    probability: float | None = Field(None, description="Probability of relevance, as in /v1/score.")


class Ranking(Answer):
    """The request's products, the most relevant first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "version": VERSION,
                    "alias": "champion",
                    "ranking": [
                        {"id": "100", "score": 2.31, "probability": 0.91},
                        {"id": "200", "score": -0.87, "probability": 0.3},
                    ],
                }
            ]
        }
    )

    ranking: list[Ranked] = Field(description="By descending score; of equal scores, the larger id comes first.")


class Model(Answer):
    """What is served, and what it was made from."""

    created: str = Field(description="When it was promoted (ISO 8601).")
    loaded: str = Field(description="When it was loaded here (ISO 8601).")
    backend: str = Field(description="What computes the scores.")
    calibrated: bool = Field(description="Whether it can tell probabilities.")
    digests: dict[str, str] = Field(description="SHA-256 of the student and of what it was made from.")
    models: dict[str, str] = Field(description="The pretrained models that student and teacher began as.")
    metrics: dict[str, float | None] = Field(description="The student on the test queries, when it was promoted.")
    outcome: str = Field(description="What the gate said.")
    problem: str | None = Field(description="Why the version that the alias points to is not the one served.")


class Liveness(BaseModel):
    """Whether the process works."""

    live: bool


class Failing(BaseModel):
    """A reload that does not succeed."""

    version: str | None = Field(description="The version that cannot be loaded; null: the registry cannot be read.")
    attempts: int = Field(description="How often it was tried; the log and /v1/model tell why it failed.")


class Readiness(BaseModel):
    """Whether requests should be sent here."""

    ready: bool
    reason: str | None = Field(description="Why not.")
    version: str | None = Field(description="What is served.")
    failing: Failing | None = Field(description="A version that should be served and cannot; the old one still is.")


class Error(BaseModel):
    """Why there is no other answer."""

    error: str = Field(description="One line: the field, the value seen, what was expected.")


EXPECTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""What pydantic's errors mean in JSON's words."""


def _cut(text: str) -> str:
    return f"{text[:SHOWN]}..." if len(text) > SHOWN else text


def _shown(value: Any) -> str:
    """A refused value as it was written, if it is short."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return _cut(json.dumps(value, ensure_ascii=False))


def describe(errors: Sequence[Any], known: Sequence[str]) -> str:
    """The first of pydantic's errors about a body as one line, and how many more there are.

    Args:
        errors: as `ValidationError.errors()` gives them, with or without the leading `body`.
        known: names of the fields that there are, for a hint at a misspelt one.
    """
    first = errors[0]
    kind, bounds = first["type"], first.get("ctx", {})
    path = [part for part in first["loc"] if part != "body"]
    if kind == "unknown_field":
        path.append(bounds["name"])
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or "body"
    if kind == "missing":
        what = "missing"
    elif kind == "unknown_field":
        close = difflib.get_close_matches(bounds["name"], known, n=1)
        what = "unknown field" + (f", did you mean {close[0]!r}?" if close else "")
    elif kind in ("string_too_short", "value_error"):
        what = "is empty, expected text"
    elif kind == "too_short":
        what = f"got {bounds['actual_length']}, expected at least {bounds['min_length']}"
    else:
        what = f"got {_shown(first['input'])}, expected {EXPECTED.get(kind, first['msg'])}"
    more = len(errors) - 1
    return f"{where}: {what}" + (f"; and {more} more" if more else "")
