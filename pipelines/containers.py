"""Containers of stages on this machine: KFP's Docker runner with restricted mounts, network and privileges.

A container has its image, read-only, and from this machine only the paths that the configuration names, mounted at the
same absolute path: outputs, registry and caches writable, data and models read-only. By default it has no network.
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
from distilrank.core.errors import InputError, one_line
from distilrank.modeling import references

HOME = "/home/distilrank"
NO_NETWORK = "none"
REMOTE = ("hub:", "gs://", "http://", "https://")
"""Prefixes of references that need a network."""
CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS"
FORWARDED_VARIABLES = (
    "HF_TOKEN",
    "HF_ENDPOINT",
    "GOOGLE_CLOUD_PROJECT",
    "STORAGE_EMULATOR_HOST",
    "EVIDENTLY_SECRET",
    "DISTILRANK_CLIENT_KEY",
    CREDENTIALS,
)
"""Environment variables that stages with a network inherit, besides those of proxies."""
LABEL = "distilrank.run"
TIMEOUT_SECONDS = 60
"""Timeout of requests to the engine; creating a container on a busy machine takes a while."""


@dataclass(frozen=True)
class Mounts:
    """Absolute paths of files and folders that are mounted into containers at the same path."""

    writable: frozenset[Path]
    readable: frozenset[Path]

    def to_docker(self) -> list[dict[str, Any]]:
        """Return Docker's mount objects; symbolic links are resolved, since their targets may not be mounted."""
        return [
            {"Type": "bind", "Source": str(path.resolve()), "Target": str(path), "ReadOnly": path not in self.writable}
            for path in sorted(self.writable | self.readable)
        ]


def mounts(config: Config, runs: Path, network: str) -> Mounts:
    """Return the paths on this machine that the stages of a configuration may write and read.

    Args:
        config: the configuration with its folders filled in, see `pipelines.local`.
        runs: folder of all local runs; stages write below its `.kfp`.
        network: network of the containers; unless `none`, the hub's cache and Google's credentials are mounted too.
    """
    persistent_folders = (
        config.compute.checkpoint_dir,
        config.prepare.log_cache_dir,
        config.drift.workspace,
        config.registry.uri,
        config.registry.cache_dir,
    )
    writable = {_absolute(folder) for folder in persistent_folders if folder and not folder.startswith(REMOTE)}
    writable |= {_absolute(runs / ".kfp"), _absolute(references.cache_folder().parent)}
    credentials = set()
    if network != NO_NETWORK:
        writable.add(_hub_cache())
        credentials = {_absolute(key) for key in (os.environ.get(CREDENTIALS),) if key}
    # Every text of the configuration that is an existing path is mounted, so that no list of path fields is needed.
    texts = [text for key, text in _texts(config) if not key.startswith("data.csv.")]  # "." is a decimal point there
    referenced = {_absolute(text) for text in texts if text and not text.startswith(REMOTE) and _exists(text)}
    linked = {link.resolve() for path in referenced if path.is_dir() for link in path.iterdir() if link.is_symlink()}
    readable = {
        path
        for path in referenced | linked | credentials
        if not any(path.is_relative_to(folder) for folder in writable)
    }
    return Mounts(frozenset(writable), frozenset(readable - {Path("/")}))


def _hub_cache() -> Path:
    return _absolute(os.environ.get("HF_HOME") or references.cache_folder().parents[1] / "huggingface")


def remote(config: Config) -> tuple[str, str] | None:
    """Return key and value of the first setting that needs a network."""
    return next(((key, text) for key, text in _texts(config) if text.startswith(REMOTE)), None)


def _texts(config: Config) -> Iterator[tuple[str, str]]:
    """Yield dotted key and value of every text in the configuration, without the section `cluster`."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from walk(inner, path)
        elif isinstance(value, str):
            yield path, value

    yield from walk({key: value for key, value in parameters(config).items() if key != "cluster"}, "")


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or with characters that a path cannot have: not a path
        return False


def arguments(config: Config, runs: Path, network: str) -> dict[str, Any]:
    """Return the arguments of the Docker client for every container of a run, and create the writable folders.

    Args:
        config: the configuration with its folders filled in.
        runs: folder of all local runs.
        network: Docker network of the containers.

    Raises:
        InputError: the configuration needs a network and `network` is `none`, or a folder cannot be created.
    """
    setting = remote(config)
    if setting and network == NO_NETWORK:
        raise InputError(
            f"{setting[0]} is {setting[1]!r}, but stages in containers have no network; expected --network host (or "
            "another Docker network), or a local folder"
        )
    mounted = mounts(config, runs, network)
    for folder in mounted.writable:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be created ({error.strerror}), expected a writable folder") from None
    caches = _absolute(references.cache_folder().parent)
    environment = {
        "HOME": HOME,
        "XDG_CACHE_HOME": str(caches.parent),
        "MPLCONFIGDIR": str(caches / "matplotlib"),  # keeps its font cache
    }
    if network != NO_NETWORK:
        environment["HF_HOME"] = str(_hub_cache())
        environment |= {
            key: value
            for key, value in os.environ.items()
            if key in FORWARDED_VARIABLES or key.lower().endswith("_proxy")
        }
    container: dict[str, Any] = {
        "mounts": mounted.to_docker(),
        "environment": environment,
        "working_dir": str(Path.cwd()),  # relative paths of the configuration start here
        "user": f"{os.getuid()}:{os.getgid()}",
        "network_mode": network,
        "read_only": True,
        "tmpfs": {"/tmp": "mode=1777", HOME: "mode=1777"},
        "shm_size": "1g",  # processes of distributed training exchange tensors in it
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "init": True,  # reaps orphaned processes, and forwards signals
    }
    if hardware.has_gpu() and config.compute.device != "cpu":
        container["device_requests"] = [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]
    return container


@dataclass
class Engine:
    """Runs the stages of one run on a Docker engine, and can stop all of them."""

    client: Any
    run_name: str
    container_arguments: dict[str, Any]
    images: dict[str, str]
    """ID, i.e. content digest, by image name."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: dict[str, Any] = field(default_factory=dict)
    _stopped: bool = False

    @classmethod
    def connect(cls, run_name: str, config: Config, runs: Path, network: str, images: set[str]) -> Engine:
        """Connect to the engine at DOCKER_HOST, or to the local one.

        Args:
            run_name: label of the containers.
            config: see `arguments`.
            runs: see `arguments`.
            network: see `arguments`.
            images: images of the stages.

        Raises:
            InputError: no engine responds, it lacks an image or the network, its Python client is not installed, or
                as for `arguments`.
        """
        client = _client()
        _check_network(client, network)
        ids = {image: _identify(client, image) for image in sorted(images)}
        return cls(client, run_name, arguments(config, runs, network), ids)

    @property
    def content(self) -> str:
        """Digest of the images' content, for the cache; KFP's cache key has only the images' names."""
        return artifacts.digest_json(self.images)[:16]

    def code_warning(self) -> str:
        """Return a line that names the images whose library differs from this source tree; empty if none does."""
        own = artifacts.code_digest()
        others = [image for image in self.images if self._code(image) != own]
        return f"{' and '.join(others)}: not built from the current source tree; run `make images`" if others else ""

    def _code(self, image: str) -> str:
        import docker

        command = ["python3", "-c", "from distilrank.core import artifacts; print(artifacts.code_digest())"]
        try:
            output = self.client.containers.run(image, command, network_mode=NO_NETWORK, read_only=True, remove=True)
        except docker.errors.DockerException:
            return ""
        return str(output.decode().strip())

    @contextlib.contextmanager
    def runner(self) -> Iterator[local.DockerRunner]:
        """Yield KFP's Docker runner, with its function that starts containers replaced by `start`.

        KFP lets the engine remove a container when it exits, and then asks for its status. If the container is gone by
        then, KFP has lost its log and assumes success.
        """
        from kfp.local import docker_task_handler

        original = docker_task_handler.run_docker_container
        docker_task_handler.run_docker_container = self.start
        try:
            yield local.DockerRunner(**self.container_arguments)
        finally:
            docker_task_handler.run_docker_container = original
            self.stop()
            self.client.close()

    def start(self, client: Any, image: str, command: list[str], volumes: dict[str, Any], **options: Any) -> int:
        """Run one stage to its end, forward its output, and return its exit status; KFP calls this from its threads."""
        import docker

        try:
            container = client.containers.create(
                image=image,
                command=command,
                volumes=volumes,
                labels={LABEL: self.run_name},
                log_config={"Type": "none"},  # output is read from the attached stream, and kept in the run's own log
                **options,
            )
            try:
                return self._follow(container)
            finally:
                with self._lock:
                    self._running.pop(container.id, None)
                with contextlib.suppress(docker.errors.APIError, requests.RequestException):
                    container.remove(force=True)
        except (docker.errors.DockerException, requests.RequestException) as error:
            print(f"DockerError: {one_line(error, None)}")
            return 1

    def _follow(self, container: Any) -> int:
        output = container.attach(stdout=True, stderr=True, stream=True)  # before the start, to miss no output
        with self._lock:
            if self._stopped:
                return 1
            self._running[container.id] = container
            container.start()
        text = codecs.getincrementaldecoder("utf-8")("replace")  # a chunk may end inside a character
        for chunk in output:
            print(text.decode(chunk), end="")
        return int(container.wait()["StatusCode"])

    def stop(self) -> None:
        """Kill all containers of the run, and start no more."""
        import docker

        with self._lock:
            self._stopped = True
            running = list(self._running.values())
        for container in running:
            with contextlib.suppress(docker.errors.APIError, requests.RequestException):
                container.kill()

    def memory_mib(self) -> float:
        """Return the memory of the run's containers in MiB, without reclaimable file cache."""
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
        return docker.from_env(timeout=TIMEOUT_SECONDS)
    except docker.errors.DockerException as error:
        where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        reason = one_line(error, 150)
        raise InputError(
            f"--containers: no Docker engine responds at {where} ({reason}); start it, or set DOCKER_HOST to another"
        ) from None


def _check_network(client: Any, name: str) -> None:
    import docker

    if name.startswith("container:"):  # the network of another container
        return
    try:
        client.networks.get(name)
    except docker.errors.NotFound:
        names = ", ".join(sorted(network.name for network in client.networks.list()))
        raise InputError(f"--network {name}: no such network on this Docker engine, expected one of {names}") from None


def _identify(client: Any, image: str) -> str:
    import docker

    try:
        return str(client.images.get(image).id)
    except docker.errors.ImageNotFound:
        raise InputError(
            f"image {image}: not on this Docker engine; `make images` builds the images of this project, "
            f"`docker pull {image}` fetches others"
        ) from None
