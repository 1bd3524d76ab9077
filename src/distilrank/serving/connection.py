"""Limits of a client's connection: size of a request, and time for a request to arrive and a response to be read.

uvicorn limits none of this. Its parser buffers a header without an end and copies it with each piece that arrives, its
keep-alive timeout ends with the first byte of the next request, and it waits indefinitely for a client that does not
read its response.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from distilrank.serving.metrics import Metrics
from distilrank.serving.settings import Serving

HEAD_BYTES = 16 * 1024
"""Largest size of a request line with its headers, and of the chunk framing and trailers of a body."""
HEADERS = 100
"""Largest number of headers of a request, including trailers."""
FRAMING_PER_BYTE = 8
"""Largest number of framing bytes per byte of a body: a chunk of one byte has five."""
PIECE = 4 * 1024  # bytes that are parsed before the limits are checked again


class Connections:
    """The open connections of a process: at most `settings.max_connections`.

    Beyond that, a new connection replaces the one that has waited longest for its client, either for a request or for
    a response to be read. A probe is therefore always accepted. Connections whose request is being read or scored are
    not dropped; there are at most `max_requests` of them.
    """

    def __init__(self, settings: Serving, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.waiting: OrderedDict[Connection, None] = OrderedDict()
        """Connections that wait for their client, the longest wait first."""
        self.opened = 0
        metrics.connections.set_function(lambda: self.opened)

    def add(self, connection: Connection) -> None:
        """Add a new connection, and drop another one if there are too many."""
        self.opened += 1
        if self.opened > self.settings.max_connections and self.waiting:
            next(iter(self.waiting)).drop("crowd")
        self.wait(connection)

    def wait(self, connection: Connection) -> None:
        """Mark a connection as waiting for its client."""
        self.waiting[connection] = None
        self.waiting.move_to_end(connection)

    def resume(self, connection: Connection) -> None:
        """Mark a connection as busy: the service works on its request."""
        self.waiting.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self.waiting.pop(connection, None)
        self.opened -= 1


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection with limits.

    Args:
        connections: all connections of the process.
        arguments: arguments with which uvicorn constructs its own protocol.
    """

    def __init__(self, connections: Connections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.shared = connections
        self.seconds = connections.settings.timeout_seconds
        self._fault: tuple[int, str] | None = None
        """Status and reason of the refusal if a limit made uvicorn's parser fail."""
        self._reading: Literal["", "head", "body"] = ""
        """Part of a request that is arriving."""
        self._ignores_input = False  # set when the client did not wait for a response
        self._framing = 0  # bytes of the request outside its body
        self._body = 0  # bytes of its body
        self._arrival: asyncio.TimerHandle | None = None
        self._delivery: asyncio.TimerHandle | None = None

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    # Reading ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Any unread byte pauses writing, which starts the timer; below a mark above zero no timer would run.
        transport.set_write_buffer_limits(high=0)
        self.shared.add(self)
        self._expect(self.seconds)

    def data_received(self, data: bytes) -> None:
        if self._ignores_input:
            return
        if self._arrival is None and self._answered:
            self._expect(self.seconds)  # the first bytes of another request
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self._framing += len(piece)
            super().data_received(piece)
            if self._ignores_input or self.transport.is_closing():
                return
            if self._framing > HEAD_BYTES + FRAMING_PER_BYTE * self._body:
                self._fault = 431, f"headers: more than {HEAD_BYTES} bytes"
                self.send_400_response("")
                return

    def on_message_begin(self) -> None:
        if not self._answered:  # uvicorn would queue any number of them; clients repeat unanswered requests
            self._ignores_input, self.cycle.keep_alive = True, False
            raise ValueError("another request before the response")
        super().on_message_begin()
        self._reading, self._body = "head", 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= HEADERS:
            self._fault = 431, f"headers: more than {HEADERS}"
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._expect(self.seconds)
        self._reading = "body"
        self.shared.resume(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing -= len(body)
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._reading, self._framing = "", 0
        self._stop(self._arrival)
        self._arrival = None
        super().on_message_complete()

    def _expect(self, seconds: float) -> None:
        self._stop(self._arrival)
        self._arrival = self.loop.call_later(seconds, self._arrive_late)

    def _arrive_late(self) -> None:
        if self._reading == "head":
            self._fault = 408, f"headers: did not arrive in {self.seconds:g} s"
            self.send_400_response("")
        elif self._reading and self.cycle.response_started:
            self.drop("late")
        elif self._reading:  # the service itself handles a late body; this covers input after a response
            self._expect(self.seconds)
        else:  # nothing was sent
            self.transport.close()

    # Writing ------------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Refuse input that is not a request with one line of JSON, and close; uvicorn's `msg` is not used.

        If a response is already being sent, no second one is.
        """
        if self._ignores_input:
            return
        if not self.cycle.response_started if self._reading == "body" else self._answered:
            status, reason = self._fault or (400, "request: not HTTP/1.1")
            content = json.dumps({"error": reason}).encode() + b"\n"
            self.transport.write(
                STATUS_LINE[status]
                + b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(content)
                + content
            )
            self.shared.metrics.requests.labels("other", str(status)).inc()
        self.transport.close()

    def on_response_complete(self) -> None:
        self.shared.wait(self)
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.shared.wait(self)
        self._stop(self._delivery)
        self._delivery = self.loop.call_later(self.seconds, self.drop, "unread")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop(self._delivery)
        self._delivery = None

    # Closing ------------------------------------------------------------------------------------------------------

    def drop(self, reason: str) -> None:
        """Close immediately, without reading or writing the rest."""
        self.shared.metrics.dropped.labels(reason).inc()
        self.shared.resume(self)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self._arrival)
        self._stop(self._delivery)
        self.shared.remove(self)
        super().connection_lost(exc)

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
