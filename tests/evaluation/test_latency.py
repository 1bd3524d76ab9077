"""Timing of systems."""

from __future__ import annotations

from distilrank.evaluation.judged import Judged
from distilrank.evaluation.latency import measure_latency
from tests.judged_samples import judged_table, judgements


def test_each_system_is_timed_first_as_often(tmp_path):
    rows = [(f"q{query}", product, target) for query in range(6) for product, target in (("a", 0.0), ("b", 1.0))]
    judged = Judged.read(judgements(tmp_path, judged_table(rows)))
    called = []
    timed = measure_latency({name: lambda request, name=name: called.append(name) for name in "xyz"}, judged, 100)
    assert set(timed) == set("xyz")
    assert "".join(called[18:]) == 2 * "xyzyzxzxy"  # after six requests each to warm up
