"""A Python interpreter that starts at once: each process is forked from a server that has made the slow imports.

A stage imports torch, transformers and peft for eight seconds of processor time; with the tests' tiny models it then
works for one. The interpreter that `python` makes hands its arguments, environment, working folder and standard streams
to the server, waits for the process that the server forks, and ends with that process' status. What runs is the real
module, in a process of its own. Killed, it takes the process along.

Imports of a new interpreter, and with them what a stage forgets to import, are seen by `make demo`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
import runpy
import selectors
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from distilrank.training import launch

ROOT = Path(__file__).parent.parent
PRELOADED = (
    "distilrank.drift.workspace",
    "distilrank.teacher.estimate",
    "distilrank.student.export",
    "distilrank.teacher.labeling",
    "distilrank.preflight",
    "distilrank.data.prepare",
    "distilrank.evaluation.evaluate",
    "distilrank.report",
    "distilrank.student.train",
    "distilrank.teacher.train",
    "evidently.presets",
    "kfp.local",
    "peft",
    "pipelines.local",
    "torch.distributed.elastic.multiprocessing",
    "transformers.modeling_utils",
)
AVAILABLE = hasattr(os, "pidfd_open")
"""Whether this system can (Linux, Python's `os.pidfd_open`)."""

CLIENT = """
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
connection.sendall(request)
answer = connection.makefile().read()
status = int(answer) if answer else 1
if status < 0:
    import signal
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


@dataclass(frozen=True)
class Python:
    """An interpreter whose processes are forked."""

    executable: str
    environment: dict[str, str]
    """What makes it `sys.executable` in the processes that are started with it, and torchrun's interpreter."""


@contextlib.contextmanager
def python() -> Iterator[Python]:
    """An interpreter that starts at once; where the system has no such thing, this one.

    Yields:
        The interpreter, as long as the context is open.
    """
    if not AVAILABLE:
        yield Python(sys.executable, {})
        return
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        address = f"\0distilrank-{uuid.uuid4().hex}"  # no file: its path could be too long
        executable, client = Path(name, "python3"), Path(name, "client.py")
        client.write_text(CLIENT.format(address=address))
        executable.write_text(f"#!/bin/sh\nexec '{sys.executable}' -IS '{client}' \"$@\"\n")
        executable.chmod(executable.stat().st_mode | stat.S_IXUSR)
        Path(name, "sitecustomize.py").write_text(f"import sys\nsys.executable = {str(executable)!r}\n")
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(address)
        listener.listen(64)
        server = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,  # the server ends with it
                cwd=ROOT,
            )
        )
        path = os.pathsep.join(filter(None, (name, os.environ.get("PYTHONPATH"))))
        try:
            yield Python(str(executable), {"PYTHONPATH": path, "PYTHON_EXEC": str(executable)})
        finally:
            assert server.stdin is not None
            server.stdin.close()


# The server -----------------------------------------------------------------------------------------------------------


def serve(listener: socket.socket) -> NoReturn:
    """Fork a process for each connection, until the standard input ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "locks that other threads hold would stay locked in what is forked"
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, ("accept", 0, None))
    selector.register(sys.stdin, selectors.EVENT_READ, ("end", 0, None))
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in selector.select():
            kind, pid, connection = key.data
            if kind == "end":
                for process in running:
                    os.kill(process, signal.SIGKILL)
                os._exit(0)  # taking thousands of modules apart takes seconds
            if kind == "accept":
                connection, _ = listener.accept()
                pid = _fork(listener, connection)
                descriptor = os.pidfd_open(pid)
                running[pid] = descriptor, connection
                selector.register(descriptor, selectors.EVENT_READ, ("ended", pid, connection))
                selector.register(connection, selectors.EVENT_READ, ("left", pid, connection))
            elif kind == "left":  # who waited for it was killed
                selector.unregister(connection)
                os.kill(pid, signal.SIGKILL)
            elif kind == "ended":
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                descriptor, _ = running.pop(pid)
                selector.unregister(descriptor)
                os.close(descriptor)
                with contextlib.suppress(KeyError):  # unregistered when its client left
                    selector.unregister(connection)
                with contextlib.suppress(OSError):
                    connection.sendall(str(status).encode())
                    # Processes that were forked later hold copies of it, so closing it alone would not end it.
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()
                break  # the other events of this round may be of what is closed now


def _fork(listener: socket.socket, connection: socket.socket) -> int:
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
    length = int.from_bytes(header, "big")
    received = b""
    while len(received) < length:
        part = connection.recv(length - len(received))
        if not part:
            break  # the client was killed
        received += part
    server = os.getpid()
    pid = os.fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    status = 1
    try:
        launch.die_with_parent(server)
        listener.close()
        connection.close()
        for standard, descriptor in enumerate(descriptors):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        arguments, environment, folder = json.loads(received)
        status = _run(arguments, environment, folder)
    finally:
        _exit(status)


def _run(arguments: list[str], environment: dict[str, str], folder: str) -> int:
    """Do what `python ARGUMENTS` does, and return its exit status."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = io.TextIOWrapper(
            open(number, "wb", closefd=False),  # noqa: SIM115 - for as long as the process lives
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=number == 2,
            write_through=unbuffered,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:0] = [entry for entry in path if entry not in sys.path]
    importlib.invalidate_caches()
    while arguments and arguments[0] == "-u":
        arguments = arguments[1:]
    try:
        sys.modules.pop("sitecustomize", None)
        if importlib.util.find_spec("sitecustomize"):
            importlib.import_module("sitecustomize")
        kind, *rest = arguments
        if kind == "-m":
            name, *options = rest
            sys.path.insert(0, folder)
            sys.argv = [name, *options]
            sys.modules.pop(name, None)  # it is run, whatever else has imported it
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        elif kind == "-c":
            code, *options = rest
            sys.path.insert(0, "")
            sys.argv = ["-c", *options]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.path.insert(0, str(Path(kind).parent))
            sys.argv = [kind, *rest]
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _exit(status: int) -> NoReturn:
    """End as an interpreter does, without what belongs to the server."""
    import atexit

    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 255)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
