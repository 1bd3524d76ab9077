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
    plain_folder,
    volume_name,
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
    path: Annotated[str, AfterValidator(plain_folder)] = Field(
        "", pattern=r"^$|^(/[^/:]+)+$", description="Folder in which each key is a file; empty: none."
    )

    @model_validator(mode="after")
    def _used(self) -> Self:
        if not self.env and not self.path:
            raise ValueError(f"secret {self.name}: neither env nor path is set, expected one of them")
        if self.path:
            volume_name(self.name)
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
