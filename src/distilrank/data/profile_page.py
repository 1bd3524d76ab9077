"""The data profile as one self-contained HTML page that needs no network, and no script to be read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from markupsafe import Markup

from distilrank.core.schemas import SIDES, STRATA
from distilrank.rendering import figures, inline_script, templating
from distilrank.rendering.formatting import DASH, format_count, format_percent, format_value, join_words

USES = {
    "train": "what the teacher learns from, and the student's human term",
    "dev": "for the choice of checkpoints and for calibration",
    "test": "for the measures of the report, and nothing else",
    "hidden": "train queries beyond the budget: their ratings are forgotten, their products join the log",
    "over_cap": "dev and test queries beyond the cap: used for nothing",
}
"""What the judgements are used for, by use."""

PROVENANCES = {
    "impression": "drawn from what the query's searches showed",
    "bm25": "the best of BM25",
    "disagreement": "ranked high by one of BM25 and the embedding retriever, missed by the other",
    "popular": "the most clicked of the product type that the query finds",
    "random": "drawn from the whole catalogue",
}
"""How candidates were found, by provenance."""

KEPT_ALL = {
    "configured": "the configuration asks for no least number of clients (prepare.privacy.min_clients)",
    "unknown_clients": "the log does not tell who searched (data.columns.client)",
    "made_up": "its shoppers are made up",
}
"""Why queries of a single client were kept."""

KINDS = {
    "email": "e-mail address",
    "phone": "phone number",
    "card": "payment card or bank account",
    "digits": "other long number",
    "url": "link",
    "id_number": "identity number",
    "token": "token or key",
    "device": "IP or MAC address",
    "birth_date": "date of birth",
    "plate": "license plate",
}
"""Kinds of personal data as readers know them."""

MERGED = {
    "products_told_twice": "rows of the catalogue that repeat another one word for word",
    "spellings": "spellings of a query that are another one's normal form",
    "identical_judgements": "judgements that repeat another one: same query, product and rating",
    "judgements_of_other_spellings": "judgements of a pair that was judged under another spelling too",
    "ratings_averaged_over_spellings": "of the pairs so made, those with several ratings: their mean counts",
    "repeated_by_a_rater": "further ratings of a pair by a rater who had rated it: a rater counts once",
}
"""Reasons why rows became one, by their keys in the profile."""

RULES = {"refuse": "mean", "mean": "mean", "median": "median", "majority": "most frequent rating"}
"""How a pair's rating follows from those of its raters, by `data.rating_conflicts`."""

RELIABLE, TENTATIVE = 0.8, 0.667
"""Lowest alpha of reliable ratings, and of tentative conclusions (Krippendorff, Content Analysis)."""

SAMPLES = {"reference": "what drift is measured from", "current": "what is compared with it"}
"""The samples of traffic, by name."""


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
        "notices": _notices(summary, logged),
        "dropped": summary["dropped"],
        "privacy": _privacy(summary["privacy"]),
        "judgements": _judgements(summary),
        "splits": _splits(summary, logged),
        "near": _near_duplicates(summary),
        "queries": _queries(summary),
        "traffic": [
            {"name": name, "what": SAMPLES.get(name, ""), "rows": rows}
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


def share_text(part: float, whole: float) -> str:
    """A part of a whole as a percentage, 0 % and 100 % only where exact; a dash if the whole is 0."""
    if not whole:
        return DASH
    share = part / whole
    if 0 < share < 0.0005:
        return "<\u202f0.1\u00a0%"
    if 0.9995 <= share < 1:
        return ">\u202f99.9\u00a0%"
    return format_percent(share)


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
    return summary["rows"]["products"] - summary["merged"]["products_told_twice"]


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


def _notices(summary: Mapping[str, Any], logged: bool) -> list[dict[str, str]]:
    """The most important findings: a line each, with its tone and the section that has more."""
    notices = []

    def note(tone: str, section: str, text: str) -> None:
        notices.append({"tone": tone, "section": section, "text": text})

    dropped = summary["dropped"]
    if dropped:
        largest = max(dropped, key=lambda problem: problem["rows"])
        several = f"{len(dropped)} kinds of rows left out, or odd, the most frequent"
        kinds = several if len(dropped) > 1 else "Left out, or odd"
        note(
            "note",
            "left-out",
            f"{kinds}: {largest['what'].removeprefix('left out, ')} ({format_count(largest['rows'], 'row')}).",
        )
    else:
        note("good", "left-out", "Nothing was left out, and nothing looked odd.")
    privacy = summary["privacy"]
    if not logged:
        note("good", "privacy", "There is no log, so no shopper's search was read.")
    else:
        items = [KINDS.get(kind, kind) for kind in privacy["scrubbed"]]
        scrubbed = f"Taken out of queries: {join_words(items)}." if items else "Nothing was taken out of queries."
        if not privacy["scrub"]:
            scrubbed = "Personal data in queries was not looked for."
        if privacy["min_clients"] > 1:
            rare_queries = format_count(privacy["dropped_queries"], "query", "queries")
            rare = (
                f"{rare_queries} of fewer than {privacy['min_clients']} clients dropped, "
                f"{format_count(privacy['dropped_pair_impressions'], 'impression')} and "
                f"{format_count(privacy['hidden_clicks'], 'click')} of fewer on a product."
            )
            note("note", "privacy", f"{scrubbed} {rare}")
        else:
            kind = "good" if privacy["kept_all"] == "made_up" else "warn"
            note(kind, "privacy", f"{scrubbed} All queries were kept: {KEPT_ALL[privacy['kept_all']]}.")
    if len(summary["ratings"] or ()) == 1:
        note(
            "warn", "judgements", "All judged pairs have one and the same rating: there is nothing to learn from them."
        )
    agreement = summary["rater_agreement"]
    if agreement and agreement["alpha"] is not None and agreement["alpha"] < TENTATIVE:
        note(
            "warn",
            "judgements",
            f"Raters agree little: Krippendorff's alpha is {agreement['alpha']:.2f}, and below {TENTATIVE} ratings "
            "support no conclusions. Improve the raters' guidelines, or have more people rate each pair.",
        )
    strata = summary["strata"]
    for side in ("dev", "test") if logged else ():
        absent = [name for name in STRATA if strata["queries"][name] and not strata[side][name]]
        if absent:
            note(
                "warn",
                "splits",
                f"No {' or '.join(absent)} query is on the {side} side: its measures say nothing about them.",
            )
    pairs = {uses: count for uses, count in summary["near_duplicates"]["pairs"].items() if count}
    if pairs:
        items = [f"{format_value(count)} between {uses}" for uses, count in pairs.items()]
        note("note", "near-duplicates", f"Queries that nearly repeat one of another side: {join_words(items)}.")
    else:
        note("good", "near-duplicates", "No dev or test query nearly repeats a query of another side.")
    queries = summary["queries"]
    if queries["newest_traffic"]:
        new = queries["newest_traffic_not_in_training_window"]
        newest = format_count(queries["newest_traffic"], "query", "queries")
        note(
            "note",
            "queries",
            f"{format_value(new)} of {newest} of the newest traffic "
            f"({share_text(new, queries['newest_traffic'])}) {'was' if new == 1 else 'were'} not seen in the training "
            "window.",
        )
    else:
        note("note", "queries", f"For drift, {summary['traffic']['basis']}.")
    return notices


def _privacy(privacy: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **privacy,
        "judged_text": _judged_privacy(privacy),
        "why_all": KEPT_ALL.get(privacy["kept_all"], ""),
        "kinds": [
            {"label": KINDS.get(kind, kind.replace("_", " ")), **counts} for kind, counts in privacy["scrubbed"].items()
        ],
    }


def _judged_privacy(privacy: Mapping[str, Any]) -> str:
    """Personal data in judged queries, in a sentence or two."""
    counts = [f"{KINDS.get(kind, kind)} ({format_value(count)})" for kind, count in privacy["judged"].items()]
    kinds = join_words(counts) if counts else ""
    if privacy["scrub_judgements"]:
        return f"Taken out of judged queries: {kinds}." if kinds else "No judged query held personal data to take out."
    if kinds:
        return (
            f"Judged queries stay as they were judged; some hold what looks like personal data: {kinds}. "
            "prepare.privacy.scrub_judgements takes it out."
        )
    inspected = ", and none holds what looks like personal data" if privacy["scrub"] else ""
    return f"Judged queries stay as they were judged{inspected}."


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
        {"label": MERGED.get(name, name.replace("_", " ")), "count": count} for name, count in summary["merged"].items()
    ]
    if same:
        rule = RULES[summary["source"].get("rating_conflicts", "refuse")]
        common = f"{common} Every rating is the {rule} of {format_count(int(raters['max']), 'rater')}.".strip()
    return {
        "rows": summary["rows"]["judgements"],
        "common": common,
        "figure": Markup(figures.plot_ratings(counts)) if counts else "",
        "raters": [] if same else _spreads({"raters of a pair": raters}),
        "agreement": _agreement_text(summary["rater_agreement"]),
        "merged": merged if any(row["count"] for row in merged) else [],
    }


def _agreement_text(agreement: Mapping[str, Any] | None) -> str:
    """The agreement of the raters, in sentences; empty where pairs have one rating."""
    if agreement is None:
        return ""
    several, people = agreement["pairs"], agreement["raters"]
    who = "Raters without a name" if people is None else format_count(people, "rater")
    text = (
        f"{who} gave {format_count(agreement['ratings'], 'rating')}. {format_count(several, 'pair')} "
        f"{'has' if several == 1 else 'have'} two or more"
    )
    if several:
        unanimous = agreement["unanimous"]
        text += f", {format_value(unanimous)} of them ({share_text(unanimous, several)}) all equal"
    alpha = agreement["alpha"]
    if alpha is None:
        return f"{text}."
    level = (
        "which counts as reliable"
        if alpha >= RELIABLE
        else "enough for tentative conclusions"
        if alpha >= TENTATIVE
        else "too little for conclusions"
    )
    return f"{text}. Krippendorff's alpha (interval) is {alpha:.2f}, {level}: 1 is full agreement, 0 is chance."


def _splits(summary: Mapping[str, Any], logged: bool) -> dict[str, Any]:
    splits, strata = summary["splits"], summary["strata"]
    total = sum(use["pairs"] for use in splits.values())
    uses = [
        {
            "name": name,
            "label": name.replace("_", " "),
            "what": USES.get(name, ""),
            **counts,
            "share": share_text(counts["pairs"], total),
            "told": counts["pairs"] > total * (len(name) + 1) / 100,  # a letter takes a hundredth of the page
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
    """A stacked bar of the strata; parts that are wide enough have their share written on them."""
    total = sum(counts.values())
    return {
        "parts": [
            {
                "name": name,
                "count": counts[name],
                "share": share_text(counts[name], total),
                "told": bool(total) and counts[name] / total >= 0.15,
            }
            for name in STRATA
        ],
        "told": ", ".join(f"{name} {share_text(counts[name], total)}" for name in STRATA),
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
                "what": PROVENANCES.get(name, ""),
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
    """Length of a bar in percent; any amount above 0 is visible."""
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
    """Settings by dotted key, as the configuration spells them."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
