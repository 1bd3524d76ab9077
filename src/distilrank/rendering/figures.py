"""The report's plots, as SVG to be put into a page: text stays text, and the page's font and colors apply to it.

Only fixed words are drawn, never text from queries or products. Each plot carries a title and, as its description,
what it shows in words and figures.
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

# Okabe and Ito's palette, which color-blind readers can tell apart too; systems also differ by their labels.
COLORS = {
    "student": "#0072b2",
    "teacher": "#c4580a",
    "champion": "#7a4e9f",
    "anchor": "#00796b",
    "bm25": "#5b6470",
    "random": "#9aa1ab",
}
INK, MUTED, LINE, FAINT, WORSE = "#1b1f24", "#5b6470", "#d5d9de", "#eef0f3", "#c4580a"

PAPER = "#ffffff"

VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", FAINT: "--faint", PAPER: "--paper", WORSE: "--worse",
    COLORS["student"]: "--student", COLORS["champion"]: "--champion", COLORS["anchor"]: "--anchor",
    COLORS["random"]: "--random",
}  # fmt: skip
"""The variable of templates/style.css.j2 that has this color in light pages, and a lighter one of its kind in dark."""

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


def _svg(figure: Figure, name: str, title: str, description: str = "") -> str:
    buffer = io.StringIO()
    # The salt keeps identifiers apart on a page with many plots, and the same from run to run.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    opening, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    body = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found[0]), body)
    body = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    # One scale for all plots, so that their text has one size; on a narrow screen it must not shrink to nothing.
    width = figure.get_figwidth() * PIXELS_PER_INCH
    style = f"max-width:{width:.0f}px;min-width:{0.55 * width:.0f}px"
    label = f'<title id="{name}-title">{html.escape(title)}</title>'
    described = ""
    if description:
        label += f'<desc id="{name}-desc">{html.escape(description)}</desc>'
        described = f' aria-describedby="{name}-desc"'
    return (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""} style="{style}" role="img" '
        f'aria-labelledby="{name}-title"{described}>{label}{body}'
    )


def _variable(color: str) -> str:
    return f"var({VARIABLES[color]})" if color in VARIABLES else color


def _row(panels: Sequence[str], least: int = 290) -> str:
    """Plots side by side, below one another where each would be narrower than `least` pixels."""
    return f'<div class="panels" style="--least:{least}px">{"".join(panels)}</div>'


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
    panels = []
    for metric, title in metrics.items():
        told: list[str] = []
        with matplotlib.rc_context(STYLE):
            figure, (ax,) = _panels(3.2, 0.75 + 0.46 * len(baselines), 1)
            ax.axvline(0, color=MUTED, linewidth=1)
            for row, baseline in enumerate(reversed(baselines)):
                for entry in comparisons:
                    if (entry["baseline"], entry["metric"]) != (baseline, metric):
                        continue
                    low, high = entry["ci_low"], entry["ci_high"]
                    color = COLORS["student"] if low > 0 else WORSE if high < 0 else MUTED
                    ax.plot([low, high], [row, row], color=color, linewidth=2.4, alpha=0.55)
                    ax.plot(entry["delta"], row, "o" if low > 0 or high < 0 else "D", color=color, markersize=6)
                    ax.annotate(
                        _format(entry["delta"]), (entry["delta"], row), (0, 8), textcoords="offset points",
                        ha="center", color=INK, fontsize=9, bbox={"fc": PAPER, "ec": "none", "pad": 0.8},
                    )  # fmt: skip
                    told.insert(0, f"{names[baseline]} {_format(entry['delta'])}, {_format(low)} to {_format(high)}")
            ax.set_title(title)
            ax.grid(axis="y", visible=False)
            ax.spines["left"].set_visible(False)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.xaxis.set_major_formatter(lambda value, _: _format(value, 2) if abs(value) > 1e-9 else "0")
            ax.set_ylim(-0.5, len(baselines) - 0.3)
            ax.set_yticks(range(len(baselines)), [f"vs {names[name]}" for name in reversed(baselines)])
            ax.tick_params(axis="y", labelcolor=INK)
            ax.margins(x=0.15)
            label = f"Intervals of the student's differences in {title} from each baseline"
            panels.append(_svg(figure, f"deltas-{metric}", label, f"Student minus baseline: {'; '.join(told)}."))
    return _row(panels)


def learning(curves: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Loss and dev nDCG@10 over the steps: a column a model; the kept weights are ringed.

    Args:
        curves: metrics.json of teacher and student, by key.
        names: labels of the systems, by key.
    """
    # nDCG compares across models; their losses are not of one kind, so those do not.
    seen = [row["dev_ndcg_at_10"] for metrics in curves.values() for row in metrics["curve"]]
    seen += [metrics["dev"]["bm25"] for metrics in curves.values() if "bm25" in metrics.get("dev", {})]
    margin = 0.18 * max(max(seen) - min(seen), 0.01)
    reached, losses = [], []
    for name, metrics in curves.items():
        curve, dev, color = metrics["curve"], metrics.get("dev", {}), COLORS[name]
        steps, values = [row["step"] for row in curve], [row["dev_ndcg_at_10"] for row in curve]
        best = int(np.argmax(values))
        with matplotlib.rc_context(STYLE):
            figure, (ax,) = _panels(4.7, 2.3, 1)
            ax.plot(steps, values, "o-", color=color, markersize=4, linewidth=1.8)
            ax.plot(steps[best], values[best], "o", markersize=11, markerfacecolor="none", color=color)
            if "bm25" in dev:
                ax.axhline(dev["bm25"], color=COLORS["bm25"], linewidth=1.1, linestyle=(0, (4, 3)))
                ax.annotate(
                    "BM25", (0, dev["bm25"]), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                    color=MUTED, fontsize=9,
                )  # fmt: skip
            ax.set(title=f"{names[name]}: dev nDCG@10", ylim=(min(seen) - margin, max(seen) + margin), xlabel="step")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.2f}".replace("0.", ".", 1))
            ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            told = f"From {values[0]:.3f} at step {steps[0]} to {values[-1]:.3f} at step {steps[-1]}; "
            told += f"kept: step {steps[best]}, {values[best]:.3f}."
            reached.append(_svg(figure, f"learning-{name}", f"Dev nDCG@10 of the {name} over the steps", told))
            figure, (ax,) = _panels(4.7, 2.1, 1)
            ax.plot(steps, [row["loss"] for row in curve], "o-", color=color, markersize=4, linewidth=1.8)
            ax.set(title=f"{names[name]}: training loss", xlabel="step")
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.yaxis.set_major_locator(MaxNLocator(4))
            told = f"From {curve[0]['loss']:.3g} to {curve[-1]['loss']:.3g}."
            losses.append(_svg(figure, f"loss-{name}", f"Training loss of the {name} over the steps", told))
    return _row([*reached, *losses], 400)


def reliability(
    diagrams: Mapping[str, Sequence[Mapping[str, Any]]], names: Mapping[str, str], name: str = "reliability"
) -> str:
    """Mean judgement against mean probability in each bin, a panel a system; the area of a point is its rows.

    Args:
        diagrams: bins with mean_probability, mean_target and count, by system.
        names: labels of the systems, by key.
        name: of the plot, one of its own on a page.
    """
    panels = []
    for system, bins in diagrams.items():
        said, seen = ([part[key] for part in bins] for key in ("mean_probability", "mean_target"))
        largest = max(part["count"] for part in bins)
        areas = [12 + 110 * part["count"] / largest for part in bins]
        with matplotlib.rc_context(STYLE):
            figure, (ax,) = _panels(3.2, 3.3, 1)
            ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            ax.plot(said, seen, color=COLORS[system], linewidth=1.2, alpha=0.5)
            ax.scatter(said, seen, areas, color=COLORS[system], zorder=3)
            ax.set(title=names[system], xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
            ax.set(xlabel="probability given", ylabel="mean judgement")
            ax.set_xticks(*QUARTERS)
            ax.set_yticks(*QUARTERS)
            points = "; ".join(f"{given:.2f} is {judged:.2f}" for given, judged in zip(said, seen, strict=True))
            label = f"{names[system]}: mean judgement against the probability given"
            told = f"By bin, the probability given and the mean judgement: {points}."
            panels.append(_svg(figure, f"{name}-{system}", label, told))
    return _row(panels)


def scores(parts: Mapping[str, tuple[np.ndarray, np.ndarray]], names: Mapping[str, str], label: str) -> str:
    """Histograms of a system's scores for relevant and for other pairs, a panel a system.

    Args:
        parts: scores of relevant pairs and of the others, by system.
        names: labels of the systems, by key.
        label: what the scores are.
    """
    panels = []
    for name, (relevant, others) in parts.items():
        both = np.concatenate([relevant, others])
        probabilities = both.min() >= 0 and both.max() <= 1
        edges = np.histogram_bin_edges(both, 24, (0, 1) if probabilities else None).tolist()
        with matplotlib.rc_context(STYLE):
            figure, (ax,) = _panels(3.2, 2.6, 1)
            for values, color, kind in ((others, MUTED, "others"), (relevant, COLORS[name], "relevant")):
                ax.hist(
                    values, edges, weights=np.full(len(values), 1 / max(len(values), 1)), histtype="stepfilled",
                    facecolor=(*matplotlib.colors.to_rgb(color), 0.22), edgecolor=color, linewidth=1.4, label=kind,
                )  # fmt: skip
            ax.set(title=names[name], xlabel=label, ylabel="share of pairs")
            ax.yaxis.set_major_locator(MaxNLocator(4))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            ax.legend(
                loc="lower right", bbox_to_anchor=(1.03, 0.98), ncols=2, columnspacing=0.9, handlelength=0.9,
                handletextpad=0.5, fontsize=8.5,
            )  # fmt: skip
            if probabilities:
                ax.set_xticks(*QUARTERS)
            medians = [f"{np.median(values):.2f}" if len(values) else "none" for values in (relevant, others)]
            told = (
                f"Median of the {len(relevant)} relevant pairs {medians[0]}, of the {len(others)} others {medians[1]}."
            )
            kind = f"{names[name]}: distribution of the {label} for relevant pairs and for others"
            panels.append(_svg(figure, f"scores-{name}", kind, told))
    return _row(panels)


def latency(timed: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> str:
    """Time of a request by system: a line from the median to the slowest in a hundred, a row a system.

    Args:
        timed: p50_ms, p95_ms and p99_ms, by system; without p99_ms the line ends at p95_ms.
        names: labels of the systems, by key.
    """
    quantiles = {"p50_ms": ("o", 7, "median"), "p95_ms": ("s", 7, "95 % within"), "p99_ms": ("|", 12, "99 % within")}
    seen = {name: {key: values[key] for key in quantiles if key in values} for name, values in timed.items()}
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _panels(9.6, 0.95 + 0.42 * len(seen), 1)
        for row, (name, values) in enumerate(reversed(seen.items())):
            ax.plot([0, max(values.values())], [row, row], color=COLORS[name], linewidth=1.4, alpha=0.35)
            for key, value in values.items():
                marker, size, _ = quantiles[key]
                ax.plot(value, row, marker, color=COLORS[name], markersize=size, markeredgewidth=2)
        for marker, size, label in quantiles.values():
            ax.plot([], [], marker, color=MUTED, markersize=size, markeredgewidth=2, label=label)
        ax.legend(loc="lower right", bbox_to_anchor=(1.01, 0.98), ncols=3, columnspacing=1.4, handletextpad=0.3)
        ax.set(xlabel="milliseconds a request", ylim=(-0.6, len(seen) - 0.4))
        ax.set_xlim(0, 1.06 * max(max(values.values()) for values in seen.values()))
        ax.set_yticks(range(len(seen)), [names[name] for name in reversed(seen)])
        ax.tick_params(axis="y", labelcolor=INK)
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(6))
        told = [
            f"{names[name]}: {', '.join(f'{quantiles[key][2]} {value:.3g} ms' for key, value in values.items())}"
            for name, values in seen.items()
        ]
        return _svg(figure, "latency", "Time of a request, by model", f"{'; '.join(told)}.")


def logits(histograms: Mapping[str, Mapping[str, Any]], colors: Mapping[str, str]) -> str:
    """Distributions of a teacher's logits over one another, as shares of the pairs of each.

    Args:
        histograms: by label, `counts` of bins of `width` from `low` upwards.
        colors: by label, the system whose color it is drawn in.
    """
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _panels(4.6, 3.4, 1)
        for label, histogram in histograms.items():
            counts, color = np.array(histogram["counts"], np.float64), COLORS[colors[label]]
            edges = histogram["low"] + histogram["width"] * np.arange(len(counts) + 1)
            ax.stairs(
                counts / counts.sum(), edges, fill=True, facecolor=(*matplotlib.colors.to_rgb(color), 0.22),
                edgecolor=color, linewidth=1.4, label=label,
            )  # fmt: skip
        ax.set(title="The teacher's logits", xlabel="logit", ylabel="share of pairs")
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.legend(loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=2, columnspacing=1.2, handlelength=1.4)
        told = "; ".join(f"{label}: {sum(histogram['counts'])} pairs" for label, histogram in histograms.items())
        title = "Distributions of the teacher's logits on judged and on labeled pairs"
        return _svg(figure, "logits", title, f"{told}.")


def query_deltas(values: np.ndarray, baseline: str) -> str:
    """Histogram of per-query differences of nDCG@10, student minus the baseline of that label, shape (queries,)."""
    reach = max(float(np.abs(values).max()), 0.01)
    edges = np.linspace(-reach, reach, 42)  # an odd number of bins, so that the middle one holds the ties
    counts, _ = np.histogram(values, edges)
    centers = (edges[1:] + edges[:-1]) / 2
    middle = np.abs(centers) < reach / 100
    colors = np.where(middle, COLORS["random"], np.where(centers > 0, COLORS["student"], WORSE))
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _panels(9.6, 2.4, 1)
        ax.bar(centers, counts, width=edges[1] - edges[0], color=colors.tolist(), edgecolor=PAPER, linewidth=0.8)
        ax.axvline(0, color=MUTED, linewidth=1)
        ax.set(xlabel=f"nDCG@10 of the query, student minus {baseline}", ylabel="queries", xlim=(-reach, reach))
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.xaxis.set_major_formatter(lambda value, _: _format(value, 2) if abs(value) > 1e-9 else "0")
        told = f"{len(values)} queries from {_format(values.min(), 3)} to {_format(values.max(), 3)}, "
        told += f"median {_format(float(np.median(values)), 3)}."
        label = f"Histogram of the difference in nDCG@10 by query, student minus {baseline}"
        return _svg(figure, "queries", label, told)


def targets(values: np.ndarray, relevant_from: float | None) -> str:
    """Histogram of the judgements' soft targets in [0, 1], shape (pairs,), with the threshold of relevance."""
    edges = np.linspace(-0.025, 1.025, 22)
    counts, _ = np.histogram(values, edges)
    centers = (edges[1:] + edges[:-1]) / 2
    relevant = centers >= (2.0 if relevant_from is None else relevant_from - 0.025)
    with matplotlib.rc_context(STYLE):
        figure, (ax,) = _panels(4.7, 2.5, 1)
        colors = np.where(relevant, COLORS["student"], COLORS["random"]).tolist()
        ax.bar(centers, counts / max(len(values), 1), width=0.04, color=colors)
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
        told = f"{len(values)} pairs, mean {values.mean():.3f}." if len(values) else "No pairs."
        return _svg(figure, "targets", "Distribution of the judgements' soft targets", told)


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
            ax.plot(ranks, values, "o-", color=COLORS["student"], markersize=4.5, linewidth=1.8, clip_on=False)
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
        ax.bar(places, list(counts.values()), width=width, color=COLORS["student"])
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
            ax.bar(np.arange(10) / 10 + 0.05, tenths / max(tenths.sum(), 1), width=0.085, color=COLORS["student"])
            ax.axvline(distribution["mean"], color=WORSE, linewidth=1.6)
            mean = f"{distribution['mean']:.3f}".replace("0.", ".", 1)
            ax.set(title=f"{side.capitalize()}: mean {mean}", xlabel="soft target", xlim=(-0.01, 1.01))
            ax.set_xticks(*QUARTERS)
            ax.grid(axis="x", visible=False)
            ax.yaxis.set_major_locator(MaxNLocator(4))
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes[0].set_ylabel("share of pairs")
        return _svg(figure, "targets-by-side", "Distribution of the judgements' soft targets, by side of the split")
