"""Checks of what a promotion depends on: the champion's split, its teacher, and the override."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

from distilrank.config import OVERRIDE_DAYS, Override, Prepare
from distilrank.core import artifacts, normalize, progress
from distilrank.core.errors import InputError


def check_split(prepare: Prepare, version: str, folder: Path, *, stage: str) -> None:
    """Refuse to test a version on queries that it may have been trained on, because the split has changed since.

    Another test fold is allowed: champion and anchor were trained on its judgements, which favors only them.

    Args:
        prepare: the section `prepare`.
        version: alias and id of the version, for messages.
        folder: the version's folder.
        stage: the stage that logs a note on another test fold.

    Raises:
        InputError: the split differs.
    """
    before = artifacts.read_json(folder / "metrics.json")["protocol"]["split"]
    if before["salt"] != prepare.salt:
        raise InputError(
            f"prepare.salt is {prepare.salt!r}, but the {version} was trained with {before['salt']!r}: the "
            "test queries would be among those that it learned from; restore the salt or use another registry"
        )
    if before.get("plurals", "apart") != prepare.plurals:
        raise InputError(
            f"prepare.plurals is {prepare.plurals!r}, but the {version} was trained with "
            f"{before.get('plurals', 'apart')!r}: the split is another one; restore it or use another registry"
        )
    if before.get("dotless_i", False) != (prepare.language in normalize.DOTLESS):
        raise InputError(
            f"prepare.language is {prepare.language!r}, but the {version} was trained with I folded "
            f"{'to the dotless i of Turkish' if before.get('dotless_i') else 'to i'}: the split is another one; "
            "restore it or use another registry"
        )
    fold = before.get("draw", 0)
    if (fold or prepare.test_fold) and before["test_share"] != prepare.test_share:
        raise InputError(
            f"prepare.test_share is {prepare.test_share:g}, but the {version} was trained with "
            f"{before['test_share']:g}: with test_fold {prepare.test_fold} after {fold} the sets would overlap; "
            "restore it or use another registry"
        )
    if before["test_share"] < prepare.test_share:
        raise InputError(
            f"prepare.test_share is {prepare.test_share:g}, but the {version} was trained with "
            f"{before['test_share']:g}: it learned from some of the test queries; lower it or use another registry"
        )
    if fold != prepare.test_fold:
        progress.log_event(
            stage,
            "note",
            f"test fold {prepare.test_fold}, the {version} was trained with {fold}: it has learned from the "
            "judgements that it is tested on now, so the comparison favors it",
        )


def check_teacher(teacher: str, champion: str, version: Path) -> None:
    """Refuse a teacher other than the champion's, since the two would disagree without any drift.

    Args:
        teacher: folder of the teacher; empty: no check.
        champion: id of the champion.
        version: folder of the champion.
    """
    if not teacher:
        return
    try:
        digest = artifacts.sealed_digest(Path(teacher))
    except InputError as error:
        raise InputError(f"monitor.teacher: {error}") from None
    expected = artifacts.read_json(version / "manifest.json")["digests"]["teacher"]
    if digest != expected:
        raise InputError(
            f"monitor.teacher {teacher}: its digest is {digest[:12]}, but the champion {champion} learned from "
            f"{expected[:12]}; name that teacher's folder, or leave it empty"
        )


def check_override(override: Override, today: date) -> None:
    """Refuse an override that the gate would ignore, because its last day is too far ahead."""
    latest = today + timedelta(days=OVERRIDE_DAYS)
    if override.last_day is not None and override.last_day > latest:
        raise InputError(
            f"gate.override.until is {override.until}, expected {latest} at the latest, {OVERRIDE_DAYS} days from now: "
            "then somebody has to take responsibility again"
        )
