"""Losses over a flat batch of whole queries: one row a product, `query` says which rows belong together.

A row whose `query` is negative is padding and counts for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def _sum_by_query(values: Tensor, query: Tensor, queries: int) -> Tensor:
    return values.new_zeros(queries).index_add(0, query, values)


def _residuals(student: Tensor, teacher: Tensor, query: Tensor) -> tuple[Tensor, Tensor, int]:
    # fp32, since squares of bf16 residuals keep two digits
    real = query >= 0
    _, query = torch.unique(query[real], return_inverse=True)
    residual = teacher[real].float() - student[real].float()
    return residual, query, int(query.max()) + 1 if len(query) else 0


def margin_loss(student: Tensor, teacher: Tensor, query: Tensor) -> Tensor:
    """Mean over queries of the mean squared error of all pairwise margins.

    For a query of n products, 2/(n(n-1)) * sum_{i<j} ((t_i - t_j) - (s_i - s_j))^2 (arXiv 2505.07105). With the
    residuals r = t - s that is 2/(n-1) * sum_i (r_i - mean(r))^2, twice their unbiased variance: all n(n-1)/2 margins
    for O(n) arithmetic. It does not see a shift per query.

    Args:
        student: scores, shape (rows,), any float type.
        teacher: scores on the same scale, shape (rows,).
        query: integer that rows of one query share, shape (rows,), in any order; negative: padding.

    Returns:
        Scalar in fp32; 0 where no query has two products.
    """
    residual, query, queries = _residuals(student, teacher, query)
    count = _sum_by_query(torch.ones_like(residual), query, queries)
    mean = _sum_by_query(residual, query, queries) / count
    squares = _sum_by_query((residual - mean[query]).square(), query, queries)
    paired = count >= 2
    return (2 * squares[paired] / (count[paired] - 1)).sum() / paired.sum().clamp(min=1)


def pointwise_loss(student: Tensor, teacher: Tensor, query: Tensor) -> Tensor:
    """Mean over queries of the mean squared residual: it anchors the level that margins leave open (arXiv 2411.04539).

    Shapes as in `margin_loss`; queries with one product count too. 0 where there are no rows.
    """
    residual, query, queries = _residuals(student, teacher, query)
    count = _sum_by_query(torch.ones_like(residual), query, queries)
    return (_sum_by_query(residual.square(), query, queries) / count).sum() / max(queries, 1)


def soft_cross_entropy(logit: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits, shape (rows,), against soft targets in [0, 1], shape (rows,)."""
    return binary_cross_entropy_with_logits(logit.float(), target.float())
