"""Build the images or a stand-in for their base image. Needs Python and a Docker engine, no environment."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "images" / "Dockerfile"
WHEELS = ROOT / "images" / "wheels"
TARGETS = ("ops", "train", "serve")
STAND_IN = "distilrank/base:bookworm"
SBOM = "/usr/share/distilrank/sbom.json"


class SetupError(Exception):
    """A one-line reason why the build cannot start."""


def default_base() -> str:
    """Return the base image that the Dockerfile names."""
    match = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert match, DOCKERFILE
    return match[1]


def version() -> str:
    """Return the version of the project, which is the tag of the images."""
    source = (ROOT / "src" / "distilrank" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert match, source
    return match[1]


def find_client() -> str:
    """Return the path of a Docker client that can build with BuildKit and reaches an engine.

    Raises:
        SetupError: there is none.
    """
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    clients = [path for folder in folders if (path := shutil.which("docker", path=folder))]
    if not clients:
        raise SetupError("no docker command; install Docker (Debian: apt-get install docker.io)")
    result = _run(clients[0], "version", "--format", "{{.Server.Version}}")
    if result.returncode:
        where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        raise SetupError(f"no Docker engine responds at {where}; start it, or set DOCKER_HOST to another")
    for docker in clients:  # since 23 the client builds by the plugin buildx, which some installations lack
        major = int(_run(docker, "version", "--format", "{{.Client.Version}}").stdout.split(".")[0] or 0)
        if major < 23 or _run(docker, "buildx", "version").returncode == 0:
            return docker
    raise SetupError(f"{clients[0]} cannot build with BuildKit; install its plugin buildx")


def build_base_image(docker: str, image: str) -> None:
    """Build a stand-in for the base image by debootstrap, from a Debian mirror.

    Raises:
        SetupError: debootstrap is missing, or the user is not root.
    """
    if not shutil.which("debootstrap", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin"):
        raise SetupError("no debootstrap command; apt-get install debootstrap")
    if os.getuid():
        raise SetupError("debootstrap needs root; run it with sudo")
    subprocess.run([ROOT / "images" / "base.sh", docker, image], check=True)


def build(docker: str, options: argparse.Namespace) -> None:
    """Build each target, copy its SBOM to build/, and print its size and build time.

    Raises:
        SetupError: the base image cannot be pulled.
        subprocess.CalledProcessError: a build failed; the end of its log was printed.
    """
    _fetch_base(docker, options.base)
    with _offering_wheels(options.wheels) as wheels:
        _build(docker, options, wheels)


def _build(docker: str, options: argparse.Namespace, wheels: list[str]) -> None:
    torch_index = "" if any(name.startswith("torch-") for name in wheels) else options.torch_index
    arguments = {
        "BASE": options.base,
        "TORCH_INDEX": torch_index,
        "PIP_OPTIONS": options.pip_options,
        "DEMO_MODELS": str(int(options.demo_models)),
        "VERSION": options.version,
        "REVISION": _revision(),
        "SOURCE": options.source,
    }
    command = [docker, "build", "--file", str(DOCKERFILE), "--progress", "plain"]
    if _run(docker, "network", "inspect", "bridge").returncode:  # an engine without a bridge network
        command += ["--network", "host"]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    for secret, file in (("ca", options.ca), ("pip", options.pip_config)):
        command += ["--secret", f"id={secret},src={file}"] if file else []
    output_folder = ROOT / "build"
    output_folder.mkdir(exist_ok=True)
    for target in options.targets:
        image = f"{options.repository}/{target}:{options.version}"
        started = time.monotonic()
        log = output_folder / f"{target}.log"
        print(f"building {image}; log: {log.relative_to(ROOT)}", flush=True)
        with log.open("w", encoding="utf-8") as log_file:
            result = subprocess.run(
                [*command, "--target", target, "--tag", image, str(ROOT)],
                env=os.environ | {"DOCKER_BUILDKIT": "1"},
                stdout=log_file,
                stderr=subprocess.STDOUT,
            )
        if result.returncode:
            print(log.read_text(encoding="utf-8")[-3000:], file=sys.stderr)
            result.check_returncode()
        seconds = time.monotonic() - started
        size = int(_run(docker, "image", "inspect", "--format", "{{.Size}}", image).stdout)
        sbom = output_folder / f"sbom-{target}.json"
        _copy_out(docker, image, SBOM, sbom)
        print(f"{image}: {size / 1e9:.2f} GB, {seconds:.0f} s; {sbom.relative_to(ROOT)}", flush=True)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def _fetch_base(docker: str, base: str) -> None:
    if _run(docker, "image", "inspect", base).returncode == 0:
        return
    pulled = _run(docker, "pull", base)
    if pulled.returncode:
        reason = " ".join(pulled.stderr.split())[:150]
        raise SetupError(
            f"base image {base}: cannot be pulled ({reason}); set another by BASE=..., or build one from Debian "
            f"packages: make base-image, then make images BASE={STAND_IN}"
        )


@contextmanager
def _offering_wheels(folder: str) -> Iterator[list[str]]:
    """Yield the names of the wheels in images/wheels, with the pinned ones of `folder` added meanwhile."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_normalize(line.partition("==")[0]) for line in lines if "==" in line}
    added = []
    try:
        for wheel in sorted(Path(folder).glob("*.whl")) if folder else ():
            if _normalize(wheel.name.partition("-")[0]) in pinned and not (WHEELS / wheel.name).exists():
                added.append(WHEELS / wheel.name)
                shutil.copy2(wheel, added[-1])
        yield sorted(path.name for path in WHEELS.glob("*.whl"))
    finally:
        for path in added:
            path.unlink(missing_ok=True)


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _revision() -> str:
    """Return the commit of the sources, marked as dirty if files differ; empty without a repository."""
    try:
        return _run(
            "git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"
        ).stdout.strip()
    except FileNotFoundError:
        return ""


def _copy_out(docker: str, image: str, path: str, target: Path) -> None:
    container = _run(docker, "create", image, "true").stdout.strip()
    try:
        subprocess.run([docker, "cp", f"{container}:{path}", str(target)], check=True, capture_output=True)
    finally:
        _run(docker, "rm", container)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build distilrank's images.")
    parser.add_argument("targets", nargs="*", help=f"images to build, of {', '.join(TARGETS)}; default: all")
    parser.add_argument(
        "--base-image",
        metavar="IMAGE",
        nargs="?",
        const=STAND_IN,
        help="build this stand-in for the base image instead",
    )
    parser.add_argument(
        "--base", default=default_base(), help="base image; default: the one in the Dockerfile, by digest"
    )
    parser.add_argument("--repository", default="distilrank", help="prefix of /ops:VERSION")
    parser.add_argument("--version", default=version(), help="tag; default: the project's version")
    parser.add_argument("--source", default="", help="URL of the sources, for the label")
    parser.add_argument("--torch-index", default="https://download.pytorch.org/whl/cpu", help="package index for torch")
    parser.add_argument("--pip-options", default="", help="options for pip, e.g. an index")
    parser.add_argument("--pip-config", default="", help="configuration file of pip, passed as a build secret")
    parser.add_argument(
        "--ca", default=os.environ.get("PIP_CERT", ""), help="CA certificates, passed as a build secret"
    )
    links = os.environ.get("PIP_FIND_LINKS", "")
    wheels = links if links and Path(links).is_dir() else ""
    parser.add_argument("--wheels", default=wheels, help="folder of wheels that pip may use")
    parser.add_argument(
        "--no-demo-models", dest="demo_models", action="store_false", help="leave out the demo's small models"
    )
    options = parser.parse_args()
    options.targets = options.targets or list(TARGETS)
    return options


def _check(options: argparse.Namespace) -> None:
    """Validate the options before anything is built.

    Raises:
        SetupError: an option is invalid.
    """
    for target in options.targets:
        if target not in TARGETS:
            raise SetupError(f"{target}: no such image, expected one of {', '.join(TARGETS)}")
    for option, path in (("--ca", options.ca), ("--pip-config", options.pip_config)):
        if path and not Path(path).is_file():
            raise SetupError(f"{option} {path}: no such file")
    if options.wheels and not Path(options.wheels).is_dir():
        raise SetupError(f"--wheels {options.wheels}: no such folder")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", options.version):
        raise SetupError(
            f"--version {options.version}: not a tag, expected letters, digits, dots, hyphens and underscores"
        )
    if not re.fullmatch(r"([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*", options.repository):
        raise SetupError(f"--repository {options.repository}: expected [HOST[:PORT]/]NAME in lowercase letters")


def main() -> None:
    """Run the command. If the build cannot start, print one line and exit with status 2."""
    options = _options()
    try:
        _check(options)
        docker = find_client()
        if options.base_image:
            build_base_image(docker, options.base_image)
        else:
            build(docker, options)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed: {' '.join(map(str, error.cmd[:2]))} ended with status {error.returncode}")


if __name__ == "__main__":
    main()
