"""`distilrank volume`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from distilrank.core import volume

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
VolumeRoot = Annotated[Path, typer.Argument(help="Where the volume is mounted.", show_default=False)]
VolumeFolders = Annotated[list[str], typer.Argument(help="Folders of the volume, relative to it.", show_default=False)]


@app.callback()
def _group() -> None:
    """A volume that outlives runs: create its folders, and check who can write to them."""


@app.command("prepare")
def prepare_volume(root: VolumeRoot, folders: VolumeFolders) -> None:
    """Create the folders of a volume, writable for its group, and check them as `volume check` does.

    Example: `distilrank volume prepare /distilrank registry resume log`
    """
    volume.prepare(root, folders)
    _print_success(root, folders)


@app.command("check")
def check_volume(root: VolumeRoot, folders: VolumeFolders) -> None:
    """Check that this user can write, lock and rename files in the folders of a volume; exit status 2 if not.

    Example: `distilrank volume check /distilrank registry resume log`
    """
    volume.check(root, folders)
    _print_success(root, folders)


def _print_success(root: Path, folders: Sequence[str]) -> None:
    print(f"{root}: user {os.geteuid()}, group {os.getegid()} can write {', '.join(folders)}")
