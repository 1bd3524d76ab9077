"""The report's plots, as SVG to be put into a page: text stays text, and the page's font applies to it.

Only fixed words are drawn, never text from queries or products.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, which colour-blind readers can tell apart too; systems also differ by their labels.
COLOURS = {
    "student": "#0072b2",
    "teacher": "#c4580a",
    "champion": "#7a4e9f",
    "bm25": "#5b6470",
    "random": "#9aa1ab",
}
INK, MUTED, LINE, FAINT, WORSE = "#1b1f24", "#5b6470", "#d5d9de", "#eef0f3", "#c4580a"

MINUS = "\N{MINUS SIGN}"
PIXELS_PER_INCH = 102.5  # 9.6 inches fill the page's 984 pixels

QUARTERS = [0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"]

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.unicode_minus": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.9,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def _panels(width: float, height: float, columns: int, rows: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.05, hspace=0.08)
    figure = Figure(figsize=(width, height), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def _svg(figure: Figure, name: str, description: str) -> str:
    buffer = io.StringIO()
    # The salt keeps identifiers apart on a page with many plots, and the same from run to run.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    opening, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    label = html.escape(description, quote=True)
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    # One scale for all plots, so that their text has one size.
    width = f"max-width:{figure.get_figwidth() * PIXELS_PER_INCH:.0f}px"
    namespace = "http://www.w3.org/1999/xlink"
    return (
        f'<svg xmlns:xlink="{namespace}" {box[0] if box else ""} style="{width}" role="img" aria-label="{label}">{body}'
    )


def _format(value: float, digits: int = 4) -> str:
    return f"{value:+z.{digits}f}".replace("-", MINUS).replace("0.", ".", 1)


def deltas(comparisons: Sequence[Mapping[str, Any]], metrics: Mapping[str, str], names: Mapping[str, str]) -> str:
    """The student's differences with their intervals: a panel a measure, a row a baseline.

    Args:
        comparisons: entries of metrics.json whose system is the student.
        metrics: labels of the measures to draw, by key.
        names: labels of the systems, by key.
    """
    baselines = [name for name in names if any(entry["baseline"] == name for entry in comparisons)]
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(9.6, 0.75 + 0.5 * len(baselines), len(metrics), sharey=True)
        for ax, (metric, title) in zip(axes, metrics.items(), strict=True):
            ax.axvline(0, color=MUTED, linewidth=1)
            for row, baseline in enumerate(reversed(baselines)):
                for entry in comparisons:
                    if (entry["baseline"], entry["metric"]) != (baseline, metric):
                        continue
                    low, high = entry["ci_low"], entry["ci_high"]
                    colour = COLOURS["student"] if low > 0 else WORSE if high < 0 else MUTED
                    ax.plot([low, high], [row, row], color=colour, linewidth=2.4, alpha=0.55)
                    ax.plot(entry["delta"], row, "o" if low > 0 or high < 0 else "D", color=colour, markersize=6)
                    ax.annotate(
                        _format(entry["delta"]), (entry["delta"], row), (0, 8), textcoords="offset points",
                        ha="center", color=INK, fontsize=9, bbox={"fc": "white", "ec": "none", "pad": 0.8},
                    )  # fmt: skip
            ax.set_title(title)
            ax.grid(axis="y", visible=False)
            ax.spines["left"].set_visible(False)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.xaxis.set_major_formatter(lambda value, _: _format(value, 2) if abs(value) > 1e-9 else "0")
            ax.set_ylim(-0.5, len(baselines) - 0.3)
            ax.set_yticks(range(len(baselines)), [f"vs {names[name]}" for name in reversed(baselines)])
            ax.tick_params(axis="y", labelcolor=INK)
            ax.margins(x=0.15)
        return _svg(figure, "deltas", "Intervals of the student's differences against each baseline, by measure")


def learning(curves: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Loss and dev nDCG@10 over the steps: a column a model; the kept weights are ringed.

    Args:
        curves: metrics.json of teacher and student, by key.
        names: labels of the systems, by key.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(9.6, 4.3, len(curves), 2, sharex="col")
        for column, (name, metrics) in enumerate(curves.items()):
            curve, dev, colour = metrics["curve"], metrics.get("dev", {}), COLOURS[name]
            steps = [row["step"] for row in curve]
            upper, lower = axes[column], axes[len(curves) + column]
            reached = [row["dev_ndcg_at_10"] for row in curve]
            if column:  # nDCG compares across models; their losses are not of one kind, so those do not
                upper.sharey(axes[0])
            upper.plot(steps, reached, "o-", color=colour, markersize=4, linewidth=1.8)
            if reached:
                best = int(np.argmax(reached))
                upper.plot(steps[best], reached[best], "o", markersize=11, markerfacecolor="none", color=colour)
            if "bm25" in dev:
                upper.axhline(dev["bm25"], color=COLOURS["bm25"], linewidth=1.1, linestyle=(0, (4, 3)))
                upper.annotate(
                    "BM25", (0, dev["bm25"]), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                    color=MUTED, fontsize=9,
                )  # fmt: skip
            lower.plot(steps, [row["loss"] for row in curve], "o-", color=colour, markersize=4, linewidth=1.8)
            upper.set_title(f"{names[name]}: dev nDCG@10")
            lower.set_title(f"{names[name]}: training loss")
            lower.set_xlabel("step")
            lower.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            upper.margins(y=0.18)
            upper.yaxis.set_major_formatter(lambda value, _: f"{value:.2f}".replace("0.", ".", 1))
            upper.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        return _svg(figure, "learning", "Dev nDCG@10 and training loss over the steps, for teacher and student")


def reliability(
    diagrams: Mapping[str, Sequence[Mapping[str, Any]]], names: Mapping[str, str], name: str = "reliability"
) -> str:
    """Mean judgement against mean probability in each bin, a panel a system; the area of a point is its rows.

    Args:
        diagrams: bins with mean_probability, mean_target and count, by system.
        names: labels of the systems, by key.
        name: of the plot, one of its own on a page.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(3.2 * len(diagrams), 3.4, len(diagrams), sharey=True)
        for ax, (system, bins) in zip(axes, diagrams.items(), strict=True):
            ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            said, seen = ([part[key] for part in bins] for key in ("mean_probability", "mean_target"))
            largest = max(part["count"] for part in bins)
            areas = [12 + 110 * part["count"] / largest for part in bins]
            ax.plot(said, seen, color=COLOURS[system], linewidth=1.2, alpha=0.5)
            ax.scatter(said, seen, areas, color=COLOURS[system], zorder=3)
            ax.set(
                title=names[system], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xlabel="probability given"
            )
            ax.set_xticks(*QUARTERS)
            ax.set_yticks(*QUARTERS)
        axes[0].set_ylabel("mean judgement")
        return _svg(figure, name, "Reliability diagrams: mean judgement against the probability given")


def scores(parts: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Mapping[str, str], label: str) -> str:
    """Histograms of a system's scores for relevant and for other pairs, a panel a system.

    Args:
        parts: scores of relevant pairs and of the others, by system.
        names: labels of the systems, by key.
        label: what the scores are.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(4.8 * len(parts), 2.7, len(parts))
        for ax, (name, (relevant, others)) in zip(axes, parts.items(), strict=True):
            both = np.concatenate([relevant, others])
            probabilities = both.min() >= 0 and both.max() <= 1
            edges = np.histogram_bin_edges(both, 24, (0, 1) if probabilities else None).tolist()
            for values, colour, kind in ((others, MUTED, "not relevant"), (relevant, COLOURS[name], "relevant")):
                ax.hist(
                    values, edges, weights=np.full(len(values), 1 / max(len(values), 1)), histtype="stepfilled",
                    facecolor=(*matplotlib.colors.to_rgb(colour), 0.22), edgecolor=colour, linewidth=1.4, label=kind,
                )  # fmt: skip
            ax.set(title=names[name], xlabel=label)
            ax.yaxis.set_major_locator(MaxNLocator(4))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            ax.legend(loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=2, columnspacing=1.2, handlelength=1.4)
            if probabilities:
                ax.set_xticks(*QUARTERS)
        axes[0].set_ylabel("share of pairs")
        return _svg(figure, "scores", "Distributions of scores for relevant pairs and for others")


def logits(histograms: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    """Distributions of a teacher's logits over one another, as shares of the pairs of each.

    Args:
        histograms: by label, `counts` of bins of `width` from `low` upwards.
        colours: by label, the system whose colour it is drawn in.
    """
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _panels(4.6, 3.4, 1)
        for label, histogram in histograms.items():
            counts, colour = np.array(histogram["counts"], np.float64), COLOURS[colours[label]]
            edges = histogram["low"] + histogram["width"] * np.arange(len(counts) + 1)
            ax.stairs(
                counts / counts.sum(), edges, fill=True, facecolor=(*matplotlib.colors.to_rgb(colour), 0.22),
                edgecolor=colour, linewidth=1.4, label=label,
            )  # fmt: skip
        ax.set(title="The teacher's logits", xlabel="logit", ylabel="share of pairs")
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.legend(loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=2, columnspacing=1.2, handlelength=1.4)
        return _svg(figure, "logits", "Distributions of the teacher's logits on judged and on labelled pairs")


def query_deltas(values: np.ndarray) -> str:
    """Histogram of per-query differences of nDCG@10, student minus BM25, shape (queries,)."""
    reach = max(float(np.abs(values).max()), 0.01)
    edges = np.linspace(-reach, reach, 42)  # an odd number of bins, so that the middle one holds the ties
    counts, _ = np.histogram(values, edges)
    centres = (edges[1:] + edges[:-1]) / 2
    middle = np.abs(centres) < reach / 100
    colours = np.where(middle, COLOURS["random"], np.where(centres > 0, COLOURS["student"], WORSE))
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _panels(9.6, 2.4, 1)
        ax.bar(centres, counts, width=edges[1] - edges[0], color=colours.tolist(), edgecolor="white", linewidth=0.8)
        ax.axvline(0, color=MUTED, linewidth=1)
        ax.set(xlabel="nDCG@10 of the query, student minus BM25", ylabel="queries", xlim=(-reach, reach))
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.xaxis.set_major_formatter(lambda value, _: _format(value, 2) if abs(value) > 1e-9 else "0")
        return _svg(figure, "queries", "Histogram of the difference in nDCG@10 by query, student minus BM25")


def targets(values: np.ndarray, relevant_from: float | None) -> str:
    """Histogram of the judgements' soft targets in [0, 1], shape (pairs,), with the threshold of relevance."""
    edges = np.linspace(-0.025, 1.025, 22)
    counts, _ = np.histogram(values, edges)
    centres = (edges[1:] + edges[:-1]) / 2
    relevant = centres >= (2.0 if relevant_from is None else relevant_from - 0.025)
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _panels(4.7, 2.5, 1)
        colours = np.where(relevant, COLOURS["student"], COLOURS["random"]).tolist()
        ax.bar(centres, counts / max(len(values), 1), width=0.04, color=colours)
        if relevant_from is not None:
            ax.axvline(relevant_from - 0.025, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            ax.annotate(
                "relevant", (relevant_from - 0.025, 1), (4, -2), xycoords=("data", "axes fraction"),
                textcoords="offset points", va="top", color=MUTED, fontsize=9,
            )  # fmt: skip
        ax.set(xlabel="soft target", ylabel="share of pairs", xlim=(-0.05, 1.05))
        ax.set_xticks(*QUARTERS)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        return _svg(figure, "targets", "Distribution of the judgements' soft targets")


# The data profile -------------------------------------------------------------------------------------------------


def _grouped(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f")


def frequency(curve: Sequence[Mapping[str, float]], torso_from: float, tail_from: float) -> str:
    """How often the query of each rank was seen, and the share of all impressions down to it; ranks on a log scale.

    Args:
        curve: entries with rank, impressions and share, ranks ascending.
        torso_from: share of impressions at which the torso begins.
        tail_from: likewise the tail.
    """
    ranks, impressions, share = ([entry[key] for entry in curve] for key in ("rank", "impressions", "share"))
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(9.6, 3.0, 2)
        titles = "Impressions of the query at each rank", "Share of all impressions down to it"
        for ax, values, title in zip(axes, (impressions, share), titles, strict=True):
            ax.plot(ranks, values, "o-", color=COLOURS["student"], markersize=4.5, linewidth=1.8, clip_on=False)
            ax.set(title=title, xlabel="rank of the query, most frequent first", xscale="log")
            ax.set_xlim(0.9, max(ranks[-1], 10) * 1.1)
            ax.xaxis.set_major_formatter(lambda value, _: _grouped(value))
            ax.minorticks_off()
        axes[0].set_yscale("log")
        axes[0].set_ylim(0.8, 10 ** np.ceil(np.log10(max(impressions[0], 10))) * 1.1)
        axes[0].yaxis.set_major_formatter(lambda value, _: _grouped(value))
        axes[0].minorticks_off()
        axes[1].set_ylim(0, 1.03)
        axes[1].set_yticks(QUARTERS[0])
        axes[1].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for bound, name in ((torso_from, "torso"), (tail_from, "tail")):
            axes[1].axhline(bound, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            axes[1].annotate(
                f"{name} from here", (0, bound), (5, 4), xycoords=("axes fraction", "data"),
                textcoords="offset points", color=MUTED, fontsize=9,
            )  # fmt: skip
        return _svg(figure, "frequency", "Impressions by rank of the query, and their cumulative share, on log scales")


def ratings(counts: Mapping[str, int]) -> str:
    """How many judged pairs have each rating, as bars; rating by rating if there are few, else to scale.

    Args:
        counts: pairs by rating, a number as text, ascending.
    """
    few = len(counts) <= 20
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _panels(9.6, 2.5, 1)
        values = np.array([float(rating) for rating in counts])
        places = np.arange(len(values)) if few else values
        labels = [f"{value:.4g}" for value in values]
        width = 0.68 if few else 0.8 * float(np.diff(values).min())
        ax.bar(places, list(counts.values()), width=width, color=COLOURS["student"])
        if few:
            ax.set_xticks(places, labels if len(set(labels)) == len(counts) else list(counts))
            ax.set_xlim(-0.6, max(len(counts), 5) - 0.4)
            for place, count in zip(places, counts.values(), strict=True):
                ax.annotate(
                    _grouped(count), (place, count), (0, 3), textcoords="offset points", ha="center", fontsize=9
                )
        ax.grid(axis="x", visible=False)
        ax.set(xlabel="rating, on the source's scale", ylabel="judged pairs")
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_formatter(lambda value, _: _grouped(value))
        ax.margins(y=0.14)
        return _svg(figure, "ratings", "Number of judged pairs with each rating")


def target_tenths(sides: Mapping[str, Mapping[str, Any]]) -> str:
    """Soft targets of the judged pairs in each tenth of [0, 1], a panel a side.

    Args:
        sides: `mean` and `tenths`, the number of pairs in each tenth, by side.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(9.6, 2.3, len(sides), sharey=True)
        for ax, (side, distribution) in zip(axes, sides.items(), strict=True):
            tenths = np.array(distribution["tenths"])
            ax.bar(np.arange(10) / 10 + 0.05, tenths / max(tenths.sum(), 1), width=0.085, color=COLOURS["student"])
            ax.axvline(distribution["mean"], color=WORSE, linewidth=1.6)
            mean = f"{distribution['mean']:.3f}".replace("0.", ".", 1)
            ax.set(title=f"{side.capitalize()}: mean {mean}", xlabel="soft target", xlim=(-0.01, 1.01))
            ax.set_xticks(*QUARTERS)
            ax.grid(axis="x", visible=False)
            ax.yaxis.set_major_locator(MaxNLocator(4))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes[0].set_ylabel("share of pairs")
        return _svg(figure, "targets-by-side", "Distribution of the judgements' soft targets, by side of the split")
