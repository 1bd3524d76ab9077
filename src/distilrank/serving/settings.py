"""Settings of the service, and the tokens that grant access to it."""

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
"""Shortest token; a shorter one could be found by trial and error."""

Seconds = Annotated[float, Field(gt=0)]


class Serving(Section):
    """Settings of the service: version, address, limits and log."""

    registry: str = Field(Registry().uri, min_length=1, description="Folder or URI of the registry.")
    model: Annotated[str, Field(pattern=rf"^({CHAMPION}|v[0-9a-f]{{12}})$")] = Field(
        CHAMPION, description="Alias to follow, or id of a fixed version."
    )
    host: str = Field(
        "127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0: all addresses of this machine."
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8080, description="Port to listen on; 0: any free port.")
    backend: Literal["auto", "torch", "onnx", "onnx-int8"] = Field(
        "auto", description="Backend that computes the scores; auto: torch if it is installed, otherwise onnx."
    )
    threads: Count = Field(0, description="CPU threads for scoring; 0: as many as this process may use.")
    cached_products: Count = Field(50_000, description="Number of products whose tokens are cached.")
    reload_seconds: Seconds = Field(10.0, description="Seconds between two polls of the alias.")
    tolerance: Annotated[float, Field(gt=0, le=1)] = Field(
        0.02,
        description="Refuse a version whose probabilities on its own reference traffic differ on average by more than "
        "this from those at its promotion; 1: no limit.",
    )
    max_products: Positive = Field(1000, description="Largest number of products in a request.")
    max_bytes: Annotated[int, Field(ge=1024)] = Field(2**21, description="Largest size of a request body in bytes.")
    max_query_characters: Positive = Field(500, description="Largest number of characters of a query.")
    max_connections: Positive = Field(
        512, description="Largest number of open connections; beyond it, a new one replaces the longest idle."
    )
    max_requests: Positive = Field(256, description="Largest number of requests in flight; beyond it, 503.")
    max_waiting: Positive = Field(5000, description="Largest number of pairs waiting to be scored; beyond it, 503.")
    batch_pairs: Positive = Field(128, description="Largest number of pairs in a batch; a larger request is split.")
    batch_milliseconds: Annotated[float, Field(ge=0, le=1000)] = Field(
        2.0, description="Longest time that a request waits for others to share its batch."
    )
    timeout_seconds: Seconds = Field(
        10.0,
        description="Time limit of each step of a request: arrival of its headers, arrival of its body, scoring, and "
        "the client's reading of the response.",
    )
    drain_seconds: Annotated[float, Field(ge=0)] = Field(
        5.0,
        description="Seconds to keep serving after SIGTERM while not ready, until no more requests are routed here.",
    )
    token_file: str = Field(
        "",
        description=f"File with the accepted tokens, one per line; empty: the token in {TOKEN_VARIABLE}, if it is set.",
    )
    open_metrics: bool = Field(False, description="Whether /metrics is open even if a token is set.")
    log_format: Literal["text", "json"] = Field("text", description="Format of the log.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_waiting < self.max_products:
            raise ValueError(f"max_waiting is {self.max_waiting}, expected at least max_products ({self.max_products})")
        if self.max_connections <= self.max_requests:  # so that an idle connection can always be replaced
            raise ValueError(
                f"max_connections is {self.max_connections}, expected more than max_requests ({self.max_requests})"
            )
        return self


def load(path: Path | None, options: dict[str, Any]) -> Serving:
    """Read the settings of a file; options of the command line override them.

    Args:
        path: YAML file with the settings that differ from the defaults; None for no file.
        options: options of the command line, by field.

    Raises:
        InputError: the file cannot be read, or a value is invalid.
    """
    if path is None:
        return parse(options, "command line", Serving)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not readable as YAML ({one_line(error, None)})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    parse(values, str(path), Serving)  # so that an error in the file names the file
    return parse({**values, **options}, f"{path} with the command line", Serving)


def read_tokens(settings: Serving) -> tuple[str, ...]:
    """Read the accepted tokens; empty if no token is required.

    Raises:
        InputError: the file cannot be read or is empty, a token is too short or not printable ASCII, or both the file
            and the environment name tokens. No message contains a token.
    """
    variable = os.environ.get(TOKEN_VARIABLE)
    if not settings.token_file:
        origin, lines = TOKEN_VARIABLE, [] if variable is None else [variable]
    elif variable is not None:
        raise InputError(f"{TOKEN_VARIABLE} and --token-file are both set, expected only one of them")
    else:
        origin = settings.token_file
        try:
            lines = Path(origin).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise InputError(f"{origin}: the tokens cannot be read ({reason})") from None
        lines = [line for line in lines if line.strip()]
        if not lines:
            raise InputError(f"{origin}: contains no token, expected one per line")
    tokens = tuple(line.strip() for line in lines)
    for number, token in enumerate(tokens, start=1):
        if len(token) < TOKEN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
            raise InputError(
                f"{origin}: token {number} has {len(token)} characters, "
                f"expected at least {TOKEN_CHARACTERS}, ASCII without blanks"
            )
    return tokens
