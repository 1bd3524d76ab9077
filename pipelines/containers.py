"""The stages' containers on this machine: KFP's Docker runner, with what it needs to be as safe as the subprocesses.

A container sees its image, read-only, and of this machine only what the configuration names, at the same absolute path:
its outputs, the registry and the caches to write to, data and models to read. It has no network unless asked for.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from kfp import local

from distilrank.config import Config, parameters
from distilrank.core import artifacts, hardware
from distilrank.core.errors import InputError
from distilrank.modeling import references

HOME = "/home/distilrank"
NO_NETWORK = "none"
REMOTE = ("hub:", "gs://", "http://", "https://")
"""How a reference begins that leads out of this machine."""
CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS"
PASSED_ON = (
    "HF_TOKEN",
    "HF_ENDPOINT",
    "GOOGLE_CLOUD_PROJECT",
    "STORAGE_EMULATOR_HOST",
    "EVIDENTLY_SECRET",
    "DISTILRANK_CLIENT_KEY",
    CREDENTIALS,
)
"""Variables of this environment that stages with a network get too; those of proxies as well."""
LABEL = "distilrank.run"
PATIENCE = 60
"""Seconds for the engine to answer: creating a container on a busy machine takes some."""


@dataclass(frozen=True)
class Mounts:
    """What containers see of this machine, at the same path there; absolute, files or folders."""

    writable: frozenset[Path]
    readable: frozenset[Path]

    def described(self) -> list[dict[str, Any]]:
        """As the engine takes them; links on the way are followed here, for a container would not find their ends."""
        return [
            {"Type": "bind", "Source": str(path.resolve()), "Target": str(path), "ReadOnly": path not in self.writable}
            for path in sorted(self.writable | self.readable)
        ]


def mounts(config: Config, runs: Path, network: str) -> Mounts:
    """What the stages of `config` may write and read, as far as it is on this machine.

    Args:
        config: the configuration with its folders filled in, as `pipelines.local` does.
        runs: holds all local runs; stages write and read below its `.kfp`.
        network: that of the containers; with one, the hub's cache and Google's credentials are wanted too.
    """
    kept = (
        config.compute.checkpoint_dir,
        config.prepare.log_cache_dir,
        config.drift.workspace,
        config.registry.uri,
        config.registry.cache_dir,
    )
    writable = {_absolute(folder) for folder in kept if folder and not folder.startswith(REMOTE)}
    writable |= {_absolute(runs / ".kfp"), _absolute(references.cache_folder().parent)}
    lent = set()
    if network != NO_NETWORK:
        writable.add(_hub_cache())
        lent = {_absolute(key) for key in (os.environ.get(CREDENTIALS),) if key}
    # Whatever names something that is there is shown: a list of the fields that hold paths would be one more to keep.
    texts = [text for knob, text in _texts(config) if not knob.startswith("data.csv.")]  # "." is a decimal point there
    named = {_absolute(text) for text in texts if text and not text.startswith(REMOTE) and _exists(text)}
    linked = {link.resolve() for path in named if path.is_dir() for link in path.iterdir() if link.is_symlink()}
    readable = {path for path in named | linked | lent if not any(path.is_relative_to(folder) for folder in writable)}
    return Mounts(frozenset(writable), frozenset(readable - {Path("/")}))


def _hub_cache() -> Path:
    return _absolute(os.environ.get("HF_HOME") or references.cache_folder().parents[1] / "huggingface")


def remote(config: Config) -> tuple[str, str] | None:
    """The first knob that leads out of this machine, and its value."""
    return next(((knob, text) for knob, text in _texts(config) if text.startswith(REMOTE)), None)


def _texts(config: Config) -> Iterator[tuple[str, str]]:
    """Every text of the configuration that stages get, with the knob that holds it."""

    def walk(value: Any, knob: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{knob}.{key}" if knob else str(key))
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from walk(inner, knob)
        elif isinstance(value, str):
            yield knob, value

    yield from walk({key: value for key, value in parameters(config).items() if key != "cluster"}, "")


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long a name, or characters that no path has: no path was meant
        return False


def arguments(config: Config, runs: Path, network: str) -> dict[str, Any]:
    """How every container of a run is made, in the words of the engine's client; makes what is to be written to.

    Args:
        config: the configuration with its folders filled in.
        runs: holds all local runs.
        network: that of the containers, as the engine knows it.

    Raises:
        InputError: the configuration needs a network and there is none, or a folder cannot be made.
    """
    found = remote(config)
    if found and network == NO_NETWORK:
        raise InputError(
            f"{found[0]} is {found[1]!r}, and stages in containers have no network; expected --network host (or "
            "another of the engine's networks), or a local folder"
        )
    shown = mounts(config, runs, network)
    for folder in shown.writable:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({error.strerror}), expected a writable folder") from None
    caches = _absolute(references.cache_folder().parent)
    environment = {
        "HOME": HOME,
        "XDG_CACHE_HOME": str(caches.parent),
        "MPLCONFIGDIR": str(caches / "matplotlib"),  # it looks for fonts once
    }
    if network != NO_NETWORK:
        environment["HF_HOME"] = str(_hub_cache())
        environment |= {
            key: value for key, value in os.environ.items() if key in PASSED_ON or key.lower().endswith("_proxy")
        }
    made: dict[str, Any] = {
        "mounts": shown.described(),
        "environment": environment,
        "working_dir": str(Path.cwd()),  # where the paths of the configuration that are relative begin
        "user": f"{os.getuid()}:{os.getgid()}",
        "network_mode": network,
        "read_only": True,
        "tmpfs": {"/tmp": "mode=1777", HOME: "mode=1777"},
        "shm_size": "1g",  # processes that train together hand tensors over in it
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "init": True,  # reaps what a stage leaves, and passes signals on
    }
    if hardware.has_gpu() and config.compute.device != "cpu":
        made["device_requests"] = [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]
    return made


@dataclass
class Engine:
    """A Docker engine that runs the stages of one run, and ends them all when it is told to."""

    client: Any
    run_name: str
    given: dict[str, Any]
    images: dict[str, str]
    """Id, a digest of the content, of each image by its name."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: dict[str, Any] = field(default_factory=dict)
    _stopped: bool = False

    @classmethod
    def connect(cls, run_name: str, config: Config, runs: Path, network: str, images: set[str]) -> Engine:
        """The engine that the environment names (DOCKER_HOST), or this machine's.

        Args:
            run_name: marks the containers.
            config: see `arguments`.
            runs: likewise.
            network: likewise.
            images: those of the stages.

        Raises:
            InputError: as for `arguments`; no engine answers, it lacks one of the images or the network, or its client
                is not installed.
        """
        client = _client()
        _check_network(client, network)
        ids = {image: _identify(client, image) for image in sorted(images)}
        return cls(client, run_name, arguments(config, runs, network), ids)

    @property
    def content(self) -> str:
        """Digest of the images' content: what a result depends on beside a stage's inputs, where KFP looks at names."""
        return artifacts.digest_json(self.images)[:16]

    def with_other_code(self) -> str:
        """A line that says which images hold another library than this source tree; empty: none does."""
        own = artifacts.code_digest()
        others = [image for image in self.images if self._code(image) != own]
        return f"{' and '.join(others)}: not built from this source tree as it is; `make images`" if others else ""

    def _code(self, image: str) -> str:
        import docker

        command = ["python3", "-c", "from distilrank.core import artifacts; print(artifacts.code_digest())"]
        try:
            said = self.client.containers.run(image, command, network_mode=NO_NETWORK, read_only=True, remove=True)
        except docker.errors.DockerException:
            return ""
        return str(said.decode().strip())

    @contextlib.contextmanager
    def runner(self) -> Iterator[local.DockerRunner]:
        """KFP's runner, whose containers are started here.

        KFP lets the engine remove a container that ends and then asks for its status: where it is gone already, KFP has
        lost its log and takes it for a success. So the one function that starts a container is replaced by `start`.
        """
        from kfp.local import docker_task_handler

        theirs = docker_task_handler.run_docker_container
        docker_task_handler.run_docker_container = self.start
        try:
            yield local.DockerRunner(**self.given)
        finally:
            docker_task_handler.run_docker_container = theirs
            self.stop()
            self.client.close()

    def start(self, client: Any, image: str, command: list[str], volumes: dict[str, Any], **others: Any) -> int:
        """Run one stage to its end, print what it prints, return its exit status; KFP calls it from its threads."""
        import docker

        try:
            container = client.containers.create(
                image=image,
                command=command,
                volumes=volumes,
                labels={LABEL: self.run_name},
                log_config={"Type": "none"},  # it is read as it comes, below, and kept in the run's own log
                **others,
            )
            try:
                return self._follow(container)
            finally:
                with self._lock:
                    self._running.pop(container.id, None)
                with contextlib.suppress(docker.errors.APIError, requests.RequestException):
                    container.remove(force=True)
        except (docker.errors.DockerException, requests.RequestException) as error:
            print(f"DockerError: {' '.join(str(error).split())}")
            return 1

    def _follow(self, container: Any) -> int:
        output = container.attach(stdout=True, stderr=True, stream=True)  # before it starts, so that nothing is missed
        with self._lock:
            if self._stopped:
                return 1
            self._running[container.id] = container
            container.start()
        text = codecs.getincrementaldecoder("utf-8")("replace")  # a chunk may end within a character
        for chunk in output:
            print(text.decode(chunk), end="")
        return int(container.wait()["StatusCode"])

    def stop(self) -> None:
        """End all containers of the run, and start no more."""
        import docker

        with self._lock:
            self._stopped = True
            running = list(self._running.values())
        for container in running:
            with contextlib.suppress(docker.errors.APIError, requests.RequestException):
                container.kill()

    def memory_mib(self) -> float:
        """Memory that the run's containers hold, the file cache that could be dropped left out."""
        import docker

        with self._lock:
            running = list(self._running.values())
        total = 0
        for container in running:
            with contextlib.suppress(docker.errors.APIError, requests.RequestException):
                memory = container.stats(stream=False, one_shot=True)["memory_stats"]
                details = memory.get("stats", {})  # of control groups, version 2 or 1
                total += memory.get("usage", 0) - details.get("inactive_file", details.get("total_inactive_file", 0))
        return total / 2**20


def _client() -> Any:
    try:
        import docker
    except ImportError:
        raise InputError("--containers: the Python package docker is not installed; pip install docker") from None
    try:
        return docker.from_env(timeout=PATIENCE)
    except docker.errors.DockerException as error:
        where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        reason = " ".join(str(error).split())[:150]
        raise InputError(
            f"--containers: no Docker engine answers at {where} ({reason}); start it, or name another by DOCKER_HOST"
        ) from None


def _check_network(client: Any, name: str) -> None:
    import docker

    if name.startswith("container:"):  # that of another container
        return
    try:
        client.networks.get(name)
    except docker.errors.NotFound:
        known = ", ".join(sorted(network.name for network in client.networks.list()))
        raise InputError(f"--network {name}: this Docker engine does not have it, expected one of {known}") from None


def _identify(client: Any, image: str) -> str:
    import docker

    try:
        return str(client.images.get(image).id)
    except docker.errors.ImageNotFound:
        raise InputError(
            f"image {image}: this Docker engine does not have it; `make images` builds the project's own, "
            f"`docker pull {image}` fetches another's"
        ) from None
