"""Around every request: its id, the token, the metrics, the log, and an answer even where the service has failed."""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from distilrank.serving.state import State

OPEN = ("/healthz", "/readyz")
SCORING = ("/v1/rank", "/v1/score")
ENDPOINTS = (*OPEN, "/metrics", "/v1/model", *SCORING)
GONE = 499
"""Status, as nginx has it, of a request whose client did not wait for the answer."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("distilrank.access")


def refusal(status: int, error: str, headers: dict[str, str] | None = None) -> Response:
    """The answer that only says what is wrong, in one line of JSON."""
    content = json.dumps({"error": " ".join(error.split())}, ensure_ascii=False) + "\n"
    return Response(content, status, headers, media_type="application/json")


class Access:
    """ASGI application around another one; `scope["state"]["facts"]` is what an endpoint adds to the log's line."""

    def __init__(self, app: ASGIApp, state: State, tokens: tuple[str, ...]) -> None:
        self.app, self.state, self.tokens = app, state, [f"Bearer {token}".encode() for token in tokens]
        self.open = (*OPEN, "/metrics") if state.settings.open_metrics else OPEN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        facts: dict[str, Any] = {}
        scope.setdefault("state", {})["facts"] = facts
        status = 0
        in_flight = False

        def leave() -> None:
            nonlocal in_flight
            self.state.in_flight -= in_flight
            in_flight = False

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                leave()  # a client that does not read its answer must not keep others out
                status = message["status"]
                sent = MutableHeaders(raw=message["headers"])
                sent["x-request-id"] = request_id
                if self.state.draining:
                    sent["connection"] = "close"  # the next request goes to another replica
                message["headers"] = sent.raw
            await send(message)

        try:
            if scope["path"] not in self.open and not self._may_enter(headers):
                why = "got another" if "authorization" in headers else "got none"
                line = f"token: {why}, expected Authorization: Bearer TOKEN"
                await refusal(401, line, {"WWW-Authenticate": "Bearer"})(scope, receive, answer)
            else:
                # Neither probes nor metrics count: they are answered while the service is full.
                in_flight = scope["path"] in SCORING
                self.state.in_flight += in_flight
                await self.app(scope, receive, answer)
        except Exception:  # answered by now, as the application answers what it does not expect
            log.exception("request %s failed", request_id)
        finally:
            leave()
            self._record(scope, request_id, status or GONE, time.monotonic() - began, facts)

    def _may_enter(self, headers: Headers) -> bool:
        if not self.tokens:
            return True
        # All of them, in constant time each: how long it takes must tell nothing.
        given = headers.get("authorization", "").encode("latin-1")
        return any([hmac.compare_digest(given, token) for token in self.tokens])

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float, facts: dict[str, Any]) -> None:
        known = scope["path"] in ENDPOINTS
        endpoint = scope["path"] if known else "other"  # a label has few values, whatever is asked for
        self.state.metrics.requests.labels(endpoint, str(status)).inc()
        self.state.metrics.seconds.labels(endpoint).observe(seconds)
        if endpoint in (*OPEN, "/metrics") and status in (200, 503):  # asked for every few seconds
            return
        # Neither query nor products: what people search for stays out of the logs.
        line = {
            "method": scope["method"],
            "path": scope["path"] if known else scope.get("raw_path", b"").decode("latin-1")[:100],
            "status": status,
            "milliseconds": round(seconds * 1000, 2),
            "client": (scope.get("client") or ("",))[0],
            "request_id": request_id,
            **facts,
        }
        log.info("request", extra={"facts": line})
