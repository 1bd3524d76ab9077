"""Connection to the Kubernetes API, by the service account of this pod or by the kubeconfig."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Folder of a pod with its namespace, its token and the CA certificates."""


def connect() -> tuple[ApiClient, str]:
    """Return a client, and the namespace of this pod or of the kubeconfig's context.

    Raises:
        ImportError: the package kubernetes is not installed.
        kubernetes.config.ConfigException: this is not a pod with a service account, and there is no kubeconfig.
    """
    import kubernetes

    configuration = kubernetes.client.Configuration()
    configuration.retries = False  # callers retry themselves, with pauses
    namespace = "default"
    try:
        kubernetes.config.load_incluster_config(client_configuration=configuration)
    except kubernetes.config.ConfigException as not_a_pod:
        try:
            kubernetes.config.load_kube_config(client_configuration=configuration)
            _, context = kubernetes.config.list_kube_config_contexts()
        except kubernetes.config.ConfigException as no_file:
            raise kubernetes.config.ConfigException(
                f"not in a pod with a service account ({not_a_pod}), and no kubeconfig ({no_file})"
            ) from None
        namespace = context["context"].get("namespace", namespace)
    return kubernetes.client.ApiClient(configuration), own_namespace() or namespace


def own_namespace() -> str:
    """Return the namespace of this pod; empty if this is not a pod."""
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
