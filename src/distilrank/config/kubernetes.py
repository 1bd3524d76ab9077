"""Types of values that Kubernetes reads: names, quantities, labels, mount paths, and what is reserved among them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

Cpu = Annotated[str, Field(pattern=r"^(\d{1,9}(\.\d{1,3})?|\d{1,9}m)$")]
Memory = Annotated[str, Field(pattern=r"^\d{1,15}(Ki|[MGTPE]i?)?$")]
DOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
Name = Annotated[str, Field(pattern=f"^{DOMAIN}$", max_length=253)]
OptionalName = Annotated[str, Field(pattern=f"^({DOMAIN})?$", max_length=253)]
VOLUME_CHARACTERS = 63


def volume_name(name: str) -> str:
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


def plain_folder(path: str) -> str:
    """A folder under the one name by which it can be compared."""
    if {".", ".."} & set(path.split("/")):
        raise ValueError(f"{path!r} has a part '.' or '..', expected an absolute path without")
    return path


VolumeName = Annotated[
    str,
    Field(json_schema_extra={"pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": VOLUME_CHARACTERS}),
    AfterValidator(volume_name),
    Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
]
OptionalVolumeName = Annotated[
    str,
    Field(json_schema_extra={"pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$", "maxLength": VOLUME_CHARACTERS}),
    AfterValidator(volume_name),
    Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"),
]
Folder = Annotated[str, Field(pattern=r"^(/[^/:]+)+$"), AfterValidator(plain_folder)]
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
