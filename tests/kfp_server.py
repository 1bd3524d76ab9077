"""Kubeflow Pipelines' API server in memory: holds every request and its own answers to the published document.

What the document does not allow (a path, a parameter, a property, a type, a value of an enumeration) is refused and
remembered in `problems`; so is a moment at which two recurring runs of one name are enabled. It behaves as the real one
where the client depends on that: names that are unique, pages, filters, authorization, runs that advance, and faults
before or after the effect of a request.
"""

from __future__ import annotations

import base64
import copy
import email
import email.policy
import functools
import json
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import jsonschema
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

DOCUMENT = Path(__file__).parents[2] / "shared" / "api" / "kfp-v2beta1.swagger.json"
PAGE_LIMIT = 2
"""Rows in a page at most, whatever is asked for."""

Entity = dict[str, Any]


@functools.lru_cache
def parsed(content: bytes) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.load_all(content, yaml.CSafeLoader))


class Refused(Exception):
    """An answer other than success: status and message."""


@dataclass(frozen=True)
class Fault:
    """What happens to a request in place of the honest answer."""

    status: int = 0
    """The answer; 0: none, the connection is dropped."""
    after: bool = False
    """Whether the request has had its effect by then."""
    delay: float = 0.0
    """Seconds before anything happens; with status 200 that is all that happens."""
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    """In place of JSON."""


@dataclass(frozen=True)
class Operation:
    """One entry of the document."""

    name: str
    pattern: re.Pattern[str]
    parameters: dict[str, Entity]
    body: jsonschema.Draft4Validator | None
    body_name: str
    answer: jsonschema.Draft4Validator


FORMATS = jsonschema.FormatChecker(formats=())


@FORMATS.checks("date-time")
def _is_moment(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@FORMATS.checks("int64")
def _is_int64(value: object) -> bool:
    return not isinstance(value, str) or re.fullmatch(r"-?\d{1,19}", value) is not None


class Document:
    """The operations, each with validators that allow no property that is not in the document."""

    def __init__(self, path: Path = DOCUMENT) -> None:
        content = json.loads(path.read_text())
        _close(content["definitions"])
        registry = Registry().with_resource("api", Resource(content, DRAFT4))

        def validator(schema: Entity) -> jsonschema.Draft4Validator:
            schema = copy.deepcopy(schema)
            _close(schema)
            located = json.loads(json.dumps(schema).replace('"#/definitions/', '"api#/definitions/'))
            return jsonschema.Draft4Validator(located, registry=registry, format_checker=FORMATS)

        self.filter = validator({"$ref": "#/definitions/v2beta1Filter"})
        self.failure = validator({"$ref": "#/definitions/googleRpcStatus"})
        self.operations: dict[str, list[Operation]] = {}
        for template, methods in content["paths"].items():
            pattern = re.compile(re.sub(r"\\{([^}]*)\\}", r"([^/:]+)", re.escape(template)))
            for method, operation in methods.items():
                parameters = {each["name"]: each for each in operation.get("parameters", [])}
                body = next((each for each in parameters.values() if each["in"] == "body"), None)
                self.operations.setdefault(method.upper(), []).append(
                    Operation(
                        operation["operationId"],
                        pattern,
                        parameters,
                        validator(body["schema"]) if body else None,
                        body["name"] if body else "",
                        validator(operation["responses"]["200"]["schema"]),
                    )
                )

    def find(self, method: str, path: str) -> tuple[Operation, list[str]]:
        # Fixed words before placeholders: /pipelines/upload is no pipeline's id.
        for operation in sorted(self.operations.get(method, []), key=lambda each: each.pattern.groups):
            match = operation.pattern.fullmatch(path)
            if match:
                return operation, [unquote(each) for each in match.groups()]
        raise Refused(404, f"{method} {path} is not in the document")


def _close(schema: Any) -> None:
    """Forbid properties that a schema does not name; what is read-only is checked where requests are."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
        for value in schema.values():
            _close(value)
    elif isinstance(schema, list):
        for value in schema:
            _close(value)


TEXT_LIMIT = 255
"""Characters in a column without a type of its own: DefaultStringSize in kubeflow/pipelines 2.17.0,
backend/src/apiserver/client_manager/client_manager.go."""
LENGTHS = {"Experiment": {"display_name": 128, "namespace": 63}, "Pipeline": {"name": 128, "namespace": 63}}
LENGTHS["PipelineVersion"] = {"name": 127}
"""What the API server checks itself, and refuses with 400: backend/src/apiserver/validation/length.go."""

OWNER = re.compile(r"^distilrank: owner=(\S+) digest=", re.MULTILINE)

OUTPUT_ONLY = {
    "experiment": {"experiment_id", "created_at", "storage_state", "last_run_created_at"},
    "pipeline": {"pipeline_id", "created_at", "error"},
    "run": {"run_id", "created_at", "finished_at", "state", "error", "run_details", "state_history", "storage_state"},
    "recurring_run": {"recurring_run_id", "created_at", "updated_at", "status", "error", "namespace"},
}
"""Properties that the document calls output, by the name of the request's body."""

STATUSES = {"SUCCEEDED": "Succeeded", "FAILED": "Failed", "CANCELING": "Terminating", "PENDING": "Pending"}
"""Version 1's word for a state (apiserver/model/run.go, ToV1)."""

WRITES = ("Create", "Delete", "Enable", "Disable", "Upload", "Archive", "Unarchive", "Terminate", "Retry", "Update")


class Store:
    """What the server holds and how it answers."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """An empty, honest, single-user server without authentication."""
        self.experiments: dict[str, Entity] = {}
        self.pipelines: dict[str, Entity] = {}
        self.versions: dict[str, Entity] = {}
        self.contents: dict[str, bytes] = {}
        self.runs: dict[str, Entity] = {}
        self.recurring: dict[str, Entity] = {}
        self.scheduled_workflows: dict[str, str] = {}
        """Name by id of the recurring runs whose ScheduledWorkflow is in Kubernetes, listed by the API or not."""
        self.created_workflows: dict[str, str] = {}
        """The same for the runs whose Workflow is in Kubernetes."""
        self.requests: list[str] = []
        self.writes: list[str] = []
        self.problems: list[str] = []
        self.propagation: list[str] = []
        self.multi_user = False
        self.tag_name = "2.17.0"
        """The version that the server says it is; None: it says nothing, as those before tag_name did."""
        self.database_down = 0
        """How many inserts of runs and recurring runs to come the database answers with an error that passes."""
        self.token = ""
        """The one that is accepted; empty: anybody is."""
        self.namespaces: set[str] = set()
        """Those in which the account has rights, in multi-user mode."""
        self.forbidden: set[str] = set()
        """Operations that nobody may do."""
        self.fault: Callable[[str], Fault | None] = lambda operation: None
        self.stories: list[list[Callable[[Entity], None]]] = []
        """What happens to runs to come: a change at each look."""
        self.workflows: dict[str, Entity] = {}
        """Argo workflow by run, as the older API gives it."""
        self.archived_logs: dict[str, str] = {}
        """Log by node, as Argo keeps it in the object store once a pod has ended."""
        self.pod_logs: dict[str, str] = {}
        """Log by pod, as long as Kubernetes has the pod."""
        self._telling: dict[str, Iterator[Callable[[Entity], None]]] = {}
        self._clock = 0

    # What the published document lacks (2.17.0, apiserver/main.go, buildHTTPRouter) -------------------------------

    def plain(self, method: str, path: str, headers: Any) -> tuple[str, bytes] | None:
        """Content type and body for one of those paths; None: it is none of them."""
        matches = ((give, re.fullmatch(pattern, path)) for pattern, give in self.paths().items())
        give, match = next(((give, match) for give, match in matches if match), (None, None))
        if method != "GET" or give is None or match is None:
            return None
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            raise Refused(401, "Request header error: there is no user identity header.")
        try:
            answer = give(*map(unquote, match.groups()))
        except Refused as refused:
            if give != self._pod_log:
                raise
            # server/run_log_server.go writes its 200 before it looks for the pod.
            answer = json.dumps({"error_message": refused.args[1], "error_details": refused.args[1]})
        if give == self._archived_log:  # server/run_artifact_server.go
            answer = {"data": base64.b64encode(answer.encode()).decode()}
        if isinstance(answer, str):
            return "text/plain", answer.encode()
        return "application/json", json.dumps(answer).encode()

    def paths(self) -> dict[str, Callable[..., Any]]:
        """What answers a GET of each of those paths, by a pattern whose groups are its arguments."""
        return {
            r"/apis/v1beta1/runs/([^/:]+)": self._run_detail,
            r"/apis/v2beta1/runs/([^/]+)/nodes/([^/]+)/artifacts/main-logs:read": self._archived_log,
            r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log": self._pod_log,
        }

    def _run_detail(self, run: str) -> Entity:
        return self._detail(self._get(self.runs, run), self.workflows.get(run))

    def _detail(self, row: Entity, workflow: Entity | None) -> Entity:
        """A run in version 1 of the API (api_converter.go, toApiRunDetailV1)."""
        run = {"id": row["run_id"], "name": row["display_name"], "created_at": row["created_at"]}
        run["status"] = STATUSES.get(row["state"], "Running")
        return {"run": run, "pipeline_runtime": {"workflow_manifest": json.dumps(workflow)} if workflow else {}}

    def _archived_log(self, run: str, node: str) -> str:
        if node not in self.archived_logs:
            raise Refused(404, "artifact not found: <nil>")
        return self.archived_logs[node]

    def _pod_log(self, run: str, pod: str) -> str:
        if pod not in self.pod_logs:
            raise Refused(500, f"Failed to read logs for run {run}")
        return self.pod_logs[pod]

    # One request ---------------------------------------------------------------------------------------------------

    def answer(
        self, method: str, path: str, query: list[tuple[str, str]], headers: Any, data: bytes
    ) -> tuple[str, Entity]:
        """The operation's name, and what it answers."""
        operation, placeholders = self.document.find(method, path)
        self.requests.append(operation.name)
        named = dict(query)
        if len(named) < len(query):
            raise Refused(400, f"{operation.name}: a parameter twice: {query}")
        self._check_query(operation, named)
        body: Any = None
        if operation.body is not None:
            body = json.loads(data)
            self._check(operation.body, body, f"{operation.name} request")
            extra = OUTPUT_ONLY.get(operation.body_name, set()) & set(body)
            if extra:
                raise Refused(400, f"{operation.name}: output properties in a request: {sorted(extra)}")
        elif "uploadfile" in operation.parameters:
            body = _uploaded(headers, data)
        elif data not in (b"", b"null"):
            raise Refused(400, f"{operation.name}: a body that the document does not know: {data[:80]!r}")
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            raise Refused(401, "Request header error: there is no user identity header.")
        if operation.name in self.forbidden:
            raise Refused(403, f"User 'robot' is not authorized with reason: {operation.name}")
        return operation.name, self._perform(operation, placeholders, named, body)

    def _check_query(self, operation: Operation, named: dict[str, str]) -> None:
        for name, value in named.items():
            parameter = operation.parameters.get(name)
            if parameter is None or parameter["in"] != "query":
                raise Refused(400, f"{operation.name}: parameter {name} is not in the document")
            if parameter["type"] == "integer" and not re.fullmatch(r"\d+", value):
                raise Refused(400, f"{operation.name}: {name}={value} is no integer")
            if "enum" in parameter and value not in parameter["enum"]:
                raise Refused(400, f"{operation.name}: {name}={value} is not one of {parameter['enum']}")
            if name == "filter" and value:
                self._check(self.document.filter, json.loads(value), f"{operation.name} filter")

    def _check(self, validator: jsonschema.Draft4Validator, value: Any, what: str) -> None:
        for error in validator.iter_errors(value):
            raise Refused(400, f"{what}: {'.'.join(map(str, error.path))}: {error.message[:300]}")

    def _perform(self, operation: Operation, placeholders: list[str], named: dict[str, str], body: Any) -> Entity:
        perform = getattr(self, operation.name.partition("_")[2] or operation.name, None)
        if perform is None:
            raise Refused(501, f"{operation.name}: not here")
        made = perform(*placeholders, named=named, body=body)
        if any(word in operation.name for word in WRITES):
            self.writes.append(operation.name)
            self._record_duplicates()
        self._check(operation.answer, made, f"{operation.name} response")
        return made | self._undocumented(operation)

    def _undocumented(self, operation: Operation) -> Entity:
        """What the real server answers beyond the published document.

        kubeflow/pipelines 2.17.0, backend/src/apiserver/main.go: healthzResponse.
        """
        if operation.name != "HealthzService_GetHealthz" or self.tag_name is None:
            return {}
        return {"commit_sha": "unknown", "tag_name": self.tag_name}

    def _insert(self, kind: str, row: Entity) -> None:
        """What the database refuses, which is after the object was created in Kubernetes: it stays there.

        kubeflow/pipelines 2.17.0, backend/src/apiserver/resource/resource_manager.go (CreateJob, CreateRun) and
        backend/src/apiserver/storage/job_store.go and run_store.go, with the columns of model/job.go and model/run.go.
        """
        failure = ""
        if self.database_down:
            self.database_down -= 1
            failure = "invalid connection"
        for column, key in (("DisplayName", "display_name"), ("Description", "description")):
            if len(row.get(key, "")) > TEXT_LIMIT:
                failure = f"Error 1406 (22001): Data too long for column '{column}' at row 1"
        if len(row.get("service_account", "")) > TEXT_LIMIT:
            failure = "Error 1406 (22001): Data too long for column 'ServiceAccount' at row 1"
        if failure:
            what = "recurring run" if kind == "job" else "run"
            raise Refused(
                500,
                f"Failed to create a {what}: InternalServerError: Failed to store {kind} {row['display_name']} to "
                f"table: {failure}",
            )

    def _check_lengths(self, model: str, values: Entity) -> None:
        for key, limit in LENGTHS[model].items():
            if len(values.get(key, "")) > limit:
                raise Refused(400, f"{model}.{key} length cannot exceed {limit}")

    def _record_duplicates(self) -> None:
        enabled = Counter(
            (
                recurring_run["namespace"],
                recurring_run["display_name"],
                tuple(OWNER.findall(recurring_run.get("description", ""))),
            )
            for recurring_run in self.recurring.values()
            if recurring_run["mode"] == "ENABLE"
        )
        for (_, name, owners), count in enabled.items():
            if count > 1 and owners:
                self.problems.append(f"{count} recurring runs of one name and owner are enabled: {name}, {owners}")

    # What it is made of --------------------------------------------------------------------------------------------

    def _now(self) -> str:
        self._clock += 1  # distinct moments, so that an order by time is one
        return datetime.fromtimestamp(time.time() + self._clock * 1e-6, UTC).isoformat().replace("+00:00", "Z")

    def _allow(self, namespace: str) -> None:
        if self.multi_user and not namespace:
            raise Refused(400, "a namespace is needed in multi-user mode")
        if not self.multi_user and namespace:
            raise Refused(400, "In single-user mode, nothing can be filtered by namespace.")
        if self.multi_user and namespace not in self.namespaces:
            raise Refused(403, f"User 'robot' is not authorized in namespace {namespace}")

    def _get(self, kind: dict[str, Entity], number: str) -> Entity:
        if number not in kind:
            raise Refused(404, f"{number} not found")
        return kind[number]

    def _page(self, rows: list[Entity], field: str, named: dict[str, str]) -> Entity:
        for predicate in json.loads(named.get("filter") or "{}").get("predicates", []):
            if predicate["operation"] != "EQUALS" or set(predicate) != {"operation", "key", "string_value"}:
                raise Refused(501, f"filter {predicate}: not here")
            rows = [row for row in rows if row.get(predicate["key"]) == predicate["string_value"]]
        start = int(named.get("page_token") or 0)
        size = min(int(named.get("page_size") or PAGE_LIMIT), PAGE_LIMIT)
        end = start + size
        more = {"next_page_token": str(end)} if end < len(rows) else {}
        # As protobuf's JSON: what is empty is left out.
        return ({field: rows[start:end]} if rows[start:end] else {}) | {"total_size": len(rows)} | more

    def _in_namespace(self, kind: dict[str, Entity], named: dict[str, str]) -> list[Entity]:
        self._allow(named.get("namespace", ""))
        return [item for item in kind.values() if item.get("namespace", "") == named.get("namespace", "")]

    # Operations, by the document's names ---------------------------------------------------------------------------

    def GetHealthz(self, named: dict[str, str], body: Any) -> Entity:
        return {"multi_user": self.multi_user, "pipeline_store": "database"}

    def ListExperiments(self, named: dict[str, str], body: Any) -> Entity:
        return self._page(self._in_namespace(self.experiments, named), "experiments", named)

    def CreateExperiment(self, named: dict[str, str], body: Any) -> Entity:
        self._allow(body.get("namespace", ""))
        self._check_lengths("Experiment", body)
        return self._new(self.experiments, "experiment_id", body | {"storage_state": "AVAILABLE"})

    def ListPipelines(self, named: dict[str, str], body: Any) -> Entity:
        return self._page(self._in_namespace(self.pipelines, named), "pipelines", named)

    def CreatePipeline(self, named: dict[str, str], body: Any) -> Entity:
        self._allow(body.get("namespace", ""))
        self._check_lengths("Pipeline", body)
        return self._new(self.pipelines, "pipeline_id", body)

    def ListPipelineVersions(self, pipeline: str, named: dict[str, str], body: Any) -> Entity:
        self._allow(self._get(self.pipelines, pipeline).get("namespace", ""))
        rows = [version for version in self.versions.values() if version["pipeline_id"] == pipeline]
        return self._page(rows, "pipeline_versions", named)

    def GetPipelineVersion(self, pipeline: str, version: str, named: dict[str, str], body: Any) -> Entity:
        self._allow(self._get(self.pipelines, pipeline).get("namespace", ""))
        return self._get(self.versions, version)

    def UploadPipelineVersion(self, named: dict[str, str], body: bytes) -> Entity:
        pipeline = self._get(self.pipelines, named["pipelineid"])
        self._allow(pipeline.get("namespace", ""))
        self._check_lengths("PipelineVersion", named)
        specification, *platform = parsed(body)
        made = {
            "pipeline_id": pipeline["pipeline_id"],
            "name": named["name"],
            "display_name": named["display_name"],
            "pipeline_spec": {"pipeline_spec": specification, "platform_spec": platform[0]}
            if platform
            else specification,
        }
        made = self._new(self.versions, "pipeline_version_id", made)
        self.contents[made["pipeline_version_id"]] = body
        return made

    def _new(self, kind: dict[str, Entity], key: str, values: Entity) -> Entity:
        scope = ("namespace", "pipeline_id", "display_name")
        for item in kind.values():
            if key != "pipeline_id" and all(item.get(name) == values.get(name) for name in scope):
                raise Refused(409, f"already exist: {values['display_name']}")
            if key == "pipeline_id" and item["display_name"] == values["display_name"]:
                raise Refused(409, f"already exist: {values['display_name']}")
        made = values | {key: str(uuid.uuid4()), "created_at": self._now()}
        kind[made[key]] = made
        return made

    def _check_job(self, body: Entity) -> str:
        experiment = self._get(self.experiments, body["experiment_id"])
        self._allow(experiment.get("namespace", ""))
        reference = body["pipeline_version_reference"]
        version = self._get(self.versions, reference["pipeline_version_id"])
        if version["pipeline_id"] != reference["pipeline_id"]:
            raise Refused(400, "a version of another pipeline")
        content = version["pipeline_spec"]
        definitions = content.get("pipeline_spec", content)["root"]["inputDefinitions"]["parameters"]
        parameters = body.get("runtime_config", {}).get("parameters", {})
        if set(parameters) - set(definitions):
            raise Refused(
                400, f"input parameters that the pipeline does not have: {sorted(set(parameters) - set(definitions))}"
            )
        missing = [
            name
            for name, definition in definitions.items()
            if not definition.get("isOptional") and "defaultValue" not in definition
        ]
        if set(missing) - set(parameters):
            raise Refused(400, f"input parameters without a value: {missing}")
        return experiment.get("namespace", "")

    def CreateRun(self, named: dict[str, str], body: Any) -> Entity:
        self._check_job(body)
        number = str(uuid.uuid4())
        self.created_workflows[number] = body["display_name"]
        self._insert("run", body)
        made = body | {"run_id": number, "created_at": self._now(), "state": "PENDING"}
        self.runs[made["run_id"]] = made
        self._telling[made["run_id"]] = iter(self.stories.pop(0) if self.stories else [])
        return made

    def GetRun(self, run: str, named: dict[str, str], body: Any) -> Entity:
        stored_run = self._get(self.runs, run)
        self._allow(self.experiments[stored_run["experiment_id"]].get("namespace", ""))
        change = next(self._telling[run], None)
        if change:
            change(stored_run)
        return stored_run

    def ListRuns(self, named: dict[str, str], body: Any) -> Entity:
        experiment = named.get("experiment_id")
        rows = [stored_run for stored_run in self.runs.values() if experiment in (None, stored_run["experiment_id"])]
        if named.get("sort_by", "created_at desc") != "created_at desc":
            raise Refused(501, f"sort_by {named['sort_by']}: not here")
        if "sort_by" in named:
            rows.sort(key=lambda stored_run: str(stored_run["created_at"]), reverse=True)
        return self._page(rows, "runs", named)

    def RetryRun(self, run: str, named: dict[str, str], body: Any) -> Entity:
        """As resource_manager.go, RetryRun: only what failed runs again, and the history of states grows."""
        stored_run = self._get(self.runs, run)
        if stored_run["state"] != "FAILED":
            raise Refused(500, "Failed to retry a run: workflow must be Failed/Error to retry")
        stored_run |= {
            "state": "RUNNING",
            "state_history": [*stored_run.get("state_history", []), {"state": "RUNNING"}],
        }
        self._telling[run] = iter(self.stories.pop(0) if self.stories else [])
        return {}

    def ListRecurringRuns(self, named: dict[str, str], body: Any) -> Entity:
        return self._page(self._in_namespace(self.recurring, named), "recurringRuns", named)

    def CreateRecurringRun(self, named: dict[str, str], body: Any) -> Entity:
        namespace = self._check_job(body)
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise Refused(400, "The max concurrency of the recurring run is out of range. Support 1-10.")
        if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6:
            raise Refused(400, "a cron without seconds is read in another way")
        number = str(uuid.uuid4())
        self.scheduled_workflows[number] = body["display_name"]
        self._insert("job", body)
        now = self._now()
        made = body | {"recurring_run_id": number, "created_at": now, "updated_at": now}
        made |= {"namespace": namespace, "status": "STATUS_UNSPECIFIED"}  # the controller has not seen it yet
        self.recurring[made["recurring_run_id"]] = made
        return made

    def EnableRecurringRun(self, number: str, named: dict[str, str], body: Any) -> Entity:
        return self._switch(number, "ENABLE")

    def DisableRecurringRun(self, number: str, named: dict[str, str], body: Any) -> Entity:
        return self._switch(number, "DISABLE")

    def _switch(self, number: str, mode: str) -> Entity:
        recurring_run = self._get(self.recurring, number)
        self._allow(recurring_run["namespace"])
        recurring_run |= {"mode": mode, "status": f"{mode}D", "updated_at": self._now()}
        return {}

    def DeleteRecurringRun(self, number: str, named: dict[str, str], body: Any) -> Entity:
        self._allow(self._get(self.recurring, number)["namespace"])
        self.propagation.append(named.get("propagation_policy", ""))
        self.scheduled_workflows.pop(number, None)  # none for what a test has put there itself
        del self.recurring[number]
        return {}


def _uploaded(headers: Any, data: bytes) -> bytes:
    """The one file of a multipart form."""
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    parts = list(email.message_from_bytes(head + data, policy=email.policy.HTTP).iter_parts())
    names = [part.get_param("name", header="content-disposition") for part in parts]
    if names != ["uploadfile"]:
        raise Refused(400, f"form fields {names}, expected uploadfile")
    return parts[0].get_payload(decode=True)  # type: ignore[return-value]


class Handler(BaseHTTPRequestHandler):
    """One connection; the path before /apis is the host's own."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle_any(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        prefix, marker, rest = parts.path.partition("/apis/")
        path = marker + rest
        store = self.server.store
        with store.lock:
            try:
                operation, _ = store.document.find(self.command, path)
                fault = store.fault(operation.name)
            except Refused:
                fault = None
        if fault and fault.delay:
            time.sleep(fault.delay)
        if fault and not fault.after and fault.status != 200:
            return self.fail(fault)
        try:
            if prefix != self.server.prefix:
                raise Refused(404, f"no such path: {parts.path}")
            query = parse_qsl(parts.query, keep_blank_values=True)
            with store.lock:
                plain = store.plain(self.command, path, self.headers)
            if plain:
                return self.send_bytes(200, *plain)
            with store.lock:
                _, made = store.answer(self.command, path, query, self.headers, data)
        except Refused as refused:
            status, message = refused.args
            if status in (400, 501):  # ours to find out: the client should never have asked
                store.problems.append(message)
            return self.send(status, {"code": 2, "message": message, "details": []})
        if fault and fault.after:
            return self.fail(fault)
        self.send(200, made)

    do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = handle_any

    def fail(self, fault: Fault) -> None:
        if not fault.status:
            self.close_connection = True
            self.connection.shutdown(2)
        elif fault.body:
            self.send(fault.status, fault.body, headers=fault.headers)
        else:
            self.send(fault.status, {"code": 2, "message": "as asked", "details": []}, headers=fault.headers)

    def send(self, status: int, value: Any, *, headers: dict[str, str] | None = None) -> None:
        page = isinstance(value, str)
        data = value.encode() if page else json.dumps(value).encode()
        self.send_bytes(status, "text/html" if page else "application/json", data, headers=headers)

    def send_bytes(self, status: int, content_type: str, data: bytes, *, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """The store behind a real port of this machine, in a thread of its own."""

    daemon_threads = True

    def __init__(
        self,
        document: Document,
        *,
        prefix: str = "",
        port: int = 0,
        store: Store | None = None,
        handler: type[Handler] = Handler,
    ) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.store = store or Store(document)
        self.prefix = prefix
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        """The host, as --host takes it."""
        return f"http://127.0.0.1:{self.server_address[1]}{self.prefix}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what tests do."""
