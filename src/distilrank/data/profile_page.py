"""The data profile as one self-contained HTML page: what its tables, bars and figures show.

The page needs no network, and is readable without scripts. `profile_texts` has its labels and sentences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from markupsafe import Markup

from distilrank.core.schemas import SIDES, STRATA
from distilrank.data import profile_texts
from distilrank.data.profile_texts import share_text
from distilrank.rendering import figures, inline_script, templating
from distilrank.rendering.formatting import format_count, format_percent, format_value


def render(summary: Mapping[str, Any]) -> str:
    """The page of a data profile.

    Args:
        summary: what the prepare stage writes as profile.json.

    Returns:
        HTML; all text of the data is escaped.
    """
    logged = summary["rows"]["log"] > 0
    environment = templating.environment()
    page = {
        "source": summary["source"]["source"].replace("_", " "),
        "logged": logged,
        "tiles": _tiles(summary),
        "windows": _windows(summary),
        "notices": profile_texts.list_notices(summary, logged),
        "dropped": summary["dropped"],
        "privacy": _privacy(summary["privacy"]),
        "judgements": _judgements(summary),
        "splits": _splits(summary, logged),
        "near": _near_duplicates(summary),
        "queries": _queries(summary),
        "traffic": [
            {"name": name, "what": profile_texts.SAMPLES.get(name, ""), "rows": rows}
            for name, rows in summary["traffic"]["rows"].items()
        ],
        "basis": summary["traffic"]["basis"],
        "catalogue": _catalogue(summary),
        "candidates": _candidates(summary),
        "shards": _shards(summary["shards"]),
        "strata": STRATA,
        "settings": list(_flat(summary["source"])),
        "digest": summary["data_digest"],
        "script": inline_script.load(environment, "frame.js.j2"),
    }
    return environment.get_template("profile.html.j2").render(page)


def _tiles(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    rows, queries, candidates = (summary[key] for key in ("rows", "queries", "candidates"))
    shown = summary["impressions"]
    window, clicks = shown["training_window"], shown["clicks_in_training_window"]
    judged_pairs = sum(use["pairs"] for use in summary["splits"].values())
    of_log = f"{format_value(queries['training_window'])} in the training window"
    clicked = f"{share_text(clicks, window)} clicked in the training window" if window else "no log"
    return [
        {
            "label": "Products",
            "value": format_value(_products(summary)),
            "note": f"{format_count(summary['vocabulary'], 'different word')}",
        },
        {
            "label": "Judged pairs",
            "value": format_value(judged_pairs),
            "note": f"of {format_count(queries['judged'], 'query', 'queries')}",
        },
        {
            "label": "Queries",
            "value": format_value(queries["distinct"]),
            "note": of_log if rows["log"] else "all of them judged",
        },
        {"label": "Impressions", "value": format_value(window + shown["newest_traffic"]), "note": clicked},
        {
            "label": "Candidates",
            "value": format_value(candidates["pairs"]),
            "note": f"of {format_count(candidates['queries'], 'query', 'queries')}, to be labeled by the teacher",
        },
    ]


def _products(summary: Mapping[str, Any]) -> int:
    return summary["rows"]["products"] - summary["merged"]["repeated_products"]


def _windows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Training window and newest traffic with their days; empty for a log without time."""
    bounds = [summary["windows"][key][:10] for key in ("reference_start", "newest_start", "newest_end")]
    if not all(bounds):
        return []
    days = [date.fromisoformat(bound) for bound in bounds]
    parts = []
    windows = (("training_window", "training window"), ("newest_traffic", "newest traffic"))
    for number, (key, label) in enumerate(windows):
        begin, end = days[number], days[number + 1]
        parts.append(
            {
                "name": key,
                "label": label,
                "first": begin.isoformat(),
                "last": date.fromordinal(end.toordinal() - 1).isoformat(),
                "days": (end - begin).days,
                "impressions": summary["impressions"][key],
                "queries": summary["queries"][key],
            }
        )
    return parts


def _privacy(privacy: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **privacy,
        "judged_text": profile_texts.describe_judged_privacy(privacy),
        "why_all": profile_texts.KEPT_ALL.get(privacy["kept_all"], ""),
        "kinds": [
            {"label": profile_texts.KINDS.get(kind, kind.replace("_", " ")), **counts}
            for kind, counts in privacy["scrubbed"].items()
        ],
    }


def _judgements(summary: Mapping[str, Any]) -> dict[str, Any]:
    counts = summary["ratings"]
    raters = summary["raters"]
    same = raters["min"] == raters["max"]
    common = ""
    if counts:
        rating, most = max(counts.items(), key=lambda item: item[1])
        total = sum(counts.values())
        common = (
            f"All {format_count(total, 'judged pair')} are rated {rating}."
            if len(counts) == 1
            else f"{format_value(len(counts))} different ratings; the most frequent is {rating}, of "
            f"{format_count(most, 'pair')} ({share_text(most, total)})."
        )
    merged = [
        {"label": profile_texts.MERGED.get(name, name.replace("_", " ")), "count": count}
        for name, count in summary["merged"].items()
    ]
    if same:
        rule = profile_texts.RULES[summary["source"].get("rating_conflicts", "refuse")]
        common = f"{common} Every rating is the {rule} of {format_count(int(raters['max']), 'rater')}.".strip()
    return {
        "rows": summary["rows"]["judgements"],
        "common": common,
        "figure": Markup(figures.plot_ratings(counts)) if counts else "",
        "raters": [] if same else _spreads({"raters of a pair": raters}),
        "agreement": profile_texts.describe_agreement(summary["rater_agreement"]),
        "merged": merged if any(row["count"] for row in merged) else [],
    }


def _splits(summary: Mapping[str, Any], logged: bool) -> dict[str, Any]:
    splits, strata = summary["splits"], summary["strata"]
    total = sum(use["pairs"] for use in splits.values())
    uses = [
        {
            "name": name,
            "label": name.replace("_", " "),
            "what": profile_texts.USES.get(name, ""),
            **counts,
            "share": share_text(counts["pairs"], total),
            "label_fits": counts["pairs"] > total * (len(name) + 1) / 100,  # a letter is about 1 % of the page wide
        }
        for name, counts in splits.items()
    ]
    groups = [
        ("Traffic and candidates", "impressions of the training window", strata["impressions"]),
        ("", "queries, judged or logged", strata["queries"]),
        ("", "queries with candidates", summary["candidates"]["strata"]),
        *(("Judged queries" if side == SIDES[0] else "", side, strata[side]) for side in SIDES),
        *(("Judged pairs" if side == SIDES[0] else "", side, strata["pairs"][side]) for side in SIDES),
    ]
    return {
        "uses": uses,
        "total": total,
        "targets": Markup(figures.plot_targets_by_side(summary["targets"])),
        "words": _spreads(strata["query_words"]),
        "strata": [{"group": group, "label": label, **_stack(counts)} for group, label, counts in groups]
        if logged
        else [],
        "cut": strata["cut"],
    }


def _stack(counts: Mapping[str, int]) -> dict[str, Any]:
    """A stacked bar of the strata; parts show their share where they are wide enough."""
    total = sum(counts.values())
    return {
        "parts": [
            {
                "name": name,
                "count": counts[name],
                "share": share_text(counts[name], total),
                "label_fits": bool(total) and counts[name] / total >= 0.15,
            }
            for name in STRATA
        ],
        "summary": ", ".join(f"{name} {share_text(counts[name], total)}" for name in STRATA),
    }


def _near_duplicates(summary: Mapping[str, Any]) -> dict[str, Any]:
    near_duplicates, splits = summary["near_duplicates"], summary["splits"]
    rows = []
    for uses, count in near_duplicates["pairs"].items():
        use, _, other = uses.partition(" and ")
        rows.append(
            {
                "use": use,
                "other": other,
                "count": count,
                "queries": splits[use]["queries"],
                "share": share_text(count, splits[use]["queries"]),
                "examples": [(row[use], row[other]) for row in near_duplicates["examples"] if row["uses"] == uses],
            }
        )
    return {"rows": rows, "any": any(row["count"] for row in rows)}


def _queries(summary: Mapping[str, Any]) -> dict[str, Any]:
    curve = summary["frequency"]
    return {
        **summary["queries"],
        "figure": Markup(figures.plot_frequency(curve, 1 / 3, 2 / 3)) if curve else "",
        "top": curve[0] if curve else None,
        "top_share": format_percent(curve[0]["share"]) if curve else "",
    }


def _catalogue(summary: Mapping[str, Any]) -> dict[str, Any]:
    products = _products(summary)
    lengths = {
        ("query, in words" if name == "query_words" else name.removesuffix("_tokens").replace("_", " ")): spread
        for name, spread in summary["lengths"].items()
    }
    return {
        "products": products,
        "lengths": _spreads(lengths),
        "fields": [
            {
                "label": name.replace("_", " "),
                "missing": missing,
                "share": share_text(missing, products),
                "reach": _reach(missing, products),
            }
            for name, missing in summary["missing_fields"].items()
        ],
    }


def _candidates(summary: Mapping[str, Any]) -> dict[str, Any]:
    candidates = summary["candidates"]
    provenance = candidates["provenance"]
    largest = max(provenance.values())
    return {
        **candidates,
        "ways": [
            {
                "label": name.replace("bm25", "BM25"),
                "what": profile_texts.PROVENANCES.get(name, ""),
                "count": count,
                "share": share_text(count, candidates["pairs"]),
                "reach": _reach(count, largest),
            }
            for name, count in provenance.items()
        ],
        "spread": []
        if candidates["per_query"]["min"] == candidates["per_query"]["max"]
        else _spreads({"candidates of a query": candidates["per_query"]}),
        "products_share": share_text(candidates["products"], _products(summary)),
    }


def _shards(shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tokens = [shard["tokens"] for shard in shards]
    return {
        "rows": [{**shard, "reach": _reach(shard["tokens"], max(tokens))} for shard in shards],
        "tokens": sum(tokens),
        "pairs": sum(shard["rows"] for shard in shards),
        "spread": share_text(max(tokens) - min(tokens), min(tokens)),
    }


def _reach(part: float, largest: float) -> float:
    """Length of a bar in percent; any value above 0 is visible."""
    return max(round(100 * part / largest, 2), 0.5) if part and largest else 0


def _spreads(rows: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Spreads with the positions, in percent, at which to draw them on a shared scale: log(1 + value)."""
    largest = max(spread["max"] for spread in rows.values())

    def position(value: float) -> float:
        return round(100 * math.log1p(value) / math.log1p(largest), 2) if largest > 0 else 0

    return [
        {
            "label": label,
            **spread,
            "from": position(spread["min"]),
            "to": position(spread["max"]),
            "median": position(spread["p50"]),
            "high": position(spread["p95"]),
        }
        for label, spread in rows.items()
    ]


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by dotted key, as in the configuration."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
