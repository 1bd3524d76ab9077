"""The chart's values, once: type, bound, default and a line of description.

`python -m helm.values` writes from them what the chart ships: values.yaml with its comments, values.schema.json, by
which Helm refuses a misspelt knob, and README.md. What the chart hands on, the configurations and the schedules, it
takes from the models that read them later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from distilrank import config
from distilrank.config import CPU_OVERRIDES, Cluster, Config, Cpu, Memory, Name, Positive, Registry
from distilrank.serving.settings import Serving
from pipelines.cluster_commands import EXPERIMENT
from pipelines.recurring_runs.spec import Schedule

CHART = Path(__file__).parent / "distilrank"
GENERATED = "Written by `make chart` from helm/values.py."
SCHEMA = "http://json-schema.org/draft-07/schema#"
"""The newest that all of Helm 3 reads."""
GIVEN = ("registry", "host", "port", "token_file")
"""Settings of the service that the chart knows, and so nobody sets."""

Free = dict[str, Any]
"""What is handed to Kubernetes as it is; its API server knows the fields."""
Labels = dict[str, str]
Port = Annotated[int, Field(ge=1, le=65535)]
CRON = r"^\S+( +\S+){4,5}$"
"""Five fields, or six with the second first; the hook knows what may stand in each."""


class Values(BaseModel):
    """Base of all: keys in camel case, as Helm has them, and an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Image(Values):
    """An image; a tag that moves (`latest`) is refused, for Kubeflow caches results by an image's name."""

    repository: str = Field(min_length=1, description="Its name, without registry.")
    tag: str = Field("", description="Its tag; empty: the chart's appVersion.")
    digest: str = Field(
        "", pattern=r"^$|^sha256:[0-9a-f]{64}$", description="Its digest, which then counts instead of the tag."
    )


class ChartImages(Values):
    """The three images, and where they come from. They are those of the pipelines too."""

    registry: str = Field("", description="Put before the three names, as `registry.example.com/search`; empty: none.")
    ops: Image = Field(Image(repository="distilrank/ops"), description="Hooks, UI, and stages without torch.")
    train: Image = Field(Image(repository="distilrank/train"), description="Stages that compute with torch.")
    serve: Image = Field(Image(repository="distilrank/serve"), description="The scoring service.")
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = Field("IfNotPresent", description="When to pull.")
    pull_secrets: tuple[Name, ...] = Field((), description="Secrets to pull with, in both namespaces.")


class Auth(Values):
    """How the submitter shows who it is."""

    kind: Literal["none", "token", "serviceAccount"] = Field(
        "none",
        description="none: nothing is asked for; token: a bearer token from a Secret; serviceAccount: the submitter's "
        "own token, which Kubernetes renews, for Kubeflow's multi-user mode.",
    )
    audience: str = Field("pipelines.kubeflow.org", description="Audience of the service account's token.")
    secret: str = Field("", description="Secret that holds the bearer token, for `token`.")
    key: str = Field("token", min_length=1, description="Its key there.")


class Authority(Values):
    """Certificates to trust the API by, where a private authority signed its own."""

    config_map: str = Field("", description="ConfigMap that holds them; empty: none.")
    key: str = Field("ca.crt", min_length=1, description="Their key there.")


class Kubeflow(Values):
    """Kubeflow Pipelines, as the hooks reach it."""

    host: str = Field(
        "",
        pattern=r"^$|^https?://\S+$",
        description="Its API, as `http://ml-pipeline.kubeflow:8888`; a path may follow. Empty: no schedules are kept.",
    )
    namespace: str = Field(
        "",
        pattern=r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="Where runs have their pods: Kubeflow's own namespace, in multi-user mode that of a profile; "
        "empty: the release's.",
    )
    multi_user: bool = Field(False, description="Whether it is in multi-user mode, which separates namespaces.")
    experiment: str = Field(EXPERIMENT, min_length=1, description="Experiment of the recurring runs.")
    timezone: str = Field(
        "UTC", min_length=1, description="The cluster's time zone, by which Kubeflow reads every cron."
    )
    auth: Auth = Field(Auth(), description="How the submitter shows who it is.")
    ca: Authority = Field(Authority(), description="Certificates to trust it by.")


class Account(Values):
    """A service account."""

    create: bool = Field(True, description="Whether the chart makes it.")
    name: config.OptionalName = Field(
        "", description="Its name; empty: after the release, or where it is not made, Kubernetes' or Kubeflow's own."
    )
    annotations: Labels = Field({}, description="For Workload Identity (`iam.gke.io/gcp-service-account`), IRSA.")


class Accounts(Values):
    """Who runs as whom: what may promote, what may change schedules and what trains are different accounts."""

    submitter: Account = Field(Account(), description="The hooks: compiles, and keeps the recurring runs.")
    runner: Account = Field(
        Account(create=False),
        description="The pipelines' pods, in the namespace of the runs; by default Kubeflow's own: `pipeline-runner`, "
        "in multi-user mode `default-editor`.",
    )
    promoter: Account = Field(Account(), description="Changes the registry outside of runs: `collection`.")
    server: Account = Field(Account(), description="The scoring service: reads the registry.")


class RunnerRole(Values):
    """A role of Kubeflow's own that every pod of a run needs."""

    kind: Literal["Role", "ClusterRole"] = Field("Role", description="Its kind.")
    name: str = Field("", description="Its name, as `pipeline-runner`; empty: bound elsewhere.")


class Rbac(Values):
    """Roles and their bindings."""

    create: bool = Field(True, description="Whether the chart makes them.")
    train_jobs: bool = Field(False, description="Whether runs may make TrainJobs, for training on several nodes.")
    runner_role: RunnerRole = Field(
        RunnerRole(), description="What else the runner is bound to, in the namespace of the runs."
    )


class Resources(Values):
    """What a container asks for, as Kubernetes writes it."""

    requests: dict[str, Cpu | Memory] = Field({}, description="At least.")
    limits: dict[str, Cpu | Memory] = Field({}, description="At most.")


class Pods(Values):
    """What all pods of the chart itself get; those of the pipelines have `cluster`."""

    labels: Labels = Field({}, description="Labels.")
    annotations: Labels = Field({}, description="Annotations.")
    node_selector: Labels = Field({}, description="Labels that a node must have.")
    tolerations: tuple[Free, ...] = Field((), description="Taints that are put up with, in Kubernetes' words.")
    priority_class: str = Field("", description="Priority class; empty: the cluster's default.")
    env: Labels = Field({}, description="Environment; nothing secret.")
    run_as_user: Positive = Field(10001, description="User id.")
    run_as_group: Positive = Field(10001, description="Group id, and that of volumes.")


class Storage(Values):
    """A volume for what outlives runs: registry, caches, checkpoints, drift over time.

    With it, what a configuration does not set goes there: `registry.uri`, `registry.cache_dir`,
    `prepare.log_cache_dir`, `compute.checkpoint_dir`, `HF_HOME`, and the Evidently workspace if the UI is on.
    """

    enabled: bool = Field(False, description="Whether there is one.")
    existing_claim: config.OptionalVolumeName = Field("", description="Use this claim instead of one of the chart's.")
    size: Memory = Field("200Gi", description="Its size.")
    storage_class: str = Field("", description="Storage class; empty: the cluster's default.")
    access_mode: Literal["", "ReadWriteMany", "ReadWriteOnce"] = Field(
        "",
        description="Access mode of the chart's claim, which has no default: ReadWriteMany needs a storage class that "
        "offers it, ReadWriteOnce needs every pod that mounts the volume on one node.",
    )
    path: config.Folder = Field("/distilrank", description="Where it is mounted, in every pod alike.")
    keep: bool = Field(True, description="Whether the claim outlives the release.")
    prepare: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether two Jobs make the volume's folders and check that pods of runs can write them, after "
        "each install, upgrade and rollback; auto: only on the chart's own claim.",
    )


class Hooks(Values):
    """The Jobs that prepare the volume and make the recurring runs what `schedules` says."""

    resources: Resources = Field(
        Resources(requests={"cpu": "500m", "memory": "1Gi"}, limits={"memory": "2Gi"}), description="What they ask for."
    )
    deadline_seconds: Positive = Field(
        900,
        description="Fail a Job after this long, counted from its creation, so that the image is pulled within it; "
        "pass Helm a longer --timeout (5 minutes unless you set it).",
    )
    retries: config.Count = Field(2, description="How often a failed Job's pod is started again.")
    pod_labels: Labels = Field(
        {"sidecar.istio.io/inject": "false"}, description="Labels of their pods; a proxy would keep them from ending."
    )
    delete_on_uninstall: bool = Field(True, description="Delete the release's recurring runs before an uninstall.")


class Retries(Values):
    """Failed runs of the release's recurring runs, retried (`pipelines retry`).

    Only those whose failure may pass, an eviction or a lost node, say; a retry repeats only what has failed.
    """

    enabled: bool = Field(False, description="Whether a CronJob retries them; what runs again costs what it costs.")
    cron: str = Field("*/30 * * * *", pattern=r"^\S+( +\S+){4}$", description="When: five fields, in UTC.")
    failed_since: str = Field(
        "6h", pattern=r"^[1-9][0-9]*[mhd]$", description="Age from which a failure is left alone, as 90m, 6h or 2d."
    )
    max_retries: Annotated[int, Field(ge=1, le=10)] = Field(1, description="How often one run is retried.")
    resources: Resources = Field(
        Resources(requests={"cpu": "500m", "memory": "1Gi"}, limits={"memory": "2Gi"}), description="What it asks for."
    )


class Token(Values):
    """The tokens that the scoring service asks for."""

    secret: str = Field("", description="Secret that holds them; empty: the service is open to all who reach it.")
    key: str = Field("tokens", min_length=1, description="Their key there; one a line.")
    metrics_key: str = Field(
        "", description="Key of the one among them that Prometheus sends; empty: that of all, where there is only one."
    )


class Autoscaling(Values):
    """Replicas by load."""

    enabled: bool = Field(False, description="Whether replicas follow the load.")
    min_replicas: Positive = Field(2, description="Fewest.")
    max_replicas: Positive = Field(8, description="Most.")
    cpu: Annotated[int, Field(ge=1, le=100)] = Field(
        50, description="Per cent of the requested processors to aim at; beyond half, waiting takes over."
    )


class Disruption(Values):
    """What must keep running while nodes are drained."""

    enabled: bool = Field(False, description="Whether it is said.")
    max_unavailable: Positive = Field(1, description="Most replicas that may be away.")


class Service(Values):
    """How it is reached within the cluster."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field("ClusterIP", description="Kind of Service.")
    port: Port = Field(80, description="Its port.")
    annotations: Labels = Field({}, description="Its annotations.")


class ScoringService(Values):
    """The scoring service, which follows the champion."""

    enabled: bool = Field(False, description="Whether it is deployed.")
    replicas: Positive = Field(2, description="How many, without autoscaling.")
    settings: Serving = Field(
        Serving(threads=2, log_format="json"),
        description="Settings as in docs/serving.md; keep `threads` at the processors asked for.",
    )
    token: Token = Field(Token(), description="The tokens that it asks for.")
    resources: Resources = Field(
        Resources(requests={"cpu": "2", "memory": "2Gi"}, limits={"memory": "2Gi"}), description="What it asks for."
    )
    service: Service = Field(Service(), description="How it is reached.")
    autoscaling: Autoscaling = Field(Autoscaling(), description="Replicas by load.")
    disruption: Disruption = Field(Disruption(), description="What keeps running while nodes are drained.")


class Ui(Values):
    """Evidently's pages: drift over all runs. It has no login, so it is reached by port-forward, or behind yours."""

    enabled: bool = Field(False, description="Whether it is deployed; needs `storage`.")
    resources: Resources = Field(
        Resources(requests={"cpu": "100m", "memory": "512Mi"}, limits={"memory": "2Gi"}),
        description="What it asks for.",
    )
    service: Service = Field(Service(), description="How it is reached.")


class Collection(Values):
    """Removal of old versions from the registry (`distilrank registry gc`), as the promoter."""

    enabled: bool = Field(False, description="Whether it happens.")
    cron: str = Field("0 5 * * 0", pattern=r"^\S+( +\S+){4}$", description="When: five fields, in UTC.")
    keep: Positive = Field(5, description="Records of each alias whose versions stay.")
    resources: Resources = Field(
        Resources(requests={"cpu": "100m", "memory": "512Mi"}, limits={"memory": "1Gi"}),
        description="What it asks for.",
    )


class NetworkPolicy(Values):
    """Who reaches the chart's pods, and whom they reach."""

    enabled: bool = Field(False, description="Whether there are policies.")
    clients: tuple[Free, ...] = Field(
        (),
        description="Who may reach service and UI, as NetworkPolicyPeers; empty: all pods of the release's namespace.",
    )
    restrict_egress: bool = Field(
        False, description="Allow no way out but DNS, the port in Kubeflow's host, and `egress`."
    )
    egress: tuple[Free, ...] = Field(
        (), description="Further ways out, as NetworkPolicyEgressRules; of a Service the port of its pods."
    )


class ServiceMonitor(Values):
    """Metrics of the scoring service for the Prometheus operator."""

    enabled: bool = Field(False, description="Whether there is one.")
    interval: str = Field("30s", pattern=r"^\d+(ms|s|m|h)$", description="Time between two looks.")
    labels: Labels = Field({}, description="Labels by which your Prometheus selects it.")


class Chart(Values):
    """All values."""

    name_override: str = Field("", description="Instead of the chart's name.")
    fullname_override: str = Field("", description="Instead of release and chart name, in the names of all objects.")
    images: ChartImages = Field(ChartImages(), description="The images.")
    kubeflow: Kubeflow = Field(Kubeflow(), description="Kubeflow Pipelines, as the hooks reach it.")
    configurations: dict[Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")], Config] = Field(
        {},
        description="Configurations by name, each with the keys of a configuration file (docs/configuration.md).",
    )
    cluster: Cluster = Field(
        Cluster(), description="Section `cluster` of every configuration, whose own keys are stronger."
    )
    registry: Registry = Field(
        Registry(uri=""), description="Section `registry` of every configuration, and the one that is served."
    )
    schedules: tuple[Schedule, ...] = Field(
        (), description="Recurring runs; `config` is a name in `configurations` (docs/kubeflow.md)."
    )
    service_accounts: Accounts = Field(Accounts(), description="Who runs as whom.")
    rbac: Rbac = Field(Rbac(), description="Roles and their bindings.")
    pods: Pods = Field(Pods(), description="What all pods of the chart itself get.")
    storage: Storage = Field(Storage(), description="A volume for what outlives runs.")
    hooks: Hooks = Field(Hooks(), description="The Jobs that prepare the volume and keep the recurring runs.")
    retries: Retries = Field(Retries(), description="Failed runs of the recurring runs, retried.")
    serving: ScoringService = Field(ScoringService(), description="The scoring service.")
    ui: Ui = Field(Ui(), description="Evidently's pages.")
    collection: Collection = Field(Collection(), description="Removal of old versions.")
    network_policy: NetworkPolicy = Field(NetworkPolicy(), description="Who reaches whom.")
    service_monitor: ServiceMonitor = Field(ServiceMonitor(), description="Metrics for the Prometheus operator.")


def schema() -> dict[str, Any]:
    """The JSON schema of the values."""
    made = Chart.model_json_schema(by_alias=True)
    definitions = made["$defs"]
    parts = definitions["Config"]["properties"]
    # A policy file cannot be beside the configuration, so `gate` is always written out.
    kinds = parts["data"]["discriminator"]["mapping"].values()
    names = {name for kind in kinds for name in definitions[kind.rpartition("/")[2]]["properties"]}
    data = {"type": "object", "properties": dict.fromkeys(sorted(names), True), "additionalProperties": False}
    parts[CPU_OVERRIDES] = {
        "type": "object",
        "properties": parts | {"data": data},  # a part of the section, whose kind stands elsewhere
        "additionalProperties": False,
        "description": "Differences where nothing computes in bf16 fast.",
    }
    for name in GIVEN:
        del definitions[Serving.__name__]["properties"][name]
    definitions["Schedule"]["properties"]["cron"]["pattern"] = CRON
    for part in [made, *definitions.values()]:
        _say_which(part)
    for part in _parts(made):
        part.pop("title", None)
        part.pop("default", None)
    made["properties"]["global"] = {"type": "object", "description": "Values of a parent chart; not read."}
    made["title"] = "Values of the distilrank chart"
    return {"$schema": SCHEMA, "$comment": GENERATED, **made}


def _say_which(part: dict[str, Any]) -> None:
    """Replace a choice by a key (the kind of data) by conditions, so that errors are those of the kind chosen."""
    for name, field in part.get("properties", {}).items():
        if "discriminator" not in field:
            continue
        key, kinds = field["discriminator"]["propertyName"], field["discriminator"]["mapping"]
        part["properties"][name] = {
            "type": "object",
            "required": [key],
            "properties": {key: {"enum": sorted(kinds)}},
            "allOf": [
                {"if": {"properties": {key: {"const": kind}}, "required": [key]}, "then": {"$ref": reference}}
                for kind, reference in sorted(kinds.items())
            ],
            "description": field.get("description", ""),
        }


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """All schemas within a schema."""
    if isinstance(part, list):
        for one in part:
            yield from _parts(one)
    elif isinstance(part, dict):
        if isinstance(part.get("title"), str) or "type" in part or "$ref" in part or "anyOf" in part:
            yield part
        for one in part.values():
            yield from _parts(one)


def _plain(value: Any) -> Any:
    """A default as YAML has it."""
    if isinstance(value, Values):
        fields = type(value).model_fields
        return {field.alias or name: _plain(getattr(value, name)) for name, field in fields.items()}
    if isinstance(value, BaseModel):
        fresh = {name: field.get_default() for name, field in type(value).model_fields.items()}
        return {name: _plain(getattr(value, name)) for name in fresh if getattr(value, name) != fresh[name]}
    return TypeAdapter(Any).dump_python(value, mode="json")


def values_yaml() -> str:
    """values.yaml, every key under its description."""
    lines = [f"# {GENERATED}", "# README.md has the same as a table, values.schema.json the types and bounds."]
    for name, field in Chart.model_fields.items():
        lines += ["", *_commented(field.alias or name, field, getattr(Chart(), name), 0)]
    return "\n".join(lines) + "\n"


def _commented(key: str, field: FieldInfo, value: Any, depth: int) -> list[str]:
    pad = "  " * depth
    lines = [f"{pad}# {field.description}"]
    if isinstance(value, Values):
        lines.append(f"{pad}{key}:")
        for name, inner in type(value).model_fields.items():
            lines += _commented(inner.alias or name, inner, getattr(value, name), depth + 1)
        return lines
    return [*lines, f"{pad}{key}: {json.dumps(_plain(value), ensure_ascii=False)}"]  # JSON is YAML


def readme() -> str:
    """The chart's README, with a table of all values."""
    text = (CHART / "README.md.in").read_text(encoding="utf-8")
    rows = ["| value | default | what it does |", "| --- | --- | --- |"]
    for key, default, description in _rows(Chart(), ""):
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (key, default, description)) + " |")
    return f"<!-- {GENERATED} -->\n" + text.replace("@VALUES@", "\n".join(rows))


def _rows(value: Values, path: str) -> Iterator[tuple[str, str, str]]:
    for name, field in type(value).model_fields.items():
        key, inner = f"{path}{field.alias or name}", getattr(value, name)
        if isinstance(inner, Values):
            yield f"**`{key}`**", "", " ".join(f"{field.description} {_more(inner)}".split())
            yield from _rows(inner, f"{key}.")
            continue
        text = json.dumps(_plain(inner), ensure_ascii=False)
        yield f"`{key}`", f"`{text}`", f"{field.description}{_choices(field.annotation)}"


def _more(value: Values) -> str:
    """What a section's docstring says beyond its first sentence."""
    return " ".join((type(value).__doc__ or "").split()).partition(". ")[2]


def _choices(annotation: Any) -> str:
    if get_origin(annotation) is not Literal:
        return ""
    return f" One of {', '.join(str(choice) for choice in get_args(annotation) if choice != '')}."


FILES = {
    "values.yaml": values_yaml,
    "values.schema.json": lambda: json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
    "README.md": readme,
}
"""What is generated, by its name in the chart."""


def main() -> None:
    """Write the generated files."""
    for name, make in FILES.items():
        (CHART / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
