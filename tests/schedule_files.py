"""Schedule files of two recurring runs, for tests."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.clusters import CONFIG

WEEKLY = {"name": "distill-weekly", "pipeline": "distill", "cron": "0 3 * * 1"}
DAILY = {"name": "monitor-daily", "pipeline": "monitor", "cron": "30 5 * * *"}


def declare(folder: Path, *entries: dict, **top: object) -> Path:
    path = folder / "schedules.yaml"
    own = {"config": str(CONFIG), "set": {"registry.uri": "/registry"}}
    path.write_text(yaml.safe_dump({"owner": "shop"} | top | {"schedules": [own | entry for entry in entries]}))
    return path
