"""The Kubeflow Pipelines API: a connection by the official client, and each of its faults in one clear line.

What is safe to repeat is repeated, with pauses. A creation is not; it is made safe by looking, each time before it is
asked for, whether an earlier attempt whose answer was lost did it after all.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import kfp_server_api as api
import tenacity
import urllib3
import yaml
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

from distilrank import artifacts
from distilrank.errors import InputError
from pipelines import compiling

TIMEOUT = (5, 30)
"""Seconds to connect, and to wait for an answer."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds between attempts: doubled from one to the next, and never longer, whatever the server asks for."""
ATTEMPTS = 5
PAGE = 100
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""
CONFLICT, GONE = 409, 404

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
        return f"distilrank-{self.pipeline}"

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

    def deserialize(self, response: Any, response_type: Any) -> Any:
        try:
            readable = isinstance(json.loads(response.data), dict)
        except ValueError:
            readable = False
        if not readable:
            raise _Unreadable(" ".join(str(response.data).split())[:60])
        return super().deserialize(response, response_type)


class Kubeflow:
    """A Kubeflow Pipelines API, and the namespace in which it is used."""

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
        self.client: api.ApiClient = client
        """For what the published API lacks."""
        self._experiments = api.ExperimentServiceApi(client)
        self._pipelines = api.PipelineServiceApi(client)
        self._uploads = api.PipelineUploadServiceApi(client)
        self._runs = api.RunServiceApi(client)
        self._recurring = api.RecurringRunServiceApi(client)
        self.namespace = namespace  # for what errors say of it
        health = self._call("get", "healthz", api.HealthzServiceApi(client).healthz_service_get_healthz)
        if health.multi_user and not namespace:
            raise InputError(f"{self.host}: runs in multi-user mode, expected --namespace, the one of your profile")
        self.namespace = namespace if health.multi_user else ""

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
        self, resource: str, listing: Callable[..., Any], *where: str, name: str = "", field: str = "", **named: Any
    ) -> list[Any]:
        """All pages of what is listed, of the name `name` if one is given."""
        if name:
            equal = {"operation": "EQUALS", "key": "display_name", "string_value": name}
            named["filter"] = json.dumps({"predicates": [equal]})
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

    def _ensure(self, resource: str, look: Callable[[], str | None], create: Callable[[], str]) -> str:
        """What is there, else what is created; whoever was faster with the same counts as there."""
        return self._call("create", resource, lambda: look() or create(), passing=(*PASSING, CONFLICT))

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
                return error.status in passing
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
        if error.status in PASSING:
            return RuntimeError(f"{self.host}: cannot {verb} {resource} now ({error.status}{said})")
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


def _message(error: api.ApiException) -> str:
    """What the server says of an error, from its JSON; a page for people says nothing here."""
    try:
        body = json.loads(error.body or "")
        said = str(body.get("message") or body.get("error") or "")
    except (ValueError, AttributeError):
        return ""
    return f": {' '.join(said.split())[:200]}" if said else ""
