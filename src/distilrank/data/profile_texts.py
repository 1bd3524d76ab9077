"""Labels and sentences of the data profile's page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distilrank.core.schemas import STRATA
from distilrank.rendering.formatting import DASH, format_count, format_percent, format_value, join_words

USES = {
    "train": "training of the teacher, and the student's supervised loss",
    "dev": "choice of checkpoints, and calibration",
    "test": "metrics of the report only",
    "unlabeled_train": "train queries beyond the budget: their ratings are ignored, their products join the log",
    "beyond_limit": "dev and test queries beyond the limit: not used",
}
"""What the judgements are used for, by use."""

PROVENANCES = {
    "impression": "drawn from what the query's searches showed",
    "bm25": "the best of BM25",
    "disagreement": "ranked high by one of BM25 and the embedding retriever, missed by the other",
    "popular": "the most clicked of the product type that the query finds",
    "random": "drawn from the whole catalogue",
}
"""Source of the candidates, by provenance."""

KEPT_ALL = {
    "configured": "the configuration sets no minimum number of clients (prepare.privacy.min_clients)",
    "unknown_clients": "the log has no client ids (data.columns.client)",
    "made_up": "its shoppers are simulated",
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
"""Labels of the kinds of personal data."""

MERGED = {
    "repeated_products": "rows of the catalogue that repeat another one word for word",
    "spellings": "spellings of a query that are another one's normal form",
    "identical_judgements": "judgements that repeat another one: same query, product and rating",
    "judgements_of_other_spellings": "judgements of a pair that was judged under another spelling too",
    "ratings_averaged_over_spellings": "pairs merged over spellings whose ratings differed: their mean counts",
    "repeated_by_a_rater": "further ratings of a pair by the same rater, who counts once",
}
"""Reasons why rows were merged, by their keys in the profile."""

RULES = {"refuse": "mean", "mean": "mean", "median": "median", "majority": "most frequent rating"}
"""How a pair's rating is computed from those of its raters, by `data.rating_conflicts`."""

RELIABLE, TENTATIVE = 0.8, 0.667
"""Lowest alpha of reliable ratings, and of tentative conclusions (Krippendorff, Content Analysis)."""

SAMPLES = {"reference": "what drift is measured from", "current": "what is compared with it"}
"""The samples of traffic, by name."""


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


def list_notices(summary: Mapping[str, Any], logged: bool) -> list[dict[str, str]]:
    """Return the most important findings: one line each, with its tone and the section with the details."""
    notices = []

    def note(tone: str, section: str, text: str) -> None:
        notices.append({"tone": tone, "section": section, "text": text})

    dropped = summary["dropped"]
    if dropped:
        largest = max(dropped, key=lambda problem: problem["rows"])
        several = f"{len(dropped)} kinds of rows left out or unusual, the most frequent"
        kinds = several if len(dropped) > 1 else "Left out or unusual"
        note(
            "note",
            "left-out",
            f"{kinds}: {largest['what'].removeprefix('left out, ')} ({format_count(largest['rows'], 'row')}).",
        )
    else:
        note("good", "left-out", "Nothing was left out, and nothing looked unusual.")
    privacy = summary["privacy"]
    if not logged:
        note("good", "privacy", "There is no log, so no shopper's search was read.")
    else:
        items = [KINDS.get(kind, kind) for kind in privacy["scrubbed"]]
        scrubbed = f"Removed from queries: {join_words(items)}." if items else "Nothing was removed from queries."
        if not privacy["scrub"]:
            scrubbed = "Queries were not searched for personal data."
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
        note("warn", "judgements", "All judged pairs have the same rating: there is nothing to learn from them.")
    agreement = summary["rater_agreement"]
    if agreement and agreement["alpha"] is not None and agreement["alpha"] < TENTATIVE:
        note(
            "warn",
            "judgements",
            f"Raters agree poorly: Krippendorff's alpha is {agreement['alpha']:.2f}, and below {TENTATIVE} ratings "
            "support no conclusions. Improve the raters' guidelines, or have more people rate each pair.",
        )
    strata = summary["strata"]
    for side in ("dev", "test") if logged else ():
        absent = [name for name in STRATA if strata["queries"][name] and not strata[side][name]]
        if absent:
            note(
                "warn",
                "splits",
                f"No {' or '.join(absent)} query is on the {side} side: its metrics do not cover such queries.",
            )
    pairs = {uses: count for uses, count in summary["near_duplicates"]["pairs"].items() if count}
    if pairs:
        items = [f"{format_value(count)} between {uses}" for uses, count in pairs.items()]
        note("note", "near-duplicates", f"Near duplicates of a query on another side: {join_words(items)}.")
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


def describe_judged_privacy(privacy: Mapping[str, Any]) -> str:
    """Describe the personal data in judged queries in a sentence or two."""
    counts = [f"{KINDS.get(kind, kind)} ({format_value(count)})" for kind, count in privacy["judged"].items()]
    kinds = join_words(counts) if counts else ""
    if privacy["scrub_judgements"]:
        return f"Removed from judged queries: {kinds}." if kinds else "No judged query contained personal data."
    if kinds:
        return (
            f"Judged queries are not changed; some contain what looks like personal data: {kinds}. "
            "prepare.privacy.scrub_judgements removes it."
        )
    inspected = ", and none contains what looks like personal data" if privacy["scrub"] else ""
    return f"Judged queries are not changed{inspected}."


def describe_agreement(agreement: Mapping[str, Any] | None) -> str:
    """Describe the agreement of the raters; empty where pairs have one rating."""
    if agreement is None:
        return ""
    several, people = agreement["pairs"], agreement["raters"]
    who = "Anonymous raters" if people is None else format_count(people, "rater")
    text = (
        f"{who} gave {format_count(agreement['ratings'], 'rating')}. {format_count(several, 'pair')} "
        f"{'has' if several == 1 else 'have'} two or more"
    )
    if several:
        unanimous = agreement["unanimous"]
        text += f", {format_value(unanimous)} of them ({share_text(unanimous, several)}) in agreement"
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
