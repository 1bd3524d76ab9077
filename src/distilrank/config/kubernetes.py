"""Value types that Kubernetes reads (names, quantities, labels, mount paths), and the names that Kubeflow reserves."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

INT32 = 2**31 - 1
"""Largest id, count or number of seconds that Kubernetes accepts."""
Id = Annotated[int, Field(ge=1, le=INT32)]
Cpu = Annotated[str, Field(pattern=r"^(\d{1,9}(\.\d{1,3})?|\d{1,9}m)$")]
Memory = Annotated[str, Field(pattern=r"^\d{1,15}(Ki|[MGTPE]i?)?$")]
DOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
Name = Annotated[str, Field(pattern=f"^{DOMAIN}$", max_length=253)]
OptionalName = Annotated[str, Field(pattern=f"^({DOMAIN})?$", max_length=253)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
SecretKey = Annotated[str, Field(pattern=r"^[-._A-Za-z0-9]+$", max_length=253)]

RESERVED_VARIABLES = re.compile(r"(ARGO|KFP|METADATA_GRPC_SERVICE)_.*")
"""Environment variables that Kubeflow's launcher and Argo's executor read."""
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
"""Names of the volumes that Kubeflow and Argo add to the pod of a stage."""
RESERVED_FOLDERS = (
    # As above, and backend/src/v2/driver/driver.go: files that tasks pass on
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
"""Folders that Kubeflow, Argo or Kubernetes use in the pod of a stage; nothing may be mounted in or over them."""

VOLUME_CHARACTERS = 63


def check_volume_name(name: str) -> str:
    """Return `name` if it can name a volume of a pod, which allows less than other Kubernetes names."""
    if name and ("." in name or len(name) > VOLUME_CHARACTERS):
        fault = "has a dot" if "." in name else f"has {len(name)} characters"
        raise ValueError(
            f"{name!r} {fault}, expected a name without dots of {VOLUME_CHARACTERS} characters at most, since Kubeflow "
            "uses it as the name of the pod's volume"
        )
    if name in RESERVED_VOLUMES:
        raise ValueError(f"{name!r} is a volume that Kubeflow adds to every pod, expected another name")
    return name


def check_plain_folder(path: str) -> str:
    """Return `path` if it has no part that makes two spellings name the same folder."""
    if {".", ".."} & set(path.split("/")):
        raise ValueError(f"{path!r} has a part '.' or '..', expected an absolute path without")
    return path


VolumeName = Annotated[
    str,
    Field(json_schema_extra={"pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": VOLUME_CHARACTERS}),
    AfterValidator(check_volume_name),
    Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
]
OptionalVolumeName = Annotated[
    str,
    Field(json_schema_extra={"pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$", "maxLength": VOLUME_CHARACTERS}),
    AfterValidator(check_volume_name),
    Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"),
]
Folder = Annotated[str, Field(pattern=r"^(/[^/:]+)+$"), AfterValidator(check_plain_folder)]


def _check_label_key(key: str) -> str:
    prefix, _, _ = key.rpartition("/")
    if len(prefix) > 253:
        raise ValueError(f"the part before the slash has {len(prefix)} characters, expected at most 253")
    return key


LABEL = rf"({DOMAIN}/)?[A-Za-z0-9]([-_.A-Za-z0-9]{{0,61}}[A-Za-z0-9])?"
LabelKey = Annotated[str, Field(pattern=f"^{LABEL}$"), AfterValidator(_check_label_key)]
OptionalLabelKey = Annotated[str, Field(pattern=f"^({LABEL})?$"), AfterValidator(_check_label_key)]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?$")]
