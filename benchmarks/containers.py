"""End to end: build the images, run a small configuration in them and as processes, and compare the results.

`make e2e` runs it. Needs a Docker engine; without one, root on Debian gets a temporary engine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import machine, pods
from distilrank.core import artifacts
from images import build
from tests.kfp_server import DOCUMENT

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "benchmarks" / "containers.yaml"
LARGEST_GB = {"ops": 1.3, "train": 2.6, "serve": 0.8}
LONGEST_REBUILD = 30.0
LARGEST_OVERHEAD = 3.0
LONGEST = 20 * 60.0
ENGINE_STARTS = 60  # seconds


class Failed(Exception):
    """What went wrong, in one line."""


@contextmanager
def engine() -> Iterator[str]:
    """A Docker client that an engine answers, installed and started if need be; what was started is ended.

    Raises:
        Failed: there is none, and this user cannot have one.
    """
    if _answers():
        yield build.find_client()
        return
    if os.environ.get("DOCKER_HOST") or os.getuid():
        raise Failed("no Docker engine answers; start it, or run this as root on Debian")
    if not shutil.which("dockerd"):
        if not shutil.which("apt-get"):
            raise Failed("no dockerd and no apt-get; install Docker")
        print("installing the engine from Debian", file=sys.stderr)
        subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=sys.stderr)
        subprocess.run(
            ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "docker.io", "debootstrap"],
            check=True,
            stdout=sys.stderr,
        )
    print("starting the engine", file=sys.stderr)
    # Without a network of its own it needs no right to change the machine's.
    command = ["dockerd", "--iptables=false", "--ip6tables=false", "--bridge=none"]
    with tempfile.TemporaryFile() as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            started = time.monotonic()
            while not _answers():
                if daemon.poll() is not None or time.monotonic() - started > ENGINE_STARTS:
                    log.seek(0)
                    raise Failed(f"dockerd does not start: {log.read().decode()[-500:]}")
                time.sleep(0.5)
            yield build.find_client()
        finally:
            daemon.terminate()
            daemon.wait()


def _answers() -> bool:
    docker = shutil.which("docker")
    return bool(docker) and subprocess.run([docker, "info"], capture_output=True).returncode == 0


def _base(docker: str, requested: str) -> str:
    """`wanted` if it is here or can be pulled, else a stand-in for it."""
    for image in (requested, build.STAND_IN):
        if subprocess.run([docker, "image", "inspect", image], capture_output=True).returncode == 0:
            return image
    if subprocess.run([docker, "pull", requested], capture_output=True).returncode == 0:
        return requested
    print(f"{requested} cannot be pulled: making a stand-in by debootstrap", file=sys.stderr)
    subprocess.run([sys.executable, ROOT / "images" / "build.py", "--base-image"], check=True, stdout=sys.stderr)
    return build.STAND_IN


def _build(tree: Path, base: str, *options: str) -> float:
    """Build the images of a source tree and return the seconds."""
    started = time.monotonic()
    subprocess.run(
        [sys.executable, tree / "images" / "build.py", "--base", base, *options], check=True, stdout=sys.stderr
    )
    return time.monotonic() - started


def _rebuild(docker: str, base: str) -> float:
    """Seconds to rebuild all images after a change of the library, from a copy of the tree."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        shutil.copytree(ROOT, tree, ignore=lambda folder, names: _left_out(Path(folder), names))
        with (tree / "src" / "distilrank" / "__init__.py").open("a", encoding="utf-8") as source:
            source.write(f"\n# {time.time()}\n")
        seconds = _build(tree, base, "--version", "changed")
    for target in build.TARGETS:
        subprocess.run([docker, "rmi", f"distilrank/{target}:changed"], check=True, capture_output=True)
    return seconds


def _left_out(folder: Path, names: list[str]) -> set[str]:
    included = {"src", "images", "components", "pipelines", "configs", "pyproject.toml", "constraints.txt"}
    included |= {"README.md", "LICENSE", ".dockerignore"}
    return {name for name in names if name == "__pycache__" or (folder == ROOT and name not in included)}


def _run(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """Run the pipeline from an empty registry; returns its seconds, verdict and measures."""
    started = time.monotonic()
    subprocess.run(
        [
            *(sys.executable, "-m", "pipelines", "run", "--config", CONFIG, "--runs", folder, "--name", name),
            *("--set", f"registry.uri={folder / 'registry'}", *options),
        ],
        check=True,
        cwd=ROOT,
        stdout=sys.stderr,
    )
    seconds = time.monotonic() - started
    run = folder / name
    timings = artifacts.read_json(run / "timings.json")
    return {
        "seconds": seconds,
        "own": {stage: values["seconds"] for stage, values in timings["stages"].items()},
        "stages": len(timings["stages"]) + 1,  # snapshot keeps no record
        "verdict": artifacts.read_json(run / "verdict.json"),
        "metrics": artifacts.read_json(run / "metrics.json"),
    }


def _apart(run: dict[str, Any]) -> float:
    """Seconds that a run took beside its stages' own work, which a busy machine slows in one of the two runs only."""
    labels = [seconds for stage, seconds in run["own"].items() if stage.startswith("label-")]
    return run["seconds"] - (sum(run["own"].values()) - sum(labels) + max(labels))


def _differences(first: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What the two runs do not agree on: outcome, checks, and every check's value but those of time."""
    differences = []
    if first["verdict"]["outcome"] != other["verdict"]["outcome"]:
        differences.append(f"outcome: {first['verdict']['outcome']} and {other['verdict']['outcome']}")
    checks, others = ({check["name"]: check for check in run["verdict"]["checks"]} for run in (first, other))
    if set(checks) != set(others):
        differences.append(f"checks: {sorted(set(checks) ^ set(others))} in one of them only")
    for name in sorted(set(checks) & set(others)):
        for key in ("passed", "value"):
            values = checks[name][key], others[name][key]
            if not name.startswith(("latency", "p95")) and values[0] != values[1]:
                differences.append(f"{name}.{key}: {values[0]} and {values[1]}")
    if first["metrics"]["systems"] != other["metrics"]["systems"]:
        differences.append("metrics.json: systems")
    return differences


def _pods(docker: str, helm: Path | None, registry: Path, scratch: Path) -> dict[str, str]:
    """What is wrong with the chart's pods; nothing is said of them where they cannot be tried."""
    busy = [port for port in pods.PORTS if not _is_free(port)]
    if helm is None or not DOCUMENT.exists() or busy:
        lacking = "no helm" if helm is None else f"port {busy[0]} is taken" if busy else f"no {DOCUMENT}"
        print(f"the chart's pods were not tried: {lacking}", file=sys.stderr)
        return {}
    scratch.mkdir()
    problems = pods.check(docker, helm, registry, scratch)
    for name, wrong in problems.items():
        print(f"pod {name}: {wrong or 'runs in its image'}", file=sys.stderr)
    return problems


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def measure(base: str, helm: Path | None) -> dict[str, Any]:
    """All of it, with what `base` or its stand-in gives; `helm` renders the chart, whose pods are started too."""
    started = time.monotonic()
    with engine() as docker:
        base_image = _base(docker, base)
        built = _build(ROOT, base_image)
        rebuilt = _rebuild(docker, base_image)
        sizes = {
            target: int(
                subprocess.run(
                    [docker, "image", "inspect", "--format", "{{.Size}}", f"distilrank/{target}:{build.version()}"],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )
            for target in build.TARGETS
        }
        with tempfile.TemporaryDirectory() as scratch:
            processes = _run(Path(scratch) / "processes", "processes", "--no-cache")
            containers = _run(Path(scratch) / "containers", "containers", "--no-cache", "--containers")
            broken = _pods(docker, helm, Path(scratch) / "containers" / "registry", Path(scratch) / "pods")
    differences = _differences(containers, processes)
    print(f"\n{'stage':<14}{'containers':>12}{'processes':>12}   seconds", file=sys.stderr)
    for stage, seconds in containers["own"].items():
        print(f"{stage:<14}{seconds:>12.1f}{processes['own'].get(stage, float('nan')):>12.1f}", file=sys.stderr)
    print(f"{'whole run':<14}{containers['seconds']:>12.1f}{processes['seconds']:>12.1f}", file=sys.stderr)
    for line in differences or ["the same verdict and measures"]:
        print(line, file=sys.stderr)
    seconds = time.monotonic() - started
    overhead = (_apart(containers) - _apart(processes)) / containers["stages"]
    figures = {
        "base": base_image,
        "outcome": containers["verdict"]["outcome"],
        "differences": differences,
        "pods": broken,
        "size_gb": {target: round(size / 1e9, 3) for target, size in sizes.items()},
        "build_seconds": round(built, 1),
        "rebuild_seconds": round(rebuilt, 1),
        "seconds": {
            "containers": round(containers["seconds"], 1),
            "processes": round(processes["seconds"], 1),
            "all": round(seconds, 1),
        },
        "stages": {"containers": containers["own"], "processes": processes["own"]},
        "overhead_per_stage_seconds": round(overhead, 2),
    }
    bars = [_bar(f"{target}_gb", sizes[target] / 1e9, bound) for target, bound in LARGEST_GB.items()]
    bars += [
        _bar("rebuild_seconds", rebuilt, LONGEST_REBUILD),
        _bar("overhead_per_stage_seconds", overhead, LARGEST_OVERHEAD),
        _bar("seconds", seconds, LONGEST),
        _bar("differences", len(differences), 0),
        *([_bar("broken_pods", sum(map(bool, broken.values())), 0)] if broken else []),
    ]
    return {
        "benchmark": "e2e",
        "machine": machine.describe(["kfp", "torch", "docker"]),
        "figures": figures,
        "bars": bars,
    }


def _bar(name: str, value: float, bound: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 3), "bound": bound, "holds": value <= bound}


def main() -> None:
    """Run it; standard output gets one line of JSON.

    Exit status 2: cannot start; 1: the two runs differ, or a pod of the chart does not run.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=build.default_base(), help="base image; default: the Dockerfile's")
    parser.add_argument("--helm", type=Path, default=shutil.which("helm"), help="helm's executable, for the chart")
    options = parser.parse_args()
    try:
        result = measure(options.base, options.helm)
    except (Failed, build.SetupError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(result))
    raise SystemExit(bool(result["figures"]["differences"] or any(result["figures"]["pods"].values())))


if __name__ == "__main__":
    main()
