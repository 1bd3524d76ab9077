"""Checks of the run itself and of where it runs: its name, Secrets, device, disk and Evidently workspace."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from distilrank.config import Drift
from distilrank.core import artifacts, hardware
from distilrank.core.errors import InputError
from distilrank.core.pod_secrets import missing_targets
from distilrank.data.window import parse_time


def check_run(name: str, schedule_time: str) -> None:
    """Refuse a run without a name, or with a placeholder that Kubeflow did not replace.

    Kubeflow's driver leaves placeholders that its version does not know. Otherwise a missing name would show only at
    the promotion, and a missing schedule time never, unless the window ends by it.
    """
    if not name.strip():
        raise InputError(
            f"name: is {name!r}, expected the name of the run, which its report and the version that it promotes carry"
        )
    for key, value in (("name", name), ("schedule_time", schedule_time)):
        if "{{" in value:
            raise InputError(
                f"{key}: is {value!r}, a placeholder that this Kubeflow does not replace, expected Kubeflow Pipelines "
                "2.17.0 or newer"
            )
    if schedule_time:
        parse_time(schedule_time, "schedule_time")


def check_secrets(secrets: Mapping[str, Sequence[str]]) -> None:
    """Refuse a pod that lacks a Secret; Secrets are optional in pods, so that the missing one can be named here.

    Args:
        secrets: environment variables and folders (absolute paths) that this pod must have, by name of the Secret.
    """
    for name, targets in secrets.items():
        for target in missing_targets(targets):
            is_folder = target.startswith("/")
            missing = f"{target} has no file" if is_folder else f"the environment variable {target} is not set"
            raise InputError(
                f"cluster.secrets: {name}: {missing}, expected the Secret in the namespace of the run, with the keys "
                "that the configuration names"
            )


def check_device(device: str) -> str:
    """Return the configured device in words; refuse one that this machine lacks."""
    if device == "cuda" and not hardware.has_gpu():
        # In a cluster the training tasks get the GPUs, and this one asks for none.
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            return "cuda, not visible from this pod"
        raise InputError("compute.device: is 'cuda', but this machine has no NVIDIA GPU; use auto or cpu")
    if device == "mps" and sys.platform != "darwin":
        raise InputError(f"compute.device: is 'mps', but this is {sys.platform}; use auto or cpu")
    return device


def check_disk(min_gib: float, output: Path) -> float:
    """Return the free space at `output` in GiB; refuse less than `min_gib`."""
    free = shutil.disk_usage(output).free / 2**30
    if free < min_gib:
        raise InputError(
            f"{output}: {free:.1f} GiB free, expected at least {min_gib:g} (preflight.free_disk_gib); free some space"
        )
    return free


def check_workspace(config: Drift) -> None:
    """Refuse an Evidently workspace that cannot be written; a folder is checked without Evidently, which is slow."""
    workspace = config.workspace
    if workspace.startswith(("http://", "https://")):
        from distilrank.drift import workspace as evidently

        evidently.check_workspace(config)
    elif workspace:
        probe = Path(workspace) / f".{uuid.uuid4().hex}.probe"
        try:
            artifacts.write_text(probe, "")
            probe.unlink()
        except (InputError, OSError) as error:
            cause = error.__cause__ or error
            reason = cause.strerror if isinstance(cause, OSError) else str(cause)
            raise InputError(f"drift.workspace {workspace}: cannot be written ({reason})") from None
