"""Schedule files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distilrank.core.errors import InputError
from pipelines.recurring_runs import spec
from tests.clusters import CONFIG
from tests.schedule_files import WEEKLY, declare


@pytest.mark.parametrize(
    ("entries", "top", "message"),
    [
        ([WEEKLY, WEEKLY], {}, "2 schedules are called 'distill-weekly', expected unique names"),
        (
            [WEEKLY | {"crom": 1}],
            {},
            "schedules.yaml: schedule distill-weekly: unknown key 'crom'; did you mean 'cron'?",
        ),
        ([WEEKLY], {"ownr": "x"}, "unknown key 'ownr'; did you mean 'owner'?"),
        ([WEEKLY | {"cron": "0 25 * * *"}], {}, "schedule distill-weekly: cron: hour '25', expected 0-23"),
        ([WEEKLY | {"concurrency": 11}], {}, "concurrency: Input should be less than or equal to 10 (got 11)"),
        ([WEEKLY | {"start": "2026-12-01T00:00:00"}], {}, "start: Input should have timezone info"),
        (
            [WEEKLY | {"start": "2026-12-02T00:00:00Z", "end": "2026-12-01T00:00:00Z"}],
            {},
            "end is 2026-12-01T00:00:00+00:00, expected one after start",
        ),
        ([WEEKLY | {"pipeline": "estimate"}], {}, "pipeline: Input should be 'distill' or 'monitor' (got 'estimate')"),
        ([WEEKLY], {"timezone": "Berlin"}, "timezone: 'Berlin' is not a time zone, expected e.g. UTC"),
        ([WEEKLY], {"owner": "my shop"}, "owner: String should match pattern"),
        ([WEEKLY], {"owner": "o" * 120}, "owner: String should have at most 119 characters (got 'ooo"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, entries: list, top: dict, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        spec.read(declare(tmp_path, *entries, **top))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "none.yaml"}, "schedule distill-weekly: {folder}/none.yaml: no such configuration file"),
        ({"set": {"gate.max_eze": 1}}, "unknown key 'gate.max_eze'; did you mean 'max_ece'?"),
        (
            {"set": {"registry.uri": "/r", "cluster.images.ops": "shop/ops:latest"}},
            "{config} with cpu_overrides: cluster.images.ops: the tag 'latest' moves, expected a tag that is never",
        ),
    ],
)
def test_a_schedules_configuration_is_blamed_by_its_name(tmp_path: Path, changes: dict, message: str) -> None:
    path = declare(tmp_path, WEEKLY | changes)
    with pytest.raises(InputError, match=re.escape(message.format(folder=tmp_path, config=CONFIG))):
        list(spec.compiled(spec.read(path), path, experiment="e"))
