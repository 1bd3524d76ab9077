"""HTTP endpoints of the service, as a FastAPI application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import numpy as np
import prometheus_client
import pydantic_core
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope

from distilrank import __version__
from distilrank.core import schemas
from distilrank.core.errors import InputError
from distilrank.evaluation import trec
from distilrank.modeling.scorer import Scorer
from distilrank.serving import messages
from distilrank.serving.auth import GONE, AuthMiddleware, refusal
from distilrank.serving.batcher import Full
from distilrank.serving.reloader import Version
from distilrank.serving.settings import Serving
from distilrank.serving.state import State

NOT_LOADED_RETRY = "5"  # seconds
INLINE_BYTES = 64 * 1024
"""Largest body that is parsed on the event loop, in a millisecond or two. Larger ones are parsed in a thread."""
FIELDS = (*messages.Request.model_fields, *messages.Product.model_fields)

DESCRIPTION = """Scores products for a query with the registry's champion, and switches to a newly promoted one.

Requests that arrive together are scored together. All scores of a response come from the version that it names.
An error response has one line: `{"error": "products[3].title: missing"}`."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": messages.Error, "description": text}
    for status, text in {
        400: "The body is not JSON, or not UTF-8.",
        401: "The token is missing or wrong.",
        408: "The body did not arrive in time.",
        413: "Too many products, or too many bytes.",
        415: "The content type of the body is not JSON.",
        422: "A field is missing, unknown, empty or of the wrong type, or the query is too long.",
        503: "The queue is full, or no version is loaded; Retry-After says when to try again.",
        504: "The request was not scored in time.",
    }.items()
}


class _Body(Request):
    """A request whose body is limited in size while it is read, and parsed as a message of the route's type.

    Args:
        message: type of the message in the body.
    """

    def __init__(self, scope: Scope, receive: Receive, message: type[messages.Request]) -> None:
        super().__init__(scope, receive)
        self.message = message

    async def body(self) -> bytes:
        """Check the headers and return a placeholder, so that FastAPI calls `json` and keeps no copy of the body."""
        state: State = self.app.state.service
        if state.in_flight > state.settings.max_requests:
            raise HTTPException(503, f"{state.in_flight} requests are in flight", {"Retry-After": "1"})
        content_type = self.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, f"content-type: got {content_type!r}, expected application/json")
        if coding := self.headers.get("content-encoding"):
            raise HTTPException(415, f"content-encoding: got {coding!r}, expected none")
        return b"{}"

    async def json(self) -> Any:
        state: State = self.app.state.service
        try:
            async with asyncio.timeout(state.settings.timeout_seconds):
                body = await self._read(state.settings.max_bytes)
        except TimeoutError:
            seconds = state.settings.timeout_seconds
            raise HTTPException(408, f"body: did not arrive in {seconds:g} s", {"Connection": "close"}) from None
        except ClientDisconnect:
            state.metrics.abandoned.labels("gone").inc()
            raise HTTPException(GONE, "the client disconnected") from None
        self.state.version = version = _current(state)  # products are truncated for this version, so it must score them
        arguments = self.message, body, state.settings, version.scorer
        if len(body) <= INLINE_BYTES:
            return _parse(*arguments)
        return await asyncio.get_running_loop().run_in_executor(state.parsing, _parse, *arguments)

    async def _read(self, limit: int) -> bytes:
        chunks, size, declared = [], 0, int(self.headers.get("content-length", 0))
        if declared <= limit:
            async for chunk in self.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    break
        if max(size, declared) > limit:
            raise HTTPException(413, f"body: more than {limit} bytes", {"Connection": "close"})
        return b"".join(chunks)


def _parse(message: type[messages.Request], body: bytes, settings: Serving, scorer: Scorer) -> messages.Request:
    """Parse a body, and reduce its products to the text that the scorer reads.

    Raises:
        HTTPException: the body is not a message of this type.
    """
    if not body:
        raise HTTPException(400, "body: is empty, expected JSON")
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise HTTPException(400, f"body: not UTF-8 (byte {error.start})") from None
    try:
        content = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise HTTPException(400, f"body: not JSON ({error})") from None
    # Checked first, so that a list with too many products is refused before they are validated.
    products = content.get("products") if isinstance(content, dict) else None
    if isinstance(products, list) and len(products) > settings.max_products:
        raise HTTPException(413, f"products: got {len(products)}, expected at most {settings.max_products}")
    try:
        request = message.model_validate(content)
    except ValidationError as error:
        raise HTTPException(422, messages.describe(error.errors(include_url=False), FIELDS)) from None
    # A waiting request keeps only the text that the model reads, since every other field may be as long as the body.
    empty = dict.fromkeys(schemas.PRODUCT_FIELDS, "")
    products = [product.model_copy(update=empty | scorer.cut(product.model_dump())) for product in request.products]
    return request.model_copy(update={"products": products})


class _BoundedRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        message = cast(type[messages.Request], self.body_field.field_info.annotation)

        async def bounded(request: Request) -> Response:
            return await handle(_Body(request.scope, request.receive, message))

        return bounded


def create(state: State, tokens: tuple[str, ...]) -> ASGIApp:
    """Create the service as an ASGI application; its lifespan runs the reloader and the batcher.

    Args:
        state: state of the service.
        tokens: accepted tokens; empty if no token is required.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.tasks = [asyncio.create_task(state.reloader.run()), asyncio.create_task(state.batcher.run())]
        yield
        for task in state.tasks:
            task.cancel()

    app = FastAPI(
        title="distilrank",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = state
    app.router.route_class = _BoundedRoute
    _answer_errors(app)
    _add_scoring(app, state)
    _add_operation(app, state)
    return AuthMiddleware(app, state, tokens)


def _add_scoring(app: FastAPI, state: State) -> None:
    @app.post("/v1/score", summary="Score products", responses=REFUSALS)
    async def score(request: Request, body: messages.Request) -> messages.Scores:
        """Return scores in the order of the products, whose `id` is optional."""
        version, logits, probabilities = await _score_request(state, request, body)
        return messages.Scores(
            version=version.id,
            alias=state.reloader.alias,
            scores=logits.tolist(),
            probabilities=None if probabilities is None else probabilities.tolist(),
        )

    @app.post("/v1/rank", summary="Rank products", responses=REFUSALS)
    async def rank(request: Request, body: messages.RankRequest) -> messages.Ranking:
        """Return the products by descending relevance. Each needs a unique `id`; among equal scores, the larger id
        (as bytes) comes first, as in the evaluation."""
        positions: dict[str, int] = {}
        for index, product in enumerate(body.products):
            if positions.setdefault(product.id, index) < index:
                raise HTTPException(422, f"products[{index}].id: got {product.id[: messages.SHOWN]!r} a second time")
        ids = list(positions)
        version, logits, probabilities = await _score_request(state, request, body)
        order = np.lexsort((-trec.tie_ranks(ids), -logits))
        return messages.Ranking(
            version=version.id,
            alias=state.reloader.alias,
            ranking=[
                messages.Ranked(
                    id=ids[index],
                    score=float(logits[index]),
                    probability=None if probabilities is None else float(probabilities[index]),
                )
                for index in order
            ],
        )


def _add_operation(app: FastAPI, state: State) -> None:
    @app.get("/v1/model", summary="Served version", responses={503: REFUSALS[503]})
    async def model() -> messages.Model:
        """Return the version that is served, and its origin."""
        version = _current(state)
        manifest = version.manifest
        return messages.Model(
            version=version.id,
            alias=state.reloader.alias,
            created=manifest["created"],
            loaded=version.loaded.isoformat(timespec="seconds"),
            backend=version.scorer.backend.describe(),
            calibrated=version.scorer.probability(np.zeros(1, np.float32)) is not None,
            digests=manifest["digests"],
            models=manifest["models"],
            metrics=manifest["metrics"],
            outcome=manifest["verdict"]["outcome"],
            problem=state.reloader.problem,
        )

    @app.get("/healthz", summary="Live", responses={503: {"model": messages.Liveness}})
    async def health(response: Response) -> messages.Liveness:
        """Return 200 unless the process must be restarted. No token is required."""
        response.status_code = 200 if state.live else 503
        return messages.Liveness(live=state.live)

    @app.get("/readyz", summary="Ready", responses={503: {"model": messages.Readiness}})
    async def ready(response: Response) -> messages.Readiness:
        """Return 200 while a version is loaded and no shutdown has begun. No token is required."""
        readiness = state.readiness()
        response.status_code = 200 if readiness.ready else 503
        return readiness

    @app.get("/metrics", summary="Metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics in the text format of Prometheus."""
        text = prometheus_client.generate_latest(state.metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)


def _current(state: State) -> Version:
    if state.reloader.current is None:
        raise HTTPException(503, "no version is loaded yet", {"Retry-After": NOT_LOADED_RETRY})
    return state.reloader.current


async def _score_request(
    state: State, request: Request, body: messages.Request
) -> tuple[Version, np.ndarray, np.ndarray | None]:
    """Score the request's products; return the version, their logits and, if requested, their probabilities."""
    settings = state.settings
    if len(body.query) > settings.max_query_characters:
        raise HTTPException(
            422, f"query: got {len(body.query)} characters, expected at most {settings.max_query_characters}"
        )
    version: Version = request.state.version
    request.state.facts.update(version=version.id, products=len(body.products))
    try:
        job = state.batcher.submit(version, body.query, body.model_dump(include={"products"})["products"])
    except Full as error:
        raise HTTPException(503, str(error), {"Retry-After": str(error.retry)}) from None
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    events: set[asyncio.Future[Any]] = {job.scored, disconnected}
    try:
        await asyncio.wait(events, timeout=settings.timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if job.scored.done():
            logits = job.scored.result()
        elif disconnected.done():
            state.metrics.abandoned.labels("gone").inc()
            raise HTTPException(GONE, "the client disconnected")
        else:
            state.metrics.abandoned.labels("timeout").inc()
            raise HTTPException(504, f"not scored in {settings.timeout_seconds:g} s")
    except InputError as error:
        raise HTTPException(422, str(error)) from None
    finally:
        state.batcher.drop(job)
        disconnected.cancel()
    return version, logits, version.scorer.probability(logits) if body.probability else None


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        headers, detail = dict(error.headers or {}), str(error.detail)
        if error.status_code == 404:
            detail = "no such path, expected one of those in /docs"
        elif error.status_code == 405:
            detail = f"method: got {request.method}, expected {headers.get('Allow') or headers.get('allow')}"
        return refusal(error.status_code, detail, headers)

    @app.exception_handler(Exception)
    async def failed(*_: Any) -> Response:
        return refusal(500, "internal error, see the log")
