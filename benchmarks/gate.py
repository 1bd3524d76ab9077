"""False promotions of the gate, and the smallest difference that it detects.

    python -m benchmarks.gate --figure docs/gate.svg

The data are real per-query differences: nDCG@10 of BM25 minus that of word overlap, on Home Depot's judged queries.
Centered, they represent two equally good systems that differ as real ones do. A simulated gating draws a test set of
some queries, adds a true difference, and applies the gate's interval and decision. The gate should rarely promote equal
systems under `superior`, and rarely systems that are worse by just the margin under `not_inferior`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from scipy.stats import norm

from benchmarks import machine
from benchmarks.result import at_most, clopper_pearson, report
from distilrank.config import Config, Evaluate, Gate, Prepare, load
from distilrank.core import normalize
from distilrank.core.problems import Problems
from distilrank.data import bm25, corpus, log_store, sources
from distilrank.data.window import LogWindow
from distilrank.evaluation import metrics, significance, trec
from distilrank.promotion import gate
from distilrank.promotion.checks import Evidence
from distilrank.rendering import figures

BASE = Path("configs/home-depot.yaml")
RESAMPLES = 400
"""Of each interval: fewer than a run's 2,000, so that thousands of gatings take minutes."""
TOGETHER = 20
"""Gatings whose intervals share resampling draws (never queries), for speed: it hardly makes them dependent."""
SIZES = (100, 250, 500, 1000, 2000)
TOLERATED = 0.05
"""Tolerated share of false promotions; the lower end of a 95 % interval is tested at 2.5 %, so there is a margin."""
SURE = 0.95
STEPS = np.arange(-6, 13) / 400
"""True differences of the power curves."""
COMMON: dict[str, Any] = {
    "min_queries": 3,
    "min_judgements": 0,
    "min_resamples": RESAMPLES,
    "max_near_duplicates": 1,
    "lift_over_random": -1,
    "teacher_margin": 1,
    "slices": False,
    "max_ece": 1,
    "min_score_spread": 0,
    "min_distinct_scores": 0,
    "max_latency_ratio": 0,
    "max_drift_share": 1,
    "max_embedding_auc": 1,
}
"""Only the comparison with the champion is left to decide; that with BM25 always passes."""
RULES = {rule: Gate.model_validate(COMMON | {"champion": rule}) for rule in ("superior", "not_inferior")}


def differences(config: Config) -> tuple[np.ndarray, dict[str, float]]:
    """nDCG@10 of BM25 minus that of word overlap, shape (queries,), and the mean of each and of random order."""
    with tempfile.TemporaryDirectory() as folder, log_store.connect(Path(folder)) as connection:
        read = corpus.read(
            sources.open(config.data), Prepare(), LogWindow(),
            connection=connection, scratch=Path(folder), problems=Problems(),
        )  # fmt: skip
        titles = list(read.catalogue.texts(np.arange(len(read.catalogue))))
        product_ids = read.catalogue.column("product_id").to_pylist()
        judged, texts = read.judged, read.queries.to_pylist()
        gain = metrics.grades(read.gains)
    index = bm25.Index(titles)
    stems = [{index.stem(word) for word in normalize.words(title)} for title in titles]
    asked = [{index.stem(word) for word in normalize.words(text)} for text in texts]
    overlap = [len(asked[query] & stems[product]) for query, product in zip(judged.query, judged.product, strict=True)]
    systems = {
        "bm25": index.scores(texts, judged.query, judged.product),
        "overlap": np.array(overlap, np.float32),
        "random": np.random.default_rng(0).random(len(gain), np.float32),
    }
    ranked = metrics.rankable(judged.query, gain)
    tie = trec.tie_ranks([product_ids[product] for product in judged.product])
    results = {name: metrics.ndcg(judged.query, gain, score, 10, tie)[ranked] for name, score in systems.items()}
    return results["bm25"] - results["overlap"], {name: float(values.mean()) for name, values in results.items()}


def intervals(pool: np.ndarray, queries: int, gatings: int, config: Evaluate, seed: int) -> np.ndarray:
    """Observed difference and both ends of its interval of many test sets drawn from `pool`, shape (gatings, 3)."""
    results = []
    for rng in np.random.default_rng([seed, queries]).spawn(-(-gatings // TOGETHER)):
        drawn = rng.choice(pool, (queries, TOGETHER))
        sure = significance.paired_interval(
            drawn, resamples=RESAMPLES, confidence=config.confidence, rng=rng, interval=config.interval
        )
        results.append(np.stack([drawn.mean(axis=0), sure.low, sure.high], axis=1))
    return np.concatenate(results)[:gatings]


def promotions(policy: Gate, results: np.ndarray, queries: int, true: float, config: Evaluate) -> int:
    """How many gatings promote if the candidate is better by `true`.

    To add a constant to every query's difference moves the mean and its interval by that constant.
    """
    won = {"system": "student", "baseline": "bm25", "metric": policy.metric, "delta": 1, "ci_low": 1, "ci_high": 1}
    promoted = 0
    for delta, low, high in (results + true).tolist():
        champion = won | {"baseline": "champion", "delta": delta, "ci_low": low, "ci_high": high}
        evidence = Evidence(
            metrics={
                "protocol": {"confidence": config.confidence, "bootstrap": RESAMPLES},
                "comparisons": [row | {"queries": queries} for row in (won, champion)],
            },
            drift={},
            candidate={"id": "candidate"},
            champion={"id": "champion"},
        )
        promoted += gate.decide(policy, evidence).promoted
    return promoted


def share(count: int, trials: int) -> dict[str, float]:
    """A share with its exact interval, one-sided at each end."""
    low, high = clopper_pearson(count, trials, 2 * SURE - 1)
    return {"promoted": count, "of": trials, "share": count / trials, "low": low, "high": high}


def simulate(pool: np.ndarray, sizes: tuple[int, ...], gatings: int) -> dict[str, Any]:
    """Promotions by rule, number of test queries and true difference."""
    config = Evaluate()
    centred = pool - pool.mean()
    results: dict[str, Any] = {rule: {} for rule in RULES}
    for queries in sizes:
        began = time.monotonic()
        for seed, (rule, policy) in enumerate(RULES.items()):
            drawn = intervals(centred, queries, gatings, config, seed)
            results[rule][queries] = {
                f"{true:g}": share(promotions(policy, drawn, queries, float(true), config), gatings) for true in STEPS
            }
        print(f"{queries} queries: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return results


def needed(standard_deviation: float, difference: float, power: float = 0.8) -> int:
    """Queries for which the lower end clears a bound that is `difference` below the truth, with this chance.

    Normal approximation of the mean: ((z(.975) + z(power)) * deviation / difference) squared.
    """
    reach = norm.ppf((1 + Evaluate().confidence) / 2) + norm.ppf(power)
    return int(np.ceil((reach * standard_deviation / difference) ** 2))


def draw(results: dict[str, Any], path: Path) -> None:
    """The power curves: share of promotions by true difference, a line for each number of test queries."""
    margin = RULES["not_inferior"].champion_margin
    titles = {"superior": "superior", "not_inferior": f"not_inferior, margin {margin:g}"}
    forbidden = {"superior": 0.0, "not_inferior": -margin}
    palette = matplotlib.colormaps["viridis_r"]
    with matplotlib.rc_context(
        {**figures.STYLE, "figure.facecolor": "white", "savefig.facecolor": "white", "svg.hashsalt": "gate"}
    ):
        figure = Figure(figsize=(9.6, 3.8), layout="constrained")
        for ax, (rule, curves) in zip(figure.subplots(1, 2, sharey=True), results.items(), strict=True):
            ax.axvspan(STEPS[0], forbidden[rule], color=figures.FAINT, linewidth=0)
            ax.axhline(TOLERATED, color=figures.WORSE, linewidth=1, linestyle=(0, (4, 3)))
            for number, (queries, curve) in enumerate(curves.items()):
                ax.plot(
                    STEPS, [item["share"] for item in curve.values()],
                    color=palette(0.12 + 0.85 * number / max(len(curves) - 1, 1)), label=f"{queries:,} queries",
                )  # fmt: skip
            ax.set(title=f"champion: {titles[rule]}", xlabel="true difference of nDCG@10", xlim=(STEPS[0], STEPS[-1]))
            ax.xaxis.set_major_locator(MultipleLocator(0.01))
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:+.2f}" if value else "0")
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        figure.axes[0].set_ylabel("promoted")
        figure.axes[1].legend(loc="lower right")
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Simulate, draw, and print the figures as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gatings", type=int, default=2000, help="simulated gatings for each number of queries")
    parser.add_argument("--figure", type=Path, help="draw the power curves to this .svg or .png")
    parser.add_argument("--quick", action="store_true", help="few queries and gatings: does it run?")
    options = parser.parse_args()
    sizes, gatings = (SIZES[:2], 200) if options.quick else (SIZES, options.gatings)
    with machine.output_to_stderr():
        pool, means = differences(load(BASE, ["data.queries=1500"] if options.quick else None))
        results = simulate(pool, sizes, gatings)
    if options.figure:
        draw(results, options.figure)
    deviation = float(pool.std(ddof=1))
    margin = RULES["not_inferior"].champion_margin
    figures = {
        "quick": options.quick,
        "queries": len(pool),
        "ndcg_at_10": means,
        "difference": {"mean": float(pool.mean()), "standard_deviation": deviation},
        "ties": float((np.abs(pool) < 1e-12).mean()),
        "gatings": gatings,
        "resamples": RESAMPLES,
        "needed": {f"{item:g}": needed(deviation, item) for item in (0.003, 0.005, 0.01, 0.02, 0.03)},
        "promotions": results,
    }
    bars = [
        at_most(f"false promotions, {rule}, {queries} queries, ci_low", curve[f"{true:g}"]["low"], TOLERATED)
        for rule, true in (("superior", 0.0), ("not_inferior", -margin))
        for queries, curve in results[rule].items()
    ]
    report("gate", machine.describe(("numpy", "scipy", "bm25s")), figures, bars)


if __name__ == "__main__":
    main()
