"""Start each pod of the Helm chart in its image as Kubernetes would, against real counterparts.

Commands, environment, security context and mounts are those of the rendered objects. A folder stands in for a volume, a
tmpfs for an emptyDir, a file for a Secret, and the tests' stub, which validates requests, for Kubeflow Pipelines.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.kfp_server import Document, Server

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "distilrank"
VALUES = CHART / "ci" / "on-premises-values.yaml"
TOKENS = {"ranker-tokens": "a-token-of-the-service", "kubeflow-token": "a-token-of-kubeflow"}
"""What the chart's Secrets hold, by name."""
REQUEST = {
    "query": "red sofa",
    "products": [{"id": "1", "title": "red leather sofa"}, {"id": "2", "title": "drill bit"}],
}
PORTS = SERVING, UI = 8080, 8000
"""Where the chart's services listen, on this machine's own network."""
STARTS = 120.0
"""Seconds for a service to be ready."""


def check(docker: str, helm: Path, registry: Path, scratch: Path) -> dict[str, str]:
    """What is wrong with each of the chart's pods: an empty text where nothing is. Needs Kubeflow's API document.

    Args:
        docker: the client.
        helm: the executable.
        registry: a folder with a champion; it is copied.
        scratch: an empty folder.
    """
    server = Server(Document())
    server.store.token = TOKENS["kubeflow-token"]
    objects = _rendered(helm, server.url)
    volume = scratch / "volume"
    shutil.copytree(registry, volume / "registry")
    (volume / "evidently").mkdir()
    pods = _Pods(docker, objects, scratch, volume)
    results = {
        "serving": _tried(lambda: _serves(pods)),
        "ui": _tried(lambda: _shows(pods)),
        "collection": _tried(lambda: pods.run("CronJob", "collection")),
        "storage": _tried(lambda: _prepares(pods)),
        "hooks": _tried(lambda: _schedules(pods, server)),
    }
    server.shutdown()
    return results


def _rendered(helm: Path, host: str) -> list[dict[str, Any]]:
    command = [helm, "template", "ranker", CHART, "--values", VALUES, "--namespace", "kubeflow"]
    # The student of so small a run need not survive quantization.
    settings = ["--set", f"kubeflow.host={host}", "--set", "serving.settings.backend=onnx"]
    text = subprocess.run([*command, *settings], check=True, capture_output=True, text=True).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def _tried(what: Callable[[], object]) -> str:
    try:
        what()
    except (AssertionError, OSError, subprocess.CalledProcessError) as error:
        message = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        return f"{error} {message}".strip()
    return ""


class _Pods:
    """Starts the containers of rendered objects."""

    def __init__(self, docker: str, objects: list[dict[str, Any]], scratch: Path, volume: Path) -> None:
        self.docker, self.objects, self.scratch, self.volume = docker, objects, scratch, volume
        volume.chmod(0o755)
        self._own(volume)

    def run(self, kind: str, name: str) -> str:
        """Run a Job's container to its end, and return what it printed."""
        done = subprocess.run(
            [self.docker, "run", "--rm", *self._arguments(kind, name)], check=True, capture_output=True, text=True
        )
        return done.stdout

    @contextlib.contextmanager
    def started(self, kind: str, name: str) -> Iterator[None]:
        """A Deployment's container, as long as the body lasts; its log is part of what the body raises."""
        command = [self.docker, "run", "--detach", *self._arguments(kind, name)]
        container = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        try:
            yield
        except AssertionError as error:
            log = subprocess.run([self.docker, "logs", container], capture_output=True, text=True)
            raise AssertionError(f"{error}: {(log.stdout + log.stderr)[-800:]}") from None
        finally:
            subprocess.run([self.docker, "rm", "--force", container], capture_output=True)

    def _arguments(self, kind: str, name: str) -> list[str]:
        (manifest,) = [
            each
            for each in self.objects
            if (each["kind"], each["metadata"]["name"]) == (kind, f"ranker-distilrank-{name}")
        ]
        spec = manifest["spec"]["jobTemplate"]["spec"] if kind == "CronJob" else manifest["spec"]
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        security = container["securityContext"]
        assert not security["allowPrivilegeEscalation"] and security["readOnlyRootFilesystem"], security
        user = pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]
        arguments = ["--network", "host", "--read-only", "--security-opt", "no-new-privileges"]
        arguments += ["--user", "{}:{}".format(*user)]
        arguments += [text for capability in security["capabilities"]["drop"] for text in ("--cap-drop", capability)]
        for variable in container.get("env", []):
            arguments += ["--env", f"{variable['name']}={variable['value']}"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for mount in container["volumeMounts"]:
            arguments += self._mount(volumes[mount["name"]], mount, user)
        return [*arguments, container["image"], *container["command"], *container.get("args", [])]

    def _mount(self, volume: dict[str, Any], mount: dict[str, Any], user: tuple[int, int]) -> list[str]:
        path = mount["mountPath"]
        if "emptyDir" in volume:
            return ["--tmpfs", "{}:mode=2775,uid={},gid={}".format(path, *user)]
        folder = self.volume if "persistentVolumeClaim" in volume else self._filled(volume)
        return ["--volume", f"{folder}:{path}{':ro' if mount.get('readOnly') else ''}"]

    def _filled(self, volume: dict[str, Any]) -> Path:
        """A folder with what a ConfigMap or Secret holds."""
        folder = self.scratch / volume["name"]
        folder.mkdir(exist_ok=True)
        if "configMap" in volume:
            (content,) = [
                manifest["data"]
                for manifest in self.objects
                if (manifest["kind"], manifest["metadata"]["name"]) == ("ConfigMap", volume["configMap"]["name"])
            ]
        else:
            secret = volume["secret"]
            content = {item["path"]: TOKENS[secret["secretName"]] for item in secret["items"]}
        for name, text in content.items():
            (folder / name).write_text(text, encoding="utf-8")
        self._own(folder)
        return folder

    def _own(self, folder: Path) -> None:
        """Let the pods' user write, as `fsGroup` does."""
        for path in (folder, *folder.rglob("*")):
            if os.getuid() == 0:
                os.chown(path, 10001, 10001)
            else:
                path.chmod(path.stat().st_mode | (0o077 if path.is_dir() else 0o066))


def _ask(url: str, *, token: str = "", body: Any = None) -> Any:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
        return json.load(answer)


def _wait(url: str) -> Any:
    """The first good answer."""
    deadline = time.monotonic() + STARTS
    while True:
        try:
            return _ask(url)
        except (urllib.error.URLError, OSError, ValueError) as error:
            assert time.monotonic() < deadline, f"{url}: {error}"
            time.sleep(0.5)


def _serves(pods: _Pods) -> None:
    with pods.started("Deployment", "serving"):
        _wait(f"http://localhost:{SERVING}/readyz")
        answer = _ask(f"http://localhost:{SERVING}/v1/score", token=TOKENS["ranker-tokens"], body=REQUEST)
        assert len(answer["scores"]) == len(REQUEST["products"]), answer


def _shows(pods: _Pods) -> None:
    with pods.started("Deployment", "ui"):
        assert "version" in _wait(f"http://localhost:{UI}/api/version")


def _prepares(pods: _Pods) -> None:
    pods.run("Job", "storage-prepare")
    printed = pods.run("Job", "storage-check")
    assert "user 10001, group 10001 can write" in printed, printed


def _schedules(pods: _Pods, server: Server) -> None:
    store = server.store

    def modes() -> dict[str, str]:
        return {run["display_name"]: run["mode"] for run in store.recurring.values()}

    pods.run("Job", "schedules-apply")
    assert modes() == {"distill-monthly": "ENABLE", "monitor-daily": "ENABLE"}, modes()
    writes = len(store.writes)
    pods.run("Job", "schedules-apply")
    pods.run("CronJob", "retries")  # nothing has failed, so it changes nothing
    assert len(store.writes) == writes, store.writes[writes:]
    pods.run("Job", "schedules-delete")
    assert not modes() and not store.problems, (modes(), store.problems)
