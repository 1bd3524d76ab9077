"""`distilrank serve`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from distilrank import config
from distilrank.serving import settings


def _with_options(model: type[config.Section]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option per field of `model`; options that are not given arrive as None."""

    def extend(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    (bool if field.annotation is bool else str) | None,
                    typer.Option(help=field.description, metavar="VALUE", show_default=str(field.default) or False),
                ],
            )
            for name, field in model.model_fields.items()
        ]
        own = [
            parameter for parameter in signature.parameters.values() if parameter.kind != inspect.Parameter.VAR_KEYWORD
        ]
        command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return command

    return extend


@_with_options(settings.Serving)
def serve(
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML file with any of these settings; options override it."),
    ] = None,
    **options: Any,
) -> None:
    """Serve the champion's scores over HTTP, and switch to another version when it is promoted.

    Example: `distilrank serve --registry registry --model champion --port 8080`
    """
    values = settings.load(config_file, {name: value for name, value in options.items() if value is not None})
    from distilrank.serving import server

    server.serve(values)
