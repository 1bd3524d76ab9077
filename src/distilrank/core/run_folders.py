"""The folders that the stages of one run write for one another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

NOT_GIVEN = Path(os.devnull, "not-given")
"""Stands for a folder that a stage was not given. No file can exist there."""


@dataclass(frozen=True, kw_only=True)
class RunFolders:
    """The folders of one run, each named as the output of the stage that wrote it.

    A stage is given the folders that it reads, and asks for them with `select`.

    Example:
        >>> folders = RunFolders(student=Path("run/student"), drift=Path("run/drift"))
        >>> folders.student / "metrics.json"
        PosixPath('run/student/metrics.json')
    """

    resolved: Path = NOT_GIVEN
    """Record of the preflight stage: the resolved window, and where the data comes from."""
    profile: Path = NOT_GIVEN
    """`profile.json` of the prepared data, and the record of the prepare stage."""
    judgements: Path = NOT_GIVEN
    """Judged pairs of train, dev and test."""
    candidates: Path = NOT_GIVEN
    """Pairs for the teacher to label."""
    traffic: Path = NOT_GIVEN
    """Sampled traffic of the training window and of the newest window."""
    teacher: Path = NOT_GIVEN
    labels: tuple[Path, ...] = ()
    """Labels of the teacher, one folder per shard."""
    student: Path = NOT_GIVEN
    evaluation: Path = NOT_GIVEN
    """`metrics.json`, with the scores that it was computed from."""
    drift: Path = NOT_GIVEN
    """`drift.json` and its pages."""
    verdict: Path = NOT_GIVEN
    """`verdict.json` of the gate."""
    report: Path = NOT_GIVEN
    """`report.html`."""

    def select(self, *names: str) -> dict[str, Path]:
        """Return some of the folders by name.

        Args:
            names: fields that hold one folder, so not `labels`.

        Raises:
            TypeError: a folder was not given.
        """
        selected: dict[str, Path] = {name: getattr(self, name) for name in names}
        missing = [name for name, folder in selected.items() if folder == NOT_GIVEN]
        if missing:
            raise TypeError(f"RunFolders: {missing[0]!r} was not given, expected the folders {', '.join(names)}")
        return selected
