"""Plots as inline SVG: text stays text, and the page's font and colors apply to it.

Only fixed words are drawn, never the text of queries or products. Every plot has a title, and most have a description
with the numbers that they show, for screen readers.
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

from distilrank.rendering.formatting import format_delta, format_interval, format_metric, format_percent, format_value
from distilrank.rendering.labels import METRICS, SYSTEMS

COLORS = {
    "student": "#0072b2",
    "teacher": "#c4580a",
    "champion": "#7a4e9f",
    "anchor": "#00796b",
    "bm25": "#5b6470",
    "random": "#9aa1ab",
}
"""Color of each system, of Okabe and Ito's palette for color-blind readers; plots name the systems too."""

INK, MUTED, LINE, FAINT, WORSE, PAPER = "#1b1f24", "#5b6470", "#d5d9de", "#eef0f3", "#c4580a", "#ffffff"

VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", FAINT: "--faint", PAPER: "--paper", WORSE: "--worse",
    COLORS["student"]: "--student", COLORS["champion"]: "--champion", COLORS["anchor"]: "--anchor",
    COLORS["random"]: "--random",
}  # fmt: skip
"""Variable of templates/style.css.j2 for each color, whose value differs between light and dark pages."""

PIXELS_PER_INCH = 102.5  # 9.6 inches fill the page's 984 pixels

QUARTERS = [0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"]
"""Ticks of an axis from 0 to 1, and their labels."""

DASHED = (0, (4, 3))

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


def _new_figure(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """Create an empty figure with axes side by side; width and height are in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.05, hspace=0.08)
    figure = Figure(figsize=(width, height), layout=layout)
    axes = figure.subplots(1, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def _to_svg(figure: Figure, name: str, title: str, description: str = "") -> str:
    """Render a figure as an SVG element.

    Args:
        figure: what is drawn.
        name: unique on the page; every id within the element begins with it.
        title: what a screen reader says first.
        description: the numbers shown; empty: none.
    """
    buffer = io.StringIO()
    # The salt makes identifiers unique on a page with many plots and equal from run to run.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    opening, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda match: _variable(match[0]), body)
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    # All plots have one scale, so that their text has one size; on a narrow screen it must stay legible.
    width = figure.get_figwidth() * PIXELS_PER_INCH
    style = f"max-width:{width:.0f}px;min-width:{0.55 * width:.0f}px"
    label = f'<title id="{name}-title">{html.escape(title)}</title>'
    describedby = ""
    if description:
        label += f'<desc id="{name}-desc">{html.escape(description)}</desc>'
        describedby = f' aria-describedby="{name}-desc"'
    return (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""} style="{style}" role="img" '
        f'aria-labelledby="{name}-title"{describedby}>{label}{body}'
    )


def _variable(color: str) -> str:
    """Return a color as CSS that follows the page's color scheme."""
    return f"var({VARIABLES[color]})" if color in VARIABLES else color


def _side_by_side(plots: Sequence[str], min_width: int = 290) -> str:
    """Arrange plots in a row, stacked if each would be narrower than `min_width` pixels."""
    return f'<div class="panels" style="--least:{min_width}px">{"".join(plots)}</div>'


def _format_delta_tick(value: float, _: float) -> str:
    return format_delta(value, 2) if abs(value) > 1e-9 else "0"


def _format_percent_tick(value: float, _: float) -> str:
    return format_percent(value)


def _format_count_tick(value: float, _: float) -> str:
    return format_value(round(value))


def _fill(color: str) -> tuple[float, ...]:
    """Return a color as the fill of a histogram that may overlap others."""
    return (*matplotlib.colors.to_rgb(color), 0.22)


# The report -------------------------------------------------------------------------------------------------------


def plot_deltas(comparisons: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """Plot the student's differences from each baseline with their intervals: a panel per metric, a row per baseline.

    Args:
        comparisons: entries of metrics.json whose system is the student.
        metrics: keys of the metrics to plot.
    """
    baselines = [name for name in SYSTEMS if any(entry["baseline"] == name for entry in comparisons)]
    plots = []
    for metric in metrics:
        title = METRICS[metric].label
        descriptions: list[str] = []
        with matplotlib.rc_context(STYLE):
            figure, (ax,) = _new_figure(3.2, 0.75 + 0.46 * len(baselines))
            ax.axvline(0, color=MUTED, linewidth=1)
            for row, baseline in enumerate(reversed(baselines)):
                for entry in comparisons:
                    if (entry["baseline"], entry["metric"]) != (baseline, metric):
                        continue
                    delta, low, high = entry["delta"], entry["ci_low"], entry["ci_high"]
                    color = COLORS["student"] if low > 0 else WORSE if high < 0 else MUTED
                    ax.plot([low, high], [row, row], color=color, linewidth=2.4, alpha=0.55)
                    ax.plot(delta, row, "o" if low > 0 or high < 0 else "D", color=color, markersize=6)
                    ax.annotate(
                        format_delta(delta), (delta, row), (0, 8), textcoords="offset points", ha="center", color=INK,
                        fontsize=9, bbox={"fc": PAPER, "ec": "none", "pad": 0.8},
                    )  # fmt: skip
                    descriptions.insert(0, f"{SYSTEMS[baseline]} {format_delta(delta)} {format_interval(low, high)}")
            ax.set_title(title)
            ax.grid(axis="y", visible=False)
            ax.spines["left"].set_visible(False)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.xaxis.set_major_formatter(_format_delta_tick)
            ax.set_ylim(-0.5, len(baselines) - 0.3)
            ax.set_yticks(range(len(baselines)), [f"vs {SYSTEMS[name]}" for name in reversed(baselines)])
            ax.tick_params(axis="y", labelcolor=INK)
            ax.margins(x=0.15)
            label = f"Differences in {title} between the student and each baseline, with intervals"
            plots.append(
                _to_svg(figure, f"deltas-{metric}", label, f"Student minus baseline: {'; '.join(descriptions)}.")
            )
    return _side_by_side(plots)


def plot_learning_curves(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Plot dev nDCG@10 and training loss by step: a column per model, with a ring around the chosen checkpoint.

    Args:
        models: metrics.json of the teacher and of the student, by key.
    """
    # nDCG@10 compares across models, so its axes are equal. The losses are of different kinds, so theirs are not.
    values = [row["dev_ndcg_at_10"] for metrics in models.values() for row in metrics["curve"]]
    values += [metrics["dev"]["bm25"] for metrics in models.values() if "bm25" in metrics.get("dev", {})]
    margin = 0.18 * max(max(values) - min(values), 0.01)
    limits = min(values) - margin, max(values) + margin
    scores = [_plot_dev_scores(name, metrics, limits) for name, metrics in models.items()]
    losses = [_plot_loss(name, metrics["curve"]) for name, metrics in models.items()]
    return _side_by_side([*scores, *losses], 400)


def _plot_dev_scores(name: str, metrics: Mapping[str, Any], limits: tuple[float, float]) -> str:
    curve, dev, color = metrics["curve"], metrics.get("dev", {}), COLORS[name]
    steps, values = [row["step"] for row in curve], [row["dev_ndcg_at_10"] for row in curve]
    best = int(np.argmax(values))
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _new_figure(4.7, 2.3)
        ax.plot(steps, values, "o-", color=color, markersize=4, linewidth=1.8)
        ax.plot(steps[best], values[best], "o", markersize=11, markerfacecolor="none", color=color)
        if "bm25" in dev:
            ax.axhline(dev["bm25"], color=COLORS["bm25"], linewidth=1.1, linestyle=DASHED)
            ax.annotate(
                "BM25", (0, dev["bm25"]), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                color=MUTED, fontsize=9,
            )  # fmt: skip
        ax.set(title=f"{SYSTEMS[name]}: dev nDCG@10", ylim=limits, xlabel="step")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_formatter(lambda value, _: format_metric(value, 2))
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        description = (
            f"From {format_metric(values[0])} at step {steps[0]} to {format_metric(values[-1])} at step {steps[-1]}; "
            f"kept: step {steps[best]}, {format_metric(values[best])}."
        )
        return _to_svg(figure, f"learning-{name}", f"Dev nDCG@10 of the {name} by step", description)


def _plot_loss(name: str, curve: Sequence[Mapping[str, Any]]) -> str:
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _new_figure(4.7, 2.1)
        losses = [row["loss"] for row in curve]
        ax.plot([row["step"] for row in curve], losses, "o-", color=COLORS[name], markersize=4, linewidth=1.8)
        ax.set(title=f"{SYSTEMS[name]}: training loss", xlabel="step")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        description = f"From {losses[0]:.3g} to {losses[-1]:.3g}."
        return _to_svg(figure, f"loss-{name}", f"Training loss of the {name} by step", description)


def plot_reliability(
    diagrams: Mapping[str, Sequence[Mapping[str, Any]]],
    titles: Mapping[str, str] = SYSTEMS,
    name: str = "reliability",
) -> str:
    """Plot reliability diagrams: mean judgement by mean probability per bin; the area of a point is its pair count.

    Args:
        diagrams: bins with mean_probability, mean_target and count, by system.
        titles: of the panels, by system.
        name: of the plots, unique on the page.
    """
    plots = []
    for system, bins in diagrams.items():
        probabilities, judgements = ([part[key] for part in bins] for key in ("mean_probability", "mean_target"))
        largest = max(part["count"] for part in bins)
        areas = [12 + 110 * part["count"] / largest for part in bins]
        with matplotlib.rc_context(STYLE):
            figure, (ax,) = _new_figure(3.2, 3.3)
            ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=DASHED)
            ax.plot(probabilities, judgements, color=COLORS[system], linewidth=1.2, alpha=0.5)
            ax.scatter(probabilities, judgements, areas, color=COLORS[system], zorder=3)
            ax.set(title=titles[system], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
            ax.set(xlabel="predicted probability", ylabel="mean judgement")
            ax.set_xticks(*QUARTERS)
            ax.set_yticks(*QUARTERS)
            points = "; ".join(
                f"{format_metric(probability, 2)}, {format_metric(judgement, 2)}"
                for probability, judgement in zip(probabilities, judgements, strict=True)
            )
            label = f"{titles[system]}: mean judgement against predicted probability"
            description = f"Predicted probability and mean judgement of each bin: {points}."
            plots.append(_to_svg(figure, f"{name}-{system}", label, description))
    return _side_by_side(plots)


def plot_score_histograms(scores: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str) -> str:
    """Plot histograms of the scores of relevant and of other pairs: a panel per system.

    Args:
        scores: by system, those of the relevant pairs and those of the others, shape (pairs,) each.
        label: what the scores are.
    """
    plots = []
    for system, (relevant, others) in scores.items():
        all_scores = np.concatenate([relevant, others])
        are_probabilities = all_scores.min() >= 0 and all_scores.max() <= 1
        edges = np.histogram_bin_edges(all_scores, 24, (0, 1) if are_probabilities else None).tolist()
        with matplotlib.rc_context(STYLE):
            figure, (ax,) = _new_figure(3.2, 2.6)
            for values, color, group in ((others, MUTED, "others"), (relevant, COLORS[system], "relevant")):
                ax.hist(
                    values, edges, weights=np.full(len(values), 1 / max(len(values), 1)), histtype="stepfilled",
                    facecolor=_fill(color), edgecolor=color, linewidth=1.4, label=group,
                )  # fmt: skip
            ax.set(title=SYSTEMS[system], xlabel=label, ylabel="share of pairs")
            ax.yaxis.set_major_locator(MaxNLocator(4))
            ax.yaxis.set_major_formatter(_format_percent_tick)
            ax.legend(
                loc="lower right", bbox_to_anchor=(1.03, 0.98), ncols=2, columnspacing=0.9, handlelength=0.9,
                handletextpad=0.5, fontsize=8.5,
            )  # fmt: skip
            if are_probabilities:
                ax.set_xticks(*QUARTERS)
            medians = [
                format_metric(float(np.median(values)), 2) if len(values) else "none" for values in (relevant, others)
            ]
            title = f"{SYSTEMS[system]}: distribution of the {label} of relevant pairs and of the others"
            description = (
                f"Median of {len(relevant)} relevant pairs: {medians[0]}; of {len(others)} others: {medians[1]}."
            )
            plots.append(_to_svg(figure, f"scores-{system}", title, description))
    return _side_by_side(plots)


def plot_latency(timings: Mapping[str, Mapping[str, float]]) -> str:
    """Plot the latency: a row per system, with marks at the median and at the 95th and 99th percentiles.

    Args:
        timings: p50_ms, p95_ms and p99_ms, by system; without p99_ms the line ends at p95_ms.
    """
    quantiles = {"p50_ms": ("o", 7, "median"), "p95_ms": ("s", 7, "p95"), "p99_ms": ("|", 12, "p99")}
    rows = {name: {key: values[key] for key in quantiles if key in values} for name, values in timings.items()}
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _new_figure(9.6, 0.95 + 0.42 * len(rows))
        for row, (name, values) in enumerate(reversed(rows.items())):
            ax.plot([0, max(values.values())], [row, row], color=COLORS[name], linewidth=1.4, alpha=0.35)
            for key, value in values.items():
                marker, size, _ = quantiles[key]
                ax.plot(value, row, marker, color=COLORS[name], markersize=size, markeredgewidth=2)
        for marker, size, label in quantiles.values():
            ax.plot([], [], marker, color=MUTED, markersize=size, markeredgewidth=2, label=label)
        ax.legend(loc="lower right", bbox_to_anchor=(1.01, 0.98), ncols=3, columnspacing=1.4, handletextpad=0.3)
        ax.set(xlabel="milliseconds per request", ylim=(-0.6, len(rows) - 0.4))
        ax.set_xlim(0, 1.06 * max(max(values.values()) for values in rows.values()))
        ax.set_yticks(range(len(rows)), [SYSTEMS[name] for name in reversed(rows)])
        ax.tick_params(axis="y", labelcolor=INK)
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(6))
        descriptions = [
            f"{SYSTEMS[name]}: {', '.join(f'{quantiles[key][2]} {value:.3g} ms' for key, value in values.items())}"
            for name, values in rows.items()
        ]
        return _to_svg(figure, "latency", "Response time by model", f"{'; '.join(descriptions)}.")


def plot_logits(histograms: Mapping[str, Mapping[str, Any]], colors: Mapping[str, str]) -> str:
    """Plot distributions of the teacher's logits on one axis, each as shares of its own pairs.

    Args:
        histograms: by label, `counts` of bins of `width` from `low` upwards.
        colors: by label, the system whose color it has.
    """
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _new_figure(4.6, 3.4)
        for label, histogram in histograms.items():
            counts, color = np.array(histogram["counts"], np.float64), COLORS[colors[label]]
            edges = histogram["low"] + histogram["width"] * np.arange(len(counts) + 1)
            ax.stairs(
                counts / counts.sum(), edges, fill=True, facecolor=_fill(color), edgecolor=color, linewidth=1.4,
                label=label,
            )  # fmt: skip
        ax.set(title="The teacher's logits", xlabel="logit", ylabel="share of pairs")
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(_format_percent_tick)
        ax.legend(loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=2, columnspacing=1.2, handlelength=1.4)
        descriptions = [f"{label}: {sum(histogram['counts'])} pairs" for label, histogram in histograms.items()]
        title = "Distributions of the teacher's logits on judged and on labeled pairs"
        return _to_svg(figure, "logits", title, f"{'; '.join(descriptions)}.")


def plot_query_deltas(deltas: np.ndarray, baseline: str) -> str:
    """Plot a histogram of the differences in nDCG@10 by query, shape (queries,), student minus baseline."""
    limit = max(float(np.abs(deltas).max()), 0.01)
    edges = np.linspace(-limit, limit, 42)  # an odd number of bins, so that the middle one holds the ties
    counts, _ = np.histogram(deltas, edges)
    centers = (edges[1:] + edges[:-1]) / 2
    is_middle = np.abs(centers) < limit / 100
    colors = np.where(is_middle, COLORS["random"], np.where(centers > 0, COLORS["student"], WORSE))
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _new_figure(9.6, 2.4)
        ax.bar(centers, counts, width=edges[1] - edges[0], color=colors.tolist(), edgecolor=PAPER, linewidth=0.8)
        ax.axvline(0, color=MUTED, linewidth=1)
        ax.set(xlabel=f"nDCG@10 of the query, student minus {baseline}", ylabel="queries", xlim=(-limit, limit))
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.xaxis.set_major_formatter(_format_delta_tick)
        lowest, median, highest = (
            format_delta(float(value), 3) for value in (deltas.min(), np.median(deltas), deltas.max())
        )
        label = f"Histogram of the difference in nDCG@10 by query, student minus {baseline}"
        description = f"{len(deltas)} queries from {lowest} to {highest}, median {median}."
        return _to_svg(figure, "queries", label, description)


def plot_targets(targets: np.ndarray, relevant_from: float | None) -> str:
    """Plot a histogram of soft targets in [0, 1], shape (pairs,), with the threshold of relevance."""
    edges = np.linspace(-0.025, 1.025, 22)
    counts, _ = np.histogram(targets, edges)
    centers = (edges[1:] + edges[:-1]) / 2
    is_relevant = centers >= (2.0 if relevant_from is None else relevant_from - 0.025)
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _new_figure(4.7, 2.5)
        colors = np.where(is_relevant, COLORS["student"], COLORS["random"]).tolist()
        ax.bar(centers, counts / max(len(targets), 1), width=0.04, color=colors)
        if relevant_from is not None:
            ax.axvline(relevant_from - 0.025, color=MUTED, linewidth=1, linestyle=DASHED)
            ax.annotate(
                "relevant", (relevant_from - 0.025, 1), (4, -2), xycoords=("data", "axes fraction"),
                textcoords="offset points", va="top", color=MUTED, fontsize=9,
            )  # fmt: skip
        ax.set(xlabel="soft target", ylabel="share of pairs", xlim=(-0.05, 1.05))
        ax.set_xticks(*QUARTERS)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(_format_percent_tick)
        description = f"{len(targets)} pairs, mean {format_metric(targets.mean())}." if len(targets) else "No pairs."
        return _to_svg(figure, "targets", "Distribution of the judgements' soft targets", description)


# The data profile -------------------------------------------------------------------------------------------------


def plot_frequency(curve: Sequence[Mapping[str, float]], torso_from: float, tail_from: float) -> str:
    """Plot the impressions of the query at each rank, and their cumulative share; ranks are on a log scale.

    Args:
        curve: entries with rank, impressions and share, in ascending order of rank.
        torso_from: share of impressions at which the torso begins.
        tail_from: share of impressions at which the tail begins.
    """
    ranks, impressions, share = ([entry[key] for entry in curve] for key in ("rank", "impressions", "share"))
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_figure(9.6, 3.0, 2)
        titles = "Impressions of the query at each rank", "Cumulative share of all impressions"
        for ax, values, title in zip(axes, (impressions, share), titles, strict=True):
            ax.plot(ranks, values, "o-", color=COLORS["student"], markersize=4.5, linewidth=1.8, clip_on=False)
            ax.set(title=title, xlabel="rank of the query, most frequent first", xscale="log")
            ax.set_xlim(0.9, max(ranks[-1], 10) * 1.1)
            ax.xaxis.set_major_formatter(_format_count_tick)
            ax.minorticks_off()
        axes[0].set_yscale("log")
        axes[0].set_ylim(0.8, 10 ** np.ceil(np.log10(max(impressions[0], 10))) * 1.1)
        axes[0].yaxis.set_major_formatter(_format_count_tick)
        axes[0].minorticks_off()
        axes[1].set_ylim(0, 1.03)
        axes[1].set_yticks(QUARTERS[0])
        axes[1].yaxis.set_major_formatter(_format_percent_tick)
        for bound, name in ((torso_from, "torso"), (tail_from, "tail")):
            axes[1].axhline(bound, color=MUTED, linewidth=1, linestyle=DASHED)
            axes[1].annotate(
                f"{name} from here", (0, bound), (5, 4), xycoords=("axes fraction", "data"),
                textcoords="offset points", color=MUTED, fontsize=9,
            )  # fmt: skip
        return _to_svg(figure, "frequency", "Impressions by rank of the query, and their cumulative share")


def plot_ratings(counts: Mapping[str, int]) -> str:
    """Plot judged pairs by rating, as bars: labeled separately if there are few ratings, otherwise on a numeric axis.

    Args:
        counts: pairs by rating (a number as text), in ascending order.
    """
    are_few = len(counts) <= 20
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _new_figure(9.6, 2.5)
        values = np.array([float(rating) for rating in counts])
        positions = np.arange(len(values)) if are_few else values
        labels = [f"{value:.4g}" for value in values]
        width = 0.68 if are_few else 0.8 * float(np.diff(values).min())
        ax.bar(positions, list(counts.values()), width=width, color=COLORS["student"])
        if are_few:
            ax.set_xticks(positions, labels if len(set(labels)) == len(counts) else list(counts))
            ax.set_xlim(-0.6, max(len(counts), 5) - 0.4)
            for position, count in zip(positions, counts.values(), strict=True):
                ax.annotate(
                    format_value(count), (position, count), (0, 3), textcoords="offset points", ha="center", fontsize=9
                )
        ax.grid(axis="x", visible=False)
        ax.set(xlabel="rating, on the source's scale", ylabel="judged pairs")
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_formatter(_format_count_tick)
        ax.margins(y=0.14)
        return _to_svg(figure, "ratings", "Number of judged pairs with each rating")


def plot_targets_by_side(sides: Mapping[str, Mapping[str, Any]]) -> str:
    """Plot the soft targets of judged pairs in each tenth of [0, 1]: a panel per side of the split.

    Args:
        sides: `mean` and `tenths`, the number of pairs in each tenth, by side.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _new_figure(9.6, 2.3, len(sides), sharey=True)
        for ax, (side, distribution) in zip(axes, sides.items(), strict=True):
            tenths, mean = np.array(distribution["tenths"]), distribution["mean"]
            ax.bar(np.arange(10) / 10 + 0.05, tenths / max(tenths.sum(), 1), width=0.085, color=COLORS["student"])
            ax.axvline(mean, color=WORSE, linewidth=1.6)
            ax.set(title=f"{side.capitalize()}: mean {format_metric(mean)}", xlabel="soft target", xlim=(-0.01, 1.01))
            ax.set_xticks(*QUARTERS)
            ax.grid(axis="x", visible=False)
            ax.yaxis.set_major_locator(MaxNLocator(4))
            ax.yaxis.set_major_formatter(_format_percent_tick)
        axes[0].set_ylabel("share of pairs")
        return _to_svg(figure, "targets-by-side", "Distribution of the judgements' soft targets, by side of the split")
