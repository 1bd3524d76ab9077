"""The volume of runs, as user 10001 finds it in a pod; the processes are real and have that user's rights."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

POD_USER = 10001
FOLDERS = ("hf", "log", "registry")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders and processes to other users")


DROP = """
import os, sys
from distilrank import cli
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(10001)
    os.setuid(10001)
cli.main()
"""
"""Imports first: that user may be unable to read the folders of the user who runs the tests."""


def _volume(verb: str, root: Path, *folders: str) -> subprocess.CompletedProcess[str]:
    """The command as a pod runs it: where this process may, with the user and the only group of Kubeflow's pods."""
    command = [sys.executable, "-c", DROP, "volume", verb, str(root), *folders]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def volume() -> Iterator[Path]:
    """A new volume's root, as a driver gives it: of root alone, in a folder (pytest's own are private) open to all."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        root = Path(folder) / "volume"
        root.mkdir(mode=0o755)
        yield root


@as_root
def test_a_volume_that_fs_group_was_applied_to_is_prepared(volume: Path) -> None:
    os.chown(volume, 0, POD_USER)  # as the kubelet does
    volume.chmod(0o2775)
    done = _volume("prepare", volume, *FOLDERS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{volume}: user 10001, group 10001 can write hf, log, registry\n"
    for name in FOLDERS:
        status = (volume / name).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (POD_USER, POD_USER, 0o2775)
        assert not list((volume / name).iterdir())
    assert _volume("prepare", volume, *FOLDERS).returncode == 0
    assert _volume("check", volume, *FOLDERS).returncode == 0


@as_root
@pytest.mark.parametrize("verb", ["prepare", "check"])
def test_a_volume_of_root_is_refused_with_what_to_do(verb: str, volume: Path) -> None:
    if verb == "check":
        (volume / "registry").mkdir(mode=0o755)
    done = _volume(verb, volume, "registry")
    assert done.returncode == 2
    owner = volume if verb == "prepare" else volume / "registry"
    assert done.stderr == (
        f"distilrank: {volume}/registry: user 10001, group 10001 cannot write here (Permission denied; {owner} has "
        "owner 0, group 0, mode 0755), and fsGroup has not changed that: as root, where the volume is mounted at "
        f"{volume}, run `chown -R 10001:10001 {volume} && chmod -R u+rwX {volume}`; or export it (NFS) with "
        "all_squash,anonuid=10001,anongid=10001; or give its storage class mountOptions uid=10001,gid=10001 (SMB)\n"
    )
    (command,) = [part for part in done.stderr.split("`") if part.startswith("chown")]
    subprocess.run(command, shell=True, check=True)  # the advice helps
    assert _volume("prepare", volume, "registry").returncode == 0


def test_a_file_in_the_way_is_named(volume: Path) -> None:
    volume.chmod(0o777)
    (volume / "log").write_text("")
    done = _volume("prepare", volume, "log")
    assert done.returncode == 2
    assert f"distilrank: {volume}/log: cannot be used by user" in done.stderr and "File exists" in done.stderr


def test_a_folder_that_nobody_prepared_is_named(volume: Path) -> None:
    done = _volume("check", volume, "log")
    assert done.returncode == 2
    assert f"distilrank: {volume}/log: cannot be used by user" in done.stderr
    assert "No such file or directory" in done.stderr


@pytest.mark.parametrize("folder", ["/etc", "../etc", "a/../../b", ""])
def test_only_folders_of_the_volume_are_made(folder: str, volume: Path) -> None:
    done = _volume("prepare", volume, folder)
    assert done.returncode == 2
    assert f"folder {folder!r}: expected a path below {volume}, relative to it" in done.stderr


def test_a_volume_that_is_not_mounted_is_named(volume: Path) -> None:
    volume.rmdir()
    done = _volume("check", volume, "log")
    assert done.returncode == 2
    assert "volume: no such folder, expected the path at which the volume is mounted" in done.stderr
