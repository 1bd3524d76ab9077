"""The scoring service: a real process without torch, real clients, and a champion that changes under them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from benchmarks import registry as emulator
from benchmarks import serving as benchmark
from benchmarks.serving import Service
from distilrank import cli, registry
from distilrank.config import Compute, Text
from distilrank.core import schemas
from distilrank.core.errors import InputError
from distilrank.evaluation import trec
from distilrank.modeling import encoding
from distilrank.modeling.onnx_backend import OnnxBackend
from distilrank.modeling.scorer import Scorer
from distilrank.serving import app, auth, messages, reloader
from distilrank.serving.batcher import Full
from distilrank.serving.connection import Connection, Connections
from distilrank.serving.metrics import Metrics
from distilrank.serving.settings import TOKEN_VARIABLE, Serving, load
from distilrank.serving.state import State

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-24-characters"
WORDS = "red blue green black white leather cotton sofa couch chair table lamp phone case cordless drill".split()
CLOSE = 1e-4
JSON = {"content-type": "application/json"}
HEAD = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def make_request(seed: int, products: int = 8) -> dict[str, Any]:
    draw = np.random.default_rng(seed)

    def text(words: int) -> str:
        return " ".join(draw.choice(WORDS, words))

    return {
        "query": text(2),
        "products": [{"title": text(5), "brand": text(1), "product_type": text(1)} for _ in range(products)],
    }


REQUESTS = [make_request(seed) for seed in range(20)]


@dataclass
class Shop:
    """A registry with versions of tiny models, the first of which is the champion."""

    uri: str
    versions: list[str]

    def __post_init__(self) -> None:
        self.backend = registry.open(self.uri)
        self.scorers = {
            name: Scorer.load(self.student(name), Compute(threads=1), backend="onnx") for name in self.versions
        }

    def student(self, name: str) -> Path:
        return Path(self.uri) / "versions" / name / "student"

    def scores(self, name: str, body: dict[str, Any]) -> np.ndarray:
        return self.scorers[name].score_lists([body["query"]], [body["products"]])[0]

    def move(self, name: str) -> None:
        self.backend.move(registry.CHAMPION, name, self.backend.alias(registry.CHAMPION))


def contrasting(source: Path, target: Path) -> Path:
    """The encoder with larger weights: as it is made, it says nearly the same of all pairs."""
    from transformers import AutoModel

    shutil.copytree(source, target)
    model = AutoModel.from_pretrained(source)
    for weights in model.parameters():
        if weights.dim() > 1:
            weights.data *= 10
    model.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def shop(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    work = tmp_path_factory.mktemp("serving")
    uri = str(work / "registry")
    pairs = benchmark.as_pairs(REQUESTS, 100)
    students = [work / f"student-{number}" for number in (1, 2, 3)]
    benchmark.make_student(contrasting(models / "encoder", work / "encoder"), 1, pairs, students[0], "onnx")
    for student in students[1:]:
        shutil.copytree(students[0], student)
    # The same network, but it is shown less; and the same scores, but other probabilities.
    benchmark.redescribe(students[1], text=Text(fields=("title",)).model_dump(mode="json"))
    benchmark.redescribe(students[2], calibration={"method": "platt", "slope": 2.0, "intercept": 0.0})
    versions = [benchmark.publish(student, uri, pairs, work) for student in students]
    shop = Shop(uri, versions)
    for name in versions:
        assert np.std(shop.scores(name, REQUESTS[0])) > 1000 * CLOSE
    shop.move(versions[0])
    return shop


@pytest.fixture(scope="module")
def service(shop: Shop) -> Iterator[Service]:
    options = "--reload-seconds 0.1 --max-query-characters 2000 --max-bytes 300000 --threads 1".split()
    with Service(shop.uri, "--backend", "onnx", *options) as service:
        assert metrics(service)["distilrank_reload_failures_total"] == 0  # nothing was tried twice
        yield service


@pytest.fixture(autouse=True)
def first_champion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test of the shared service begins with the first version."""
    yield
    if "service" in request.fixturenames:
        shop, service = request.getfixturevalue("shop"), request.getfixturevalue("service")
        shop.move(shop.versions[0])
        wait(lambda: ready(service) == {"ready": True, "reason": None, "version": shop.versions[0], "failing": None})


def wait(true: Callable[[], bool], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come true"
        time.sleep(0.02)


def ready(service: Service) -> dict[str, Any]:
    return service.http.get("/readyz").json()


def metrics(service: Service) -> dict[str, float]:
    """Every series, by its name and labels."""
    text = service.http.get("/metrics").text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def connect(service: Service) -> socket.socket:
    host, _, port = service.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def post(service: Service, body: Any, path: str = "/v1/score", **headers: str) -> httpx.Response:
    return service.http.post(path, json=body, headers=headers)


# Scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_the_librarys_in_the_order_of_the_products(service: Service, shop: Shop) -> None:
    champion = shop.versions[0]
    for body in REQUESTS:
        answer = post(service, body).json()
        assert (answer["version"], answer["alias"], answer["probabilities"]) == (champion, "champion", None)
        np.testing.assert_allclose(answer["scores"], shop.scores(champion, body), atol=CLOSE)
    body = REQUESTS[0] | {"probability": True}
    answer = post(service, body).json()
    expected = shop.scorers[champion].probability(np.array(answer["scores"], np.float32))
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-9)


def test_absent_null_and_empty_fields_are_the_same(service: Service) -> None:
    products = [{"title": "red sofa"} | more for more in ({}, {"brand": None, "id": "7"}, {"brand": ""})]
    scores = post(service, {"query": "sofa", "products": products}).json()["scores"]
    assert scores[0] == scores[1] == scores[2]


def test_many_products_take_turns_and_come_back_in_order(service: Service, shop: Shop) -> None:
    body = make_request(99, 1000)
    answer = post(service, body).json()
    np.testing.assert_allclose(answer["scores"], shop.scores(shop.versions[0], body), atol=CLOSE)


def test_a_ranking_is_that_of_the_evaluation(service: Service, shop: Shop) -> None:
    body = make_request(5, 6)
    body["products"] += [body["products"][0], body["products"][0]]  # three that tie
    ids = ["9", "10", "b", "a", "ü", "Z", "91", "z"]
    products = [product | {"id": name} for product, name in zip(body["products"], ids, strict=True)]
    ranking = post(service, {**body, "products": products, "probability": True}, "/v1/rank").json()["ranking"]
    scores = shop.scores(shop.versions[0], body)
    expected = sorted(zip(scores.tolist(), map(trec.encode, ids), ids, strict=True), reverse=True)
    assert [entry["id"] for entry in ranking] == [name for *_, name in expected]
    np.testing.assert_allclose([entry["score"] for entry in ranking], [score for score, *_ in expected], atol=CLOSE)
    assert [entry["probability"] for entry in ranking] == sorted(
        (entry["probability"] for entry in ranking), reverse=True
    )
    tied = [index for index, entry in enumerate(ranking) if entry["id"] in ("9", "91", "z")]
    assert [ranking[index]["id"] for index in tied] == ["z", "91", "9"] and tied == list(range(tied[0], tied[0] + 3))


def test_what_arrives_together_is_scored_together(service: Service, shop: Shop) -> None:
    before = metrics(service)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: post(service, body).json(), REQUESTS * 4))
    for body, answer in zip(REQUESTS * 4, answers, strict=True):
        np.testing.assert_allclose(answer["scores"], shop.scores(shop.versions[0], body), atol=CLOSE)
    after = metrics(service)
    batches, requests = (
        after[f"distilrank_batch_requests_{what}"] - before[f"distilrank_batch_requests_{what}"]
        for what in ("count", "sum")
    )
    assert requests == len(answers) and batches < requests


# Refusals ---------------------------------------------------------------------------------------------------------

ONE = [{"title": "red sofa"}]
REFUSED = [
    (b"", 400, "body: is empty, expected JSON"),
    (b'{"query": "sofa"', 400, "body: not JSON (EOF while parsing an object at line 1 column 16)"),
    (b'{"query": "so\xffa"}', 400, "body: not UTF-8 (byte 13)"),
    (b'{"query": NaN}', 400, "body: not JSON (expected value at line 1 column 11)"),
    (b'{"query": "\\ud800"}', 400, "body: not JSON (unexpected end of hex escape at line 1 column 18)"),
    (b"[" * 100_000, 400, "body: not JSON (recursion limit exceeded at line 1 column 202)"),
    (b"[]", 422, "body: got a list, expected an object"),
    (b"null", 422, "body: got null, expected an object"),
    ({"products": ONE}, 422, "query: missing"),
    ({"query": "sofa"}, 422, "products: missing"),
    ({"query": "", "products": ONE}, 422, "query: is empty, expected text"),
    ({"query": " \t", "products": ONE}, 422, "query: is empty, expected text"),
    ({"query": "\u200e\ufe0f", "products": ONE}, 422, "query: is empty, expected text"),
    ({"query": 7, "products": ONE}, 422, "query: got 7, expected text"),
    ({"query": "q" * 2001, "products": ONE}, 422, "query: got 2001 characters, expected at most 2000"),
    (
        {"query": "9 " * 600, "products": ONE},
        422,
        f"query {'9 ' * 30!r}...: 605 tokens with its product shortened, the model takes at most 512",
    ),
    ({"query": "sofa", "products": []}, 422, "products: got 0, expected at least 1"),
    ({"query": "sofa", "products": "red sofa"}, 422, 'products: got "red sofa", expected a list'),
    ({"query": "sofa", "products": ["red sofa"]}, 422, 'products[0]: got "red sofa", expected an object'),
    ({"query": "sofa", "products": [*ONE, {"brand": "x"}]}, 422, "products[1].title: missing"),
    ({"query": "sofa", "products": [{"title": ""}, {}]}, 422, "products[0].title: is empty, expected text; and 1 more"),
    ({"query": "sofa", "products": [{"title": "x", "brand": 5}]}, 422, "products[0].brand: got 5, expected text"),
    (
        {"query": "sofa", "products": [{"title": "x", "colour": "red"}]},
        422,
        "products[0].colour: unknown field, did you mean 'color'?",
    ),
    ({"query": "sofa", "products": ONE, "top": 5}, 422, "top: unknown field"),
    ({"query": "sofa", "products": ONE, "probability": 1}, 422, "probability: got 1, expected true or false"),
    ({"query": "sofa", "products": ONE * 1001}, 413, "products: got 1001, expected at most 1000"),
    ({"query": "sofa", "products": ONE * 10_000}, 413, "products: got 10000, expected at most 1000"),
    ({"query": "", "products": [1] * 90_000}, 413, "products: got 90000, expected at most 1000"),
    ({"query": "sofa", "products": ONE, "x" * 200_000: 1}, 422, f"{'x' * 60}...: unknown field"),
    (
        {"query": "sofa", "products": [{"title": "a"} | {f"x{number}": 1 for number in range(20_000)}]},
        422,
        "products[0].x0: unknown field",
    ),
    (b" " * 300_001, 413, "body: more than 300000 bytes"),
]


@pytest.mark.parametrize(
    ("body", "status", "message"), REFUSED, ids=[f"{case[1]}-{number}" for number, case in enumerate(REFUSED)]
)
def test_bad_requests_are_refused_by_one_line(service: Service, body: Any, status: int, message: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = service.http.post("/v1/score", content=content, headers=JSON)
    assert (answer.status_code, answer.json()) == (status, {"error": message})
    assert answer.text.count("\n") == 1 and answer.headers["content-type"] == "application/json"


def test_a_ranking_needs_unique_ids(service: Service) -> None:
    cases = {(None, "a"): "products[0].id: missing", ("a", "b", "a"): "products[2].id: got 'a' a second time"}
    for ids, message in cases.items():
        products = [{"title": "sofa"} | ({"id": name} if name else {}) for name in ids]
        answer = post(service, {"query": "sofa", "products": products}, "/v1/rank")
        assert (answer.status_code, answer.json()) == (422, {"error": message})


def test_refusing_a_large_body_delays_nobody(shop: Shop) -> None:
    """Refusing a large body costs about as much as parsing it, beside what a small one costs."""
    unknown = {"title": "a"} | {f"x{number}": 1 for number in range(150_000)}
    ids = [{"id": str(number), "title": "a"} for number in range(40_000)]
    bodies = [
        ("/v1/score", {"query": "q", "products": [1] * 900_000}, 413),
        ("/v1/score", {"query": "q", "products": ONE, "x" * 2_000_000: 1}, 422),
        ("/v1/score", {"query": "q", "products": [unknown]}, 422),
        ("/v1/score", {"query": "q", "products": "x" * 2_000_000}, 422),
        ("/v1/rank", {"query": "q", "products": [*ids, ids[-1]]}, 413),
    ]

    async def scene(path: str, content: bytes, status: int, **settings: Any) -> float:
        async with stalled(shop, **settings) as (_, client):
            began = time.process_time()
            answer = await client.post(path, content=content, headers=JSON)
            took = time.process_time() - began
            assert answer.status_code == status and len(answer.content) < 300
            return took

    def parse(content: bytes) -> float:
        began = time.process_time()
        json.loads(content)
        return time.process_time() - began

    def refuse(path: str, content: bytes, status: int, **settings: Any) -> float:
        """Processor seconds of a refusal, the least of three."""
        return min(asyncio.run(scene(path, content, status, **settings)) for _ in range(3))

    small = refuse("/v1/score", b'{"query": "q", "products": "x"}', 422)
    for path, body, status in bodies:
        content = json.dumps(body, separators=(",", ":")).encode()
        assert len(content) <= Serving().max_bytes
        assert refuse(path, content, status) < 10 * small + 5 * parse(content), body.keys()

    def cost(products: int) -> float:
        """Of finding that the last id stands there a second time."""
        content = json.dumps({"query": "q", "products": [*ids[:products], ids[products - 1]]}).encode()
        settings = {"max_products": 50_000, "max_waiting": 50_000}
        return refuse("/v1/rank", content, 422, **settings)

    # Comparing each id with each takes 16 times as long for four times as many.
    assert cost(40_000) < 8 * cost(10_000)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "message"),
    [
        ("GET", "/v1/score", {}, 405, "method: got GET, expected POST"),
        ("DELETE", "/v1/model", {}, 405, "method: got DELETE, expected GET"),
        ("GET", "/v1/other", {}, 404, "no such path, expected one of those in /docs"),
        ("POST", "/v1/score", {}, 415, "content-type: got '', expected application/json"),
        ("POST", "/v1/score", {"content-encoding": "gzip", **JSON}, 415, "content-encoding: got 'gzip', expected none"),
    ],
)
def test_other_requests_are_refused(
    service: Service, method: str, path: str, headers: dict[str, str], status: int, message: str
) -> None:
    answer = service.http.request(method, path, content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()) == (status, {"error": message})
    if status == 405:
        assert answer.headers["allow"] == message.rpartition(" ")[2]


def test_a_body_without_end_is_cut_off_while_it_is_read(service: Service) -> None:
    with connect(service) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 2**30:
                connection.sendall(b"10000\r\n" + b" " * 2**16 + b"\r\n")
                sent += 2**16
        except OSError:  # closed by the service
            pass
        answer = connection.recv(2**16)
    assert answer.startswith(b"HTTP/1.1 413") and b"body: more than 300000 bytes" in answer
    assert sent < 2**26


def test_the_documentation_has_examples_that_work(service: Service) -> None:
    schema = service.http.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/v1/score", "/v1/rank", "/v1/model", "/healthz", "/readyz", "/metrics"}
    body = schema["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    described = schema["components"]["schemas"][body.rpartition("/")[2]]
    assert all("description" in field for field in described["properties"].values())
    for path in ("/v1/score", "/v1/rank"):
        assert post(service, described["examples"][0], path).status_code == 200
    assert "swagger" in service.http.get("/docs").text


def test_the_documentation_asks_a_ranking_for_ids_alone(service: Service) -> None:
    schema = service.http.get("/openapi.json").json()

    def product(path: str) -> dict[str, Any]:
        schema_part = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        for field in ("products", None):
            schema_part = schema["components"]["schemas"][schema_part["$ref"].rpartition("/")[2]]
            schema_part = schema_part["properties"][field]["items"] if field else schema_part
        return schema_part

    assert product("/v1/score")["required"] == ["title"]
    assert sorted(product("/v1/rank")["required"]) == ["id", "title"]
    assert product("/v1/rank")["properties"]["id"]["type"] == "string"


# Operation --------------------------------------------------------------------------------------------------------


def test_the_service_describes_the_version_it_serves(service: Service, shop: Shop) -> None:
    model = service.http.get("/v1/model").json()
    manifest = shop.backend.manifest(shop.versions[0])
    assert (model["version"], model["alias"], model["problem"]) == (shop.versions[0], "champion", None)
    assert model["digests"] == manifest["digests"] and model["created"] == manifest["created"]
    assert "onnxruntime" in model["backend"] and model["calibrated"]


def test_requests_are_counted(service: Service, shop: Shop) -> None:
    before = metrics(service)
    body = make_request(123)
    for _ in range(3):
        post(service, body)
    service.http.get("/v1/score")
    service.http.get("/v1/nowhere")
    after = metrics(service)

    def added(name: str) -> float:
        return after[f"distilrank_{name}"] - before.get(f"distilrank_{name}", 0)

    assert added('requests_total{endpoint="/v1/score",status="200"}') == 3
    assert added('requests_total{endpoint="/v1/score",status="405"}') == 1
    assert added('requests_total{endpoint="other",status="404"}') == 1
    assert added('request_seconds_count{endpoint="/v1/score"}') == 4
    assert added("queue_seconds_count") == added("batch_pairs_count") == added("scoring_seconds_count") == 3
    assert added("pairs_total") == added("batch_pairs_sum") == 3 * len(body["products"])
    assert (added("product_cache_misses_total"), added("product_cache_hits_total")) == (8, 16)
    assert (
        after["distilrank_waiting_pairs"] == 0 and after["distilrank_in_flight_requests"] == 0
    )  # metrics do not count
    assert added(f'model_info{{alias="champion",version="{shop.versions[0]}"}}') == 0  # 1, as before
    assert after["distilrank_ready"] == after["distilrank_reload_failing"] + 1 == 1


def test_a_request_keeps_the_id_that_it_brings_and_gets_one_otherwise(service: Service) -> None:
    assert post(service, REQUESTS[0], **{"x-request-id": "shop-17.a"}).headers["x-request-id"] == "shop-17.a"
    made = post(service, REQUESTS[0], **{"x-request-id": "two words"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)


# The champion changes ---------------------------------------------------------------------------------------------


def test_under_load_the_champion_changes_without_a_lost_or_mixed_answer(service: Service, shop: Shop) -> None:
    versions = shop.versions[:2]
    expected = {name: np.array([shop.scores(name, body) for body in REQUESTS]) for name in versions}
    assert np.abs(expected[versions[0]] - expected[versions[1]]).max(axis=1).min() > 100 * CLOSE

    async def drive() -> benchmark.Seen:
        client = benchmark.Client(service.url, REQUESTS, expected, CLOSE)
        async with client.http:
            load_result, took = await asyncio.gather(
                client.load(3.0, 40), benchmark.swap(client, shop.uri, versions, 3.0, 5)
            )
            assert took, "the service followed no move"
            return load_result

    before = metrics(service)["distilrank_reloads_total"]
    load_result = asyncio.run(drive())
    assert (load_result.failed, load_result.mixed) == ([], [])
    assert set(load_result.versions) == set(versions)
    assert metrics(service)["distilrank_reloads_total"] >= before + 3


def test_the_client_of_the_load_finds_mixed_and_failed_answers(service: Service, shop: Shop) -> None:
    expected = {shop.versions[0]: np.array([shop.scores(shop.versions[0], body) for body in REQUESTS])}
    expected[shop.versions[0]][3, 2] += 0.01

    async def drive(url: str) -> benchmark.Seen:
        client = benchmark.Client(url, REQUESTS, expected, CLOSE)
        async with client.http:
            return (await client.saturate(0.3, 1))[1]

    load_result = asyncio.run(drive(service.url))
    assert (
        load_result.mixed[0] == f"request 3: scores are not all those of {shop.versions[0]}" and not load_result.failed
    )
    assert "404" in asyncio.run(drive(f"{service.url}/other")).failed[0]


def test_a_damaged_version_is_reported_and_the_old_one_keeps_serving(service: Service, shop: Shop) -> None:
    first, second, third = shop.versions
    weights = shop.student(third) / "model.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    before = metrics(service)["distilrank_reload_failures_total"]
    try:
        shop.move(third)
        wait(lambda: (ready(service)["failing"] or {}).get("version") == third)
        assert (ready(service)["ready"], ready(service)["version"]) == (True, first)
        assert post(service, REQUESTS[0]).json()["version"] == first
        assert "model.safetensors: digest" in service.http.get("/v1/model").json()["problem"]
        figures = metrics(service)
        assert figures["distilrank_reload_failures_total"] > before and figures["distilrank_reload_failing"] == 1
        assert any("model.safetensors: digest" in line and f"{first} is still served" in line for line in service.lines)
        assert str(weights) not in service.http.get("/readyz").text
        shop.move(second)
        wait(lambda: ready(service) == {"ready": True, "reason": None, "version": second, "failing": None})
        shop.move(third)
        wait(lambda: ready(service)["failing"] is not None)
    finally:
        weights.write_bytes(intact)
    wait(lambda: ready(service)["version"] == third)  # tried again
    assert service.http.get("/v1/model").json()["problem"] is None


def test_an_unreadable_alias_is_reported_and_the_old_version_keeps_serving(service: Service, shop: Shop) -> None:
    alias = Path(shop.uri) / "aliases" / "champion.json"
    intact = alias.read_bytes()
    alias.write_text("{")
    try:
        wait(lambda: ready(service)["failing"] is not None)
        assert ready(service)["failing"]["version"] is None and ready(service)["ready"]
        assert "champion.json: not JSON" in service.http.get("/v1/model").json()["problem"]
    finally:
        alias.write_bytes(intact)
    wait(lambda: ready(service)["failing"] is None)


def test_an_unreadable_alias_does_not_end_the_pause_of_a_damaged_version(shop: Shop, tmp_path: Path) -> None:
    root = tmp_path / "registry"
    shutil.copytree(shop.uri, root)
    backend = registry.open(str(root))
    name = registry.resolve(backend, registry.CHAMPION)
    weights = root / "versions" / name / "student" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"damaged")
    alias = root / "aliases" / "champion.json"
    intact = alias.read_bytes()
    followed = reloader.Reloader(Serving(registry=str(root), backend="onnx", threads=1, reload_seconds=60), Metrics())

    def poll() -> tuple[str | None, int, str]:
        asyncio.run(followed.poll())
        return followed.failing, followed.attempts, str(followed.problem)

    first = poll()
    assert first[:2] == (name, 1) and "model.safetensors: digest" in first[2]
    alias.write_text("{")
    assert [poll()[:2] for _ in range(2)] == [(None, 1), (None, 2)] and "not JSON" in poll()[2]
    alias.write_bytes(intact)
    weights.write_bytes(whole)
    assert poll() == first and followed.current is None  # not tried again yet


def test_a_version_that_scores_differently_than_when_it_was_promoted_is_refused(shop: Shop, tmp_path: Path) -> None:
    name = shop.versions[0]
    settings = Serving(registry=str(tmp_path / "registry"), backend="onnx", threads=1)
    folder = tmp_path / "made"
    shutil.copytree(Path(shop.uri) / "versions" / name, folder)
    path = folder / "traffic" / "reference_scores.parquet"
    scores = schemas.read(path, schemas.TRAFFIC_SCORES).column("score").to_numpy()
    other = scores + np.where(np.arange(len(scores)) % 2, 0.05, -0.05).astype(np.float32)
    pq.write_table(pa.table({"score": other}), path)
    backend = registry.open(settings.registry)
    backend.publish(folder, name)
    with pytest.raises(InputError, match=r"differ by 0\.0500 on average .* expected at most 0\.02"):
        reloader.load(backend, name, settings)
    assert reloader.load(backend, name, settings.model_copy(update={"tolerance": 0.06})).id == name


def test_a_version_without_traffic_is_rehearsed_on_built_in_pairs(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = shop.versions[0]
    settings = Serving(registry=str(tmp_path / "registry"), backend="onnx", threads=1)
    folder = tmp_path / "made"
    shutil.copytree(Path(shop.uri) / "versions" / name, folder)
    for path in (folder / "traffic").glob("*.parquet"):
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    backend = registry.open(settings.registry)
    backend.publish(folder, name)
    assert reloader.load(backend, name, settings).tokens_per_second > 0
    assert "rehearsed on 5 built-in pairs" in caplog.text
    monkeypatch.setattr(OnnxBackend, "score", lambda _, tokens, *__: np.zeros(len(tokens), np.float32))
    with pytest.raises(InputError, match="gives each of 25 built-in pairs the score 0, expected different ones"):
        reloader.load(backend, name, settings)


def test_a_bucket_is_followed_like_a_folder(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a real server process that speaks Cloud Storage's protocol."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = shop.versions[:2]
    with emulator.serve():
        uri = f"gs://{emulator.BUCKET}/shop"
        backend = registry.open(uri)
        followed = reloader.Reloader(Serving(registry=uri, backend="onnx", threads=1), Metrics())
        asyncio.run(followed.poll())
        assert followed.current is None and "no champion yet" in str(followed.problem)
        for before, name in (("", first), (first, second)):
            backend.publish(Path(shop.uri) / "versions" / name, name)
            backend.move(registry.CHAMPION, name, before)
            asyncio.run(followed.poll())
            assert followed.problem is None and followed.current is not None and followed.current.id == name
        served = followed.current
        asyncio.run(followed.poll())
        assert followed.current is served
    [scores] = served.scorer.score_lists([REQUESTS[0]["query"]], [REQUESTS[0]["products"]])
    np.testing.assert_allclose(scores, shop.scores(second, REQUESTS[0]), atol=CLOSE)


def test_with_torch_scores_are_in_fp32_too(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distilrank.core.hardware.cpu_bf16", lambda: "avx512_bf16")
    name = shop.versions[0]
    assert "bf16" in Scorer.load(shop.student(name), Compute(device="cpu"), backend="torch").backend.describe()
    version = reloader.load(shop.backend, name, Serving(registry=shop.uri, backend="torch", threads=1))
    body = REQUESTS[0]
    [scores] = version.scorer.score_lists([body["query"]], [body["products"]])
    assert "torch on cpu, fp32" in version.scorer.backend.describe()
    np.testing.assert_allclose(scores, shop.scores(name, body), atol=CLOSE)


# From start to end ------------------------------------------------------------------------------------------------


def test_from_an_empty_registry_to_the_end(shop: Shop, tmp_path: Path) -> None:
    """Not ready until there is a champion, closed without a token, and after SIGTERM all is answered."""
    empty = tmp_path / "registry"
    (tmp_path / "tokens").write_text(f"{TOKEN}-old\n{TOKEN}\n")
    settings = tmp_path / "serve.yaml"
    settings.write_text("backend: onnx\nlog_format: json\nreload_seconds: 0.1\nbatch_pairs: 1\ndrain_seconds: 60\n")
    options = ["--config", str(settings), "--token-file", str(tmp_path / "tokens"), "--drain-seconds", "1.5"]
    options += ["--threads", "1", "--max-products", "3000"]
    mine = {"authorization": f"Bearer {TOKEN}"}
    home = tmp_path / "home"
    home.mkdir()
    with Service(str(empty), *options, environment={"HOME": str(home)}, ready=False) as service:
        answer = service.http.get("/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (503, "no version is loaded yet")
        assert service.http.get("/healthz").json() == {"live": True}
        answer = post(service, REQUESTS[0], **mine)
        assert (answer.status_code, answer.json()) == (503, {"error": "no version is loaded yet"})
        assert int(answer.headers["retry-after"]) > 0

        shutil.copytree(shop.uri, empty)
        wait(lambda: service.http.get("/readyz").status_code == 200)

        for headers, why in (
            ({}, "got none"),
            ({"authorization": "Bearer another-token-of-some-length"}, "got a different one"),
            ({"authorization": f"Basic {TOKEN}"}, "got a different one"),
        ):
            for path in ("/v1/score", "/v1/model", "/metrics", "/docs", "/nowhere"):
                answer = service.http.post(path, headers=headers)
                error = f"token: {why}, expected Authorization: Bearer TOKEN"
                assert (answer.status_code, answer.json()) == (401, {"error": error})
        assert post(service, REQUESTS[0], authorization=f"Bearer {TOKEN}-old").status_code == 200
        assert service.http.get("/metrics", headers=mine).status_code == 200

        slow = make_request(1, 3000)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(post, service, slow, **mine)
            begun = re.compile(r"distilrank_pairs_total ([1-9]\d+)")  # more than the few of before
            wait(lambda: begun.search(service.http.get("/metrics", headers=mine).text) is not None)
            service.process.send_signal(signal.SIGTERM)
            wait(lambda: service.http.get("/readyz").json()["reason"] == "shutting down")
            late = post(service, make_request(2, 1), **mine)
            assert late.status_code == 200 and late.headers["connection"] == "close"
            assert service.process.wait(30) == 0
            answer = running.result()
        np.testing.assert_allclose(answer.json()["scores"], shop.scores(shop.versions[0], slow), atol=CLOSE)

    lines = [json.loads(line) for line in service.lines]
    asked = next(line for line in lines if line.get("products") == 3000)
    assert (asked["path"], asked["status"], asked["version"]) == ("/v1/score", 200, shop.versions[0])
    assert lines[-1]["event"] == "ended"
    log = "\n".join(service.lines)
    assert TOKEN not in log and slow["query"] not in log and slow["products"][0]["title"] not in log
    assert list(home.iterdir()) == []
    with pytest.raises(httpx.ConnectError):
        service.http.get("/healthz")


# The queue, in this process, so that it can be made to wait ---------------------------------------------------------


@asynccontextmanager
async def stalled(shop: Shop, **settings: Any) -> AsyncIterator[tuple[State, httpx.AsyncClient]]:
    """A service that has a version but does not score: `state.batcher.run()` makes it."""
    state = State(Serving(registry=shop.uri, backend="onnx", threads=1, **settings))
    await state.reloader.poll()
    transport = httpx.ASGITransport(app.create(state, ()))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield state, client


def test_too_much_waiting_is_refused_with_a_time_to_come_back(shop: Shop) -> None:
    async def scene() -> None:
        async with stalled(shop, max_waiting=20, max_products=20) as (state, client):
            waiting = [asyncio.create_task(client.post("/v1/score", json=body)) for body in REQUESTS[:2]]
            while state.batcher.waiting() < 16:
                await asyncio.sleep(0.01)
            refused = await client.post("/v1/score", json=REQUESTS[2])
            assert (refused.status_code, refused.json()) == (503, {"error": "16 pairs are waiting"})
            assert int(refused.headers["retry-after"]) >= 1
            running = asyncio.create_task(state.batcher.run())
            assert [response.status_code for response in await asyncio.gather(*waiting)] == [200, 200]
            assert (await client.post("/v1/score", json=REQUESTS[2])).status_code == 200
            running.cancel()

    asyncio.run(scene())


def test_too_many_requests_are_refused_before_they_are_read(shop: Shop) -> None:
    async def scene() -> None:
        async with stalled(shop, max_requests=2) as (state, client):
            waiting = [asyncio.create_task(client.post("/v1/score", json=body)) for body in REQUESTS[:2]]
            while state.batcher.waiting() < 16:
                await asyncio.sleep(0.01)
            refused = await client.post("/v1/score", content=b"not read", headers=JSON)
            assert (refused.status_code, refused.json()) == (503, {"error": "3 requests are in flight"})
            running = asyncio.create_task(state.batcher.run())
            assert [response.status_code for response in await asyncio.gather(*waiting)] == [200, 200]
            running.cancel()

    asyncio.run(scene())


def test_requests_that_are_not_scored_in_time_are_dropped(shop: Shop) -> None:
    async def scene() -> None:
        async with stalled(shop, timeout_seconds=0.2) as (state, client):
            answer = await client.post("/v1/score", json=REQUESTS[0])
            assert (answer.status_code, answer.json()) == (504, {"error": "not scored in 0.2 s"})
            assert state.batcher.waiting() == 0

            async def dribble() -> AsyncIterator[bytes]:
                yield b'{"query":'
                await asyncio.sleep(5)

            answer = await client.post("/v1/score", content=dribble(), headers=JSON)
            assert (answer.status_code, answer.json()) == (408, {"error": "body: did not arrive in 0.2 s"})

    asyncio.run(scene())


def test_a_client_that_has_disconnected_is_dropped(service: Service) -> None:
    before = metrics(service).get('distilrank_abandoned_total{reason="gone"}', 0)
    body = json.dumps(make_request(7, 1000)).encode()
    connections = [connect(service) for _ in range(4)]
    for connection in connections:
        connection.sendall(HEAD + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    for connection in connections:
        connection.close()
    wait(lambda: metrics(service).get('distilrank_abandoned_total{reason="gone"}', 0) > before)
    wait(lambda: metrics(service)['distilrank_requests_total{endpoint="/v1/score",status="499"}'] >= 1)
    wait(lambda: metrics(service)["distilrank_waiting_pairs"] == 0)


def test_a_large_request_does_not_delay_a_small_one(shop: Shop) -> None:
    async def scene() -> None:
        async with stalled(shop, batch_pairs=10) as (state, _):
            version = state.reloader.current
            assert version
            large, small = make_request(1, 200), make_request(2, 5)
            jobs = [state.batcher.submit(version, body["query"], body["products"]) for body in (large, small)]
            ended = []
            for name, job in zip(("large", "small"), jobs, strict=True):
                job.scored.add_done_callback(lambda _, name=name: ended.append((name, jobs[0].taken)))
            running = asyncio.create_task(state.batcher.run())
            for job, body in zip(jobs, (large, small), strict=True):
                np.testing.assert_allclose(await job.scored, shop.scores(version.id, body), atol=CLOSE)
            running.cancel()
            assert [name for name, _ in ended] == ["small", "large"] and ended[0][1] <= 20

    asyncio.run(scene())


def test_a_batch_uses_one_version_and_a_request_ends_with_the_version_it_began_with(shop: Shop) -> None:
    async def scene() -> None:
        async with stalled(shop, batch_pairs=12) as (state, _):
            old = state.reloader.current
            new = reloader.load(shop.backend, shop.versions[1], state.settings)
            assert old and old.id == shop.versions[0]
            order = [old, old, new, old, new]
            jobs = [
                state.batcher.submit(version, body["query"], body["products"])
                for version, body in zip(order, REQUESTS, strict=False)
            ]
            running = asyncio.create_task(state.batcher.run())
            for version, body, job in zip(order, REQUESTS, jobs, strict=False):
                np.testing.assert_allclose(await job.scored, shop.scores(version.id, body), atol=CLOSE)
            running.cancel()

    asyncio.run(scene())


def test_only_the_faulty_request_of_a_batch_fails(shop: Shop) -> None:
    async def scene() -> None:
        async with stalled(shop, max_query_characters=2000) as (state, client):
            bodies = [REQUESTS[0], {"query": "9 " * 600, "products": ONE}, REQUESTS[1]]
            waiting = [asyncio.create_task(client.post("/v1/score", json=body)) for body in bodies]
            while state.batcher.waiting() < 17:
                await asyncio.sleep(0.01)
            running = asyncio.create_task(state.batcher.run())
            answers = await asyncio.gather(*waiting)
            running.cancel()
            assert [response.status_code for response in answers] == [200, 422, 200]
            assert "tokens with its product shortened" in answers[1].json()["error"]

    asyncio.run(scene())


def test_an_internal_failure_reveals_no_details(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with stalled(shop) as (state, client):
            version = state.reloader.current
            assert version

            def fail(*_: Any) -> None:
                raise RuntimeError("a path, a password")

            version.scorer.score_lists = fail  # type: ignore[method-assign]
            running = asyncio.create_task(state.batcher.run())
            answer = await client.post("/v1/score", json=REQUESTS[0], headers={"x-request-id": "r1"})
            assert (answer.status_code, answer.json()) == (500, {"error": "internal error, see the log"})
            assert "a path, a password" in caplog.text
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            state.tasks = [running]
            assert (await client.get("/healthz")).status_code == 503

    asyncio.run(scene())


def test_large_requests_are_complete_one_after_the_other_and_refused_beyond_their_time(shop: Shop) -> None:
    async def scene() -> None:
        async with stalled(shop, batch_pairs=10, timeout_seconds=10) as (state, _):
            body = make_request(1, 40)
            assert state.reloader.current
            tokens = state.reloader.current.scorer.estimate_tokens(body["query"], body["products"])
            version = replace(state.reloader.current, tokens_per_second=tokens)  # one of them a second
            jobs = []
            refused: list[Full] = []
            for _ in range(20):
                try:
                    jobs.append(state.batcher.submit(version, body["query"], body["products"]))
                except Full as error:
                    refused.append(error)
            # Half of the speed is theirs for certain: four in eight of the ten seconds that a request may take.
            assert len(jobs) == 4 and {(str(refusal), refusal.retry) for refusal in refused} == {
                ("160 pairs are waiting, too many to score this request in time", 1)
            }
            small = make_request(2, 5)
            jobs.append(state.batcher.submit(version, small["query"], small["products"]))  # a queue of its own
            ended: list[int] = []
            for number, job in enumerate(jobs):
                job.scored.add_done_callback(lambda _, number=number: ended.append(number))
            running = asyncio.create_task(state.batcher.run())
            await asyncio.gather(*(job.scored for job in jobs))
            running.cancel()
            assert ended == [4, 0, 1, 2, 3]

    asyncio.run(scene())


def test_small_and_large_requests_share_the_time(shop: Shop) -> None:
    async def scene() -> None:
        async with stalled(shop, batch_pairs=10) as (state, _):
            version = state.reloader.current
            assert version
            bodies = [make_request(1, 60), *(make_request(seed, 10) for seed in range(12))]
            jobs = [state.batcher.submit(version, body["query"], body["products"]) for body in bodies]
            ended: list[int] = []
            for number, job in enumerate(jobs):
                job.scored.add_done_callback(lambda _, number=number: ended.append(number))
            running = asyncio.create_task(state.batcher.run())
            await asyncio.gather(*(job.scored for job in jobs))
            running.cancel()
            assert 4 <= ended.index(0) <= 8  # of twelve small ones, about as many pairs as the large one has
            assert [number for number in ended if number] == list(range(1, 13))

    asyncio.run(scene())


def test_a_request_that_nothing_of_its_size_waits_before_is_accepted(shop: Shop) -> None:
    """However slow the last batches were: otherwise nothing would ever be scored and the speed stay as it is."""

    async def scene() -> None:
        async with stalled(shop) as (state, _):
            assert state.reloader.current
            version = replace(state.reloader.current, tokens_per_second=1e-3)
            state.batcher.submit(version, REQUESTS[0]["query"], REQUESTS[0]["products"])
            with pytest.raises(Full, match="8 pairs are waiting, too many") as refused:
                state.batcher.submit(version, REQUESTS[0]["query"], REQUESTS[0]["products"])
            assert refused.value.retry == 60

    asyncio.run(scene())


def test_probes_metrics_and_answers_that_are_written_are_not_in_flight(shop: Shop) -> None:
    state = State(Serving(registry=shop.uri))
    in_flight = {}

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        counts = [state.in_flight]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        in_flight[scope["path"]] = [*counts, state.in_flight]

    async def ignore(*_: Any) -> dict[str, Any]:
        return {}

    for path in ("/v1/score", "/v1/rank", "/metrics", "/healthz"):
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        asyncio.run(auth.AuthMiddleware(endpoint, state, ())(scope, ignore, ignore))
    assert in_flight == {"/v1/score": [1, 0], "/v1/rank": [1, 0], "/metrics": [0, 0], "/healthz": [0, 0]}
    assert state.in_flight == 0


def test_large_bodies_are_parsed_in_a_thread_and_wait_with_what_the_model_is_shown(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[tuple[str, messages.Product]] = []
    parse = app._parse

    def observed(*arguments: Any) -> Any:
        request = parse(*arguments)
        parsed.append((threading.current_thread().name, request.products[0]))
        return request

    monkeypatch.setattr(app, "_parse", observed)

    async def scene() -> None:
        async with stalled(shop) as (state, client):
            running = asyncio.create_task(state.batcher.run())
            for length in (1, 10_000):
                product = {"id": "7", "title": "red sofa " * length, "description": "soft " * length}
                content = {"query": "sofa", "products": [product]}
                assert (await client.post("/v1/score", json=content)).status_code == 200
            running.cancel()

    asyncio.run(scene())
    assert [name for name, _ in parsed] == [threading.main_thread().name, "parse_0"]
    assert parsed[0][1] == messages.Product(id="7", title="red sofa", **dict.fromkeys(schemas.PRODUCT_FIELDS[1:], ""))
    limit = encoding.CHARACTERS_PER_TOKEN * shop.scorers[shop.versions[0]].encoder.max_tokens
    assert limit - 10 < len(parsed[1][1].title) <= limit and parsed[1][1].description == ""


def test_a_request_is_scored_by_the_version_that_its_texts_were_cut_for(shop: Shop) -> None:
    """The second version is shown titles alone; a request that was read for the first one needs its brands."""

    async def scene() -> None:
        async with stalled(shop) as (state, client):
            old = state.reloader.current
            waiting = asyncio.create_task(client.post("/v1/score", json=REQUESTS[0]))
            while not state.batcher.waiting():
                await asyncio.sleep(0.01)
            state.reloader.current = reloader.load(shop.backend, shop.versions[1], state.settings)
            running = asyncio.create_task(state.batcher.run())
            answer = (await waiting).json()
            running.cancel()
            assert old and answer["version"] == old.id
            np.testing.assert_allclose(answer["scores"], shop.scores(old.id, REQUESTS[0]), atol=CLOSE)

    asyncio.run(scene())


# Long texts -------------------------------------------------------------------------------------------------------


def test_scores_of_long_texts_are_those_without_a_cut(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    long = make_request(3, 1)["products"][0]["title"] + " "
    texts = [long * 400, "\n" * 50_000 + long * 400, "红色皮革沙发" * 2000, "re\u0301d\u00ad " * 9000, "[SEP] " * 9000]
    products = [{"title": text, "brand": "acme"} for text in texts]
    cut = shop.scorers[shop.versions[0]]
    rendered = cut.encoder.render({"title": texts})
    assert max(map(len, rendered)) <= 1.3 * encoding.CHARACTERS_PER_TOKEN * cut.encoder.max_tokens
    scores = cut.score_lists(["red sofa"], [products])[0]
    monkeypatch.setattr(encoding, "CHARACTERS_PER_TOKEN", 10**6)
    whole = Scorer.load(shop.student(shop.versions[0]), Compute(threads=1), backend="onnx")
    np.testing.assert_array_equal(scores, whole.score_lists(["red sofa"], [products])[0])
    assert len(whole.encoder.render({"title": texts})[0]) == len(texts[0]) - 1


def test_tokens_are_the_same_in_many_calls_as_in_one(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = shop.scorers[shop.versions[0]].encoder
    assert isinstance(encoder, encoding.PairEncoder)
    texts = ["", "red " * 30, *WORDS, "", "sofa " * 40, ""]
    expected = encoder.tokenize(texts)
    monkeypatch.setattr(encoding, "TOKENIZED_CHARACTERS", 20)
    calls = encoder.tokenize(texts)
    assert len(calls) == len(texts) and all(np.array_equal(*pair) for pair in zip(calls, expected, strict=True))
    assert encoder.tokenize([]) == []


def test_long_titles_cost_little_memory(service: Service, shop: Shop) -> None:
    def peak() -> int:
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024  # type: ignore[index]

    before = peak()
    bodies = [{"query": "sofa", "products": [{"title": f"{word} sofa " * 20_000}]} for word in WORDS]
    assert 160_000 < len(json.dumps(bodies[0])) < 300_000
    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: post(service, body), bodies))
    assert [answer.status_code for answer in answers] == [200] * len(bodies)
    assert peak() - before < 100  # MiB; 16 such titles in one call to the tokenizer take 450
    short = {"query": "sofa", "products": [{"title": f"{WORDS[0]} sofa " * 400}]}
    np.testing.assert_allclose(answers[0].json()["scores"], shop.scores(shop.versions[0], short), atol=CLOSE)


# Connections ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bounded(shop: Shop) -> Iterator[Service]:
    """A service behind a token that waits two seconds for its clients, and has 24 of them at most."""
    options = "--timeout-seconds 2 --max-connections 24 --max-requests 8 --threads 1".split()
    with Service(shop.uri, "--backend", "onnx", *options, environment={TOKEN_VARIABLE: TOKEN}) as service:
        service.http.headers["authorization"] = f"Bearer {TOKEN}"
        yield service


GET = b"GET /healthz HTTP/1.1\r\nhost: x\r\n"
POST = HEAD + f"authorization: Bearer {TOKEN}\r\n".encode()


def statuses(connection: socket.socket) -> list[int]:
    """Statuses of all answers that come until the service closes the connection."""
    received = b""
    connection.settimeout(60)
    try:
        while chunk := connection.recv(2**16):
            received += chunk
    except ConnectionResetError:
        pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received)]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (GET + b"connection: close\r\na: " + b"x" * 8000 + b"\r\n\r\n", 200),
        (GET + b"connection: close\r\n" + b"a: 1\r\n" * 98 + b"\r\n", 200),
        (GET + b"connection: close\r\n" + b"a: 1\r\n" * 99 + b"\r\n", 431),
        (GET + b"a: " + b"x" * 20_000, 431),
        (b"GET /" + b"x" * 20_000, 431),
        (b"\r\n" * 10_000, 431),
        (POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\na: " + b"x" * 20_000, 431),
        (POST + b"transfer-encoding: chunked\r\n\r\n2;" + b"x" * 20_000, 431),
        (b"nonsense\r\n\r\n", 400),
    ],
)
def test_what_surrounds_a_body_is_bounded(bounded: Service, request_bytes: bytes, status: int) -> None:
    with connect(bounded) as connection:
        connection.sendall(request_bytes)
        assert statuses(connection) == [status]


def test_an_endless_header_is_cut_off(bounded: Service) -> None:
    sent = 0
    with connect(bounded) as connection:
        connection.sendall(GET + b"a: ")
        try:
            while sent < 2**27:
                connection.sendall(b"x" * 2**16)
                sent += 2**16
        except OSError:  # closed by the service
            pass
    assert sent < 2**24  # what the sockets' buffers hold


def test_requests_before_the_last_answer_are_not_queued(bounded: Service) -> None:
    with connect(bounded) as connection:
        connection.sendall((GET + b"\r\n") * 1000)
        assert statuses(connection) == [200]


def test_what_does_not_arrive_in_time_is_ended(bounded: Service) -> None:
    def count() -> float:
        return metrics(bounded).get('distilrank_dropped_connections_total{reason="late"}', 0)

    before = count()
    cases = [
        (b"", []),
        (b"GET /healthz HTTP/1.1\r\n", [408]),
        (POST + b"content-length: 9\r\n\r\n{", [408]),
        (GET + b"content-length: 9\r\n\r\n{", [200]),  # answered at once, and then nothing more comes
    ]
    connections = [connect(bounded) for _ in cases]
    for connection, (content, _) in zip(connections, cases, strict=True):
        connection.sendall(content)
    again = connect(bounded)  # another request, of which only the beginning comes
    again.sendall(GET + b"\r\n")
    assert again.recv(2**16).startswith(b"HTTP/1.1 200")
    again.sendall(b"GET")
    assert statuses(again) == [408]
    for connection, (_, expected) in zip(connections, cases, strict=True):
        assert statuses(connection) == expected
        connection.close()
    again.close()
    assert count() == before + 1


def test_many_unfinished_connections_lock_nobody_out(bounded: Service) -> None:
    contents = [b"", GET, POST + b"content-length: 9\r\n\r\n{"]
    crowd = []
    for number in range(60):
        crowd.append(connect(bounded))
        with suppress(OSError):  # replaced already
            crowd[-1].sendall(contents[number % 3])
    for path in ("/healthz", "/readyz"):
        with connect(bounded) as probe:
            probe.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            assert statuses(probe) == [200]
    figures = metrics(bounded)
    assert 1 <= figures["distilrank_connections"] <= 24
    assert figures['distilrank_dropped_connections_total{reason="crowd"}'] >= 1
    for connection in crowd:
        connection.close()
    wait(lambda: metrics(bounded)["distilrank_in_flight_requests"] == 0)
    assert post(bounded, REQUESTS[0]).status_code == 200


def test_metrics_need_the_token(bounded: Service) -> None:
    with connect(bounded) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert statuses(connection) == [401]
    assert "distilrank_ready 1.0" in bounded.http.get("/metrics").text


def test_a_client_that_does_not_read_its_answer_is_dropped() -> None:
    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(2**25)})  # more than sockets hold

    async def scene() -> None:
        observed = Metrics()
        connections = Connections(Serving(timeout_seconds=0.3), observed)
        config = uvicorn.Config(large, lifespan="off", log_config=None)
        server_state = ServerState()

        def accept() -> Connection:
            return Connection(connections, config=config, server_state=server_state, app_state={})

        server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(GET + b"\r\n")
        name, labels = "distilrank_dropped_connections_total", {"reason": "unread"}
        while not observed.registry.get_sample_value(name, labels):
            await asyncio.sleep(0.01)
        while connections.opened:
            await asyncio.sleep(0.01)
        assert not server_state.connections and not connections.waiting
        writer.close()
        server.close()

    asyncio.run(asyncio.wait_for(scene(), 60))


# Settings ---------------------------------------------------------------------------------------------------------


def test_settings_come_from_defaults_file_and_command_line(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("port: 9000\nmax_products: 50\n")
    settings = load(path, {"port": "9001"})
    assert (settings.port, settings.max_products, settings.max_bytes) == (9001, 50, Serving().max_bytes)


@pytest.mark.parametrize(
    ("arguments", "file", "message"),
    [
        (["--port", "99999"], None, "command line: port: Input should be less than or equal to 65535 (got '99999')"),
        (["--model", "best"], None, "model: String should match pattern '^(champion|v[0-9a-f]{12})$' (got 'best')"),
        (["--max-waiting", "10"], None, "max_waiting is 10, expected at least max_products (1000)"),
        (["--max-connections", "256"], None, "max_connections is 256, expected more than max_requests (256)"),
        (["--max-connections", "9999999"], None, "max_connections is 9999999, expected at most "),
        (["--registry", "s3://x"], None, "registry 's3://x': no backend for s3://"),
        ([], "prot: 80\n", "serve.yaml: unknown key 'prot'; did you mean 'port'?"),
        ([], "- port\n", "serve.yaml: expected a mapping of settings, got list"),
        (["--config", "absent.yaml"], None, "absent.yaml: not readable as YAML"),
        (["--token-file", "absent"], None, "absent: the tokens cannot be read (No such file or directory)"),
        (["--host", "nowhere.invalid"], None, "nowhere.invalid, port 8080: cannot listen on this address"),
        (["--host", "a..b"], None, "a..b, port 8080: cannot listen on this address ("),
        (["--host", "a" * 70], None, "a, port 8080: cannot listen on this address ("),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_listens(
    arguments: list[str],
    file: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if file is not None:
        (tmp_path / "serve.yaml").write_text(file)
        arguments = [*arguments, "--config", "serve.yaml"]
    refused(["serve", *arguments], message, capsys)


def test_tokens_are_checked_and_never_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    expected = f"{TOKEN_VARIABLE}: token 1 has 5 characters, expected at least 16, ASCII without blanks"
    refused(["serve"], expected, capsys)
    refused(["serve", "--token-file", "x"], f"{TOKEN_VARIABLE} and --token-file are both set", capsys)
    monkeypatch.delenv(TOKEN_VARIABLE)
    (tmp_path / "tokens").write_text("\n\n")
    refused(["serve", "--token-file", "tokens"], "tokens: contains no token, expected one per line", capsys)
    (tmp_path / "tokens").write_text(f"{TOKEN}\nsecret secret secret\n")
    refused(["serve", "--token-file", "tokens"], "tokens: token 2 has 20 characters, expected", capsys)


def test_a_port_in_use_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(
            ["serve", "--port", str(port)],
            f"port {port}: cannot listen on this address (Address already in use)",
            capsys,
        )


def refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and len(error.splitlines()) == 1 and message in error, error
    assert "secret" not in error


def test_the_documentation_lists_every_setting_and_metric() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    for name, field in Serving.model_fields.items():
        default = json.dumps(field.default)
        assert f"| `{name}` | `{default}` | {field.description} |" in page
    for family in Metrics().registry.collect():
        if family.name.startswith("distilrank_"):
            suffix = "_total" if family.type == "counter" else ""
            assert f"`{family.name}{suffix}`" in page and family.documentation in page, family.name
    assert os.environ.get(TOKEN_VARIABLE) is None and TOKEN_VARIABLE in page
