"""Sections on a Kubeflow cluster: images, pods, volumes, Secrets and notifications."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from distilrank.config.base import Count, Section
from distilrank.config.kubernetes import (
    INT32,
    RESERVED_FOLDERS,
    RESERVED_VARIABLES,
    Cpu,
    Folder,
    Id,
    LabelKey,
    LabelValue,
    Memory,
    Name,
    OptionalLabelKey,
    OptionalName,
    OptionalVolumeName,
    SecretKey,
    Variable,
    VolumeName,
    check_plain_folder,
    check_volume_name,
)

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


def _check_immutable(image: str) -> str:
    """Refuse a moving tag: Kubeflow's cache keys hold the image name, so one name must always mean the same bytes."""
    if image and not REFERENCE.fullmatch(image):
        raise ValueError("not an image name, expected [HOST[:PORT]/]NAME:TAG or [HOST[:PORT]/]NAME@sha256:DIGEST")
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
    AfterValidator(_check_immutable),
]


class Images(Section):
    """Container images of the stages. A moving tag is refused, since results are cached by image name."""

    ops: Image = Field(
        "", description="Image for preparation, drift, gate, report and promotion; empty: distilrank/ops:VERSION."
    )
    train: Image = Field("", description="Image for everything that uses torch; empty: distilrank/train:VERSION.")


class Toleration(Section):
    """A Kubernetes toleration."""

    key: OptionalLabelKey = Field("", description="Key of the taint; empty with operator Exists: any.")
    operator: Literal["Equal", "Exists"] = Field(
        "Equal", description="Equal compares key and value, Exists compares the key."
    )
    value: LabelValue = Field("", description="Value of the taint.")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        "", description="Effect of the taint; empty: any."
    )
    seconds: Count | None = Field(
        None, description="Seconds that a running pod tolerates NoExecute; null: indefinitely."
    )

    @model_validator(mode="after")
    def _check_taint(self) -> Self:
        if self.operator == "Exists" and self.value:
            raise ValueError(f"value is {self.value!r}, expected none with operator Exists")
        if self.operator == "Equal" and not self.key:
            raise ValueError("key is empty, expected one with operator Equal")
        if self.seconds is not None and self.effect != "NoExecute":
            raise ValueError(f"seconds is {self.seconds}, expected them with effect NoExecute alone")
        return self


class Pod(Section):
    """Resources, scheduling and retries of a pod.

    In `stages`, null takes the value of the stage's image; in `ops` and `train`, it means none.
    """

    cpu: Cpu | None = Field(None, description="CPU request and limit, as a Kubernetes quantity.")
    memory: Memory | None = Field(None, description="Memory request and limit, as a Kubernetes quantity.")
    gpu: Count | None = Field(None, description="Number of GPUs.")
    gpu_type: LabelKey | None = Field(None, description="Resource name of the GPUs; null: nvidia.com/gpu.")
    shared_memory: Memory | None = Field(
        None, description="Size of /dev/shm, which torch processes share; null: the node's default of 64 MiB."
    )
    ephemeral_storage: Memory | None = Field(
        None,
        description="Local disk request and limit; not together with `gpu`, since Kubeflow Pipelines passes on "
        "only one resource besides CPU and memory (docs/cluster.md). null: none.",
    )
    node_selector: dict[LabelKey, LabelValue] | None = Field(None, description="Labels that the node must have.")
    tolerations: tuple[Toleration, ...] | None = Field(None, description="Kubernetes tolerations.")
    retries: Annotated[int, Field(ge=0, le=INT32)] | None = Field(
        None,
        description="Retries by Argo. With Kubeflow's manifests Argo retries only a pod that was deleted or could"
        " not be created; `python -m pipelines retry` covers other failures (docs/operations.md). "
        "null: 0; 0: Argo's default, 2 in Kubeflow's manifests.",
    )
    backoff_seconds: Id | None = Field(None, description="Seconds before Argo's first retry; null: 60.")
    backoff_factor: Id | None = Field(None, description="Factor by which every further wait grows; null: 2.")
    # Argo counts nanoseconds in 64 bits, which is 292 years.
    retry_hours: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None,
        description="Hours from the first start to the end of all of Argo's retries, including a running one; "
        "null: 720.",
    )
    timeout_minutes: Annotated[int, Field(ge=1, le=INT32 // 60)] | None = Field(
        None, description="Minutes that a pod may run once a node has accepted it; null: no limit."
    )


class Volume(Section):
    """A PersistentVolumeClaim mounted in every pod, for checkpoints, caches or a registry in a folder."""

    claim: VolumeName = Field(description="Name of the claim, in the namespace of the runs.")
    path: Folder = Field(description="Mount path.")
    sub_path: Annotated[str, Field(pattern=r"^([^/.][^/]*(/[^/.][^/]*)*)?$")] = Field(
        "", description="Folder of the volume to mount; empty: the whole volume."
    )


class Secret(Section):
    """An existing Kubernetes Secret: keys as environment variables, or all keys as files.

    One that is mounted as files has a name without dots, of 63 characters at most: it names the pod's volume too.
    """

    name: Name = Field(description="Name of the Secret, in the namespace of the runs.")
    env: dict[SecretKey, Variable] = Field(
        {}, description="Environment variable by key of the Secret, such as `token: HF_TOKEN`."
    )
    path: Annotated[str, AfterValidator(check_plain_folder)] = Field(
        "", pattern=r"^$|^(/[^/:]+)+$", description="Folder in which every key is a file; empty: none."
    )

    @model_validator(mode="after")
    def _check_used(self) -> Self:
        if not self.env and not self.path:
            raise ValueError(f"secret {self.name}: neither env nor path is set, expected one of them")
        if self.path:
            check_volume_name(self.name)
        return self


WEBHOOK_FOLDER = "/var/run/distilrank/notify"
"""Mount path of the Secret that holds the webhook, in the pod of the stage `notify`."""


class Notify(Section):
    """Notification of how a run ended: an HTTP POST of JSON (docs/operations.md)."""

    webhook: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = Field(
        "", description="URL to post to; empty: none, or the URL in the Secret."
    )
    secret: OptionalVolumeName = Field(
        "", description="Secret that holds the URL, in the namespace of the runs; empty: none."
    )
    key: SecretKey = Field("url", description="Key of the URL in that Secret.")
    when: Literal["always", "failure"] = Field(
        "always",
        description="Which ends to report; failure: only runs that did not succeed, whatever a successful run decided.",
    )

    @model_validator(mode="after")
    def _check_single_url(self) -> Self:
        if self.webhook and self.secret:
            raise ValueError("both webhook and secret are set, expected one of them")
        return self


def _first_repeated(names: Sequence[str]) -> str | None:
    """Return the first name that occurs more than once."""
    return next((name for name in names if names.count(name) > 1), None)


def _is_overlapping(path: str, folder: str) -> bool:
    """Whether the two are equal or one lies within the other."""
    return f"{path}/".startswith(f"{folder}/") or f"{folder}/".startswith(f"{path}/")


ANNOTATION_BYTES = 128 * 1024
"""Half of what Kubernetes allows in all annotations of an object, since Argo and Kubeflow add theirs."""


class Cluster(Section):
    """Pods of a Kubeflow cluster. Pipelines are compiled with these settings; runs on one machine ignore them."""

    images: Images = Field(Images(), description="Container images of the stages.")
    ops: Pod = Field(Pod(cpu="2", memory="8Gi", retries=2), description="Pods of stages that use the image `ops`.")
    train: Pod = Field(Pod(cpu="4", memory="16Gi", retries=2), description="Pods of stages that use the image `train`.")
    stages: dict[Stage, Pod] = Field({}, description="Settings of single stages that override those of their image.")
    volumes: tuple[Volume, ...] = Field((), description="Volumes of every pod.")
    secrets: tuple[Secret, ...] = Field((), description="Secrets of every pod.")
    env: dict[Variable, str] = Field({}, description="Environment variables of every pod; no secrets.")
    labels: dict[LabelKey, LabelValue] = Field({}, description="Labels of every pod.")
    annotations: dict[LabelKey, str] = Field({}, description="Annotations of every pod.")
    pull_secrets: tuple[Name, ...] = Field((), description="Image pull secrets.")
    run_as_user: Id | None = Field(None, description="User id of every pod; null: the image's, 10001.")
    run_as_group: Id | None = Field(None, description="Group id of every pod; null: the image's.")
    service_account: OptionalName = Field(
        "", description="Service account of the runs; empty: Kubeflow's default (pipeline-runner, default-editor)."
    )
    pipeline_root: Annotated[str, Field(pattern=r"^([a-z][a-z0-9]*://\S+)?$")] = Field(
        "", description="Object storage prefix for artifacts that stages pass on; empty: Kubeflow's default."
    )
    notify: Notify = Field(Notify(), description="Notification of how a run ended.")

    @field_validator("ops", "train", mode="before")
    @classmethod
    def _merge_defaults(cls, value: Any, info: ValidationInfo) -> Any:
        """Merge over the defaults, so that `train: {gpu: 1}` keeps the default CPU and memory."""
        default = cls.model_fields[info.field_name].default.model_dump(exclude_none=True) if info.field_name else {}
        return default | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check_pods(self) -> Self:
        paths = [volume.path for volume in self.volumes] + [secret.path for secret in self.secrets if secret.path]
        if self.notify.secret:
            paths.append(WEBHOOK_FOLDER)
        if any(pod.shared_memory for pod in (self.ops, self.train, *self.stages.values())):
            paths.append("/dev/shm")
        if path := _first_repeated(paths):
            raise ValueError(f"{path} is mounted twice, expected a path for each volume and secret")
        for path in paths:
            for reserved in RESERVED_FOLDERS:
                if _is_overlapping(path, reserved):
                    raise ValueError(f"{path} is mounted over {reserved}, which is Kubeflow's: expected another path")
        self._check_volumes()
        if name := _first_repeated([secret.name for secret in self.secrets]):
            raise ValueError(f"secret {name} is listed twice, expected one entry with both env and path")
        variables = [variable for secret in self.secrets for variable in secret.env.values()]
        if variable := _first_repeated([*self.env, *variables]):
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
        """Refuse a volume with two sources, and a mount within a Secret, which is read-only."""
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
        """Return the pod settings of a stage: those of its image, overridden by those of the stage."""
        stage_pod = self.stages.get(stage, Pod())
        overrides = {name: value for name in Pod.model_fields if (value := getattr(stage_pod, name)) is not None}
        image_pod: Pod = getattr(self, kind)
        return image_pod.model_copy(update=overrides)
