"""A real HTTP server that is told how runs ended, and keeps what it is told."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Listener(ThreadingHTTPServer):
    """Keeps what is posted, and answers with `statuses` in turn, the last one from then on."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), Handler)
        self.posts: list[dict] = []
        self.statuses = [204]
        self.headers: dict[str, str] = {}
        """Sent with every answer."""
        self.raw: Iterable[bytes] | None = None
        """Sent piece by piece instead of a proper answer, until the client or the iterable ends."""
        self.requests: list[str] = []
        """Method and path of everything that was asked."""
        self.url = f"http://{address}:{self.server_address[1]}/hook"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_GET(self) -> None:  # what clients turn a redirected POST into
        self.server.requests.append(f"GET {self.path}")
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        assert self.path == "/hook" and self.headers["Content-Type"] == "application/json"
        self.server.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if self.server.raw is not None:
            with contextlib.suppress(OSError):
                for piece in self.server.raw:
                    self.wfile.write(piece)
            return
        statuses = self.server.statuses
        self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass
