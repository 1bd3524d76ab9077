"""Every setting of the service, and the tokens that grant access to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from distilrank.config import Count, Positive, Registry, Section, parse
from distilrank.core.errors import InputError, one_line
from distilrank.registry import CHAMPION

TOKEN_VARIABLE = "DISTILRANK_TOKEN"
TOKEN_CHARACTERS = 16
"""Fewest characters of a token: what is shorter is found by trying."""

Seconds = Annotated[float, Field(gt=0)]


class Serving(Section):
    """What is served, where, and how much of it at a time."""

    registry: str = Field(Registry().uri, min_length=1, description="Where the registry is.")
    model: Annotated[str, Field(pattern=rf"^({CHAMPION}|v[0-9a-f]{{12}})$")] = Field(
        CHAMPION, description="The alias to follow, or a version's id to stay at."
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0: all of this machine's.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8080, description="Port to listen on; 0: any that is free.")
    backend: Literal["auto", "torch", "onnx", "onnx-int8"] = Field(
        "auto", description="What computes the scores; auto: torch where it is installed, else onnx."
    )
    threads: Count = Field(0, description="Processor threads that score; 0: as many as this process may use.")
    cached_products: Count = Field(50_000, description="Products whose tokens are kept.")
    reload_seconds: Seconds = Field(10.0, description="Seconds between two looks at where the alias points.")
    tolerance: Annotated[float, Field(gt=0, le=1)] = Field(
        0.02,
        description="Refuse a version whose probabilities on its own reference traffic are off by more than this on "
        "average from those that it was promoted with; 1: any.",
    )
    max_products: Positive = Field(1000, description="Most products of a request.")
    max_bytes: Annotated[int, Field(ge=1024)] = Field(2**21, description="Most bytes of a request's body.")
    max_query_characters: Positive = Field(500, description="Longest query.")
    max_connections: Positive = Field(
        512, description="Most open connections; beyond it, a new one replaces the one that has idled longest."
    )
    max_requests: Positive = Field(256, description="Most requests that are read or wait at a time; beyond it, 503.")
    max_waiting: Positive = Field(5000, description="Most pairs that wait to be scored; beyond it, 503.")
    batch_pairs: Positive = Field(
        128, description="Most pairs that are scored at a time; a larger request takes turns."
    )
    batch_milliseconds: Annotated[float, Field(ge=0, le=1000)] = Field(
        2.0, description="How long a request waits for others to be scored with."
    )
    timeout_seconds: Seconds = Field(
        10.0,
        description="Longest that a request's headers may take to arrive, its body, its scoring, and the client's "
        "reading of the answer, each.",
    )
    drain_seconds: Annotated[float, Field(ge=0)] = Field(
        5.0,
        description="How long to go on serving, but not ready, after SIGTERM, until no more requests are sent here.",
    )
    token_file: str = Field(
        "",
        description=f"File with the accepted tokens, one a line; empty: that of {TOKEN_VARIABLE}, or none is needed.",
    )
    open_metrics: bool = Field(False, description="Whether /metrics needs no token where one is set.")
    log_format: Literal["text", "json"] = Field("text", description="Form of the log's lines.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_waiting < self.max_products:
            raise ValueError(f"max_waiting is {self.max_waiting}, expected at least max_products ({self.max_products})")
        if self.max_connections <= self.max_requests:  # so that there is always one that may be replaced
            raise ValueError(
                f"max_connections is {self.max_connections}, expected more than max_requests ({self.max_requests})"
            )
        return self


def load(path: Path | None, options: dict[str, Any]) -> Serving:
    """The settings of a file, with those of the command line over them.

    Args:
        path: YAML file with what differs from the defaults; None: there is none.
        options: what was given on the command line, by field.

    Raises:
        InputError: the file cannot be read, or a value does not fit.
    """
    if path is None:
        return parse(options, "command line", Serving)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not readable as YAML ({one_line(error, None)})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    parse(values, str(path), Serving)  # so that what is wrong in the file is told of the file
    return parse({**values, **options}, f"{path} with the command line", Serving)


def read_tokens(settings: Serving) -> tuple[str, ...]:
    """The tokens that open the service; none: it is open.

    Raises:
        InputError: the file cannot be read or is empty, a token is too short or not printable ASCII, or both the file
            and the environment name tokens. No message holds a token.
    """
    variable = os.environ.get(TOKEN_VARIABLE)
    if not settings.token_file:
        origin, lines = TOKEN_VARIABLE, [] if variable is None else [variable]
    elif variable is not None:
        raise InputError(f"{TOKEN_VARIABLE} is set and --token-file given, expected one of them")
    else:
        origin = settings.token_file
        try:
            lines = Path(origin).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise InputError(f"{origin}: the tokens cannot be read ({reason})") from None
        lines = [line for line in lines if line.strip()]
        if not lines:
            raise InputError(f"{origin}: holds no token, expected one a line")
    tokens = tuple(line.strip() for line in lines)
    for number, token in enumerate(tokens, start=1):
        if len(token) < TOKEN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
            raise InputError(
                f"{origin}: token {number} has {len(token)} characters, "
                f"expected at least {TOKEN_CHARACTERS}, ASCII without blanks"
            )
    return tokens
