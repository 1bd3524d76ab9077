"""How many shards a run on Kubeflow can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from distilrank import config
from distilrank.core.errors import InputError
from pipelines import capacity, compiling
from tests.pipelines.test_resources import CLUSTER
from tests.workflow_status import Run


def sharded(shards: int, **cluster: Any) -> config.Config:
    values = {"data": {"source": "demo_shop"}, "registry": {"uri": "gs://shop/registry"}, "cluster": cluster}
    return config.parse(values | {"prepare": {"shards": shards}}, "test")


def documents(folder: Path, settings: config.Config) -> list[Any]:
    compiling.write("distill", settings, folder / "distill.yaml")
    return list(yaml.safe_load_all((folder / "distill.yaml").read_text()))


@pytest.mark.parametrize("cluster", [{}, CLUSTER], ids=["plain", "full"])
def test_what_shards_take_is_as_estimated(tmp_path: Path, cluster: dict[str, Any]) -> None:
    settings = sharded(2, **cluster)
    content = documents(tmp_path, settings)
    demand = capacity.demand(content, settings)
    assert demand is not None
    argument, compressed = {}, {}
    for shards in (20, 100):
        run = Run(content, settings, shards)
        argument[shards], compressed[shards] = run.longest_argument, run.compressed()
        assert 1 <= demand.argument.total(shards) / argument[shards] < 1.05
    per_shard = (compressed[100] - compressed[20]) / 80
    assert 1 <= demand.workflow.per_shard / per_shard < 1.3
    nodes = demand.workflow.total(100) - capacity.TEMPLATE_BYTES - capacity.ESCAPED * sum(map(capacity._size, content))
    assert 1 <= nodes / compressed[100] < 1.3


def test_more_shards_than_a_run_holds_are_refused_when_it_is_compiled(tmp_path: Path) -> None:
    demand = capacity.demand(documents(tmp_path, sharded(2)), sharded(2))
    assert demand is not None and 100 < demand.shards < 213
    compiling.write("distill", sharded(demand.shards), tmp_path / "fits.yaml")
    with pytest.raises(InputError) as error:
        compiling.write("distill", sharded(demand.shards + 1), tmp_path / "more.yaml")
    assert str(error.value).startswith(
        f"prepare.shards is {demand.shards + 1}, expected at most {demand.shards} on Kubeflow with this configuration: "
        "Argo's workflow of 1,048,576 bytes would have 9"
    )
    assert "\n" not in str(error.value) and "an argument of 131,071 bytes" in str(error.value)
    assert not (tmp_path / "more.yaml").exists()
    compiling.build("distill", sharded(1000), cluster=False)  # here no such limit is met


def test_a_longer_root_leaves_room_for_fewer_shards(tmp_path: Path) -> None:
    sizes = []
    for root in ("", f"gs://{'bucket' * 10}/{'folder/' * 20}artifacts"):
        settings = sharded(2, pipeline_root=root)
        demand = capacity.demand(documents(tmp_path, settings), settings)
        assert demand is not None
        sizes.append(demand)
    assert sizes[1].argument.per_shard > sizes[0].argument.per_shard + 150
    assert sizes[1].shards < sizes[0].shards


def test_a_monitor_that_never_trains_has_no_shards(tmp_path: Path) -> None:
    never = sharded(1000)
    compiling.write("monitor", never, tmp_path / "monitor.yaml")
    on_alarm = never.model_copy(update={"monitor": never.monitor.model_copy(update={"retrain": "on_alarm"})})
    with pytest.raises(InputError, match=r"prepare\.shards is 1000"):
        compiling.write("monitor", on_alarm, tmp_path / "monitor.yaml")
