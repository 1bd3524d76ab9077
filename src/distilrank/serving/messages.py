"""Schemas of requests and responses, and the one-line messages of invalid requests."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from distilrank.core import normalize

SHOWN = 60  # characters of an invalid value that the error message quotes

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
    """Base of all requests. Types are strict, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known(cls, values: Any) -> Any:
        # pydantic would create an error for each unknown field, and a body can contain a million of them
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise PydanticCustomError("unknown_field", "unknown field", {"name": _cut(name)})
        return values


class Product(Message):
    """A product of the catalogue. The model reads only the fields that it was trained with."""

    id: str | None = Field(None, min_length=1, description="Your id of the product; it does not affect the score.")
    title: Text = Field(description="The product's title.")
    product_type: str | None = Field(None, description="The product's type.")
    brand: str | None = Field(None, description="The product's brand.")
    color: str | None = Field(None, description="The product's color.")
    gender: str | None = Field(None, description="Target group of the product.")
    description: str | None = Field(None, description="The long description; most models do not read it.")


class Request(Message):
    """A query and the products to score for it."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    query: Text = Field(description="The query as it was typed.")
    products: Annotated[list[Product], Field(min_length=1)] = Field(description="The products, in any order.")
    probability: bool = Field(False, description="Return calibrated probabilities of relevance too.")


class IdentifiedProduct(Product):
    """A product of a ranking, which requires an id."""

    id: str = Field(min_length=1, description="Your id of the product, unique within the request.")


class RankRequest(Request):
    """A query and the products to rank for it."""

    products: Annotated[list[IdentifiedProduct], Field(min_length=1)] = Field(  # type: ignore[assignment]
        description="The products, in any order."
    )


class Answer(BaseModel):
    """Fields of all responses: the version that computed the scores."""

    version: str = Field(description="Id of the version that computed all of these scores.")
    alias: str | None = Field(description="The alias that pointed to it; null if the service has a fixed version.")


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
        description="Raw scores (logits); higher is more relevant. Comparable only within one query and version."
    )
    probabilities: list[float] | None = Field(
        None,
        description="Probabilities of relevance in [0, 1], if requested; null if the version has no calibration.",
    )


class Ranked(BaseModel):
    """One product of a ranking."""

    id: str = Field(description="The product's id.")
    score: float = Field(description="Raw score (logit).")
    probability: float | None = Field(None, description="Probability of relevance, as in /v1/score.")


class Ranking(Answer):
    """The products of a request by descending relevance."""

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

    ranking: list[Ranked] = Field(
        description="Products by descending score; among equal scores, the larger id comes first."
    )


class Model(Answer):
    """The served version and its origin."""

    created: str = Field(description="When it was promoted (ISO 8601).")
    loaded: str = Field(description="When it was loaded here (ISO 8601).")
    backend: str = Field(description="Backend that computes the scores.")
    calibrated: bool = Field(description="Whether the version has calibrated probabilities.")
    digests: dict[str, str] = Field(description="SHA-256 of the student and of its inputs.")
    models: dict[str, str] = Field(description="Pretrained models of student and teacher.")
    metrics: dict[str, float | None] = Field(description="Metrics of the student on the test queries at its promotion.")
    outcome: str = Field(description="Outcome of the gate.")
    problem: str | None = Field(description="Reason why the version that the alias points to is not served.")


class Liveness(BaseModel):
    """Whether the process works."""

    live: bool


class Failing(BaseModel):
    """A reload that keeps failing."""

    version: str | None = Field(description="Version that cannot be loaded; null if the registry cannot be read.")
    attempts: int = Field(description="Number of attempts; the log and /v1/model give the reason.")


class Readiness(BaseModel):
    """Whether requests should be sent here."""

    ready: bool
    reason: str | None = Field(description="Reason why it is not ready.")
    version: str | None = Field(description="Version that is served.")
    failing: Failing | None = Field(
        description="Version that should be served but cannot be loaded; the previous one is still served."
    )


class Error(BaseModel):
    """Response to a request that failed or was refused."""

    error: str = Field(description="One line: the field, its value and the expected value.")


EXPECTED = {
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
"""Expected values of pydantic's error types, in terms of JSON."""


def _cut(text: str) -> str:
    return f"{text[:SHOWN]}..." if len(text) > SHOWN else text


def _shown(value: Any) -> str:
    """Format an invalid value as JSON, truncated if it is long."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return _cut(json.dumps(value, ensure_ascii=False))


def describe(errors: Sequence[Any], field_names: Sequence[str]) -> str:
    """Format the first of pydantic's errors about a body as one line, with the number of further errors.

    Args:
        errors: result of `ValidationError.errors()`, with or without the leading `body`.
        field_names: names of all fields, for a hint at a misspelled one.
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
        close = difflib.get_close_matches(bounds["name"], field_names, n=1)
        what = "unknown field" + (f", did you mean {close[0]!r}?" if close else "")
    elif kind in ("string_too_short", "value_error"):
        what = "is empty, expected text"
    elif kind == "too_short":
        what = f"got {bounds['actual_length']}, expected at least {bounds['min_length']}"
    else:
        what = f"got {_shown(first['input'])}, expected {EXPECTED.get(kind, first['msg'])}"
    more = len(errors) - 1
    return f"{where}: {what}" + (f"; and {more} more" if more else "")
