"""The pipeline `estimate` prepares data that `distill` reuses."""

from __future__ import annotations

from distilrank.config import Config, DemoShop, parameters
from pipelines.distill import distill
from pipelines.estimate import estimate


def test_a_run_reuses_what_the_estimate_prepared() -> None:
    ours, theirs = (built.pipeline_spec for built in (estimate, distill))
    for task in ("check-inputs", "prepare-data"):
        first, second = (spec.root.dag.tasks[task] for spec in (ours, theirs))
        assert first.inputs == second.inputs, "the cache goes by a stage's inputs"
    settings = parameters(Config(data=DemoShop(source="demo_shop")))
    assert set(estimate.component_spec.inputs) - {"schedule_time"} <= set(settings)
