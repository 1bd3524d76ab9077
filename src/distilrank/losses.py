"""Losses over a flat batch of whole queries: one row a product, `query` says which rows belong together.

A row whose `query` is negative is padding and counts for nothing. Weights are not negative, of shape (rows,); only
their ratios matter, and None is a weight of 1 for every row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus


def _sum_by_query(values: Tensor, query: Tensor, queries: int) -> Tensor:
    return values.new_zeros(queries).index_add(0, query, values)


def _residuals(
    student: Tensor, teacher: Tensor, query: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, int]:
    # fp32, since squares of bf16 residuals keep two digits
    real = query >= 0
    _, query = torch.unique(query[real], return_inverse=True)
    residual = teacher[real].float() - student[real].float()
    weight = torch.ones_like(residual) if weight is None else weight[real].float()
    return residual, weight, query, int(query.max()) + 1 if len(query) else 0


def margin_loss(student: Tensor, teacher: Tensor, query: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over queries of the mean squared error of all pairwise margins.

    For a query of n products, 2/(n(n-1)) * sum_{i<j} ((t_i - t_j) - (s_i - s_j))^2 (arXiv 2505.07105). With the
    residuals r = t - s that is 2/(n-1) * sum_i (r_i - mean(r))^2, twice their unbiased variance: all n(n-1)/2 margins
    for O(n) arithmetic. It does not see a shift per query.

    With weights a margin counts w_i w_j: sum_{i<j} w_i w_j (r_i - r_j)^2 / sum_{i<j} w_i w_j, which with W = sum(w) and
    the weighted mean m of r is 2 * sum_i w_i (r_i - m)^2 / sum_i w_i (1 - w_i / W). For w_i one over the variance of
    t_i this is generalised least squares with a free shift per query (Aitken 1935): the product is the right weight.

    Args:
        student: scores, shape (rows,), any float type.
        teacher: scores on the same scale, shape (rows,).
        query: integer that rows of one query share, shape (rows,), in any order; negative: padding.
        weight: of each row; queries count alike, whatever their weights add up to.

    Returns:
        Scalar in fp32; 0 where no query has two products.
    """
    residual, weight, query, queries = _residuals(student, teacher, query, weight)
    total = _sum_by_query(weight, query, queries)
    mean = _sum_by_query(weight * residual, query, queries) / total.clamp(min=1e-12)
    squares = _sum_by_query(weight * (residual - mean[query]).square(), query, queries)
    # n - 1 for equal weights
    freedom = _sum_by_query(weight * (total[query] - weight), query, queries) / total.clamp(min=1e-12)
    paired = freedom > 0
    return (2 * squares[paired] / freedom[paired]).sum() / paired.sum().clamp(min=1)


def pointwise_loss(student: Tensor, teacher: Tensor, query: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over queries of the mean squared residual: it anchors the level that margins leave open (arXiv 2411.04539).

    Arguments as in `margin_loss`; queries with one product count too. 0 where there are no rows.
    """
    residual, weight, query, queries = _residuals(student, teacher, query, weight)
    total = _sum_by_query(weight, query, queries)
    squares = _sum_by_query(weight * residual.square(), query, queries)
    return (squares / total.clamp(min=1e-12)).sum() / max(queries, 1)


def _mean(loss: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return loss.mean()
    weight = weight.float()
    return (weight * loss).sum() / weight.sum().clamp(min=1e-12)


def soft_cross_entropy(logit: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of logits, shape (rows,), against soft targets in [0, 1], shape (rows,)."""
    return _mean(binary_cross_entropy_with_logits(logit.float(), target.float(), reduction="none"), weight)


class Thresholds(nn.Module):
    """Where on the scale of the logit each level of a rating ends: fp32, shape (levels - 1,), always ascending.

    Kept as the first threshold and the gaps to the next (through a softplus, so that no step can bring two out of
    order). At first a logit of 0 makes all levels equally likely, which is symmetric around 0.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels is {levels}, expected at least 2")
        start = torch.logit(torch.arange(1, levels, dtype=torch.float32) / levels)
        self.first = nn.Parameter(start[:1])
        self.gaps = nn.Parameter(start.diff().expm1().log())  # the inverse of softplus

    def forward(self) -> Tensor:
        gaps = softplus(self.gaps)
        up_to = torch.ones(len(gaps), len(gaps), device=gaps.device).tril()  # cumsum has no deterministic form on GPUs
        return torch.cat([self.first, self.first + up_to @ gaps])


def ordinal_cross_entropy(logit: Tensor, target: Tensor, thresholds: Tensor, weight: Tensor | None = None) -> Tensor:
    """Proportional odds (McCullagh 1980): one cross-entropy for each step of the scale, all by the same logit.

    P(level > k) = sigmoid(logit - threshold_k) for k from 0 to L - 2. A target y in [0, 1] goes to the steps as
    clip(y (L - 1) - k, 0, 1): they add up to y (L - 1), so the mean of several raters needs no rounding. The mean over
    rows is of the mean over steps, so the loss keeps its scale for any L; two levels and a threshold of 0 are
    `soft_cross_entropy`.

    Args:
        logit: the ranking score, shape (rows,).
        target: soft targets in [0, 1], shape (rows,).
        thresholds: ascending, shape (L - 1,), as `Thresholds` gives them.
        weight: of each row.
    """
    steps = len(thresholds)
    above = target.float()[:, None] * steps - torch.arange(steps, device=target.device)
    given = logit.float()[:, None] - thresholds.float()
    loss = binary_cross_entropy_with_logits(given, above.clamp(0, 1), reduction="none")
    return _mean(loss.mean(dim=1), weight)
