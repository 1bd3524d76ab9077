"""Server process: socket, log format and signals."""

from __future__ import annotations

import functools
import logging
import resource
import socket
import sys
import time
from types import FrameType

import uvicorn

from distilrank.core.errors import InputError
from distilrank.core.progress import json_text, printable
from distilrank.serving.app import create
from distilrank.serving.connection import Connection
from distilrank.serving.settings import Serving, read_tokens
from distilrank.serving.state import State

OTHER_FILES = 128
"""Open files besides connections: of the model, the registry, and connections that are being closed."""

log = logging.getLogger(__name__)


def serve(settings: Serving) -> None:
    """Serve until SIGTERM or SIGINT, complete the requests in progress, and return.

    Raises:
        InputError: the registry, a token or the address cannot be used; the service does not listen.
    """
    tokens = read_tokens(settings)
    _require_files(settings)
    state = State(settings)
    listening = _listen(settings.host, settings.port)
    _configure_logging(settings.log_format)
    if not tokens:
        log.warning("no token is set: the service is open to every client")
    config = uvicorn.Config(
        create(state, tokens),
        http=functools.partial(Connection, state.connections),  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        proxy_headers=False,
        ws="none",
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=int(settings.timeout_seconds) + 1,
    )
    _Server(config, state).run([listening])
    log.info("ended")


class _Server(uvicorn.Server):
    """uvicorn server that keeps serving for `drain_seconds` after a signal, and exits with status 0."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self.state = state

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.state.drain()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self.state.drained


def _require_files(settings: Serving) -> None:
    """Check that the limit of open files suffices for all connections, since otherwise even probes would fail."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and settings.max_connections > limit - OTHER_FILES:
        raise InputError(
            f"max_connections is {settings.max_connections}, expected at most {limit - OTHER_FILES}: this process may "
            f"open {limit} files (ulimit -n)"
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: an invalid host name such as a..b
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{host}, port {port}: cannot listen on this address ({reason})") from None
    return listening


def _configure_logging(log_format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("uvicorn", "uvicorn.error"):  # this module logs start and end itself
        logging.getLogger(name).setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class _Json(logging.Formatter):
    """Log format with one JSON object a line: time, level, event and further fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json_text(line)


class _Text(logging.Formatter):
    """Log format for people: time, level, event and further fields as text."""

    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={value}" for name, value in getattr(record, "facts", {}).items())
        line = printable(f"{_time(record)} {record.levelname.lower()} {record.getMessage()} {facts}".rstrip())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
