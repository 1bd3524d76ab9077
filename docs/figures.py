"""Draw the figures of the documentation that show no measurement: `python docs/figures.py` writes docs/*.svg.

The figures of measurements come from the benchmark that measures them (docs/distillation.svg, docs/gate.svg).
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

DOCS = Path(__file__).parent
INK, MUTED, LINE, DATA, WORK, DECISION = "#1b1f24", "#5b6470", "#8a939e", "#eef0f3", "#dcebf5", "#e6f3ec"
Point = tuple[float, float]
STYLE = {"font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "docs", "font.family": "sans-serif"}


def _box(axes: Axes, x: float, y: float, name: str, note: str, color: str, width: float = 1.72) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.36), width, 0.72, boxstyle="round,pad=0,rounding_size=0.1", fc=color, ec=LINE
        )
    )
    axes.text(x, y + 0.12, name, ha="center", va="center", weight="bold", color=INK)
    axes.text(x, y - 0.16, note, ha="center", va="center", size=7.5, color=MUTED)


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "", dashed: bool = False
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=11, color=LINE, lw=1.2, shrinkA=0, shrinkB=0,
            linestyle="--" if dashed else "-",
        )
    )  # fmt: skip
    if label:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(x, y + 0.09, label, ha="center", va="bottom", size=7.5, color=MUTED)


def pipeline() -> Figure:
    """The stages of a run and what they hand to one another."""
    figure = Figure(figsize=(11.2, 4.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 14), ylim=(0, 5.5))
    axes.axis("off")
    rows = {"top": 4.6, "middle": 2.75, "bottom": 0.9}
    for y, (name, note) in zip(
        rows.values(),
        [
            ("judgements", "people's ratings"),
            ("catalogue", "titles, brands, types"),
            ("search log", "impressions, clicks"),
        ],
        strict=True,
    ):
        _box(axes, 1.1, y, name, note, DATA)
        _arrow(axes, (1.97, y), (2.75, 2.75 + (y - 2.75) * 0.12))
    _box(axes, 3.65, rows["middle"], "prepare", "split, scrub, mine", WORK)
    _box(axes, 6.3, rows["top"], "teacher", "LLM, LoRA", WORK)
    _box(axes, 6.3, rows["middle"], "label", "a task per shard", WORK)
    _box(axes, 6.3, rows["bottom"], "drift", "then and now", WORK)
    _box(axes, 8.95, rows["middle"], "student", "cross-encoder, ONNX", WORK)
    _box(axes, 8.95, rows["top"], "evaluate", "paired intervals", WORK)
    _box(axes, 11.0, rows["bottom"], "gate", "your policy", DECISION)
    _box(axes, 12.9, rows["middle"], "promote", "alias champion", DECISION)
    _box(axes, 12.9, rows["top"], "registry", "immutable versions", DATA)
    _arrow(axes, (4.2, 3.11), (5.42, 4.5), "")
    axes.text(4.35, 3.98, "judged pairs", ha="center", size=7.5, color=MUTED)
    _arrow(axes, (4.53, rows["middle"]), (5.42, rows["middle"]), "candidates")
    _arrow(axes, (4.2, 2.39), (5.42, 1.0))
    axes.text(4.35, 1.5, "traffic", ha="center", size=7.5, color=MUTED)
    _arrow(axes, (6.3, 4.22), (6.3, 3.13))
    _arrow(axes, (7.18, rows["middle"]), (8.07, rows["middle"]), "logits")
    _arrow(axes, (8.95, 3.13), (8.95, 4.22))
    _arrow(axes, (7.18, rows["top"]), (8.07, rows["top"]))
    _arrow(axes, (12.02, rows["top"]), (9.83, rows["top"]), "champion, anchor", dashed=True)
    _arrow(axes, (9.6, 4.22), (10.75, 1.28))
    axes.text(10.55, 2.75, "metrics", ha="center", size=7.5, color=MUTED)
    _arrow(axes, (7.18, rows["bottom"]), (10.12, rows["bottom"]), "what moved in the traffic")
    _arrow(axes, (11.6, 1.28), (12.55, 2.37))
    axes.text(12.42, 1.68, "if it passes", ha="left", size=7.5, color=MUTED)
    _arrow(axes, (12.9, 3.13), (12.9, 4.22))
    return figure


def margins() -> Figure:
    """Margins that a query of n products teaches, for n forward passes."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    products = np.arange(2, 21)
    axes.plot(products, products * (products - 1) / 2, color="#0072b2", lw=2, label="all pairs of the query: n(n-1)/2")
    axes.plot(products, products - 1, color="#c4580a", lw=2, label="one product against each other one: n-1")
    axes.set(xlabel="products of the query = forward passes (n)", ylabel="margins learned", xlim=(2, 20), ylim=(0, 200))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    with matplotlib.rc_context(STYLE):
        for figure in (pipeline, margins):
            figure().savefig(DOCS / f"{figure.__name__}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
