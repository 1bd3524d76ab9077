"""Losses over a flat batch of whole queries: one row per product; `query` groups the rows.

| loss | what the student learns | teacher | student | of a query |
| --- | --- | --- | --- | --- |
| margin_loss | all differences of scores, squared error | logit or probability | the same | two products or more |
| ranknet_loss | which of two products is preferred, cross-entropy | preference of each pair | logit | two or more |
| listwise_loss | distribution of the query's relevance, divergence | logit or probability | the same | two or more |
| pointwise_loss | each score, squared error | logit or probability | the same | one or more |
| pointwise_cross_entropy | each probability, cross-entropy | probability | logit | one or more |

A row whose `query` is negative is padding and is ignored. Weights are not negative, of shape (rows,); only
their ratios matter, and None is a weight of 1 for every row. In these losses, all queries have equal weight.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, softplus


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
    for O(n) arithmetic. It is invariant to a shift per query.

    With weights a margin counts w_i w_j: sum_{i<j} w_i w_j (r_i - r_j)^2 / sum_{i<j} w_i w_j, which with W = sum(w) and
    the weighted mean m of r is 2 * sum_i w_i (r_i - m)^2 / sum_i w_i (1 - w_i / W). For w_i one over the variance of
    t_i this is generalized least squares with a free shift per query (Aitken 1935): the product is the right weight.

    Args:
        student: scores, shape (rows,), any float type.
        teacher: scores on the same scale, shape (rows,).
        query: integer that rows of one query share, shape (rows,), in any order; negative: padding.
        weight: weight of each row; queries have equal weight, whatever the sum of their rows' weights.

    Returns:
        Scalar in fp32; 0 where no query has two products.

    Example:
        >>> student, teacher = torch.tensor([1.0, 0.0, 5.0]), torch.tensor([3.0, 1.0, 2.0])
        >>> float(margin_loss(student, teacher, query=torch.tensor([0, 0, 1])))  # ((3 - 1) - (1 - 0))^2
        1.0
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
    """Mean over queries of the mean squared residual; it fixes the level that margins leave open (arXiv 2411.04539).

    Arguments as in `margin_loss`; queries with one product count too. 0 where there are no rows.

    Example:
        >>> student, teacher = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 1.0])
        >>> float(pointwise_loss(student, teacher, query=torch.tensor([0, 0])))  # (2^2 + 1^2) / 2
        2.5
    """
    residual, weight, query, queries = _residuals(student, teacher, query, weight)
    total = _sum_by_query(weight, query, queries)
    squares = _sum_by_query(weight * residual.square(), query, queries)
    return (squares / total.clamp(min=1e-12)).sum() / max(queries, 1)


def pointwise_cross_entropy(student: Tensor, teacher: Tensor, query: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over queries of the mean binary cross-entropy of logits against soft labels.

    Args:
        student: logits, shape (rows,).
        teacher: probabilities in [0, 1], shape (rows,).
        query: as in `margin_loss`.
        weight: as in `margin_loss`.

    Example:
        >>> loss = pointwise_cross_entropy(torch.zeros(2), torch.tensor([1.0, 0.0]), query=torch.tensor([0, 0]))
        >>> round(float(loss), 4)  # log 2
        0.6931
    """
    real = query >= 0
    _, query = torch.unique(query[real], return_inverse=True)
    queries = int(query.max()) + 1 if len(query) else 0
    loss = binary_cross_entropy_with_logits(student[real].float(), teacher[real].float(), reduction="none")
    weight = torch.ones_like(loss) if weight is None else weight[real].float()
    total = _sum_by_query(weight, query, queries)
    return (_sum_by_query(weight * loss, query, queries) / total.clamp(min=1e-12)).sum() / max(queries, 1)


def _as_lists(query: Tensor) -> tuple[Tensor, Tensor]:
    """Row indices by query, int64, shape (queries, longest), and which entries are real, bool, of the same shape."""
    rows = torch.nonzero(query >= 0)[:, 0]
    if not len(rows):
        return rows.view(0, 0), rows.view(0, 0).bool()
    _, number, sizes = torch.unique(query[rows], return_inverse=True, return_counts=True)
    column = torch.arange(int(sizes.max()), device=query.device)[None]
    index = (sizes.cumsum(0) - sizes)[:, None] + column
    return rows[torch.argsort(number, stable=True)][index.clamp(max=len(rows) - 1)], column < sizes[:, None]


def ranknet_loss(
    student: Tensor,
    preference: Callable[[Tensor, Tensor], Tensor],
    teacher: Tensor,
    query: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean over queries of the mean cross-entropy of all pairwise preferences (RankNet; Burges et al., ICML 2005).

    With P_ij the probability that product i is preferred to j: -P_ij log sigmoid(s_i - s_j) - (1 - P_ij) log
    sigmoid(s_j - s_i), a pair counting w_i w_j. Once a pair is far apart, only its order matters, so unlike
    `margin_loss` it does not fit large margins.

    Args:
        student: logits, shape (rows,).
        preference: P_ij from the teacher's scores of i and j: `prefer_by_logit` or `prefer_by_probability`.
        teacher: what `preference` takes, shape (rows,).
        query: as in `margin_loss`.
        weight: as in `margin_loss`.

    Example:
        >>> student, teacher = torch.zeros(2), torch.tensor([1.0, 0.0])
        >>> loss = ranknet_loss(student, prefer_by_probability, teacher, query=torch.tensor([0, 0]))
        >>> round(float(loss), 4)  # log 2: the student has no preference
        0.6931
    """
    rows, held = _as_lists(query)
    s, t = student.float()[rows], teacher.float()[rows]
    w = torch.where(held, 1.0 if weight is None else weight.float()[rows], 0.0)
    pair = (w[:, :, None] * w[:, None, :]).triu(diagonal=1)
    loss = binary_cross_entropy_with_logits(
        s[:, :, None] - s[:, None, :], preference(t[:, :, None], t[:, None, :]), reduction="none"
    )
    total = pair.sum((1, 2))
    paired = total > 0
    return ((pair * loss).sum((1, 2))[paired] / total[paired]).sum() / paired.sum().clamp(min=1)


def prefer_by_logit(first: Tensor, second: Tensor) -> Tensor:
    """Bradley-Terry: sigmoid of the difference of logits."""
    return (first - second).sigmoid()


def prefer_by_probability(first: Tensor, second: Tensor) -> Tensor:
    """(1 + p_i - p_j) / 2: probability that i is relevant and j is not, plus half of that of a tie, if independent."""
    return (1 + first - second) / 2


def listwise_loss(
    student: Tensor, teacher: Tensor, query: Tensor, weight: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Mean over queries of KL(softmax(t / T) || softmax(s / T)) T^2 (ListNet, Cao et al., ICML 2007, with a softened
    teacher, arXiv 1503.02531, whose T^2 keeps the gradient's scale).

    Args:
        student: scores, shape (rows,).
        teacher: scores on the same scale, shape (rows,).
        query: as in `margin_loss`.
        weight: number of copies that a row counts as, in both distributions.
        temperature: T; a higher one gives lower ranks more weight.

    Example:
        >>> scores = torch.tensor([2.0, 1.0])
        >>> float(listwise_loss(scores + 5, scores, query=torch.tensor([0, 0])))  # a shift per query costs nothing
        0.0
    """
    rows, held = _as_lists(query)
    held = held & (torch.ones_like(held) if weight is None else weight[rows] > 0)
    paired = held.sum(1) > 1
    rows, held = rows[paired], held[paired]
    times = 0.0 if weight is None else weight.float()[rows].clamp(min=1e-30).log()
    log_t, log_s = (
        log_softmax((scores.float()[rows] / temperature + times).masked_fill(~held, -torch.inf), dim=1)
        for scores in (teacher, student)
    )
    divergence = torch.where(held, log_t.exp() * (log_t - log_s), 0.0).sum(1)
    return temperature**2 * divergence.sum() / paired.sum().clamp(min=1)


def _mean(loss: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return loss.mean()
    weight = weight.float()
    return (weight * loss).sum() / weight.sum().clamp(min=1e-12)


def soft_cross_entropy(logit: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of logits, shape (rows,), against soft targets in [0, 1], shape (rows,).

    Example:
        >>> round(float(soft_cross_entropy(torch.zeros(2), torch.tensor([0.5, 1.0]))), 4)  # log 2
        0.6931
    """
    return _mean(binary_cross_entropy_with_logits(logit.float(), target.float(), reduction="none"), weight)


class Thresholds(nn.Module):
    """Trainable thresholds between the levels of a rating, on the scale of the logit: fp32, shape (levels - 1,).

    They are always ascending: the parameters are the first threshold and, through a softplus, the gaps to the next.
    Initially a logit of 0 makes all levels equally likely, which is symmetric around 0.

    Example:
        >>> Thresholds(levels=2)().tolist()  # one threshold, between two equally likely levels
        [0.0]
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
        weight: weight of each row.

    Example:
        >>> logit, target = torch.tensor([0.3, -1.2]), torch.tensor([1.0, 0.0])
        >>> two_levels = ordinal_cross_entropy(logit, target, thresholds=torch.zeros(1))
        >>> bool(torch.isclose(two_levels, soft_cross_entropy(logit, target)))
        True
    """
    steps = len(thresholds)
    above = target.float()[:, None] * steps - torch.arange(steps, device=target.device)
    step_logits = logit.float()[:, None] - thresholds.float()
    loss = binary_cross_entropy_with_logits(step_logits, above.clamp(0, 1), reduction="none")
    return _mean(loss.mean(dim=1), weight)
