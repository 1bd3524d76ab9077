"""A Kubeflow Model Registry in memory: `python -m tests.model_registry_server OPENAPI [CERTIFICATE]` prints its port.

It serves the interface of `versions` (v1alpha3, as the document has it; v1 is the same by another path) and holds every
request and its own answers to the document, and refuses what the document does not allow,
parameters and properties that it does not know included. Tests steer it by POST /control (`reset`, `token`, `versions`,
and `faults`: a list of answers to come, each a status, a number of seconds to wait first, or null for an honest answer)
and see what it holds by GET /control.
"""

from __future__ import annotations

import json
import re
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

Entity = dict[str, Any]

PARENT = "version"
"""Of an artifact: kept, and in no answer."""


class Refused(Exception):
    """An answer other than success: status and message."""


class Store:
    """What the server holds, by kind and id."""

    def __init__(self, document: Path) -> None:
        self.document = yaml.safe_load(document.read_text())
        self.schemas = Registry().with_resource("api", Resource(self.document, DRAFT202012))
        self.reset()

    def reset(self) -> None:
        self.kinds: dict[str, dict[str, Entity]] = {"registered_models": {}, "model_versions": {}, "artifacts": {}}
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.faults: list[Any] = []
        self.token = ""
        self.versions = ["v1alpha3"]

    # The document -------------------------------------------------------------------------------------------------

    def resolve(self, node: Any) -> Any:
        while "$ref" in node:
            target: Any = self.document
            for part in node["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            node = target
        return node

    def check(self, value: Any, schema: Any, what: str, *, closed: bool = False) -> None:
        chosen = self.resolve(schema).get("discriminator")
        if chosen:  # which JSON Schema does not know
            schema = {"$ref": chosen["mapping"].get(value.get(chosen["propertyName"]), schema["$ref"])}
        reference = {"$ref": "api" + schema["$ref"]} if "$ref" in schema else schema
        effective_schema = {**reference, "unevaluatedProperties": False} if closed else reference
        for error in jsonschema.Draft202012Validator(effective_schema, registry=self.schemas).iter_errors(value):
            self.problems.append(f"{what}: {error.message[:300]}")
            raise Refused(400, error.message)

    def operation(self, method: str, path: str) -> tuple[Any, Any, dict[str, str]]:
        for template, item in self.document["paths"].items():
            match = re.fullmatch(re.sub(r"\\?\{(\w+)\\?\}", r"(?P<\1>[^/]+)", re.escape(template)), path)
            if match and method.lower() in item:
                return item, item[method.lower()], match.groupdict()
        self.problems.append(f"{method} {path}: not in the document")
        raise Refused(404, "no such path")

    def answer(self, method: str, target: str, body: Any) -> tuple[int, Any]:
        parts = urlsplit(target)
        item, operation, arguments = self.operation(method, parts.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        parameters = [
            self.resolve(parameter) for parameter in [*item.get("parameters", []), *operation.get("parameters", [])]
        ]
        schemas = {parameter["name"]: parameter["schema"] for parameter in parameters}
        what = operation["operationId"]
        for name, value in (query | arguments).items():
            if name not in schemas:
                self.problems.append(f"{what}: unknown parameter {name}")
                raise Refused(400, f"unknown parameter {name}")
            self.check(value, schemas[name], f"{what}, {name}")
        if "requestBody" in operation:
            schema = self.resolve(operation["requestBody"])["content"]["application/json"]["schema"]
            self.check(body, schema, what, closed=True)
        status, answer = getattr(self, what)(query, body, *arguments.values())
        public = {name: value for name, value in answer.items() if name != PARENT}
        content = self.resolve(operation["responses"][str(status)])["content"]["application/json"]["schema"]
        self.check(public, content, f"{what}, answer")
        return status, public

    # Its operations -----------------------------------------------------------------------------------------------

    def find(self, kind: str, **values: Any) -> Entity:
        for entity in self.kinds[kind].values():
            if all(entity.get(name) == value for name, value in values.items()):
                return entity
        raise Refused(404, "not found")

    def create(self, kind: str, body: Entity, **scope: Any) -> Entity:
        if any(
            existing["name"] == body["name"] and scope.items() <= existing.items()
            for existing in self.kinds[kind].values()
        ):
            raise Refused(409, f"{body['name']} exists already")
        now = str(int(time.time() * 1000))
        number = str(1 + sum(map(len, self.kinds.values())))
        entity = {"state": "LIVE", **body, **scope, "id": number, "createTimeSinceEpoch": now}
        self.kinds[kind][number] = entity | {"lastUpdateTimeSinceEpoch": now}
        return self.kinds[kind][number]

    def change(self, kind: str, number: str, body: Entity) -> Entity:
        if number not in self.kinds[kind]:
            raise Refused(404, "not found")
        self.kinds[kind][number] |= body
        return self.kinds[kind][number]

    def page(self, every: list[Entity], query: Entity) -> Entity:
        start, size = int(query.get("nextPageToken") or 0), min(int(query.get("pageSize", 100)), 2)
        items = every[start : start + size]
        after = str(start + size) if start + size < len(every) else ""
        return {"items": items, "nextPageToken": after, "pageSize": size, "size": len(items)}

    def getRegisteredModels(self, query: Entity, body: Any) -> tuple[int, Any]:
        return 200, self.page(list(self.kinds["registered_models"].values()), query)

    def findRegisteredModel(self, query: Entity, body: Any) -> tuple[int, Any]:
        return 200, self.find("registered_models", name=query["name"])

    def createRegisteredModel(self, query: Entity, body: Any) -> tuple[int, Any]:
        return 201, self.create("registered_models", body)

    def updateRegisteredModel(self, query: Entity, body: Any, number: str) -> tuple[int, Any]:
        return 200, self.change("registered_models", number, body)

    def getRegisteredModelVersions(self, query: Entity, body: Any, number: str) -> tuple[int, Any]:
        every = [entity for entity in self.kinds["model_versions"].values() if entity["registeredModelId"] == number]
        return 200, self.page(every, query)

    def createModelVersion(self, query: Entity, body: Any) -> tuple[int, Any]:
        return 201, self.create("model_versions", body, registeredModelId=body["registeredModelId"])

    def updateModelVersion(self, query: Entity, body: Any, number: str) -> tuple[int, Any]:
        return 200, self.change("model_versions", number, body)

    def findModelArtifact(self, query: Entity, body: Any) -> tuple[int, Any]:
        return 200, self.find("artifacts", name=query["name"], **{PARENT: query["parentResourceId"]})

    def upsertModelVersionArtifact(self, query: Entity, body: Any, number: str) -> tuple[int, Any]:
        if "id" in body:
            return 200, self.change("artifacts", body["id"], body)
        return 201, self.create("artifacts", body, **{PARENT: number})


class Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(data) if data else None
        store = self.store
        if self.path == "/control":
            if body is not None:
                if body.pop("reset", False):
                    store.reset()
                vars(store).update(body)
            names = ("kinds", "requests", "problems")
            return self.send(200, {name: getattr(store, name) for name in names})
        store.requests.append(f"{self.command} {urlsplit(self.path).path.removeprefix('/api/model_registry/')}")
        fault = store.faults.pop(0) if store.faults else None
        if isinstance(fault, float):
            time.sleep(fault)
        elif isinstance(fault, int):
            return self.send(fault, {"code": "", "message": "as asked"})
        if store.token and self.headers.get("Authorization") != f"Bearer {store.token}":
            return self.send(401, {"code": "", "message": "who are you"})
        version = self.path.split("/")[3]
        if version not in store.versions:
            return self.send(404, "404 page not found")
        try:
            self.send(*store.answer(self.command, self.path.replace(f"/{version}/", "/v1alpha3/", 1), body))
        except Refused as refused:
            self.send(refused.args[0], {"code": "", "message": refused.args[1]})

    do_GET = do_POST = do_PATCH = handle_one

    def send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


if __name__ == "__main__":
    Handler.store = Store(Path(sys.argv[1]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[2])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_address[1], flush=True)
    server.serve_forever()
