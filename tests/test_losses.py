"""The margin loss equals what it claims to compute, whatever the batch looks like."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrank.losses import margin_loss, pointwise_loss, soft_cross_entropy

queries = st.lists(st.integers(1, 7), min_size=1, max_size=5)  # products of each query
scale = st.floats(0.1, 20)
seeds = st.integers(0, 2**31 - 1)


def batch(sizes: list[int], scale: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(len(sizes)) * 3 + 1, sizes)  # ids need not be contiguous
    student, teacher = (torch.tensor(rng.normal(scale=scale, size=len(query)), dtype=torch.float32) for _ in range(2))
    return student, teacher, torch.tensor(query)


def all_pairs(student: torch.Tensor, teacher: torch.Tensor, query: torch.Tensor) -> float:
    """The paper's formula, word by word."""
    per_query = []
    for one in query.unique():
        s, t = student[query == one].double().tolist(), teacher[query == one].double().tolist()
        n = len(s)
        if n > 1:
            total = sum(((t[i] - t[j]) - (s[i] - s[j])) ** 2 for i, j in combinations(range(n), 2))
            per_query.append(2 / (n * (n - 1)) * total)
    return float(np.mean(per_query)) if per_query else 0.0


@settings(max_examples=60, deadline=None)
@given(queries, scale, seeds)
def test_margin_loss_is_the_mean_over_all_pairs(sizes: list[int], scale: float, seed: int) -> None:
    student, teacher, query = batch(sizes, scale, seed)
    assert float(margin_loss(student, teacher, query)) == pytest.approx(
        all_pairs(student, teacher, query), rel=1e-4, abs=1e-5
    )


@settings(max_examples=30, deadline=None)
@given(queries, scale, seeds, st.integers(1, 6))
def test_padding_and_order_change_nothing(sizes: list[int], scale: float, seed: int, padding: int) -> None:
    student, teacher, query = batch(sizes, scale, seed)
    order = torch.tensor(np.random.default_rng(seed).permutation(len(query) + padding))
    filler = torch.full((padding,), 1e4)
    padded = [
        torch.cat([values, extra])[order]
        for values, extra in ((student, filler), (teacher, -filler), (query, torch.full((padding,), -1)))
    ]
    for loss in (margin_loss, pointwise_loss):
        assert float(loss(*padded)) == pytest.approx(float(loss(student, teacher, query)), rel=1e-4, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(queries, scale, seeds, st.floats(-50, 50))
def test_margin_loss_is_blind_to_a_shift_per_query_and_pointwise_is_not(sizes, scale, seed, shift) -> None:
    student, teacher, query = batch(sizes, scale, seed)
    assert float(margin_loss(student + shift, teacher, query)) == pytest.approx(
        float(margin_loss(student, teacher, query)), rel=1e-2, abs=1e-2
    )
    exact = float(pointwise_loss(teacher + shift, teacher, query))
    assert exact == pytest.approx(shift**2, rel=1e-3, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(queries, seeds)
def test_gradient_is_that_of_all_pairs(sizes: list[int], seed: int) -> None:
    student, teacher, query = batch(sizes, 1.0, seed)
    student = student.double().requires_grad_()
    (gradient,) = torch.autograd.grad(margin_loss(student, teacher, query), student, allow_unused=True)
    step = 1e-3
    for row in range(len(student)):
        moved = [student.detach().clone() for _ in range(2)]
        moved[0][row] += step
        moved[1][row] -= step
        slope = (all_pairs(moved[0], teacher, query) - all_pairs(moved[1], teacher, query)) / (2 * step)
        assert float(gradient[row]) == pytest.approx(slope, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("loss", [margin_loss, pointwise_loss])
def test_finite_in_bf16_with_gradients(loss) -> None:
    student, teacher, query = batch([5, 1, 3], 30.0, 3)
    student = student.bfloat16().requires_grad_()
    value = loss(student, teacher.bfloat16(), query)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value) and torch.isfinite(student.grad).all() and student.grad.abs().sum() > 0


def test_single_product_queries_give_no_margin_but_a_pointwise_term() -> None:
    student, teacher, query = (
        torch.tensor([1.0, 2.0], requires_grad=True),
        torch.tensor([0.0, 0.0]),
        torch.tensor([0, 1]),
    )
    margin = margin_loss(student, teacher, query)
    assert float(margin.detach()) == 0
    margin.backward()
    assert torch.equal(student.grad, torch.zeros(2))
    assert float(pointwise_loss(student, teacher, query).detach()) == pytest.approx(2.5)


def test_a_batch_of_padding_only_is_zero() -> None:
    nothing = torch.zeros(3), torch.ones(3), torch.full((3,), -1)
    assert float(margin_loss(*nothing)) == 0 and float(pointwise_loss(*nothing)) == 0


def test_soft_cross_entropy_is_least_at_the_target() -> None:
    target = torch.tensor([0.25, 0.5, 0.9])
    at_target = soft_cross_entropy(torch.logit(target), target)
    expected = -(target * target.log() + (1 - target) * (1 - target).log()).mean()
    assert float(at_target) == pytest.approx(float(expected), rel=1e-5)
    assert soft_cross_entropy(torch.logit(target) + 0.3, target) > at_target
