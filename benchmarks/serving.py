"""The scoring service under load: lost or mixed responses while the champion changes, latency, and overload behavior.

`python -m benchmarks.serving [--quick] [--backend onnx|onnx-int8]`; see README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from benchmarks import machine
from benchmarks.machine import Failed, measure
from benchmarks.result import at_least, at_most, bar, report, say
from distilrank import registry
from distilrank.config import Compute, DemoShop, HomeDepot, Student, Text
from distilrank.core import artifacts, schemas
from distilrank.core.problems import Problems
from distilrank.data import sources

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fastapi", "httpx", "numpy", "onnxruntime", "tokenizers", "uvicorn")
IMPORTS = ("distilrank.modeling.scorer", "distilrank.modeling.onnx_backend")
SEED = 41
CLIENTS = 8  # that ask without a pause while saturation is measured
START_SECONDS = 120.0
OVERLOAD = 3  # times the saturated speed
GENERATORS = 32
"""Clients that share the overload, each with its own connections: httpx slows down with the number that it has open."""
LARGE_CLIENTS = 20
OPTIONS = "--reload-seconds 0.5 --drain-seconds 0".split()
PATIENT = "--timeout-seconds 60".split()
VARIANTS: dict[str, Any] = {"onnx": (), "onnx-int8": ("qint8_avx512_vnni",)}
"""What a backend needs beside the plain ONNX file."""
TOLERANCE = {"onnx": 1e-4, "onnx-int8": 1.0}
"""How far a score may be from the library's, which has scored other pairs beside it. In 8 bits that makes a difference,
since activations are scaled by the largest of all that are computed together."""
# A service as its image has it: what is not there cannot be imported.
SERVE = """
import importlib.abc, sys
absent = "torch transformers scipy sklearn pandas duckdb onnx selectolax bm25s evidently kfp matplotlib".split()

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from distilrank.cli import main
main(["serve", *sys.argv[1:]])
"""


@dataclass(frozen=True)
class Scale:
    """How long everything takes."""

    saturation_seconds: float = 20.0
    load_seconds: float = 60.0
    swaps: int = 10
    products: int = 50
    """Of a request."""
    requests: int = 100
    """Different ones, in turn."""
    traffic: int = 300
    """Rows of a version's reference traffic."""
    library_calls: int = 200
    deadline: float = 10.0
    """Seconds in which the service must answer under overload: its default."""
    overload_seconds: float = 60.0
    large: int = 1000
    """Products of a large request."""
    batch_pairs: int = 128
    """Of the service: its default."""


QUICK = Scale(3.0, 10.0, 2, 5, 8, 40, 16, overload_seconds=15.0, large=40, batch_pairs=16)


# Versions ---------------------------------------------------------------------------------------------------------


def make_student(base: Path, seed: int, pairs: pa.Table, folder: Path, backend: str) -> None:
    """Write the encoder in `base` with a new head as the student stage would, ONNX files and calibration included.

    Args:
        seed: of the head.
        pairs: `query` and the product fields, on which the files are held to the network.
        backend: what will score with it.
    """
    import torch

    from distilrank.modeling import scorer, torch_backend
    from distilrank.modeling.runtime import setup_runtime
    from distilrank.student import export

    text = Text()
    torch.manual_seed(seed)
    model = torch_backend.load_model(base, setup_runtime(Compute(device="cpu", precision="fp32")))
    # A freshly initialized head scores all pairs nearly alike, and different heads show which version a score is from.
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    torch.nn.init.constant_(model.classifier.bias, 6 * (seed - 1.5))
    encoder = scorer.load_encoder(base, text)
    model.config.pad_token_id = encoder.pad_token_id
    model.save_pretrained(folder)
    torch_backend.save_tokenizer(encoder, folder)
    scorer.describe(folder, role="student", encoder=encoder, text=text, tokens=8192, base=base.name)
    redescribe(folder, calibration={"method": "platt", "slope": 0.5, "intercept": -0.25})
    # Labels decide nothing here, but that a file in 8 bits loses no nDCG on them.
    gain = np.random.default_rng(seed).integers(0, 3, len(pairs)) / 2
    judged = pairs.append_column("query_id", pairs.column("query")).append_column("gain", pa.array(gain))
    judged = judged.append_column("product_id", pa.array([f"p{position}" for position in range(len(pairs))]))
    export.export(folder, judged, variants=VARIANTS[backend], max_ndcg_loss=1)
    artifacts.seal(folder)


def redescribe(student: Path, **changes: Any) -> None:
    """Change what `distilrank.json` says of a student: its calibration, or what it is shown."""
    path = student / "distilrank.json"
    artifacts.write_json(path, artifacts.read_json(path) | changes)


def publish(student: Path, uri: str, pairs: pa.Table, work: Path) -> str:
    """Publish a student with all that a promotion adds; returns the version's id.

    Args:
        uri: the registry's.
        pairs: `query` and the product fields: the version's reference traffic.
        work: folder for what is published.
    """
    from distilrank.modeling.scorer import Scorer

    name = registry.version_id(artifacts.seal(student))
    folder = work / name
    trained = Scorer.load(student, Compute(device="cpu", precision="fp32"), backend="torch")
    scores = pa.table({"score": pa.array(trained.probability(trained.score(pairs)), pa.float32())})
    traffic = pairs
    for item in schemas.TRAFFIC:
        if item.name not in traffic.column_names:
            empty = pa.repeat(pa.scalar("" if item.type == pa.string() else 0), len(pairs))
            traffic = traffic.append_column(item.name, empty)
    schemas.write(traffic, folder / "traffic/reference.parquet", schemas.TRAFFIC)
    schemas.write(scores, folder / "traffic/reference_scores.parquet", schemas.TRAFFIC_SCORES)
    manifest = {
        "id": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "digests": {"student": artifacts.verify(student)},
        "models": {"student": artifacts.read_json(student / "distilrank.json")["base"]},
        "metrics": {"ndcg_at_10": None},
        "verdict": {"outcome": "cold_start", "checks": [], "champion": None},
        "lineage": {},
    }
    artifacts.write_json(folder / "manifest.json", manifest)
    (folder / "student").symlink_to(student)
    registry.open(uri).publish(folder, name)
    return name


# Service ----------------------------------------------------------------------------------------------------------


class Service:
    """A `distilrank serve` in a process of its own, on a free port."""

    def __init__(self, uri: str, *options: str, environment: dict[str, str] | None = None, ready: bool = True) -> None:
        """Start it, and wait until it listens; with `ready`, until it serves.

        Raises:
            Failed: it ended, or was not ready in time.
        """
        command = [sys.executable, "-c", SERVE, "--registry", uri, "--port", "0", *options]
        environment_variables = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **(environment or {})}
        self.process = subprocess.Popen(
            command, env=environment_variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        """What it has said so far."""
        self._url: str | None = None
        self._said = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._wait(ready)
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def _wait(self, ready: bool) -> None:
        with self._said:
            self._said.wait_for(lambda: self._url or self.process.poll() is not None, START_SECONDS)
        if self._url is None:
            raise Failed(f"the service does not listen: {' '.join(self.lines[-3:])}")
        self.url = self._url
        self.http = httpx.Client(base_url=self.url, timeout=60)
        ends = time.monotonic() + START_SECONDS
        while ready and self.http.get("/readyz").status_code != 200:
            if time.monotonic() > ends:
                raise Failed(f"the service is not ready: {' '.join(self.lines[-3:])}")
            time.sleep(0.05)

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            match = re.search(r"listening on (http://[\w.:\[\]]+)", line)
            with self._said:
                self.lines.append(line.rstrip())
                self._url = match[1] if match else self._url
                self._said.notify_all()
        self.process.wait()
        with self._said:
            self._said.notify_all()

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Send a signal and wait; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(START_SECONDS)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)


# Requests ---------------------------------------------------------------------------------------------------------


def make_requests(shared: Path, count: int, size: int) -> list[dict[str, Any]]:
    """Real queries, each with `size` real products drawn at random: the bodies of `count` requests."""
    path = shared / "data/home-depot/train.csv.gz"
    if path.exists():
        source = sources.open(HomeDepot(source="home_depot", path=str(path)))
    else:
        say(f"{path} is not there: texts of the demo shop")
        source = sources.open(DemoShop(source="demo_shop"))
    problems = Problems()
    queries = source.judgements(problems).column("query").unique().to_pylist()
    fields = [name for name in schemas.PRODUCT_FIELDS if name != "description"]
    products = pa.Table.from_batches(source.products(problems)).select(fields).to_pylist()
    products = [{name: text for name, text in item.items() if text} for item in products]
    draw = np.random.default_rng(SEED)
    return [
        {
            "query": queries[position],
            "products": [products[item] for item in draw.choice(len(products), size, replace=False)],
        }
        for position in draw.choice(len(queries), count, replace=False)
    ]


def as_pairs(requests: Sequence[dict[str, Any]], rows: int) -> pa.Table:
    """The first product of each request, and the second, and so on: `rows` pairs in one table."""
    chosen = [requests[position % len(requests)] for position in range(rows)]
    products = [item["products"][position // len(requests)] for position, item in enumerate(chosen)]
    columns = {name: pa.array([item.get(name) for item in products], pa.string()) for name in schemas.PRODUCT_FIELDS}
    return pa.table({"query": [item["query"] for item in chosen], **columns})


def score_by_library(student: str, backend: str, path: str, calls: int) -> dict[str, Any]:
    """Scores of all requests by the library, and seconds of `calls` calls after a first round."""
    from distilrank.modeling.scorer import Scorer

    requests = json.loads(Path(path).read_text(encoding="utf-8"))
    scorer = Scorer.load(Path(student), Compute(), backend=backend)
    scores = [scorer.score_lists([item["query"]], [item["products"]])[0].tolist() for item in requests]
    seconds = []
    for position in range(calls):
        item = requests[position % len(requests)]
        began = time.perf_counter()
        scorer.score_lists([item["query"]], [item["products"]])
        seconds.append(time.perf_counter() - began)
    return {"scores": scores, "seconds": seconds, "backend": scorer.backend.describe()}


# Load -------------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a client saw."""

    seconds: list[float] = field(default_factory=list)
    """From the moment at which a request was due to its answer."""
    late: list[float] = field(default_factory=list)
    """By how much requests were sent later than they were due."""
    failed: list[str] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    """Seconds of answers that ask to come back later, where the client takes them."""
    mixed: list[str] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    """The version of each answer, in the order of the answers."""


class Client:
    """Sends requests and checks every score of every answer against the library's, by the version that it names."""

    def __init__(
        self,
        url: str,
        requests: Sequence[dict[str, Any]],
        expected: dict[str, np.ndarray],
        tolerance: float,
        may_refuse: bool = False,
    ) -> None:
        self.url, self.expected, self.tolerance, self.may_refuse = url, expected, tolerance, may_refuse
        self.bodies = [json.dumps(item).encode() for item in requests]
        self.http = httpx.AsyncClient(
            base_url=url,
            timeout=60,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            headers={"content-type": "application/json"},
        )

    async def ask(self, number: int, due: float, outcomes: Seen) -> None:
        """Send one request, which was due at `due`, and note what comes of it."""
        position = number % len(self.bodies)
        outcomes.late.append(time.perf_counter() - due)
        try:
            answer = await self.http.post("/v1/score", content=self.bodies[position])
        except httpx.HTTPError as error:
            outcomes.failed.append(f"request {number}: {type(error).__name__} {error}")
            return
        if self.may_refuse and answer.status_code == 503 and int(answer.headers.get("retry-after", 0)) > 0:
            outcomes.refused.append(time.perf_counter() - due)
            return
        outcomes.seconds.append(time.perf_counter() - due)
        if answer.status_code != 200:
            outcomes.failed.append(f"request {number}: {answer.status_code} {answer.text[:200]}")
            return
        content = answer.json()
        version, scores = content["version"], np.array(content["scores"])
        outcomes.versions.append(version)
        expected_scores = self.expected.get(version)
        if (
            expected_scores is None
            or scores.shape != expected_scores[position].shape
            or np.abs(scores - expected_scores[position]).max() > self.tolerance
        ):
            outcomes.mixed.append(f"request {number}: scores are not all those of {version}")

    async def saturate(self, seconds: float, clients: int) -> tuple[float, Seen]:
        """Ask without a pause, `clients` at a time; returns requests a second, and what was seen."""
        outcomes, began, numbers = Seen(), time.perf_counter(), iter(range(10**9))

        async def item() -> None:
            while time.perf_counter() - began < seconds:
                await self.ask(next(numbers), time.perf_counter(), outcomes)

        await asyncio.gather(*(item() for _ in range(clients)))
        return len(outcomes.seconds) / (time.perf_counter() - began), outcomes

    async def load(self, seconds: float, rate: float, seed: int = SEED) -> Seen:
        """Ask `rate` times a second at random moments (Poisson), however long the answers take."""
        outcomes, draw = Seen(), np.random.default_rng(seed)
        due = np.cumsum(draw.exponential(1 / rate, int(rate * seconds * 2) + 10))
        began, tasks = time.perf_counter(), []
        for number, moment in enumerate(due[due < seconds].tolist()):
            await asyncio.sleep(max(began + moment - time.perf_counter(), 0))
            # The clock starts when the request is due, so that a service that stalls is not spared any waiting.
            tasks.append(asyncio.create_task(self.ask(number, began + moment, outcomes)))
        await asyncio.gather(*tasks)
        return outcomes


async def swap(client: Client, uri: str, versions: Sequence[str], seconds: float, swaps: int) -> list[float]:
    """Move the champion to and fro, evenly over `seconds`, but not before the service has followed the last move.

    Returns:
        Seconds of each move until the service served the new champion.
    """
    backend, began = registry.open(uri), time.perf_counter()
    swap_seconds: list[float] = []
    for number in range(swaps):
        due = began + seconds * (number + 1) / (swaps + 1)
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        before, after = versions[number % 2], versions[(number + 1) % 2]
        await asyncio.to_thread(backend.move, registry.CHAMPION, after, before)
        moved = time.perf_counter()
        while (await client.http.get("/readyz")).json()["version"] != after:
            if time.perf_counter() - began > seconds:
                return swap_seconds
            await asyncio.sleep(0.05)
        swap_seconds.append(time.perf_counter() - moved)
    return swap_seconds


@dataclass
class Turns:
    """What clients with large requests saw that come back when they are told to."""

    seconds: list[float] = field(default_factory=list)
    """Of each request that was scored, from the attempt that was accepted."""
    refusals: int = 0
    failed: list[str] = field(default_factory=list)


async def take_turns(url: str, bodies: Sequence[bytes]) -> Turns:
    """Send all of `bodies` at once, each by its own client, and those that are refused again when they should be."""
    turns = Turns()

    async def send(body: bytes) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60, headers={"content-type": "application/json"}) as http:
            while True:
                began = time.perf_counter()
                answer = await http.post("/v1/score", content=body)
                if answer.status_code != 503:
                    break
                turns.refusals += 1
                await asyncio.sleep(int(answer.headers["retry-after"]))
        if answer.status_code == 200:
            turns.seconds.append(time.perf_counter() - began)
        else:
            turns.failed.append(f"{answer.status_code} {answer.text[:200]}")

    await asyncio.gather(*map(send, bodies))
    return turns


def make_large(requests: Sequence[dict[str, Any]], size: int) -> list[bytes]:
    """LARGE_CLIENTS bodies of `size` products each, of those of `requests`."""
    products = [product for item in requests for product in item["products"]]
    return [
        json.dumps(
            {
                "query": requests[number % len(requests)]["query"],
                "products": [products[(number + position) % len(products)] for position in range(size)],
            }
        ).encode()
        for number in range(LARGE_CLIENTS)
    ]


def measure_overload(
    scale: Scale,
    uri: str,
    options: Sequence[str],
    requests: Sequence[dict[str, Any]],
    client: dict[str, Any],
    rate: float,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Three times as many requests as the service can score, then large ones from many clients at once.

    Args:
        scale: how much of it.
        uri: the registry's.
        options: of the service.
        requests: small ones.
        client: arguments of `Client` but the URL.
        rate: requests a second at which the service is saturated.
    """
    bounds = ["--timeout-seconds", str(scale.deadline), "--batch-pairs", str(scale.batch_pairs)]
    with Service(uri, *options, *bounds) as service:

        async def drive() -> tuple[Seen, Turns]:
            say(f"{OVERLOAD} times {rate:.2f} requests/s")
            outcomes = Seen()

            async def generate(seed: int, asking: Client) -> None:
                async with asking.http:
                    part = await asking.load(scale.overload_seconds, OVERLOAD * rate / GENERATORS, seed)
                for name, values in vars(part).items():
                    getattr(outcomes, name).extend(values)

            # Made before any of them begins, for each takes a while.
            clients = [Client(service.url, requests, **client, may_refuse=True) for _ in range(GENERATORS)]
            await asyncio.gather(*map(generate, range(GENERATORS), clients))
            say(f"{LARGE_CLIENTS} clients with {scale.large} products each")
            return outcomes, await take_turns(service.url, make_large(requests, scale.large))

        outcomes, turns = asyncio.run(drive())
    if not outcomes.seconds or not outcomes.refused or not turns.seconds:
        raise Failed(
            f"{len(outcomes.seconds)} answers, {len(outcomes.refused)} refusals, {len(turns.seconds)} large answers"
        )
    for line in (*outcomes.failed[:3], *turns.failed[:3]):
        say(line)
    accepted_share = (len(outcomes.seconds) - len(outcomes.failed)) / scale.overload_seconds / rate
    figures = {
        "deadline_seconds": scale.deadline,
        "times_saturation": OVERLOAD,
        "sent_late_milliseconds": milliseconds(outcomes.late),
        "accepted": len(outcomes.seconds),
        "accepted_milliseconds": milliseconds(outcomes.seconds),
        "refused": len(outcomes.refused),
        "refused_milliseconds": milliseconds(outcomes.refused),
        "answers_over_saturated": round(accepted_share, 3),
        "turns": {
            "clients": LARGE_CLIENTS,
            "products": scale.large,
            "refusals": turns.refusals,
            "milliseconds": milliseconds(turns.seconds),
        },
    }
    return figures, [
        bar(
            "overload_failed", len(outcomes.failed) + len(outcomes.mixed), 0, not outcomes.failed and not outcomes.mixed
        ),
        at_most("overload_seconds_p99", float(np.percentile(outcomes.seconds, 99)), scale.deadline),
        at_most("overload_refusal_seconds_p99", float(np.percentile(outcomes.refused, 99)), 0.5),
        at_least("overload_answers_over_saturated", accepted_share, 0.9),
        bar("turns_failed", len(turns.failed), 0, not turns.failed),
    ]


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Quantiles of `seconds` in milliseconds."""
    return {
        f"p{percentile:g}": round(float(np.percentile(seconds, percentile)) * 1000, 1) for percentile in (50, 95, 99)
    }


def measure_service(
    scale: Scale, backend: str, work: Path, shared: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Saturation, then half of it while the champion changes; and three times of it."""
    uri, path = str(work / "registry"), work / "requests.json"
    requests = make_requests(shared, scale.requests, scale.products)
    path.write_text(json.dumps(requests), encoding="utf-8")
    say(f"two versions of {Student().model}")
    versions = measure(publish_two, uri, str(path), str(work), scale.traffic, backend, scratch=work).result
    expected, library = {}, {}
    for version in versions:
        student = str(registry.open(uri).fetch(version) / "student")
        calls = scale.library_calls if version == versions[0] else 0
        run = measure(score_by_library, student, backend, str(path), calls, scratch=work, imports=IMPORTS)
        expected[version], library[version] = np.array(run.result["scores"]), run.result
    apart = np.abs(expected[versions[0]] - expected[versions[1]]).min()
    if apart < 2 * TOLERANCE[backend]:
        raise Failed(f"scores of the versions are {apart:.3f} apart only, so that a mixture might not show")
    say(f"{library[versions[0]]['backend']}, calls {milliseconds(library[versions[0]]['seconds'])}")

    options = ["--backend", backend, *OPTIONS]
    with Service(uri, *options, *PATIENT) as service:

        async def drive() -> tuple[float, Seen, Seen, list[float], float]:
            client = Client(service.url, requests, expected, TOLERANCE[backend])
            async with client.http:
                await client.saturate(scale.saturation_seconds / 4, CLIENTS)  # every product has been seen once
                rate, full = await client.saturate(scale.saturation_seconds, CLIENTS)
                say(f"saturated at {rate:.2f} requests/s, p50 {milliseconds(full.seconds)['p50']} ms")
                used = time.process_time()
                loaded, swap_seconds = await asyncio.gather(
                    client.load(scale.load_seconds, rate / 2),
                    swap(client, uri, versions, scale.load_seconds, scale.swaps),
                )
                return rate, full, loaded, swap_seconds, time.process_time() - used

        rate, full, loaded, swap_seconds, used = asyncio.run(drive())
        status = service.stop()
    if not full.seconds or not loaded.seconds:
        raise Failed("the service answered nothing")
    for line in (*full.failed[:3], *loaded.failed[:3], *loaded.mixed[:3]):
        say(f"{line}")
    figures = {
        "backend": library[versions[0]]["backend"],
        "products_per_request": scale.products,
        "saturation": {
            "clients": CLIENTS,
            "requests": len(full.seconds),
            "requests_per_second": round(rate, 2),
            "pairs_per_second": round(rate * scale.products),
            "milliseconds": milliseconds(full.seconds),
        },
        "load": {
            "arrivals": "Poisson, latency from the moment at which a request was due",
            "seconds": scale.load_seconds,
            "requests": len(loaded.seconds),
            "requests_per_second": round(rate / 2, 2),
            "milliseconds": milliseconds(loaded.seconds),
            "sent_late_milliseconds": milliseconds(loaded.late),
            "generator_cores": round(used / scale.load_seconds, 3),
            "answers": {version: loaded.versions.count(version) for version in versions},
            "seconds_from_move_to_new_version": [round(item, 2) for item in swap_seconds],
        },
        "library_call_milliseconds": milliseconds(library[versions[0]]["seconds"]),
        "exit_status": status,
    }
    checked = {"expected": expected, "tolerance": TOLERANCE[backend]}
    figures["overload"], bars = measure_overload(scale, uri, options, requests, checked, rate)
    failed, mixed = len(full.failed) + len(loaded.failed), len(full.mixed) + len(loaded.mixed)
    return figures, [
        bar("failed", failed, 0, failed == 0),
        bar("mixed", mixed, 0, mixed == 0),
        bar("swaps", len(swap_seconds), scale.swaps, len(swap_seconds) == scale.swaps),
        *bars,
    ]


def publish_two(uri: str, path: str, work: str, rows: int, backend: str) -> list[str]:
    """Two versions of the student's default model with different heads; the first is the champion."""
    from distilrank.modeling import references

    pairs, versions = as_pairs(json.loads(Path(path).read_text(encoding="utf-8")), rows), []
    for seed in (1, 2):
        student = Path(work) / f"student-{seed}"
        make_student(references.resolve(Student().model), seed, pairs, student, backend)
        versions.append(publish(student, uri, pairs, Path(work)))
    registry.open(uri).move(registry.CHAMPION, versions[0], "")
    return versions


# Command ----------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small: a minute, and figures without meaning")
    parser.add_argument("--backend", choices=TOLERANCE, default="onnx", help="what the service computes with")
    options = parser.parse_args()
    scale = QUICK if options.quick else Scale()
    described = machine.describe(PACKAGES)
    figures: dict[str, Any] = {"quick": options.quick}
    with tempfile.TemporaryDirectory(prefix="benchmark-serving-") as temporary:
        try:
            match, bars = measure_service(scale, options.backend, Path(temporary), ROOT.parent / "shared")
        except Failed as error:
            say(f"{error}")
            return 1
    figures |= match
    say(json.dumps(match, indent=2))
    report("serving", described, figures, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
