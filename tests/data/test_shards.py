from __future__ import annotations

import numpy as np

from distilrank.data import shards


def test_shards_are_shared_out_by_tokens() -> None:
    balancer = shards.ShardBalancer(2)
    query = np.array([3, 3, 5, 7, 7, 9])
    assert balancer.assign(query, np.array([10, 10, 5, 5, 5, 1])).tolist() == [0, 0, 1, 1, 1, 1]
    assert balancer.assign(np.array([11]), np.array([4])).tolist() == [1]
    assert balancer.tokens.tolist() == [20, 20]
    assert balancer.assign(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []
