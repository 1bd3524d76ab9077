"""The chart's values, defined once: type, bound, default and a one-line description each.

`python -m helm.values` generates three files of the chart from them: values.yaml with its comments, values.schema.json,
by which Helm refuses a misspelled key, and README.md. The types of `configurations` and `schedules`, which the chart
passes on unchanged, are the models that parse them later.
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
from pipelines.options import DEFAULT_EXPERIMENT
from pipelines.recurring_runs.spec import Schedule

CHART = Path(__file__).parent / "distilrank"
GENERATED = "Written by `make chart` from helm/values.py."
SCHEMA = "http://json-schema.org/draft-07/schema#"
"""The newest draft that every release of Helm 3 supports."""
SET_BY_CHART = ("registry", "host", "port", "token_file")
"""Settings of the scoring service that the chart fills in; values may not set them."""

Free = dict[str, Any]
"""An object that is passed to Kubernetes unchanged; its API server validates the fields."""
Labels = dict[str, str]
Port = Annotated[int, Field(ge=1, le=65535)]
CRON = r"^\S+( +\S+){4,5}$"
"""Five fields, or six with seconds first; the hook validates each field."""


class Values(BaseModel):
    """Base class of all sections: keys in camelCase, Helm's convention; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Image(Values):
    """A container image. A moving tag (`latest`) is refused, since Kubeflow caches results by image name."""

    repository: str = Field(min_length=1, description="Image name, without the registry.")
    tag: str = Field("", description="Image tag; empty: the chart's appVersion.")
    digest: str = Field(
        "", pattern=r"^$|^sha256:[0-9a-f]{64}$", description="Image digest; takes precedence over the tag."
    )


class ChartImages(Values):
    """The three images and their registry. The pipelines use the same images."""

    registry: str = Field(
        "", description="Prefix of the three names, such as `registry.example.com/search`; empty: no prefix."
    )
    ops: Image = Field(
        Image(repository="distilrank/ops"), description="Image of the hooks, the UI and the stages that need no torch."
    )
    train: Image = Field(Image(repository="distilrank/train"), description="Image of the stages that use torch.")
    serve: Image = Field(Image(repository="distilrank/serve"), description="Image of the scoring service.")
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = Field("IfNotPresent", description="Image pull policy.")
    pull_secrets: tuple[Name, ...] = Field((), description="Image pull secrets; they must exist in both namespaces.")


class Auth(Values):
    """How the submitter authenticates to the Kubeflow Pipelines API."""

    kind: Literal["none", "token", "serviceAccount"] = Field(
        "none",
        description="none: no authentication; token: a bearer token from a Secret; serviceAccount: a projected token "
        "of the submitter's service account, which Kubernetes renews, for Kubeflow's multi-user mode.",
    )
    audience: str = Field("pipelines.kubeflow.org", description="Audience of the service account's token.")
    secret: str = Field("", description="Name of the Secret with the bearer token; only for kind token.")
    key: str = Field("token", min_length=1, description="Key of the token in the Secret.")


class Authority(Values):
    """CA certificates for an API whose certificate was signed by a private authority."""

    config_map: str = Field(
        "", description="Name of the ConfigMap with the CA certificates; empty: the public authorities."
    )
    key: str = Field("ca.crt", min_length=1, description="Key of the certificates in the ConfigMap.")


class Kubeflow(Values):
    """The Kubeflow Pipelines API that the hooks call."""

    host: str = Field(
        "",
        pattern=r"^$|^https?://\S+$",
        description="URL of the API, such as `http://ml-pipeline.kubeflow:8888`; empty: no recurring runs.",
    )
    namespace: str = Field(
        "",
        pattern=r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="Namespace of the runs' pods: Kubeflow's own, or in multi-user mode a profile's; empty: the "
        "release's.",
    )
    multi_user: bool = Field(False, description="Whether Kubeflow runs in multi-user mode.")
    experiment: str = Field(DEFAULT_EXPERIMENT, min_length=1, description="Experiment of the recurring runs.")
    timezone: str = Field(
        "UTC", min_length=1, description="Time zone in which Kubeflow evaluates cron expressions; one per cluster."
    )
    auth: Auth = Field(Auth(), description="How the submitter authenticates to the API.")
    ca: Authority = Field(Authority(), description="CA certificates for the API.")


class Account(Values):
    """A Kubernetes service account."""

    create: bool = Field(True, description="Whether the chart creates it.")
    name: config.OptionalName = Field(
        "",
        description="Name; empty: derived from the release; without `create`, Kubernetes' or Kubeflow's default.",
    )
    annotations: Labels = Field(
        {}, description="Annotations, e.g. for Workload Identity (`iam.gke.io/gcp-service-account`) or IRSA."
    )


class Accounts(Values):
    """Service accounts: changing schedules, training and serving run under separate ones."""

    submitter: Account = Field(
        Account(), description="Account of the hooks, which compile the pipelines and apply the schedules."
    )
    runner: Account = Field(
        Account(create=False),
        description="Account of the pipelines' pods, in the namespace of the runs; default: Kubeflow's own, "
        "`pipeline-runner`, or `default-editor` in multi-user mode.",
    )
    promoter: Account = Field(Account(), description="Account that changes the registry outside of runs: `collection`.")
    server: Account = Field(Account(), description="Account of the scoring service, which reads the registry.")


class RunnerRole(Values):
    """A role of Kubeflow's that every pod of a run needs."""

    kind: Literal["Role", "ClusterRole"] = Field("Role", description="Kind of the role.")
    name: str = Field("", description="Name of the role, such as `pipeline-runner`; empty: it is bound elsewhere.")


class Rbac(Values):
    """RBAC roles and bindings."""

    create: bool = Field(True, description="Whether the chart creates roles and bindings.")
    train_jobs: bool = Field(
        False, description="Whether runs may create TrainJobs, which training on several nodes needs."
    )
    runner_role: RunnerRole = Field(
        RunnerRole(), description="An additional role of the runner, in the namespace of the runs."
    )


class Resources(Values):
    """Resource requests and limits of a container, as in Kubernetes."""

    requests: dict[str, Cpu | Memory] = Field({}, description="Resource requests.")
    limits: dict[str, Cpu | Memory] = Field({}, description="Resource limits.")


class Pods(Values):
    """Settings of all pods that the chart itself creates. Pods of the pipelines are set under `cluster`."""

    labels: Labels = Field({}, description="Pod labels.")
    annotations: Labels = Field({}, description="Pod annotations.")
    node_selector: Labels = Field({}, description="Node selector.")
    tolerations: tuple[Free, ...] = Field((), description="Kubernetes tolerations.")
    priority_class: str = Field("", description="Priority class name; empty: the cluster's default.")
    env: Labels = Field({}, description="Environment variables; not for secrets.")
    run_as_user: Positive = Field(10001, description="User ID of the containers.")
    run_as_group: Positive = Field(10001, description="Group ID of the containers and of volumes.")


class Storage(Values):
    """A volume for data that outlives runs: registry, caches, checkpoints, drift history.

    If it is enabled, these settings default to folders on it: `registry.uri`, `registry.cache_dir`,
    `prepare.log_cache_dir`, `compute.checkpoint_dir`, `HF_HOME`, and the Evidently workspace if the UI is enabled.
    """

    enabled: bool = Field(False, description="Whether the volume is used.")
    existing_claim: config.OptionalVolumeName = Field(
        "", description="Name of an existing PersistentVolumeClaim to use; empty: the chart creates one."
    )
    size: Memory = Field("200Gi", description="Size of the claim.")
    storage_class: str = Field("", description="Storage class of the claim; empty: the cluster's default.")
    access_mode: Literal["", "ReadWriteMany", "ReadWriteOnce"] = Field(
        "",
        description="Access mode of the claim; required, without a default. ReadWriteMany needs a storage class that "
        "supports it, ReadWriteOnce needs all pods that mount the volume on one node.",
    )
    path: config.Folder = Field("/distilrank", description="Mount path, the same in every pod.")
    keep: bool = Field(True, description="Whether the claim is kept when the release is uninstalled.")
    prepare: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether two Jobs create the volume's folders and check that pods of runs can write to them, after "
        "each install, upgrade and rollback; auto: only on a claim that the chart created.",
    )


class Hooks(Values):
    """The hook Jobs that prepare the volume and apply `schedules`."""

    resources: Resources = Field(
        Resources(requests={"cpu": "500m", "memory": "1Gi"}, limits={"memory": "2Gi"}),
        description="Resources of each Job.",
    )
    deadline_seconds: Positive = Field(
        900,
        description="Time limit of a Job from its creation, which includes pulling the image; give Helm a longer "
        "--timeout (its default is 5 minutes).",
    )
    retries: config.Count = Field(2, description="How many times the pod of a failed Job is restarted.")
    pod_labels: Labels = Field(
        {"sidecar.istio.io/inject": "false"},
        description="Labels of the Jobs' pods; a sidecar proxy would keep them from completing.",
    )
    delete_on_uninstall: bool = Field(
        True, description="Whether the release's recurring runs are deleted before it is uninstalled."
    )


class Retries(Values):
    """A CronJob that retries failed runs of the release's recurring runs (`pipelines retry`).

    Only transient failures, such as an eviction or a lost node, are retried; a retry repeats only the failed stages.
    """

    enabled: bool = Field(
        False, description="Whether failed runs are retried; repeated stages cost what they cost the first time."
    )
    cron: str = Field(
        "*/30 * * * *", pattern=r"^\S+( +\S+){4}$", description="Cron expression of the CronJob: five fields, in UTC."
    )
    failed_since: str = Field(
        "6h",
        pattern=r"^[1-9][0-9]*[mhd]$",
        description="Maximum age of a failure that is retried, such as 90m, 6h or 2d.",
    )
    max_retries: Annotated[int, Field(ge=1, le=10)] = Field(1, description="Maximum number of retries of one run.")
    resources: Resources = Field(
        Resources(requests={"cpu": "500m", "memory": "1Gi"}, limits={"memory": "2Gi"}),
        description="Resource requests and limits.",
    )


class Token(Values):
    """Bearer tokens that clients of the scoring service must send."""

    secret: str = Field("", description="Name of the Secret with the tokens; empty: no authentication.")
    key: str = Field("tokens", min_length=1, description="Key of the tokens in the Secret, one token per line.")
    metrics_key: str = Field(
        "", description="Key of the token that Prometheus sends; empty: `key`, if that holds a single token."
    )


class Autoscaling(Values):
    """Horizontal autoscaling of the scoring service."""

    enabled: bool = Field(False, description="Whether a HorizontalPodAutoscaler is created.")
    min_replicas: Positive = Field(2, description="Minimum number of replicas.")
    max_replicas: Positive = Field(8, description="Maximum number of replicas.")
    cpu: Annotated[int, Field(ge=1, le=100)] = Field(
        50, description="Target CPU utilization in percent of the request; above 50, queueing dominates latency."
    )


class Disruption(Values):
    """A PodDisruptionBudget, which limits evictions while nodes are drained."""

    enabled: bool = Field(False, description="Whether a PodDisruptionBudget is created.")
    max_unavailable: Positive = Field(1, description="Maximum number of unavailable replicas.")


class Service(Values):
    """A Kubernetes Service."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field("ClusterIP", description="Type of the Service.")
    port: Port = Field(80, description="Port of the Service.")
    annotations: Labels = Field({}, description="Annotations of the Service.")


class ScoringService(Values):
    """The scoring service, which reloads whenever the champion changes."""

    enabled: bool = Field(False, description="Whether the scoring service is deployed.")
    replicas: Positive = Field(2, description="Number of replicas, without autoscaling.")
    settings: Serving = Field(
        Serving(threads=2, log_format="json"),
        description="Settings of the service (docs/serving.md); keep `threads` equal to the CPU request.",
    )
    token: Token = Field(Token(), description="Bearer tokens that clients must send.")
    resources: Resources = Field(
        Resources(requests={"cpu": "2", "memory": "2Gi"}, limits={"memory": "2Gi"}),
        description="Resource requests and limits.",
    )
    service: Service = Field(Service(), description="The Kubernetes Service.")
    autoscaling: Autoscaling = Field(Autoscaling(), description="Horizontal autoscaling.")
    disruption: Disruption = Field(Disruption(), description="PodDisruptionBudget.")


class Ui(Values):
    """The Evidently UI: drift over all runs. It has no login: use a port-forward or your own authenticating proxy."""

    enabled: bool = Field(False, description="Whether the UI is deployed; needs `storage`.")
    resources: Resources = Field(
        Resources(requests={"cpu": "100m", "memory": "512Mi"}, limits={"memory": "2Gi"}),
        description="Resource requests and limits.",
    )
    service: Service = Field(Service(), description="The Kubernetes Service.")


class Collection(Values):
    """A CronJob that removes old versions from the registry (`distilrank registry gc`), as the promoter."""

    enabled: bool = Field(False, description="Whether old versions are removed.")
    cron: str = Field(
        "0 5 * * 0", pattern=r"^\S+( +\S+){4}$", description="Cron expression of the CronJob: five fields, in UTC."
    )
    keep: Positive = Field(5, description="Number of newest records of each alias whose versions are kept.")
    resources: Resources = Field(
        Resources(requests={"cpu": "100m", "memory": "512Mi"}, limits={"memory": "1Gi"}),
        description="Resource requests and limits.",
    )


class NetworkPolicy(Values):
    """NetworkPolicies of the chart's pods."""

    enabled: bool = Field(False, description="Whether NetworkPolicies are created.")
    clients: tuple[Free, ...] = Field(
        (),
        description="Clients of service and UI, as NetworkPolicyPeers; empty: all pods of the release's namespace.",
    )
    restrict_egress: bool = Field(
        False, description="Whether egress is limited to DNS, the port of kubeflow.host, and `egress`."
    )
    egress: tuple[Free, ...] = Field(
        (), description="Additional egress, as NetworkPolicyEgressRules; for a Service, give the port of its pods."
    )


class ServiceMonitor(Values):
    """A ServiceMonitor, by which the Prometheus operator scrapes the scoring service."""

    enabled: bool = Field(False, description="Whether a ServiceMonitor is created.")
    interval: str = Field("30s", pattern=r"^\d+(ms|s|m|h)$", description="Scrape interval.")
    labels: Labels = Field({}, description="Labels by which your Prometheus selects the ServiceMonitor.")


class Chart(Values):
    """All values of the chart."""

    name_override: str = Field("", description="Replaces the chart's name.")
    fullname_override: str = Field("", description="Replaces release and chart name in the names of all objects.")
    images: ChartImages = Field(ChartImages(), description="Container images.")
    kubeflow: Kubeflow = Field(Kubeflow(), description="The Kubeflow Pipelines API that the hooks call.")
    configurations: dict[Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")], Config] = Field(
        {},
        description="Configurations by name; the keys are those of a configuration file (docs/configuration.md).",
    )
    cluster: Cluster = Field(
        Cluster(), description="Default section `cluster` of every configuration; keys set there take precedence."
    )
    registry: Registry = Field(
        Registry(uri=""),
        description="Default section `registry` of every configuration; also the registry that is served.",
    )
    schedules: tuple[Schedule, ...] = Field(
        (), description="Recurring runs; `config` is a name under `configurations` (docs/kubeflow.md)."
    )
    service_accounts: Accounts = Field(Accounts(), description="Service accounts.")
    rbac: Rbac = Field(Rbac(), description="RBAC roles and bindings.")
    pods: Pods = Field(Pods(), description="Settings of all pods that the chart itself creates.")
    storage: Storage = Field(Storage(), description="A volume for data that outlives runs.")
    hooks: Hooks = Field(Hooks(), description="The hook Jobs that prepare the volume and apply `schedules`.")
    retries: Retries = Field(Retries(), description="A CronJob that retries failed runs.")
    serving: ScoringService = Field(ScoringService(), description="The scoring service.")
    ui: Ui = Field(Ui(), description="The Evidently UI.")
    collection: Collection = Field(Collection(), description="A CronJob that removes old versions from the registry.")
    network_policy: NetworkPolicy = Field(NetworkPolicy(), description="NetworkPolicies of the chart's pods.")
    service_monitor: ServiceMonitor = Field(
        ServiceMonitor(), description="A ServiceMonitor of the Prometheus operator."
    )


def schema() -> dict[str, Any]:
    """Build the JSON schema of the values."""
    chart_schema = Chart.model_json_schema(by_alias=True)
    definitions = chart_schema["$defs"]
    parts = definitions["Config"]["properties"]
    # A configuration in the values has no policy file beside it, so `gate` is always a mapping.
    kinds = parts["data"]["discriminator"]["mapping"].values()
    names = {name for kind in kinds for name in definitions[kind.rpartition("/")[2]]["properties"]}
    data = {"type": "object", "properties": dict.fromkeys(sorted(names), True), "additionalProperties": False}
    parts[CPU_OVERRIDES] = {
        "type": "object",
        "properties": parts | {"data": data},  # any subset of the section; its kind is set in the section itself
        "additionalProperties": False,
        "description": "Overrides for machines that have neither a GPU nor a CPU with bf16 instructions.",
    }
    for name in SET_BY_CHART:
        del definitions[Serving.__name__]["properties"][name]
    definitions["Schedule"]["properties"]["cron"]["pattern"] = CRON
    for part in [chart_schema, *definitions.values()]:
        _replace_discriminators(part)
    for part in _parts(chart_schema):
        part.pop("title", None)
        part.pop("default", None)
    chart_schema["properties"]["global"] = {"type": "object", "description": "Values of a parent chart; ignored."}
    chart_schema["title"] = "Values of the distilrank chart"
    return {"$schema": SCHEMA, "$comment": GENERATED, **chart_schema}


def _replace_discriminators(part: dict[str, Any]) -> None:
    """Replace a discriminated union (the kinds of `data`) by conditions, so that errors name the chosen kind's keys."""
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
    """Yield every schema nested in a schema."""
    if isinstance(part, list):
        for item in part:
            yield from _parts(item)
    elif isinstance(part, dict):
        if isinstance(part.get("title"), str) or "type" in part or "$ref" in part or "anyOf" in part:
            yield part
        for item in part.values():
            yield from _parts(item)


def _plain(value: Any) -> Any:
    """Return a default as plain JSON types; settings that are not the chart's own show only what differs."""
    if isinstance(value, Values):
        fields = type(value).model_fields
        return {field.alias or name: _plain(getattr(value, name)) for name, field in fields.items()}
    if isinstance(value, BaseModel):
        fresh = {name: field.get_default() for name, field in type(value).model_fields.items()}
        return {name: _plain(getattr(value, name)) for name in fresh if getattr(value, name) != fresh[name]}
    return TypeAdapter(Any).dump_python(value, mode="json")


def values_yaml() -> str:
    """Render values.yaml, each key below its description."""
    lines = [
        f"# {GENERATED}",
        "# README.md lists the same values in a table; values.schema.json has the types and bounds.",
    ]
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
    """Render the chart's README with a table of all values."""
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
    """Return a section's docstring without its first sentence."""
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
"""Renderer of each generated file, by file name."""


def main() -> None:
    """Write the generated files."""
    for name, render in FILES.items():
        (CHART / name).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
