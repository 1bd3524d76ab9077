"""The losses equal what they claim to compute, whatever the batch looks like."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from distilrank.training.losses import (
    Thresholds,
    listwise_loss,
    margin_loss,
    ordinal_cross_entropy,
    pointwise_cross_entropy,
    pointwise_loss,
    prefer_by_logit,
    prefer_by_probability,
    ranknet_loss,
    soft_cross_entropy,
)

queries = st.lists(st.integers(1, 7), min_size=1, max_size=5)  # products of each query
scale = st.floats(0.1, 20)
seeds = st.integers(0, 2**31 - 1)


def batch(sizes: list[int], scale: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(len(sizes)) * 3 + 1, sizes)  # ids need not be contiguous
    student, teacher = (torch.tensor(rng.normal(scale=scale, size=len(query)), dtype=torch.float32) for _ in range(2))
    return student, teacher, torch.tensor(query)


def some_weights(query: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed + 1).uniform(1 / 3, 3, len(query)), dtype=torch.float32)


def all_pairs(
    student: torch.Tensor, teacher: torch.Tensor, query: torch.Tensor, weight: torch.Tensor | None = None
) -> float:
    """The paper's formula, word by word; a pair counts as the product of its weights."""
    weight = torch.ones(len(query)) if weight is None else weight
    per_query = []
    for name in query.unique():
        s, t, w = (values[query == name].double().tolist() for values in (student, teacher, weight))
        pairs = list(combinations(range(len(s)), 2))
        if pairs:
            total = sum(w[i] * w[j] * ((t[i] - t[j]) - (s[i] - s[j])) ** 2 for i, j in pairs)
            per_query.append(total / sum(w[i] * w[j] for i, j in pairs))
    return float(np.mean(per_query)) if per_query else 0.0


@settings(max_examples=60, deadline=None)
@given(queries, scale, seeds)
def test_margin_loss_is_the_mean_over_all_pairs(sizes: list[int], scale: float, seed: int) -> None:
    student, teacher, query = batch(sizes, scale, seed)
    for weight in (None, some_weights(query, seed)):
        assert float(margin_loss(student, teacher, query, weight)) == pytest.approx(
            all_pairs(student, teacher, query, weight), rel=1e-4, abs=1e-5
        )


@settings(max_examples=30, deadline=None)
@given(queries, scale, seeds)
def test_pointwise_loss_is_the_weighted_mean_of_squares(sizes: list[int], scale: float, seed: int) -> None:
    student, teacher, query = batch(sizes, scale, seed)
    for weight in (None, some_weights(query, seed)):
        squares = (teacher - student).double().square().numpy()
        expected = [
            np.average(squares[rows], weights=None if weight is None else weight.numpy()[rows])
            for rows in (query.numpy() == name for name in query.unique().numpy())
        ]
        assert float(pointwise_loss(student, teacher, query, weight)) == pytest.approx(np.mean(expected), rel=1e-4)


def ranknet(
    student: torch.Tensor, teacher: torch.Tensor, query: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    return ranknet_loss(student, prefer_by_logit, teacher, query, weight)


def graded(
    student: torch.Tensor, teacher: torch.Tensor, query: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    return ranknet_loss(student, prefer_by_probability, teacher.float().sigmoid(), query, weight)


def pointwise_binary(
    student: torch.Tensor, teacher: torch.Tensor, query: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    return pointwise_cross_entropy(student, teacher.float().sigmoid(), query, weight)


LOSSES = (margin_loss, pointwise_loss, pointwise_binary, ranknet, graded, listwise_loss)


def sigmoid(value: float) -> float:
    return 1 / (1 + np.exp(-value))


@settings(max_examples=40, deadline=None)
@given(queries, seeds)
def test_ranknet_is_the_cross_entropy_of_all_preferences(sizes: list[int], seed: int) -> None:
    student, teacher, query = batch(sizes, 3.0, seed)
    for weight in (None, some_weights(query, seed)):
        for loss, prefer in (
            (ranknet, lambda a, b: sigmoid(a - b)),
            (graded, lambda a, b: (1 + sigmoid(a) - sigmoid(b)) / 2),
        ):
            per_query = []
            for name in query.unique():
                s, t, w = (
                    values[query == name].double().tolist()
                    for values in (student, teacher, torch.ones(len(query)) if weight is None else weight)
                )
                pairs = list(combinations(range(len(s)), 2))
                if pairs:
                    values = [
                        -prefer(t[i], t[j]) * np.log(sigmoid(s[i] - s[j]))
                        - (1 - prefer(t[i], t[j])) * np.log(sigmoid(s[j] - s[i]))
                        for i, j in pairs
                    ]
                    per_query.append(np.average(values, weights=[w[i] * w[j] for i, j in pairs]))
            expected = np.mean(per_query) if per_query else 0.0
            assert float(loss(student, teacher, query, weight)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(queries, seeds, st.floats(0.5, 4))
def test_listwise_is_the_divergence_of_the_lists(sizes: list[int], seed: int, temperature: float) -> None:
    student, teacher, query = batch(sizes, 3.0, seed)
    for weight in (None, some_weights(query, seed)):
        per_query = []
        for name in query.unique():
            s, t = (values[query == name].double().numpy() / temperature for values in (student, teacher))
            w = np.ones(len(s)) if weight is None else weight[query == name].double().numpy()
            if len(s) > 1:
                p, q = (w * np.exp(values) / (w * np.exp(values)).sum() for values in (t, s))
                per_query.append(temperature**2 * (p * np.log(p / q)).sum())
        expected = np.mean(per_query) if per_query else 0.0
        actual = float(listwise_loss(student, teacher, query, weight, temperature))
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(queries, seeds)
def test_pointwise_cross_entropy_is_that_of_single_products(sizes: list[int], seed: int) -> None:
    student, teacher, query = batch(sizes, 3.0, seed)
    for weight in (None, some_weights(query, seed)):
        p, w = teacher.sigmoid(), torch.ones(len(query)) if weight is None else weight
        expected = [
            float(soft_cross_entropy(student[query == name], p[query == name], w[query == name]))
            for name in query.unique()
        ]
        actual = float(pointwise_binary(student, teacher, query, weight))
        assert actual == pytest.approx(np.mean(expected), rel=1e-4)


def test_ranking_losses_are_least_where_the_student_agrees() -> None:
    _, teacher, query = batch([4, 3, 6], 2.0, 5)
    for loss in (ranknet, listwise_loss, margin_loss, pointwise_loss, pointwise_binary):
        student = teacher.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(student, teacher, query), student)
        assert gradient.abs().max() < 1e-5
        assert loss(teacher + torch.randn(13, generator=torch.manual_seed(1)), teacher, query) > loss(
            teacher, teacher, query
        )


@settings(max_examples=30, deadline=None)
@given(queries, scale, seeds)
def test_equal_weights_are_none(sizes: list[int], scale: float, seed: int) -> None:
    student, teacher, query = batch(sizes, scale, seed)
    thresholds = Thresholds(4)().detach()
    for loss in (
        lambda weight: margin_loss(student, teacher, query, weight),
        lambda weight: pointwise_loss(student, teacher, query, weight),
        lambda weight: pointwise_binary(student, teacher, query, weight),
        lambda weight: ranknet(student, teacher, query, weight),
        lambda weight: listwise_loss(student, teacher, query, weight),
        lambda weight: soft_cross_entropy(student, teacher.sigmoid(), weight),
        lambda weight: ordinal_cross_entropy(student, teacher.sigmoid(), thresholds, weight),
    ):
        plain = loss(None)
        assert float(loss(torch.ones(len(query)))) == pytest.approx(float(plain), rel=1e-6)
        weight = some_weights(query, seed)
        assert float(loss(7 * weight)) == pytest.approx(float(loss(weight)), rel=1e-5, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(queries, scale, seeds)
def test_a_row_of_weight_0_is_not_there(sizes: list[int], scale: float, seed: int) -> None:
    student, teacher, query = batch([*sizes, 2], scale, seed)
    weight = some_weights(query, seed)
    weight[-1] = 0
    for loss in LOSSES:
        without = loss(student[:-1], teacher[:-1], query[:-1], weight[:-1])
        assert float(loss(student, teacher, query, weight)) == pytest.approx(float(without), rel=1e-5, abs=1e-6)
    shorter = soft_cross_entropy(student[:-1], teacher[:-1].sigmoid(), weight[:-1])
    assert float(soft_cross_entropy(student, teacher.sigmoid(), weight)) == pytest.approx(float(shorter), rel=1e-5)


def test_weights_do_not_lose_a_small_spread_far_from_zero() -> None:
    student, teacher = torch.zeros(4), torch.tensor([1000.0, 1000.125, 1000.25, 1000.5])
    query, weight = torch.zeros(4, dtype=torch.int64), torch.tensor([0.5, 1.0, 2.0, 3.0])
    exact = all_pairs(student, teacher, query, weight)
    assert float(margin_loss(student, teacher, query, weight)) == pytest.approx(exact, rel=1e-2)


@settings(max_examples=30, deadline=None)
@given(queries, scale, seeds, st.integers(1, 6))
def test_padding_and_order_change_nothing(sizes: list[int], scale: float, seed: int, padding: int) -> None:
    student, teacher, query = batch(sizes, scale, seed)
    order = torch.tensor(np.random.default_rng(seed).permutation(len(query) + padding))
    filler = torch.full((padding,), 1e4)
    weight = some_weights(query, seed)
    rows = [
        torch.cat([values, extra])[order]
        for values, extra in (
            (student, filler), (teacher, -filler), (query, torch.full((padding,), -1)), (weight, filler),
        )
    ]  # fmt: skip
    for loss in LOSSES:
        for padded, plain in ((rows[:3], (student, teacher, query)), (rows, (student, teacher, query, weight))):
            assert float(loss(*padded)) == pytest.approx(float(loss(*plain)), rel=1e-4, abs=1e-5)


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


def ordinal(student: torch.Tensor, teacher: torch.Tensor, query: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return ordinal_cross_entropy(student, teacher.sigmoid(), Thresholds(5)().bfloat16(), weight)


def cross_entropy(student: torch.Tensor, teacher: torch.Tensor, query: torch.Tensor, weight: torch.Tensor):
    return soft_cross_entropy(student, teacher.sigmoid(), weight)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", [*LOSSES, cross_entropy, ordinal])
def test_finite_in_bf16_with_gradients(loss, weighted: bool) -> None:
    student, teacher, query = batch([5, 1, 3], 30.0, 3)
    student = student.bfloat16().requires_grad_()
    value = loss(student, teacher.bfloat16(), query, some_weights(query, 3).bfloat16() if weighted else None)
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
    for loss in (ranknet, graded, listwise_loss):
        value = loss(student, teacher, query)
        assert float(value.detach()) == 0
        value.backward()
    assert torch.equal(student.grad, torch.zeros(2))
    assert float(pointwise_loss(student, teacher, query).detach()) == pytest.approx(2.5)


def test_a_batch_of_padding_only_is_zero() -> None:
    nothing = torch.zeros(3), torch.ones(3), torch.full((3,), -1)
    for loss in LOSSES:
        assert float(loss(*nothing)) == 0


def test_soft_cross_entropy_is_least_at_the_target() -> None:
    target = torch.tensor([0.25, 0.5, 0.9])
    at_target = soft_cross_entropy(torch.logit(target), target)
    expected = -(target * target.log() + (1 - target) * (1 - target).log()).mean()
    assert float(at_target) == pytest.approx(float(expected), rel=1e-5)
    assert soft_cross_entropy(torch.logit(target) + 0.3, target) > at_target


# Ordinal --------------------------------------------------------------------------------------------------------------

levels = st.integers(2, 7)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), levels, seeds)
def test_ordinal_is_the_mean_of_its_steps(rows: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logit, target = torch.tensor(rng.normal(size=rows)), torch.tensor(rng.uniform(size=rows))
    thresholds, weight = torch.tensor(np.sort(rng.normal(size=levels - 1))), torch.tensor(rng.uniform(0.3, 3, rows))
    losses = []
    for s, y in zip(logit.tolist(), target.tolist(), strict=True):
        steps = []
        for k, threshold in enumerate(thresholds.tolist()):
            above, p = min(max(y * (levels - 1) - k, 0), 1), 1 / (1 + np.exp(threshold - s))
            steps.append(-above * np.log(p) - (1 - above) * np.log(1 - p))
        losses.append(np.mean(steps))
    assert float(ordinal_cross_entropy(logit, target, thresholds)) == pytest.approx(np.mean(losses), rel=1e-4)
    weighted = np.average(losses, weights=weight.numpy())
    assert float(ordinal_cross_entropy(logit, target, thresholds, weight)) == pytest.approx(weighted, rel=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), seeds)
def test_two_levels_around_0_are_binary(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logit, target = (torch.tensor(values, dtype=torch.float32) for values in (rng.normal(size=rows), rng.random(rows)))
    assert Thresholds(2)().tolist() == [0]
    binary = soft_cross_entropy(logit, target)
    assert float(ordinal_cross_entropy(logit, target, torch.zeros(1))) == pytest.approx(float(binary), rel=1e-6)
    assert float(binary) == pytest.approx(float(binary_cross_entropy_with_logits(logit, target)), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(levels, seeds)
def test_thresholds_begin_symmetric_and_stay_in_order(levels: int, seed: int) -> None:
    torch.manual_seed(seed)
    thresholds = Thresholds(levels)
    start = thresholds().detach()
    assert start.dtype == torch.float32 and len(start) == levels - 1
    assert torch.allclose(start, -start.flip(0), atol=1e-5)
    above = torch.cat([torch.ones(1), torch.sigmoid(-start), torch.zeros(1)])
    assert torch.allclose(-above.diff(), torch.full((levels,), 1 / levels), atol=1e-5), "equally likely at 0"
    optimizer = torch.optim.SGD(thresholds.parameters(), lr=5.0)
    for _ in range(30):
        optimizer.zero_grad()
        ordinal_cross_entropy(4 * torch.randn(8), torch.rand(8), thresholds()).backward()
        optimizer.step()
    assert (thresholds().diff() >= 0).all() and torch.isfinite(thresholds()).all()
    assert not torch.equal(thresholds().detach(), start)


def test_thresholds_find_the_levels_of_a_scale() -> None:
    torch.manual_seed(0)
    expected, logit = torch.tensor([-1.0, 0.25, 2.0]), 2 * torch.randn(20_000)
    level = (logit[:, None] + torch.logit(torch.rand(20_000, 1)) > expected).sum(1)
    thresholds = Thresholds(4)
    optimizer = torch.optim.Adam(thresholds.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        ordinal_cross_entropy(logit, level / 3, thresholds()).backward()
        optimizer.step()
    assert torch.allclose(thresholds(), expected, atol=0.1)


def test_a_scale_has_two_levels_at_least() -> None:
    with pytest.raises(ValueError, match="levels is 1, expected at least 2"):
        Thresholds(1)
