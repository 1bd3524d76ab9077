"""Build the images, or a stand-in for their base; needs Python and a Docker engine, and nothing of the project."""

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


class Unusable(Exception):
    """What keeps the build from starting, in one line."""


def default_base() -> str:
    """The base image that the Dockerfile names."""
    found = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, DOCKERFILE
    return found[1]


def version() -> str:
    """The project's version, which is the images' tag."""
    source = (ROOT / "src" / "distilrank" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert found, source
    return found[1]


def client() -> str:
    """A Docker client that builds with BuildKit, where an engine answers it.

    Raises:
        Unusable: there is none.
    """
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    found = [path for folder in folders if (path := shutil.which("docker", path=folder))]
    if not found:
        raise Unusable("no docker command; install Docker (Debian: apt-get install docker.io)")
    asked = _said(found[0], "version", "--format", "{{.Server.Version}}")
    if asked.returncode:
        where = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        raise Unusable(f"no Docker engine answers at {where}; start it, or name another by DOCKER_HOST")
    for docker in found:  # since 23 the client builds by a plugin, and some installations lack it
        major = int(_said(docker, "version", "--format", "{{.Client.Version}}").stdout.split(".")[0] or 0)
        if major < 23 or _said(docker, "buildx", "version").returncode == 0:
            return docker
    raise Unusable(f"{found[0]} cannot build with BuildKit; install its plugin buildx")


def base_image(docker: str, image: str) -> None:
    """Make a stand-in for the base image by debootstrap, from a mirror of Debian.

    Raises:
        Unusable: debootstrap is missing, or the user may not.
    """
    if not shutil.which("debootstrap", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin"):
        raise Unusable("no debootstrap command; apt-get install debootstrap")
    if os.getuid():
        raise Unusable("debootstrap needs root; run it with sudo")
    subprocess.run([ROOT / "images" / "base.sh", docker, image], check=True)


def build(docker: str, options: argparse.Namespace) -> None:
    """Build each target and copy its SBOM to build/; says how large each is, and how long it took.

    Raises:
        Unusable: the base image cannot be had.
        subprocess.CalledProcessError: a build failed; it said why.
    """
    _fetch_base(docker, options.base)
    with _offered(options.wheels) as wheels:
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
    if _said(docker, "network", "inspect", "bridge").returncode:  # an engine without a network of its own
        command += ["--network", "host"]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    for secret, file in (("ca", options.ca), ("pip", options.pip_config)):
        command += ["--secret", f"id={secret},src={file}"] if file else []
    made_here = ROOT / "build"
    made_here.mkdir(exist_ok=True)
    for target in options.targets:
        image = f"{options.repository}/{target}:{options.version}"
        started = time.monotonic()
        log = made_here / f"{target}.log"
        print(f"building {image}; log: {log.relative_to(ROOT)}", flush=True)
        with log.open("w", encoding="utf-8") as said:
            ended = subprocess.run(
                [*command, "--target", target, "--tag", image, str(ROOT)],
                env=os.environ | {"DOCKER_BUILDKIT": "1"},
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        if ended.returncode:
            print(log.read_text(encoding="utf-8")[-3000:], file=sys.stderr)
            ended.check_returncode()
        seconds = time.monotonic() - started
        size = int(_said(docker, "image", "inspect", "--format", "{{.Size}}", image).stdout)
        sbom = made_here / f"sbom-{target}.json"
        _copy_out(docker, image, SBOM, sbom)
        print(f"{image}: {size / 1e9:.2f} GB, {seconds:.0f} s; {sbom.relative_to(ROOT)}", flush=True)


def _said(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def _fetch_base(docker: str, base: str) -> None:
    if _said(docker, "image", "inspect", base).returncode == 0:
        return
    pulled = _said(docker, "pull", base)
    if pulled.returncode:
        reason = " ".join(pulled.stderr.split())[:150]
        raise Unusable(
            f"base image {base}: cannot be pulled ({reason}); BASE=... names another, and `make base-image` makes "
            f"one of Debian's packages: make images BASE={STAND_IN}"
        )


@contextmanager
def _offered(folder: str) -> Iterator[list[str]]:
    """The wheels that the build finds: all that are kept, and for now those of `folder` that the constraints name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    wanted = {_normal(line.partition("==")[0]) for line in lines if "==" in line}
    added = []
    try:
        for wheel in sorted(Path(folder).glob("*.whl")) if folder else ():
            if _normal(wheel.name.partition("-")[0]) in wanted and not (WHEELS / wheel.name).exists():
                added.append(WHEELS / wheel.name)
                shutil.copy2(wheel, added[-1])
        yield sorted(path.name for path in WHEELS.glob("*.whl"))
    finally:
        for path in added:
            path.unlink(missing_ok=True)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _revision() -> str:
    """The commit that the images are made from, with a mark where the tree differs; empty: no repository."""
    try:
        return _said(
            "git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"
        ).stdout.strip()
    except FileNotFoundError:
        return ""


def _copy_out(docker: str, image: str, path: str, target: Path) -> None:
    container = _said(docker, "create", image, "true").stdout.strip()
    try:
        subprocess.run([docker, "cp", f"{container}:{path}", str(target)], check=True, capture_output=True)
    finally:
        _said(docker, "rm", container)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build distilrank's images.")
    parser.add_argument("targets", nargs="*", help=f"some of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--base-image", metavar="IMAGE", nargs="?", const=STAND_IN, help="make this stand-in instead")
    parser.add_argument("--base", default=default_base(), help="base image; default: by digest, in the Dockerfile")
    parser.add_argument("--repository", default="distilrank", help="what stands before /ops:VERSION")
    parser.add_argument("--version", default=version(), help="tag; default: the project's version")
    parser.add_argument("--source", default="", help="URL of the sources, for the label")
    parser.add_argument("--torch-index", default="https://download.pytorch.org/whl/cpu", help="index of torch's builds")
    parser.add_argument("--pip-options", default="", help="options for pip, e.g. an index")
    parser.add_argument("--pip-config", default="", help="pip's configuration file, as a secret of the build")
    parser.add_argument("--ca", default=os.environ.get("PIP_CERT", ""), help="certificates to trust, likewise")
    links = os.environ.get("PIP_FIND_LINKS", "")
    wheels = links if links and Path(links).is_dir() else ""
    parser.add_argument("--wheels", default=wheels, help="folder of wheels to offer")
    parser.add_argument("--no-demo-models", dest="demo_models", action="store_false", help="leave out the small models")
    options = parser.parse_args()
    options.targets = options.targets or list(TARGETS)
    return options


def _check(options: argparse.Namespace) -> None:
    """What can be told before anything is built.

    Raises:
        Unusable: an option that no build could use.
    """
    for target in options.targets:
        if target not in TARGETS:
            raise Unusable(f"{target}: no such image, expected some of {', '.join(TARGETS)}")
    for option, path in (("--ca", options.ca), ("--pip-config", options.pip_config)):
        if path and not Path(path).is_file():
            raise Unusable(f"{option} {path}: no such file")
    if options.wheels and not Path(options.wheels).is_dir():
        raise Unusable(f"--wheels {options.wheels}: no such folder")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", options.version):
        raise Unusable(f"--version {options.version}: no tag, expected letters, digits, dots, hyphens and underscores")
    if not re.fullmatch(r"([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*", options.repository):
        raise Unusable(f"--repository {options.repository}: expected [HOST[:PORT]/]NAME in lower-case letters")


def main() -> None:
    """Run the command; what keeps it from starting is one line and exit status 2."""
    options = _options()
    try:
        _check(options)
        docker = client()
        if options.base_image:
            base_image(docker, options.base_image)
        else:
            build(docker, options)
    except Unusable as error:
        sys.exit(_refuse(str(error)))
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed: {' '.join(map(str, error.cmd[:2]))} ended with status {error.returncode}")


def _refuse(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
