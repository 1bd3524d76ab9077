"""A client of the Kubeflow Pipelines API on top of the official one: retries, and each fault as one clear line.

Requests are retried with pauses. Since a creation is not idempotent, each attempt first looks for the object: an
earlier attempt may have created it although its answer was lost.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import kfp_server_api as api
import tenacity
import urllib3
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

from distilrank.core.errors import InputError, one_line
from distilrank.workflow import Node, RunEnd, attempts, from_manifest
from distilrank.workflow import read as read_workflow
from pipelines.options import Pipeline
from pipelines.packages import PREFIX, Package

TIMEOUT = (5, 30)
"""Timeouts in seconds: to connect, and to wait for a response."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds between attempts: doubled each time up to the maximum, which also limits Retry-After."""
ATTEMPTS = 5
PAGE_SIZE = 100
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which the same request may succeed."""
CONFLICT, GONE, INTERNAL = 409, 404, 500
PERMANENT_ERRORS = (
    "Data too long for column",  # MySQL and MariaDB: 1406
    "Incorrect string value",  # 1366: a character that the column's encoding lacks
    "Out of range value for column",  # 1264
    "value too long for type",  # PostgreSQL: 22001
    "invalid byte sequence for encoding",  # 22021
    "request is too large",  # etcd
    "Request entity too large",  # Kubernetes
    "denied the request",  # an admission webhook of Kubernetes
    " is invalid: ",  # Kubernetes' own validation of an object
    " is forbidden: User ",  # Kubernetes' RBAC for the API server's own account; an exceeded quota is transient
    "invalid pipeline spec manifest",
    "Failed to validate workflow",
)
"""Parts of messages that Kubeflow's API server sends with status 500 although the same request can never succeed.

It responds with 500 to everything that its database or Kubernetes refused (`NewInternalServerError`, and `Wrap` of
foreign errors, in backend/src/apiserver/resource/resource_manager.go and storage/*_store.go of 2.17.0).
"""
PARTIAL_CREATION_ERRORS = (
    "Failed to store job",
    "Failed to store run",
    "Failed to store resource references to table for",
)
"""Parts of the error messages of a creation that succeeded in Kubernetes and failed in the database.

`CreateJob` and `CreateRun` of resource_manager.go first create the ScheduledWorkflow or the Workflow, then insert the
row, and never undo the first step. Each retry would leave another object that the API does not list, so there is none.
"""

TEXT_CHARACTERS = 255
"""Maximum length of the description and of the name of a run or recurring run in Kubeflow's database.

Columns without an explicit type are VARCHAR(255): `DefaultStringSize` in apiserver/client_manager/client_manager.go.
The API server checks only the lengths in apiserver/validation/length.go, and these are not among them.
"""
EXPERIMENT_CHARACTERS = 128
"""Maximum length of the name of an experiment: apiserver/model/experiment.go."""

REQUIREMENTS = (
    ("2.14", "names of pipelines beside their display names"),
    ("2.16", "the security context of a task, which cluster.run_as_user and runAsNonRoot are"),
    ("2.17.0", "the time of a schedule, which window.end: schedule and scheduled runs take"),
)
"""The first version of Kubeflow Pipelines with each feature that not every v2 release has, in ascending order."""
MINIMUM_VERSION = REQUIREMENTS[-1][0]
"""The oldest version of Kubeflow Pipelines with all required features."""

REQUEST_ERRORS = (api.ApiException, urllib3.exceptions.HTTPError, OSError)
"""The exceptions that a single request can raise."""
RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LOG_ERROR = '{"error_message"'
"""Prefix of a response with status 200 that reports an unreadable log (2.17.0, apiserver/server/run_log_server.go)."""

ENABLE, DISABLE = "ENABLE", "DISABLE"
ORPHAN = "ORPHAN"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Version:
    """IDs of a pipeline version on the cluster."""

    pipeline_id: str
    version_id: str

    def reference(self) -> api.V2beta1PipelineVersionReference:
        """Return the reference that runs and recurring runs contain."""
        return api.V2beta1PipelineVersionReference(pipeline_id=self.pipeline_id, pipeline_version_id=self.version_id)


class _UnexpectedBody(Exception):
    """A successful response whose body is not JSON, e.g. a login page."""


class _Client(api.ApiClient):
    """The generated client, with a timeout on every request and a check that every response body is a JSON object."""

    def request(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().request(*arguments, **options | {"_request_timeout": TIMEOUT})
        except api.ApiException as error:
            if error.body is None:  # an untrusted certificate, which the generated client reports without a body
                raise urllib3.exceptions.SSLError(error.reason) from None
            raise

    def health(self) -> dict[str, Any]:
        """Return all fields of healthz; the published API document, and so the generated client, lack `tag_name`."""
        response, _, _ = self.call_api("/apis/v2beta1/healthz", "GET", response_type="object", auth_settings=["Bearer"])
        return response

    def deserialize(self, response: Any, response_type: Any) -> Any:
        try:
            is_object = isinstance(json.loads(response.data), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            raise _UnexpectedBody(one_line(response.data, 60))
        return super().deserialize(response, response_type)


def version_numbers(text: str) -> tuple[int, int, int] | None:
    """Parse a version such as 2.17.0, v2.17 or 2.17.0-rc.1; None if it is none (`unknown`, a commit, empty)."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-+.].*)?", text.strip())
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def missing_features(server_version: str) -> list[str] | None:
    """Return the features of `REQUIREMENTS` that a server lacks; None if its version is unknown.

    Args:
        server_version: the value of `Kubeflow.server_version`.
    """
    numbers = version_numbers(server_version)
    if numbers is None:
        return None
    required = ((version, feature, version_numbers(version)) for version, feature in REQUIREMENTS)
    return [f"{version}: {feature}" for version, feature, minimum in required if minimum and numbers < minimum]


class Kubeflow:
    """A connection to a Kubeflow Pipelines API, for one namespace."""

    server_version: str
    """The release that the server reports (`TAG_NAME` of its image); may be `unknown`, a commit, or empty."""

    def __init__(
        self, host: str, *, namespace: str = "", token_file: Path | None = None, ca_file: Path | None = None
    ) -> None:
        """Connect, and check that the host is a Kubeflow Pipelines API.

        Args:
            host: URL of the API; a path in it is kept (http://HOST/pipeline).
            namespace: namespace of the runs; required in multi-user mode, ignored otherwise.
            token_file: file with a bearer token, read before each request; None: the token that Kubernetes projects
                into a pod for Kubeflow, if there is one, otherwise no token.
            ca_file: CA certificates (PEM); None: those of certifi.

        Raises:
            InputError: no such host, not Kubeflow Pipelines, no readable token, or no namespace in multi-user mode.
            RuntimeError: the host keeps failing.
        """
        if not _is_url(host):
            raise InputError(f"--host {host}: expected a URL such as https://kubeflow.example.com/pipeline")
        self.host = host.rstrip("/")
        self.token_file = token_file or _projected_token()
        configuration = api.Configuration(host=self.host)
        configuration.retries = False  # no retries and no redirects of urllib3: a redirect leads to a login page
        if ca_file is not None:
            if not ca_file.is_file():
                raise InputError(f"--ca-file {ca_file}: no such file")
            configuration.ssl_ca_cert = str(ca_file)
        if self.token_file is not None:
            _check_token(self.token_file)
            configuration.api_key = {"authorization": "read before each request"}
            configuration.api_key_prefix = {"authorization": "Bearer"}
            credentials = ServiceAccountTokenVolumeCredentials(str(self.token_file))
            configuration.refresh_api_key_hook = credentials.refresh_api_key_hook
        client = _Client(configuration)
        self._client = client
        self._experiments = api.ExperimentServiceApi(client)
        self._pipelines = api.PipelineServiceApi(client)
        self._uploads = api.PipelineUploadServiceApi(client)
        self._runs = api.RunServiceApi(client)
        self._recurring = api.RecurringRunServiceApi(client)
        self.namespace = namespace  # error messages name it
        health = self._call("get", "healthz", client.health)
        self.server_version = str(health.get("tag_name") or "")
        multi_user = health.get("multi_user", False)
        if multi_user and not namespace:
            raise InputError(f"{self.host}: runs in multi-user mode, expected --namespace, the one of your profile")
        self.namespace = namespace if multi_user else ""

    def check_version(self, report: Callable[[str], None]) -> None:
        """Check that the server is new enough for pipelines that this version of distilrank compiles.

        Args:
            report: called with a line if the server does not report its version.

        Raises:
            InputError: the server is too old; the message names the features that it lacks.
        """
        missing = missing_features(self.server_version)
        if missing:
            raise InputError(
                f"{self.host}: is Kubeflow Pipelines {self.server_version}, expected {MINIMUM_VERSION} or newer, for "
                f"it lacks what came with {'; '.join(missing)}"
            )
        if missing is None:
            report(
                f"{self.host} does not say which version it is (tag_name {self.server_version!r}); expected Kubeflow "
                f"Pipelines {MINIMUM_VERSION} or newer"
            )

    def run_url(self, run_id: str) -> str:
        """Return the URL of a run in the Kubeflow UI."""
        return f"{self.host}/#/runs/details/{run_id}"

    # Permissions ---------------------------------------------------------------------------------------------------

    def check_permission(self, resource: str) -> None:
        """Check that the account may list `experiments`, `pipelines`, `runs` or `jobs`; raises like every call."""
        listing = {
            "experiments": self._experiments.experiment_service_list_experiments,
            "pipelines": self._pipelines.pipeline_service_list_pipelines,
            "runs": self._runs.run_service_list_runs,
            "jobs": self._recurring.recurring_run_service_list_recurring_runs,
        }[resource]
        scope: dict[str, Any] = {"namespace": self.namespace} if self.namespace else {}
        self._call("list", resource, listing, page_size=1, **scope)

    # Experiments, pipelines ----------------------------------------------------------------------------------------

    def has_experiment(self, name: str) -> bool:
        """Whether an experiment of this name exists."""
        rows = self._list("experiments", self._experiments.experiment_service_list_experiments, name=name)
        return any(row.display_name == name for row in rows)

    def experiment(self, name: str) -> str:
        """Return the ID of the experiment `name`, creating it if it does not exist."""

        def find() -> str | None:
            rows = self._list("experiments", self._experiments.experiment_service_list_experiments, name=name)
            return next((row.experiment_id for row in rows if row.display_name == name), None)

        def create() -> str:
            experiment = api.V2beta1Experiment(display_name=name, namespace=self.namespace or None)
            return self._experiments.experiment_service_create_experiment(experiment=experiment).experiment_id

        return self._ensure("experiments", find, create)

    def version(self, package: Package) -> Version:
        """Return the uploaded version of `package`, creating pipeline and version if they do not exist."""

        def find_pipeline() -> str | None:
            rows = self._list("pipelines", self._pipelines.pipeline_service_list_pipelines, name=package.name)
            return next((row.pipeline_id for row in rows if row.display_name == package.name), None)

        def create_pipeline() -> str:
            pipeline = api.V2beta1Pipeline(
                name=package.name, display_name=package.name, namespace=self.namespace or None
            )
            return self._pipelines.pipeline_service_create_pipeline(pipeline=pipeline).pipeline_id

        pipeline_id = self._ensure("pipelines", find_pipeline, create_pipeline)

        def find_version() -> str | None:
            listing = self._pipelines.pipeline_service_list_pipeline_versions
            rows = self._list("pipelines", listing, pipeline_id, name=package.version, field="pipeline_versions")
            return next((row.pipeline_version_id for row in rows if row.display_name == package.version), None)

        def upload() -> str:
            options = {"name": package.version, "display_name": package.version, "pipelineid": pipeline_id}
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{package.name}.yaml"  # the generated client uploads only files
                path.write_bytes(package.content)
                return self._uploads.upload_pipeline_version(str(path), **options).pipeline_version_id

        return Version(pipeline_id, self._ensure("pipelines", find_version, upload))

    def own_pipelines(self) -> set[str]:
        """Return the IDs of our pipelines `distill` and `monitor`; those of `doctor` fail on purpose."""
        rows = self._list("pipelines", self._pipelines.pipeline_service_list_pipelines)
        names = {f"{PREFIX}{pipeline}" for pipeline in Pipeline}
        return {row.pipeline_id for row in rows if row.display_name in names}

    def has(self, version: Version) -> bool:
        """Whether a version still exists: it can be deleted although recurring runs refer to it."""
        get = self._pipelines.pipeline_service_get_pipeline_version
        ids = version.pipeline_id, version.version_id
        return self._call("get", "pipelines", get, *ids, missing_ok=True) is not None

    # Runs ----------------------------------------------------------------------------------------------------------

    def create_run(self, run: api.V2beta1Run) -> str:
        """Start a run exactly once, and return its ID.

        Args:
            run: the run to create. Its description must be unique: it identifies the run if a response is lost.
        """

        def find() -> str | None:
            listing = self._runs.run_service_list_runs
            rows = self._list("runs", listing, name=run.display_name, experiment_id=run.experiment_id)
            return next((row.run_id for row in rows if row.description == run.description), None)

        return self._ensure("runs", find, lambda: self._runs.run_service_create_run(run=run).run_id)

    def last_run_of(self, recurring_run_id: str, experiment_id: str) -> api.V2beta1Run | None:
        """Return the newest run of a recurring run, if it is among the newest page of its experiment's runs."""
        listing = self._runs.run_service_list_runs
        order: dict[str, Any] = {"page_size": PAGE_SIZE, "sort_by": "created_at desc"}
        page = self._call("list", "runs", listing, experiment_id=experiment_id, **order)
        return next((run for run in page.runs or [] if run.recurring_run_id == recurring_run_id), None)

    def terminate(self, run_id: str) -> None:
        """Terminate a run and all its pods. Kubeflow then reports it as failed."""
        self._call("terminate", "runs", self._runs.run_service_terminate_run, run_id)

    def run(self, run_id: str, *, outage_seconds: float = 0.0) -> api.V2beta1Run | None:
        """Return a run, None if it was deleted; transient faults are retried for at least `outage_seconds`."""
        get = self._runs.run_service_get_run
        return self._call("get", "runs", get, run_id, outage_seconds=outage_seconds, missing_ok=True)

    def runs(self) -> list[api.V2beta1Run]:
        """Return all runs of the namespace, newest first."""
        return self._list("runs", self._runs.run_service_list_runs, sort_by="created_at desc")

    def failed_runs(self) -> list[api.V2beta1Run]:
        """Return the runs of the namespace that failed or were terminated; Kubeflow reports both as failed."""
        listing = self._runs.run_service_list_runs
        return self._list("runs", listing, equal={"state": "FAILED"}, sort_by="created_at desc")

    def run_named(self, text: str) -> api.V2beta1Run:
        """Return the run with this ID, or the newest run of this name.

        Raises:
            InputError: there is no such run.
        """
        if RUN_ID.fullmatch(text):
            run = self.run(text)
        else:
            listing = self._runs.run_service_list_runs
            run = next(iter(self._list("runs", listing, name=text, sort_by="created_at desc")), None)
        if run is None:
            raise InputError(f"run {text}: not found on {self.host}, expected the ID or the name of a run")
        return run

    def retry(self, run_id: str) -> None:
        """Rerun the failed tasks of a run; succeeded tasks are kept.

        A second request would be refused while the run is active, so a lost response is resolved by the run's state.
        """

        def is_active() -> bool:
            run = self.run(run_id)
            return run is not None and run.state not in ("FAILED", "CANCELED")

        self._ensure("runs", lambda: is_active() or None, lambda: self._retry(run_id), verb="retry")

    def _retry(self, run_id: str) -> bool:
        self._runs.run_service_retry_run(run_id)
        return True

    def workflow(self, run_id: str) -> dict[str, Any]:
        """Return the Argo workflow of a run as Kubeflow last recorded it; empty if the server has none.

        Only API version v1beta1 returns it (kubeflow/pipelines 2.17.0, apiserver/server/api_converter.go,
        `toApiRunDetailV1`). The record outlives the workflow itself, which Kubeflow's manifests delete after an hour.
        """
        try:
            detail = json.loads(self._read(f"/apis/v1beta1/runs/{quote(run_id)}"))
            return from_manifest(detail["pipeline_runtime"]["workflow_manifest"])
        except (*REQUEST_ERRORS, ValueError, RecursionError, KeyError, TypeError):
            return {}

    def log(self, run_id: str, node: Node) -> str:
        """Return the log of a pod: from the object store, otherwise from the pod; empty if neither has it.

        The two endpoints are missing in the published API document (2.17.0, apiserver/main.go): logs that Argo has
        archived, and logs of pods that still exist.
        """
        run = f"runs/{quote(run_id)}/nodes"
        try:
            archived = json.loads(self._read(f"/apis/v2beta1/{run}/{quote(node.id)}/artifacts/main-logs:read"))
            return base64.b64decode(archived["data"]).decode("utf-8", "replace")
        except (*REQUEST_ERRORS, ValueError, RecursionError, KeyError, TypeError):
            pass
        try:
            text = self._read(f"/apis/v1alpha1/{run}/{quote(node.pod)}/log").decode("utf-8", "replace")
        except REQUEST_ERRORS:
            return ""
        return "" if text.startswith(LOG_ERROR) else text

    def task_log(self, run_id: str, task: str) -> str:
        """Return the log of a task's last pod, as `log` does.

        Args:
            run_id: ID of the run.
            task: name of the task in KFP, e.g. `check-inputs`.
        """
        pods = attempts(self.workflow(run_id), task)
        return self.log(run_id, pods[-1]) if pods else ""

    def end(self, run_id: str) -> RunEnd:
        """Return the state of a run and the causes of its failures, from its workflow and logs."""
        return read_workflow(self.workflow(run_id), functools.partial(self.log, run_id))

    def _read(self, path: str) -> bytes:
        """Return the body of a GET request, without retries: the callers need it only for explanations."""
        response = self._client.call_api(
            path,
            "GET",
            header_params={"Accept": "*/*"},
            auth_settings=["Bearer"],
            _preload_content=False,
            _return_http_data_only=True,
        )
        return bytes(response.data)

    # Recurring runs ------------------------------------------------------------------------------------------------

    def recurring_runs(self) -> list[api.V2beta1RecurringRun]:
        """Return all recurring runs of the namespace, whatever their owner."""
        listing = self._recurring.recurring_run_service_list_recurring_runs
        return self._list("jobs", listing, field="recurring_runs")

    def create_recurring_run(self, recurring_run: api.V2beta1RecurringRun) -> str:
        """Create a recurring run, and return its ID.

        An existing one with the same name, description and pipeline version is taken for the result of a lost response.
        """

        def identity(row: api.V2beta1RecurringRun) -> tuple[str, str, str]:
            return row.display_name, row.description, row.pipeline_version_reference.pipeline_version_id

        def find() -> str | None:
            rows = (row for row in self.recurring_runs() if row.pipeline_version_reference)
            return next((row.recurring_run_id for row in rows if identity(row) == identity(recurring_run)), None)

        def create() -> str:
            create_recurring_run = self._recurring.recurring_run_service_create_recurring_run
            return create_recurring_run(recurring_run=recurring_run).recurring_run_id

        return self._ensure("jobs", find, create)

    def enable(self, recurring_run_id: str) -> None:
        """Enable a recurring run, so that it starts runs."""
        self._call("enable", "jobs", self._recurring.recurring_run_service_enable_recurring_run, recurring_run_id)

    def disable(self, recurring_run_id: str) -> None:
        """Disable a recurring run, if it still exists; runs that it has started continue."""
        disable = self._recurring.recurring_run_service_disable_recurring_run
        self._call("disable", "jobs", disable, recurring_run_id, missing_ok=True)

    def delete(self, recurring_run_id: str) -> None:
        """Delete a recurring run, if it still exists; runs that it has started continue."""
        remove = self._recurring.recurring_run_service_delete_recurring_run
        # Without ORPHAN, Kubernetes also deletes the objects that the recurring run owns, among them active runs.
        self._call("delete", "jobs", remove, recurring_run_id, propagation_policy=ORPHAN, missing_ok=True)

    # Requests ------------------------------------------------------------------------------------------------------

    def _list(
        self,
        resource: str,
        listing: Callable[..., Any],
        *path_ids: str,
        name: str = "",
        equal: Mapping[str, str] | None = None,
        field: str = "",
        **options: Any,
    ) -> list[Any]:
        """Return the rows of all pages of a listing.

        Args:
            resource: plural name of the resource, as in Kubeflow's roles.
            listing: method of the generated client.
            path_ids: IDs in the path of the request.
            name: only rows with this display name; empty: all.
            equal: only rows whose fields have these values.
            field: field of a page that has the rows; empty: `resource`.
            options: further arguments of `listing`.
        """
        conditions = dict(equal or {}) | ({"display_name": name} if name else {})
        if conditions:
            predicates = [
                {"operation": "EQUALS", "key": key, "string_value": value} for key, value in conditions.items()
            ]
            options["filter"] = json.dumps({"predicates": predicates})
        if self.namespace and field != "pipeline_versions" and "experiment_id" not in options:
            options["namespace"] = self.namespace
        rows: list[Any] = []
        token = ""
        while True:
            page = self._call("list", resource, listing, *path_ids, page_size=PAGE_SIZE, page_token=token, **options)
            rows += getattr(page, field or resource) or []
            token = page.next_page_token
            if not token:
                return rows

    def _ensure(
        self, resource: str, find: Callable[[], Answer | None], create: Callable[[], Answer], *, verb: str = "create"
    ) -> Answer:
        """Return what `find` finds, otherwise what `create` creates; retry after a conflict with another creation."""
        return self._call(verb, resource, lambda: find() or create(), transient=(*TRANSIENT, CONFLICT))

    def _call(
        self,
        verb: str,
        resource: str,
        request: Callable[..., Answer],
        *arguments: Any,
        transient: Iterable[int] = TRANSIENT,
        missing_ok: bool = False,
        outage_seconds: float = 0.0,
        **options: Any,
    ) -> Answer:
        """Send a request, retry transient faults, and turn the last fault into a one-line error.

        Args:
            verb: verb of the permission in Kubeflow's roles, for messages.
            resource: resource of the permission in Kubeflow's roles, for messages.
            request: method of the generated client.
            arguments: positional arguments of `request`.
            transient: HTTP statuses that are retried.
            missing_ok: return None on status 404.
            outage_seconds: retry for at least this long.
            options: keyword arguments of `request`.
        """

        def is_transient(error: BaseException) -> bool:
            if isinstance(error, api.ApiException):
                return error.status in transient and not _is_final(error)
            return isinstance(error, urllib3.exceptions.HTTPError) and not isinstance(
                error, urllib3.exceptions.SSLError
            )

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=_pause,
            stop=tenacity.stop_all(tenacity.stop_after_attempt(ATTEMPTS), tenacity.stop_after_delay(outage_seconds)),
            reraise=True,
        )
        try:
            return retrying(request, *arguments, **options)
        except api.ApiException as error:
            if missing_ok and error.status == GONE:
                return None  # type: ignore[return-value]  # callers with missing_ok expect None
            raise self._api_error(error, verb, resource) from None
        except urllib3.exceptions.HTTPError as error:
            raise self._connection_error(error) from None
        except _UnexpectedBody as error:
            raise InputError(
                f"{self.host}: the response is not that of a Kubeflow Pipelines API (got {str(error)!r}); expected the "
                "API's own URL, often with path /pipeline"
            ) from None
        except OSError as error:  # from reading the token file, before each request
            raise InputError(f"{self.token_file}: no longer readable as a token ({error.strerror})") from None

    def _connection_error(self, error: urllib3.exceptions.HTTPError) -> Exception:
        errors = urllib3.exceptions
        if isinstance(error, errors.SSLError):
            return InputError(
                f"{self.host}: no trusted TLS connection ({_short(error)}); pass CA certificates by --ca-file, or use "
                "http:// for a host without TLS"
            )
        if isinstance(error, errors.NewConnectionError | errors.ConnectTimeoutError | errors.LocationValueError):
            return InputError(
                f"{self.host}: unreachable ({_short(error)}); expected the URL of a Kubeflow Pipelines API"
            )
        return RuntimeError(f"{self.host}: no response in {ATTEMPTS} attempts ({_short(error)})")

    def _api_error(self, error: api.ApiException, verb: str, resource: str) -> Exception:
        detail = _message(error)
        scope = f" in namespace {self.namespace}" if self.namespace else ""
        if 300 <= error.status < 400:
            target = error.headers.get("Location", "elsewhere")
            return InputError(
                f"{self.host}: redirects requests to {target}; expected the URL of the API itself, or a token for it"
            )
        if error.status == 401:
            token = f"the token in {self.token_file}" if self.token_file else "requests without a token"
            return InputError(f"{self.host}: refuses {token} (401{detail}); expected a valid token by --token-file")
        if error.status == 403:
            return InputError(
                f"{self.host}: no permission to {verb} {resource}{scope} (403{detail}); grant this account {verb} on "
                f"{resource}.pipelines.kubeflow.org there, as Kubeflow's ClusterRole kubeflow-edit does"
            )
        if error.status == GONE:
            if resource != "healthz":
                return InputError(f"{self.host}: cannot {verb} {resource}{scope}: not found (404{detail})")
            return InputError(
                f"{self.host}: no Kubeflow Pipelines API there (404{detail}); expected the API's own URL, often with "
                "path /pipeline"
            )
        leftover = _leftover_hint(error, resource, self.namespace)
        if _contains(error, PERMANENT_ERRORS):
            return InputError(
                f"{self.host}: cannot {verb} {resource}{scope}; a retry would fail the same way "
                f"({error.status}{detail}){leftover}"
            )
        if error.status in TRANSIENT:
            return RuntimeError(f"{self.host}: cannot {verb} {resource} now ({error.status}{detail}){leftover}")
        return InputError(f"{self.host}: refuses to {verb} {resource}{scope} ({error.status}{detail})")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    is_complete = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
    return is_complete and not parts.query and not parts.fragment


def _projected_token() -> Path | None:
    """Return the path of the token that Kubernetes projects into a pod for Kubeflow, as kfp's own client does."""
    path = Path(os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH)
    return path if path.is_file() else None


def _check_token(path: Path) -> None:
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise InputError(f"--token-file {path}: not readable ({error.strerror})") from None
    except UnicodeDecodeError:
        token = ""
    if not token or len(token.split()) > 1:
        raise InputError(f"--token-file {path}: expected a single bearer token and nothing else")


def _pause(state: tenacity.RetryCallState) -> float:
    """Return the seconds until the next attempt: Retry-After if the server sent it, otherwise exponential backoff."""
    backoff = tenacity.wait_exponential_jitter(FIRST_PAUSE, LONGEST_PAUSE, jitter=FIRST_PAUSE)(state)
    error = state.outcome.exception() if state.outcome else None
    retry_after = error.headers.get("Retry-After") if isinstance(error, api.ApiException) and error.headers else None
    try:
        seconds = urllib3.Retry().parse_retry_after(retry_after) if retry_after else 0.0
    except urllib3.exceptions.InvalidHeader:
        seconds = 0.0
    return min(max(seconds, backoff), LONGEST_PAUSE)


def _short(error: Exception) -> str:
    """Shorten a connection error to its message, without the leading repr of the connection."""
    return re.sub(r"^(\w+\(.*?\): |SSLError )", "", one_line(error, None))[:160]


def _contains(error: api.ApiException, parts: Iterable[str]) -> bool:
    """Whether the server's message with status 500 contains one of `parts`; error pages of proxies do not count."""
    message = _full_message(error)
    return error.status == INTERNAL and any(part in message for part in parts)


def _is_final(error: api.ApiException) -> bool:
    """Whether a request must not be retried although its status is a transient one."""
    return _contains(error, (*PERMANENT_ERRORS, *PARTIAL_CREATION_ERRORS))


def _leftover_hint(error: api.ApiException, resource: str, namespace: str) -> str:
    """Say how to find the object that a half-failed creation may have left in Kubernetes; otherwise empty."""
    kind = {"jobs": "scheduledworkflows", "runs": "workflows"}.get(resource)
    if kind is None or not _contains(error, PARTIAL_CREATION_ERRORS):
        return ""
    return (
        f"; it may have left an object in Kubernetes that the API does not list: kubectl get {kind} "
        f"--namespace {namespace or 'NAMESPACE'}"
    )


def _message(error: api.ApiException) -> str:
    """Return the server's error message with a leading colon, shortened; empty if there is none."""
    message = _full_message(error)
    return f": {message if len(message) <= 300 else f'{message[:140]} ... {message[-150:]}'}" if message else ""


def _full_message(error: api.ApiException) -> str:
    """Return the server's error message from its JSON body; empty if the body is not JSON, e.g. an HTML page."""
    try:
        body = json.loads(error.body or "")
        return one_line(body.get("message") or body.get("error") or "", None)
    except (ValueError, RecursionError, AttributeError):
        return ""
