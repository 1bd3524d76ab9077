"""The Kubernetes API as a TrainJob needs it: outages are waited out, refusals become errors that name the remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from distilrank.config import Compute
from distilrank.core import artifacts, kubernetes_api, progress
from distilrank.core.errors import InputError, RunStopped
from distilrank.training.trainjob.manifest import GROUP, NODE, PAGE, PLURAL, VERSION

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, ApiException

Pod = dict[str, Any]  # as the API writes it

REMOVAL_POLL_SECONDS = 5.0
REQUEST_SECONDS = (5.0, 30.0)  # to connect, to answer
OUTAGE_SECONDS = 900.0  # an upgrade makes a control plane unreachable for minutes, while the training continues
CLEANUP_SECONDS = 20.0
REMOVAL_SECONDS = 300.0
TRANSIENT = (429, 500, 502, 503, 504)
TAIL_LINES = 60  # torchrun's own summary takes about 30 and comes after the reason
TAIL_CHARACTERS = 8000


def connect(compute: Compute, stage: str, client: ApiClient | None) -> Cluster:
    """The cluster of `client`; without it, of this pod, or else of the kubeconfig.

    Raises:
        InputError: the package kubernetes is not installed, or no cluster is configured.
    """
    try:
        import kubernetes
    except ImportError:
        raise InputError(
            f"compute.nodes is {compute.nodes}, which needs the package kubernetes: pip install 'distilrank[train]'"
        ) from None
    namespace = "default"
    if client is None:
        try:
            client, namespace = kubernetes_api.connect()
        except kubernetes.config.ConfigException as error:
            raise InputError(f"compute.nodes is {compute.nodes}, but no Kubernetes cluster is known: {error}") from None
    own_namespace = kubernetes_api.own_namespace()
    return Cluster(client, compute.trainjob.namespace or own_namespace or namespace, stage, own_namespace)


def container_statuses(pods: list[Pod]) -> Iterator[tuple[Pod, dict[str, Any]]]:
    """Every pod with the status of each of its containers."""
    return ((pod, status) for pod in pods for status in pod["status"].get("containerStatuses", []))


@dataclass(frozen=True)
class _Failure:
    """A node's process that failed: when, how, and the end of its log."""

    finished_at: str
    pod: str
    reason: str
    log: str

    def __str__(self) -> str:
        log = f"; the end of its log:\n{self.log}" if self.log else "; its log cannot be read"
        return f"; first to fail was {self.pod} ({self.reason}){log}"


class _Forbidden(InputError):
    """The service account lacks a permission."""


class Cluster:
    """The Kubernetes API as seen by one run: it creates, reads and deletes a TrainJob, and reads its pods."""

    def __init__(self, client: ApiClient, namespace: str, stage: str, own_namespace: str) -> None:
        """
        Args:
            client: how to reach the API.
            namespace: namespace of the TrainJob.
            stage: name that progress lines begin with.
            own_namespace: namespace of this pod; empty: this process runs in no pod.
        """
        from kubernetes.client import CoreV1Api, CustomObjectsApi

        self.namespace, self.stage, self.own_namespace = namespace, stage, own_namespace
        self._custom, self._core = CustomObjectsApi(client), CoreV1Api(client)
        self._resource = (GROUP, VERSION, namespace, PLURAL)
        self._logs: dict[tuple[str, str], str] = {}
        self._first: _Failure | None = None
        self._forbidden: set[str] = set()
        self._reported: set[str] = set()

    def get(self, name: str) -> dict[str, Any] | None:
        """The TrainJob of this name, or None."""
        return self._ask("get", PLURAL, self._custom.get_namespaced_custom_object, *self._resource, name, expected=404)

    def create(self, job: dict[str, Any]) -> None:
        """Create the TrainJob; one of the same name can only be this one, whose request was answered but not heard."""
        # Strict: a server with another version of the API would drop fields that it does not know, such as the volume.
        self._ask(
            "create",
            PLURAL,
            self._custom.create_namespaced_custom_object,
            *self._resource,
            job,
            expected=409,
            field_validation="Strict",
        )

    def workflow(self) -> dict[str, Any] | None:
        """Owner reference to this pod's Argo Workflow, so that Kubernetes deletes the TrainJob with it.

        The pod itself would be the wrong owner: its next attempt takes the TrainJob over. None outside of a run, and
        if the workflow cannot be determined, which is reported.
        """
        pod = os.environ.get(artifacts.POD_NAME, "")  # a host name is cut to 63 characters
        if not (self.own_namespace and pod):
            return None
        reason = f"the run is in namespace {self.own_namespace}"
        if self.namespace == self.own_namespace:
            # The right to list pods is needed in any case.
            pods = self._list_pods(self.own_namespace, field_selector=f"metadata.name={pod}")
            if pods is None:
                return None  # `_try` has reported it
            for item in pods:
                for owner in item["metadata"].get("ownerReferences", []):
                    if owner["kind"] == "Workflow":
                        return {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
            reason = f"pod {pod} belongs to no workflow"
        progress.log_event(self.stage, "note", f"the TrainJob will not be deleted with the run's workflow: {reason}")
        return None

    def add_owner(self, job: dict[str, Any], owner: dict[str, Any] | None) -> None:
        """Add an owner to a TrainJob of an earlier attempt: it may belong to another run, whose workflow may go."""
        name, owners = job["metadata"]["name"], job["metadata"].get("ownerReferences", [])
        if owner is None or owner["uid"] in [existing["uid"] for existing in owners]:
            return
        patch = {"metadata": {"ownerReferences": [*owners, owner]}}  # a merge patch replaces lists
        call = self._custom.patch_namespaced_custom_object
        try:
            self._ask("patch", PLURAL, call, *self._resource, name, patch, patience=CLEANUP_SECONDS)
        except (InputError, RunStopped) as error:
            progress.log_event(self.stage, "note", f"TrainJob {name} may be deleted with an earlier run: {error}")

    def remove(self, name: str) -> None:
        """Delete the TrainJob and return when it and its pods are gone: they write to folders that are reused.

        Raises:
            RunStopped: it is not gone after REMOVAL_SECONDS.
        """
        self._delete(name, OUTAGE_SECONDS)
        deadline = monotonic() + REMOVAL_SECONDS
        while self.get(name) is not None:
            if monotonic() > deadline:
                raise RunStopped(f"TrainJob {name} was deleted, but is not gone after {REMOVAL_SECONDS:.0f} s")
            sleep(REMOVAL_POLL_SECONDS)

    def clean_up(self, name: str) -> None:
        """Delete the TrainJob; a failure is reported and does not replace an exception that is being raised."""
        try:
            if self._delete(name, CLEANUP_SECONDS):
                progress.log_event(self.stage, "note", f"TrainJob {name} is deleted")
        except (InputError, RunStopped) as error:
            command = f"kubectl -n {self.namespace} delete trainjob {name}"
            progress.log_event(self.stage, "note", f"TrainJob {name} may be left behind ({error}); try: {command}")

    def _delete(self, name: str, patience: float) -> Any:
        return self._ask(
            "delete",
            PLURAL,
            self._custom.delete_namespaced_custom_object,
            *self._resource,
            name,
            expected=404,
            patience=patience,
            propagation_policy="Foreground",  # it stays until its pods are gone, so that its absence means theirs
        )

    def pods(self, name: str) -> list[Pod] | None:
        """The TrainJob's pods, sorted by name; None if they cannot be listed."""
        pods = self._list_pods(self.namespace, label_selector=f"jobset.sigs.k8s.io/jobset-name={name}")
        return None if pods is None else sorted(pods, key=lambda pod: pod["metadata"]["name"])

    def _list_pods(self, namespace: str, **selector: str) -> list[Pod] | None:
        """List the pods of a selector; None if they cannot be listed.

        Raises:
            InputError: the answer is not JSON that can be read.
        """
        answer = self._try("list", "pods", self._core.list_namespaced_pod, namespace, **selector)
        return artifacts.parse_json(answer, "list of pods from the Kubernetes API")["items"] if answer else None

    def note_failures(self, pods: list[Pod] | None) -> None:
        """Keep the end of the log of failed nodes: it is lost once the node is restarted or its pod removed."""
        failures = []
        for pod, container in container_statuses(pods or []):
            current = container.get("state", {}).get("terminated")
            ended = current or container.get("lastState", {}).get("terminated")
            if container["name"] != NODE or not ended or ended["exitCode"] == 0:
                continue
            key = pod["metadata"]["name"], ended.get("finishedAt", "unknown")
            details = f"exit code {ended['exitCode']}", ended.get("reason"), pod["status"].get("message")
            reason = ", ".join(filter(None, details))
            if key not in self._logs:
                restarts = container["restartCount"]
                progress.log_event(self.stage, "note", f"{key[0]} failed: {reason}; restarts: {restarts}")
            if not self._logs.get(key):
                self._logs[key] = self._log(pod, TAIL_LINES, previous=not current)
            failures.append(_Failure(key[1], key[0], reason, self._logs[key]))
        if failures:
            self._first = min(failures, key=lambda failure: failure.finished_at)

    @property
    def failure(self) -> str:
        """The node that failed first in the newest round of failures: the others mostly fail because it did."""
        return str(self._first or "")

    def newest_progress(self, pods: list[Pod] | None) -> str:
        """The newest progress line of the first running pod; empty if it cannot be read."""
        for pod in pods or []:
            if pod["status"]["phase"] == "Running":
                event = progress.parse(self._log(pod, 1))
                return f" | {event.text}" if event else ""
        return ""

    def _log(self, pod: Pod, lines: int, *, previous: bool = False) -> str:
        read, name = self._core.read_namespaced_pod_log, pod["metadata"]["name"]
        options = {"container": NODE, "tail_lines": lines, "previous": previous}
        log = self._try("get", "pods/log", read, name, self.namespace, **options)
        return (log or b"").decode("utf-8", "replace").strip()[-TAIL_CHARACTERS:]

    def _try(self, verb: str, resource: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> bytes | None:
        """The bytes that `call` returns, or None if it fails, which stops nothing; a refusal is reported once."""

        def read(*arguments: Any, **options: Any) -> bytes:
            # Not as the client's objects: it refuses objects that lack a field, and parses a log line of JSON.
            return call(*arguments, _preload_content=False, **options).data

        if resource in self._forbidden:
            return None
        try:
            return self._ask(verb, resource, read, *arguments, patience=0.0, **options)
        except RunStopped:
            return None
        except InputError as error:
            if isinstance(error, _Forbidden):
                self._forbidden.add(resource)
            if str(error) not in self._reported:
                self._reported.add(str(error))
                progress.log_event(self.stage, "note", f"continuing without {resource}: {error}")
            return None

    def _ask(
        self,
        verb: str,
        resource: str,
        call: Callable[..., Any],
        *arguments: Any,
        expected: int = 0,
        patience: float | None = None,
        **options: Any,
    ) -> Any:
        """The result of `call`, or None if the API answers with the status `expected`.

        Raises:
            InputError: the API refuses.
            RunStopped: the API has been unavailable for `patience` seconds; None: OUTAGE_SECONDS.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        deadline = monotonic() + (OUTAGE_SECONDS if patience is None else patience)
        pause = 1.0
        while True:
            try:
                return call(*arguments, _request_timeout=REQUEST_SECONDS, **options)
            except ApiException as error:
                message = _message(error)
                if error.status not in TRANSIENT:
                    if error.status == expected and message:
                        return None
                    raise self._refusal(verb, resource, error, message) from error
                problem = f"{error.status}: {message or error.reason}"
            except HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            except RecursionError:
                raise InputError(
                    f"cannot {verb} {resource}: the answer of the Kubernetes API is not JSON that can be read "
                    "(nested too deeply)"
                ) from None
            if monotonic() + pause > deadline:
                raise RunStopped(f"cannot {verb} {resource}: the Kubernetes API is unavailable, {problem}")
            if pause == 1.0:
                progress.log_event(self.stage, "note", f"cannot {verb} {resource}, trying again: {problem}")
            sleep(pause)
            pause = min(2 * pause, 30.0)

    def _refusal(self, verb: str, resource: str, error: ApiException, message: str) -> InputError:
        if error.status == 404 and not message:
            kind = f"{PLURAL}.{GROUP}/{VERSION}"
            return InputError(f"Kubeflow Trainer is not installed: the cluster knows no {kind} ({PAGE})")
        if error.status == 403 and "denied the request" not in message:  # which is what admission webhooks say
            return _Forbidden(
                f"this pod's service account lacks the right to {verb} {resource} in namespace {self.namespace} "
                f"({PAGE} has the Role): {message}"
            )
        if error.status == 400 and "unknown field" in message:
            return InputError(f"Kubeflow Trainer is too old, expected 2.2 or newer: {message}")
        return InputError(
            f"the cluster refuses to {verb} {resource} in namespace {self.namespace}: "
            f"{error.status}: {message or error.reason}"
        )


def _message(error: ApiException) -> str:
    """The message of an API server's refusal; empty if something else answered, or the server knows no such path."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError, RecursionError):
        return ""
