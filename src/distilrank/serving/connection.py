"""A client's connection: how much it may send before a request is complete, how long that and an answer may take.

uvicorn bounds none of this: its parser keeps a header that does not end in memory and copies it with each piece that
arrives, its time-out between requests ends with the first byte of the next one, and a client that does not read its
answer is waited for indefinitely.
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
"""Most bytes of a request's first line and headers; as many may stand around its body in chunks and trailers."""
HEADERS = 100
"""Most headers of a request, its trailers included."""
FRAMING_PER_BYTE = 8
"""Most bytes around each byte of a body: a chunk of one byte has five."""
PIECE = 4 * 1024  # bytes that the parser gets before the bounds are checked again


class Connections:
    """The open connections of a process: at most `settings.max_connections`.

    Beyond that, a new connection replaces the one that has waited longest for its client: for a request, or for an
    answer to be read. So a probe always gets in. Requests that are read or scored are not dropped; there are at most
    `max_requests` of them.
    """

    def __init__(self, settings: Serving, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.waiting: OrderedDict[Connection, None] = OrderedDict()
        """Those that wait for their client, the longest first."""
        self.opened = 0
        metrics.connections.set_function(lambda: self.opened)

    def add(self, connection: Connection) -> None:
        """Take a new connection in, and drop another one if there are too many."""
        self.opened += 1
        if self.opened > self.settings.max_connections and self.waiting:
            next(iter(self.waiting)).drop("crowd")
        self.wait(connection)

    def wait(self, connection: Connection) -> None:
        """Note that it waits for its client from now on."""
        self.waiting[connection] = None
        self.waiting.move_to_end(connection)

    def resume(self, connection: Connection) -> None:
        """Note that the service works for it."""
        self.waiting.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """Forget a closed one."""
        self.waiting.pop(connection, None)
        self.opened -= 1


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection within bounds.

    Args:
        connections: all of the process.
        arguments: what uvicorn constructs its own protocol with.
    """

    def __init__(self, connections: Connections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.shared = connections
        self.seconds = connections.settings.timeout_seconds
        self._fault: tuple[int, str] | None = None
        """Status and reason to refuse the request with, where uvicorn's parser fails because of a bound."""
        self._reading: Literal["", "head", "body"] = ""
        """What of a request is arriving."""
        self._deaf = False  # nothing more is read: the client did not wait for an answer
        self._framing = 0  # bytes of the request that are not its body
        self._body = 0  # bytes of its body
        self._arrival: asyncio.TimerHandle | None = None
        self._delivery: asyncio.TimerHandle | None = None

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    # Reading ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Any byte that the client does not take pauses writing: below a mark above zero nothing would be timed.
        transport.set_write_buffer_limits(high=0)
        self.shared.add(self)
        self._expect(self.seconds)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._arrival is None and self._answered:
            self._expect(self.seconds)  # the first bytes of another request
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self._framing += len(piece)
            super().data_received(piece)
            if self._deaf or self.transport.is_closing():
                return
            if self._framing > HEAD_BYTES + FRAMING_PER_BYTE * self._body:
                self._fault = 431, f"headers: more than {HEAD_BYTES} bytes"
                self.send_400_response("")
                return

    def on_message_begin(self) -> None:
        if not self._answered:  # uvicorn would queue any number of them; clients send what is unanswered again
            self._deaf, self.cycle.keep_alive = True, False
            raise ValueError("another request before the answer")
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
        elif self._reading:  # the service itself answers a late body; this is for what comes after an answer
            self._expect(self.seconds)
        else:  # nothing was sent
            self.transport.close()

    # Writing ------------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request by one line, as all else, and close; `msg` is uvicorn's.

        What has an answer under way gets no second one.
        """
        if self._deaf:
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
        """Close at once, whatever has not been read or written."""
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
