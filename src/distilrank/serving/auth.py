"""Middleware of every request: request id, bearer token, metrics, access log, and the response to an error."""

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
"""Status of a request whose client disconnected before the response, as in nginx."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("distilrank.access")


def refusal(status: int, error: str, headers: dict[str, str] | None = None) -> Response:
    """Create an error response whose body is one line of JSON."""
    content = json.dumps({"error": " ".join(error.split())}, ensure_ascii=False) + "\n"
    return Response(content, status, headers, media_type="application/json")


class AuthMiddleware:
    """ASGI middleware that checks the token of a request, and measures and logs the request.

    An endpoint adds fields to its log line through `scope["state"]["facts"]`.
    """

    def __init__(self, app: ASGIApp, state: State, tokens: tuple[str, ...]) -> None:
        self.app, self.state, self.tokens = app, state, [f"Bearer {token}".encode() for token in tokens]
        self.open_paths = (*OPEN, "/metrics") if state.settings.open_metrics else OPEN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        headers = Headers(scope=scope)
        sent_id = headers.get("x-request-id", "")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
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
                leave()  # a client that does not read its response must not block others
                status = message["status"]
                sent = MutableHeaders(raw=message["headers"])
                sent["x-request-id"] = request_id
                if self.state.draining:
                    sent["connection"] = "close"  # the next request goes to another replica
                message["headers"] = sent.raw
            await send(message)

        try:
            if scope["path"] not in self.open_paths and not self._has_token(headers):
                state = "got a different one" if "authorization" in headers else "got none"
                line = f"token: {state}, expected Authorization: Bearer TOKEN"
                await refusal(401, line, {"WWW-Authenticate": "Bearer"})(scope, receive, answer)
            else:
                # Probes and metrics do not count, so that they are answered even if the queue is full.
                in_flight = scope["path"] in SCORING
                self.state.in_flight += in_flight
                await self.app(scope, receive, answer)
        except Exception:  # the application has already sent the response to an unexpected error
            log.exception("request %s failed", request_id)
        finally:
            leave()
            self._record(scope, request_id, status or GONE, time.monotonic() - began, facts)

    def _has_token(self, headers: Headers) -> bool:
        if not self.tokens:
            return True
        # Every token is compared, each in constant time, so that the duration reveals nothing.
        sent_token = headers.get("authorization", "").encode("latin-1")
        return any([hmac.compare_digest(sent_token, token) for token in self.tokens])

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float, facts: dict[str, Any]) -> None:
        is_known = scope["path"] in ENDPOINTS
        endpoint = scope["path"] if is_known else "other"  # a label must have few values
        self.state.metrics.requests.labels(endpoint, str(status)).inc()
        self.state.metrics.seconds.labels(endpoint).observe(seconds)
        if endpoint in (*OPEN, "/metrics") and status in (200, 503):  # requested every few seconds
            return
        # Query and products are not logged, so that searches of people stay private.
        line = {
            "method": scope["method"],
            "path": scope["path"] if is_known else scope.get("raw_path", b"").decode("latin-1")[:100],
            "status": status,
            "milliseconds": round(seconds * 1000, 2),
            "client": (scope.get("client") or ("",))[0],
            "request_id": request_id,
            **facts,
        }
        log.info("request", extra={"facts": line})
