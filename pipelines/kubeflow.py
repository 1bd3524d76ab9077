"""The Kubeflow Pipelines API: a connection by the official client, and each of its faults in one clear line.

What is safe to repeat is repeated, with pauses. A creation is not; it is made safe by looking, each time before it is
asked for, whether an earlier attempt whose answer was lost did it after all.
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
import yaml
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

from distilrank.core import artifacts
from distilrank.core.errors import InputError
from distilrank.workflow import Node, RunEnd, attempts, from_manifest
from distilrank.workflow import read as read_workflow
from pipelines import compiling
from pipelines.options import Pipeline

TIMEOUT = (5, 30)
"""Seconds to connect, and to wait for an answer."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds between attempts: doubled from one to the next, and never longer, whatever the server asks for."""
ATTEMPTS = 5
PAGE = 100
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""
CONFLICT, GONE, INTERNAL = 409, 404, 500
HOPELESS = (
    "Data too long for column",  # MySQL and MariaDB: 1406
    "Incorrect string value",  # 1366: a character that the column's encoding lacks
    "Out of range value for column",  # 1264
    "value too long for type",  # PostgreSQL: 22001
    "invalid byte sequence for encoding",  # 22021
    "request is too large",  # etcd
    "Request entity too large",  # Kubernetes
    "denied the request",  # an admission webhook of Kubernetes
    " is invalid: ",  # Kubernetes' own validation of an object
    " is forbidden: User ",  # Kubernetes' roles, as the API server's own account meets them; a quota may pass
    "invalid pipeline spec manifest",
    "Failed to validate workflow",
)
"""Parts of messages that Kubeflow's API server sends with status 500, though the same request can never succeed.

It answers 500 to whatever its database or Kubernetes refused (`NewInternalServerError`, and `Wrap` of an error that is
not its own, in backend/src/apiserver/resource/resource_manager.go and storage/*_store.go of 2.17.0).
"""
HALF_DONE = ("Failed to store job", "Failed to store run", "Failed to store resource references to table for")
"""Parts of the messages of a creation that Kubernetes has carried out and the database has not.

`CreateJob` and `CreateRun` of resource_manager.go create the ScheduledWorkflow or the Workflow first and insert the row
afterwards, and never take the first back. Each attempt leaves another one that the API does not list, so none is made.
"""

TEXT_CHARACTERS = 255
"""Longest description and longest name of a run or a recurring run in Kubeflow's database.

Columns without a type of their own are VARCHAR(255): `DefaultStringSize` in apiserver/client_manager/client_manager.go.
The API server checks only the lengths in apiserver/validation/length.go, and these are not among them.
"""
EXPERIMENT_CHARACTERS = 128
"""Longest name of an experiment: apiserver/model/experiment.go."""

REQUIREMENTS = (
    ("2.14", "names of pipelines beside their display names"),
    ("2.16", "the security context of a task, which cluster.run_as_user and runAsNonRoot are"),
    ("2.17.0", "the time of a schedule, which window.end: schedule and scheduled runs take"),
)
"""The first version of Kubeflow Pipelines that has each feature which is not in all of v2, lowest first."""
MINIMUM_VERSION = REQUIREMENTS[-1][0]
"""The oldest version of Kubeflow Pipelines that has all of them."""

FAULTS = (api.ApiException, urllib3.exceptions.HTTPError, OSError)
"""Whatever a single request can end in."""
RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LOG_ERROR = '{"error_message"'
"""How a log begins that could not be read, with status 200 (2.17.0, apiserver/server/run_log_server.go)."""

PREFIX = "distilrank-"
"""How the names of our pipelines begin."""
ENABLE, DISABLE = "ENABLE", "DISABLE"
ORPHAN = "ORPHAN"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Package:
    """A compiled pipeline: what is uploaded once, under its own digest."""

    pipeline: str
    """distill or monitor."""
    content: bytes
    """YAML as `pipelines.compiling.canonical` writes it."""

    @classmethod
    def of(cls, documents: list[Any]) -> Package:
        """The package of a pipeline's specification, and of what is Kubernetes' own if there is any."""
        return cls(documents[0]["pipelineInfo"]["name"], compiling.canonical(documents))

    def documents(self) -> list[Any]:
        """The specification, and what is Kubernetes' own if there is any."""
        return list(yaml.safe_load_all(self.content))

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hex."""
        return artifacts.digest_bytes(self.content)

    @property
    def name(self) -> str:
        """The pipeline's name on the cluster."""
        return f"{PREFIX}{self.pipeline}"

    @property
    def version(self) -> str:
        """The version's name there: short enough for Kubernetes, long enough to be the only one."""
        return self.digest[:32]


@dataclass(frozen=True)
class Version:
    """A pipeline version on the cluster, by its ids."""

    pipeline_id: str
    version_id: str

    def reference(self) -> api.V2beta1PipelineVersionReference:
        """As runs and recurring runs refer to it."""
        return api.V2beta1PipelineVersionReference(pipeline_id=self.pipeline_id, pipeline_version_id=self.version_id)


class _Unreadable(Exception):
    """A success whose body no Kubeflow Pipelines API would send."""


class _Client(api.ApiClient):
    """The generated client, with timeouts on every call, and without its habit of taking any page for an answer."""

    def request(self, *arguments: Any, **named: Any) -> Any:
        try:
            return super().request(*arguments, **named | {"_request_timeout": TIMEOUT})
        except api.ApiException as error:
            if error.body is None:  # a certificate that is not trusted; the generated client stumbles over it
                raise urllib3.exceptions.SSLError(error.reason) from None
            raise

    def health(self) -> dict[str, Any]:
        """The whole answer of healthz: the published document, and so the generated client, lack its `tag_name`."""
        answer, _, _ = self.call_api("/apis/v2beta1/healthz", "GET", response_type="object", auth_settings=["Bearer"])
        return answer

    def deserialize(self, response: Any, response_type: Any) -> Any:
        try:
            readable = isinstance(json.loads(response.data), dict)
        except ValueError:
            readable = False
        if not readable:
            raise _Unreadable(" ".join(str(response.data).split())[:60])
        return super().deserialize(response, response_type)


def version_numbers(text: str) -> tuple[int, int, int] | None:
    """A version such as 2.17.0, v2.17 or 2.17.0-rc.1 as numbers; None: no version (`unknown`, a commit, nothing)."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-+.].*)?", text.strip())
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def missing_features(server_version: str) -> list[str] | None:
    """The features of `REQUIREMENTS` that a server of that version lacks; None: the server does not say its version.

    Args:
        server_version: as `Kubeflow.server_version` has it.
    """
    numbers = version_numbers(server_version)
    if numbers is None:
        return None
    required = ((version, feature, version_numbers(version)) for version, feature in REQUIREMENTS)
    return [f"{version}: {feature}" for version, feature, minimum in required if minimum and numbers < minimum]


class Kubeflow:
    """A Kubeflow Pipelines API, and the namespace in which it is used."""

    server_version: str
    """The release that the server says it is (`TAG_NAME` of its image); it may be `unknown`, a commit, or empty."""

    def __init__(
        self, host: str, *, namespace: str = "", token_file: Path | None = None, ca_file: Path | None = None
    ) -> None:
        """Connect, and see that it is what it should be.

        Args:
            host: its URL; a path in it is kept (http://HOST/pipeline).
            namespace: where runs belong; needed in multi-user mode, without meaning otherwise.
            token_file: holds a bearer token, and is read before each request; None: the token that Kubernetes projects
                into a pod for Kubeflow, where there is one, else none is sent.
            ca_file: certificates (PEM) to trust the host by; None: those of certifi.

        Raises:
            InputError: no such host, not Kubeflow Pipelines, no readable token, no namespace where one is needed.
            RuntimeError: the host fails, and goes on failing.
        """
        if not _is_url(host):
            raise InputError(f"--host {host}: expected a URL such as https://kubeflow.example.com/pipeline")
        self.host = host.rstrip("/")
        self.token_file = token_file or _projected_token()
        configuration = api.Configuration(host=self.host)
        configuration.retries = False  # neither repeated nor redirected behind our back: a login page is no answer
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
        self.namespace = namespace  # for what errors say of it
        health = self._call("get", "healthz", client.health)
        self.server_version = str(health.get("tag_name") or "")
        multi_user = health.get("multi_user", False)
        if multi_user and not namespace:
            raise InputError(f"{self.host}: runs in multi-user mode, expected --namespace, the one of your profile")
        self.namespace = namespace if multi_user else ""

    def check_version(self, say: Callable[[str], None]) -> None:
        """See that the server is new enough for what this version of distilrank compiles.

        Args:
            say: gets a line if the server does not say its version.

        Raises:
            InputError: it is too old; the message names the features that it lacks.
        """
        missing = missing_features(self.server_version)
        if missing:
            raise InputError(
                f"{self.host}: is Kubeflow Pipelines {self.server_version}, expected {MINIMUM_VERSION} or newer, for "
                f"it lacks what came with {'; '.join(missing)}"
            )
        if missing is None:
            say(
                f"{self.host} does not say which version it is (tag_name {self.server_version!r}); expected Kubeflow "
                f"Pipelines {MINIMUM_VERSION} or newer"
            )

    def run_url(self, run_id: str) -> str:
        """Where people look at a run."""
        return f"{self.host}/#/runs/details/{run_id}"

    # What this account may do --------------------------------------------------------------------------------------

    def check_right(self, resource: str) -> None:
        """See that the account may list `experiments`, `pipelines`, `runs` or `jobs`; raises as every call does."""
        listing = {
            "experiments": self._experiments.experiment_service_list_experiments,
            "pipelines": self._pipelines.pipeline_service_list_pipelines,
            "runs": self._runs.run_service_list_runs,
            "jobs": self._recurring.recurring_run_service_list_recurring_runs,
        }[resource]
        where: dict[str, Any] = {"namespace": self.namespace} if self.namespace else {}
        self._call("list", resource, listing, page_size=1, **where)

    # What runs need ------------------------------------------------------------------------------------------------

    def has_experiment(self, name: str) -> bool:
        """Whether there is an experiment of this name."""
        rows = self._list("experiments", self._experiments.experiment_service_list_experiments, name=name)
        return any(row.display_name == name for row in rows)

    def experiment(self, name: str) -> str:
        """The id of the experiment `name`, which is created if there is none."""

        def look() -> str | None:
            found = self._list("experiments", self._experiments.experiment_service_list_experiments, name=name)
            return next((one.experiment_id for one in found if one.display_name == name), None)

        def create() -> str:
            wanted = api.V2beta1Experiment(display_name=name, namespace=self.namespace or None)
            return self._experiments.experiment_service_create_experiment(experiment=wanted).experiment_id

        return self._ensure("experiments", look, create)

    def version(self, package: Package) -> Version:
        """The uploaded version of `package`; pipeline and version are created if there are none."""

        def look_for_pipeline() -> str | None:
            found = self._list("pipelines", self._pipelines.pipeline_service_list_pipelines, name=package.name)
            return next((one.pipeline_id for one in found if one.display_name == package.name), None)

        def create_pipeline() -> str:
            wanted = api.V2beta1Pipeline(name=package.name, display_name=package.name, namespace=self.namespace or None)
            return self._pipelines.pipeline_service_create_pipeline(pipeline=wanted).pipeline_id

        pipeline_id = self._ensure("pipelines", look_for_pipeline, create_pipeline)

        def look_for_version() -> str | None:
            listing = self._pipelines.pipeline_service_list_pipeline_versions
            found = self._list("pipelines", listing, pipeline_id, name=package.version, field="pipeline_versions")
            return next((one.pipeline_version_id for one in found if one.display_name == package.version), None)

        def upload() -> str:
            named = {"name": package.version, "display_name": package.version, "pipelineid": pipeline_id}
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{package.name}.yaml"  # the generated client reads files only
                path.write_bytes(package.content)
                return self._uploads.upload_pipeline_version(str(path), **named).pipeline_version_id

        return Version(pipeline_id, self._ensure("pipelines", look_for_version, upload))

    def own_pipelines(self) -> set[str]:
        """Ids of the pipelines of this project that users run; those of `doctor` fail by intent."""
        listing = self._list("pipelines", self._pipelines.pipeline_service_list_pipelines)
        names = {f"{PREFIX}{pipeline}" for pipeline in Pipeline}
        return {one.pipeline_id for one in listing if one.display_name in names}

    def has(self, version: Version) -> bool:
        """Whether a version is still there: people can delete it below what refers to it."""
        get = self._pipelines.pipeline_service_get_pipeline_version
        ids = version.pipeline_id, version.version_id
        return self._call("get", "pipelines", get, *ids, gone_is_fine=True) is not None

    # Runs ----------------------------------------------------------------------------------------------------------

    def create_run(self, wanted: api.V2beta1Run) -> str:
        """Start a run, once, and return its id.

        Args:
            wanted: its description must be one that no other run has: by it the run is found if the answer is lost.
        """

        def look() -> str | None:
            listing = self._runs.run_service_list_runs
            found = self._list("runs", listing, name=wanted.display_name, experiment_id=wanted.experiment_id)
            return next((one.run_id for one in found if one.description == wanted.description), None)

        return self._ensure("runs", look, lambda: self._runs.run_service_create_run(run=wanted).run_id)

    def last_run_of(self, recurring_run_id: str, experiment_id: str) -> api.V2beta1Run | None:
        """The newest run that a recurring run has started, if it is among the newest of its experiment."""
        listing = self._runs.run_service_list_runs
        order: dict[str, Any] = {"page_size": PAGE, "sort_by": "created_at desc"}
        page = self._call("list", "runs", listing, experiment_id=experiment_id, **order)
        return next((run for run in page.runs or [] if run.recurring_run_id == recurring_run_id), None)

    def terminate(self, run_id: str) -> None:
        """End a run and all its pods; Kubeflow calls it failed then."""
        self._call("terminate", "runs", self._runs.run_service_terminate_run, run_id)

    def run(self, run_id: str, *, outage_seconds: float = 0.0) -> api.V2beta1Run | None:
        """A run as it stands, None if it is gone; faults that may pass are waited out for `outage_seconds` at least."""
        get = self._runs.run_service_get_run
        return self._call("get", "runs", get, run_id, outage_seconds=outage_seconds, gone_is_fine=True)

    def runs(self) -> list[api.V2beta1Run]:
        """All of the namespace, the newest first."""
        return self._list("runs", self._runs.run_service_list_runs, sort_by="created_at desc")

    def failed_runs(self) -> list[api.V2beta1Run]:
        """The namespace's runs that have failed, or were terminated: Kubeflow calls both so."""
        listing = self._runs.run_service_list_runs
        return self._list("runs", listing, equal={"state": "FAILED"}, sort_by="created_at desc")

    def run_named(self, text: str) -> api.V2beta1Run:
        """The run of this id, or the newest of this name.

        Raises:
            InputError: there is none.
        """
        if RUN_ID.fullmatch(text):
            run = self.run(text)
        else:
            listing = self._runs.run_service_list_runs
            run = next(iter(self._list("runs", listing, name=text, sort_by="created_at desc")), None)
        if run is None:
            raise InputError(f"run {text}: not on {self.host}, expected the id or the name of one")
        return run

    def retry(self, run_id: str) -> None:
        """Run again what failed of a run; what succeeded stays.

        A repeated request would meet a run that is at work again, so one whose answer was lost counts by its effect.
        """

        def is_at_work() -> bool:
            run = self.run(run_id)
            return run is not None and run.state not in ("FAILED", "CANCELED")

        self._ensure("runs", lambda: is_at_work() or None, lambda: self._retry(run_id), verb="retry")

    def _retry(self, run_id: str) -> bool:
        self._runs.run_service_retry_run(run_id)
        return True

    def workflow(self, run_id: str) -> dict[str, Any]:
        """The Argo workflow of a run as Kubeflow last recorded it, empty where the server gives none.

        Only the older version of the API has it (kubeflow/pipelines 2.17.0, apiserver/server/api_converter.go,
        `toApiRunDetailV1`); it outlives the workflow itself, which Kubeflow's manifests delete after an hour.
        """
        try:
            detail = json.loads(self._read(f"/apis/v1beta1/runs/{quote(run_id)}"))
            return from_manifest(detail["pipeline_runtime"]["workflow_manifest"])
        except (*FAULTS, ValueError, KeyError, TypeError):
            return {}

    def log(self, run_id: str, node: Node) -> str:
        """The log of a pod's stage, empty where it cannot be had: from the object store, else from the pod.

        Two of the server's own paths that its published document lacks (2.17.0, apiserver/main.go): what Argo has
        archived, and what Kubernetes still holds.
        """
        run = f"runs/{quote(run_id)}/nodes"
        try:
            archived = json.loads(self._read(f"/apis/v2beta1/{run}/{quote(node.id)}/artifacts/main-logs:read"))
            return base64.b64decode(archived["data"]).decode("utf-8", "replace")
        except (*FAULTS, ValueError, KeyError, TypeError):
            pass
        try:
            text = self._read(f"/apis/v1alpha1/{run}/{quote(node.pod)}/log").decode("utf-8", "replace")
        except FAULTS:
            return ""
        return "" if text.startswith(LOG_ERROR) else text

    def task_log(self, run_id: str, task: str) -> str:
        """The log of a task's last pod; as `log`.

        Args:
            run_id: the run.
            task: KFP's name of the task, e.g. `check-inputs`.
        """
        pods = attempts(self.workflow(run_id), task)
        return self.log(run_id, pods[-1]) if pods else ""

    def end(self, run_id: str) -> RunEnd:
        """How a run stands, and why, as far as its workflow and its logs tell."""
        return read_workflow(self.workflow(run_id), functools.partial(self.log, run_id))

    def _read(self, path: str) -> bytes:
        """The body of an answer to a plain GET, without a second try: what is read so only explains."""
        answer = self._client.call_api(
            path,
            "GET",
            header_params={"Accept": "*/*"},
            auth_settings=["Bearer"],
            _preload_content=False,
            _return_http_data_only=True,
        )
        return bytes(answer.data)

    # Recurring runs ------------------------------------------------------------------------------------------------

    def recurring_runs(self) -> list[api.V2beta1RecurringRun]:
        """All of the namespace, whoever made them."""
        listing = self._recurring.recurring_run_service_list_recurring_runs
        return self._list("jobs", listing, field="recurring_runs")

    def create_recurring_run(self, wanted: api.V2beta1RecurringRun) -> str:
        """Create a recurring run, and return its id; one of its name, description and pipeline version counts as it."""

        def kind(one: api.V2beta1RecurringRun) -> tuple[str, str, str]:
            return one.display_name, one.description, one.pipeline_version_reference.pipeline_version_id

        def look() -> str | None:
            found = (one for one in self.recurring_runs() if one.pipeline_version_reference)
            return next((one.recurring_run_id for one in found if kind(one) == kind(wanted)), None)

        def create() -> str:
            made = self._recurring.recurring_run_service_create_recurring_run(recurring_run=wanted)
            return made.recurring_run_id

        return self._ensure("jobs", look, create)

    def enable(self, recurring_run_id: str) -> None:
        """Let a recurring run start runs."""
        self._call("enable", "jobs", self._recurring.recurring_run_service_enable_recurring_run, recurring_run_id)

    def disable(self, recurring_run_id: str) -> None:
        """Keep a recurring run from starting runs, unless it is gone already; those that it started go on."""
        disable = self._recurring.recurring_run_service_disable_recurring_run
        self._call("disable", "jobs", disable, recurring_run_id, gone_is_fine=True)

    def delete(self, recurring_run_id: str) -> None:
        """Delete a recurring run, unless it is gone already; runs that it started go on."""
        remove = self._recurring.recurring_run_service_delete_recurring_run
        # Otherwise Kubernetes deletes what the recurring run owns: its runs, those that are under way among them.
        self._call("delete", "jobs", remove, recurring_run_id, propagation_policy=ORPHAN, gone_is_fine=True)

    # Calls ---------------------------------------------------------------------------------------------------------

    def _list(
        self,
        resource: str,
        listing: Callable[..., Any],
        *where: str,
        name: str = "",
        equal: Mapping[str, str] | None = None,
        field: str = "",
        **named: Any,
    ) -> list[Any]:
        """All pages of what is listed, of the name `name` if one is given, and with the values of `equal`."""
        conditions = dict(equal or {}) | ({"display_name": name} if name else {})
        if conditions:
            predicates = [
                {"operation": "EQUALS", "key": key, "string_value": value} for key, value in conditions.items()
            ]
            named["filter"] = json.dumps({"predicates": predicates})
        if self.namespace and field != "pipeline_versions" and "experiment_id" not in named:
            named["namespace"] = self.namespace
        found: list[Any] = []
        token = ""
        while True:
            page = self._call("list", resource, listing, *where, page_size=PAGE, page_token=token, **named)
            found += getattr(page, field or resource) or []
            token = page.next_page_token
            if not token:
                return found

    def _ensure(
        self, resource: str, look: Callable[[], Answer | None], create: Callable[[], Answer], *, verb: str = "create"
    ) -> Answer:
        """What is there, else what is created; whoever was faster with the same counts as there."""
        return self._call(verb, resource, lambda: look() or create(), passing=(*PASSING, CONFLICT))

    def _call(
        self,
        verb: str,
        resource: str,
        ask: Callable[..., Answer],
        *arguments: Any,
        passing: Iterable[int] = PASSING,
        gone_is_fine: bool = False,
        outage_seconds: float = 0.0,
        **named: Any,
    ) -> Answer:
        """Ask, again where that is worth it, and tell what cannot be mended.

        Args:
            verb, resource: what is asked for, in the words in which Kubeflow's roles grant it.
        """

        def passes(error: BaseException) -> bool:
            if isinstance(error, api.ApiException):
                return error.status in passing and not _is_final(error)
            return isinstance(error, urllib3.exceptions.HTTPError) and not isinstance(
                error, urllib3.exceptions.SSLError
            )

        tried_enough = tenacity.stop_after_attempt(ATTEMPTS)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(passes),
            wait=_pause,
            stop=tenacity.stop_all(tried_enough, tenacity.stop_after_delay(outage_seconds)),
            reraise=True,
        )
        try:
            return retrying(ask, *arguments, **named)
        except api.ApiException as error:
            if gone_is_fine and error.status == GONE:
                return None  # type: ignore[return-value]  # whoever asks for this expects it
            raise self._refusal(error, verb, resource) from None
        except urllib3.exceptions.HTTPError as error:
            raise self._disconnection(error) from None
        except _Unreadable as error:
            raise InputError(
                f"{self.host}: answers, but not as a Kubeflow Pipelines API does (got {str(error)!r}); expected the "
                "API's own URL, often with path /pipeline"
            ) from None
        except OSError as error:  # of the token, which is read again each time
            raise InputError(f"{self.token_file}: no longer readable as a token ({error.strerror})") from None

    def _disconnection(self, error: urllib3.exceptions.HTTPError) -> Exception:
        errors = urllib3.exceptions
        if isinstance(error, errors.SSLError):
            return InputError(
                f"{self.host}: no trusted TLS connection ({_short(error)}); --ca-file names certificates to trust, and "
                "http:// is for hosts without TLS"
            )
        if isinstance(error, errors.NewConnectionError | errors.ConnectTimeoutError | errors.LocationValueError):
            return InputError(
                f"{self.host}: cannot be reached ({_short(error)}); expected the URL of a Kubeflow Pipelines API"
            )
        return RuntimeError(f"{self.host}: gave no answer, {ATTEMPTS} times ({_short(error)})")

    def _refusal(self, error: api.ApiException, verb: str, resource: str) -> Exception:
        said = _message(error)
        where = f" in namespace {self.namespace}" if self.namespace else ""
        if 300 <= error.status < 400:
            target = error.headers.get("Location", "elsewhere")
            return InputError(f"{self.host}: sends requests on to {target}; expected the API itself, or a token for it")
        if error.status == 401:
            token = f"the token in {self.token_file}" if self.token_file else "requests without a token"
            return InputError(
                f"{self.host}: refuses {token} (401{said}); expected one that is valid now, by --token-file"
            )
        if error.status == 403:
            return InputError(
                f"{self.host}: no right to {verb} {resource}{where} (403{said}); grant this account {verb} on "
                f"{resource}.pipelines.kubeflow.org there, as Kubeflow's ClusterRole kubeflow-edit does"
            )
        if error.status == GONE:
            if resource != "healthz":
                return InputError(f"{self.host}: cannot {verb} {resource}{where}, for it is not there (404{said})")
            return InputError(
                f"{self.host}: no Kubeflow Pipelines API there (404{said}); expected the API's own URL, often with "
                "path /pipeline"
            )
        left = _left_behind(error, resource, self.namespace)
        if _contains(error, HOPELESS):
            return InputError(
                f"{self.host}: cannot {verb} {resource}{where}, now or later ({error.status}{said}){left}"
            )
        if error.status in PASSING:
            return RuntimeError(f"{self.host}: cannot {verb} {resource} now ({error.status}{said}){left}")
        return InputError(f"{self.host}: refuses to {verb} {resource}{where} ({error.status}{said})")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    whole = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
    return whole and not parts.query and not parts.fragment


def _projected_token() -> Path | None:
    """The token that Kubernetes projects into a pod for Kubeflow, where kfp's own client looks for it."""
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
        raise InputError(f"--token-file {path}: expected one bearer token in it, and nothing else")


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds until the next attempt: what the server asks for, and otherwise longer each time."""
    backoff = tenacity.wait_exponential_jitter(FIRST_PAUSE, LONGEST_PAUSE, jitter=FIRST_PAUSE)(state)
    error = state.outcome.exception() if state.outcome else None
    asked = error.headers.get("Retry-After") if isinstance(error, api.ApiException) and error.headers else None
    try:
        seconds = urllib3.Retry().parse_retry_after(asked) if asked else 0.0
    except urllib3.exceptions.InvalidHeader:
        seconds = 0.0
    return min(max(seconds, backoff), LONGEST_PAUSE)


def _short(error: Exception) -> str:
    """What a connection error says, without the object that it says first."""
    return re.sub(r"^(\w+\(.*?\): |SSLError )", "", " ".join(str(error).split()))[:160]


def _contains(error: api.ApiException, parts: Iterable[str]) -> bool:
    """Whether the server's message with status 500 has one of `parts`; a proxy's page may quote anything."""
    message = _full_message(error)
    return error.status == INTERNAL and any(part in message for part in parts)


def _is_final(error: api.ApiException) -> bool:
    """Whether the same request must not be sent again, though its status says that it may succeed."""
    return _contains(error, (*HOPELESS, *HALF_DONE))


def _left_behind(error: api.ApiException, resource: str, namespace: str) -> str:
    """What a creation has left in Kubernetes that the API does not list, and how to see it; else nothing."""
    kind = {"jobs": "scheduledworkflows", "runs": "workflows"}.get(resource)
    if kind is None or not _contains(error, HALF_DONE):
        return ""
    return (
        f"; it may have left one of {kind} in Kubernetes that the API does not list: kubectl get {kind} "
        f"--namespace {namespace or 'NAMESPACE'}"
    )


def _message(error: api.ApiException) -> str:
    """What the server says of an error, for a message of our own."""
    message = _full_message(error)
    return f": {message if len(message) <= 300 else f'{message[:140]} ... {message[-150:]}'}" if message else ""


def _full_message(error: api.ApiException) -> str:
    """What the server says of an error, from its JSON; a page for people says nothing here."""
    try:
        body = json.loads(error.body or "")
        return " ".join(str(body.get("message") or body.get("error") or "").split())
    except (ValueError, AttributeError):
        return ""
