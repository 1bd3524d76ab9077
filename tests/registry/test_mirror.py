"""The mirror, against a server process that answers by the Kubeflow Model Registry's own document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distilrank import cli, registry
from distilrank.config import Registry
from distilrank.core.errors import InputError
from tests.promotions import fill, run, stages

pytest.importorskip("model_registry")
from distilrank.registry import ledger, model_registry
from distilrank.registry.mirror import Mirror

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT.parent / "shared" / "api" / "kubeflow-model-registry.openapi.yaml"
pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason=f"{DOCUMENT} is not here")


class Server:
    """A server process of its own, and what it holds."""

    def __init__(self, *arguments: object, scheme: str = "http") -> None:
        command = [sys.executable, "-m", "tests.model_registry_server", str(DOCUMENT), *map(str, arguments)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"{scheme}://localhost:{self.process.stdout.readline().strip()}"

    def control(self, **steer: Any) -> Any:
        data = json.dumps(steer).encode() if steer else None
        with urllib.request.urlopen(f"{self.url}/control", data) as answer:
            return json.load(answer)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def requests(self) -> list[str]:
        return self.control()["requests"]

    def shown(self) -> dict[str, dict[str, Any]]:
        """Every version by name: its properties, its state, and the URI of its artifact."""
        kinds = self.control()["kinds"]
        uris = {artifact["version"]: artifact["uri"] for artifact in kinds["artifacts"].values()}
        return {
            version["name"]: values(version) | {"state": version["state"], "uri": uris.get(version["id"])}
            for version in kinds["model_versions"].values()
        }

    def models(self) -> dict[str, dict[str, Any]]:
        return {model["name"]: values(model) for model in self.control()["kinds"]["registered_models"].values()}


def values(entity: dict[str, Any]) -> dict[str, Any]:
    """Its properties without their types."""
    properties = entity.get("customProperties", {})
    return {
        name: next(value for key, value in typed.items() if key != "metadataType") for name, typed in properties.items()
    }


@pytest.fixture(scope="module")
def process() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def server(process: Server) -> Iterator[Server]:
    process.control(reset=True)
    yield process
    assert process.control()["problems"] == []


@pytest.fixture
def config(tmp_path: Path, server: Server) -> Registry:
    return Registry(uri=str(tmp_path / "registry"), mirror=server.url)


def mirror(config: Registry) -> Mirror:
    return registry.connect(config).mirror  # type: ignore[attr-defined, no-any-return]


def sync(config: Registry) -> list[str]:
    return mirror(config).sync(registry.connect(config))


def test_every_change_is_shown_at_once(tmp_path: Path, config: Registry, server: Server) -> None:
    first, second, third = fill(config, tmp_path, "a", "b", "c")
    shown = server.shown()
    assert {name: version["aliases"] for name, version in shown.items()} == {
        first: "anchor",
        second: "",
        third: "champion",
    }
    assert server.models() == {"distilrank": {"registry": config.uri, "alias-anchor": first, "alias-champion": third}}
    manifest = registry.connect(config).manifest(third)
    assert shown[third] == {
        "registry": config.uri,
        "aliases": "champion",
        "ndcg_at_10": 0.92,
        "ece": 0.05,
        "created": manifest["created"],
        "outcome": "promoted",
        "run": "nightly",
        "student": manifest["digests"]["student"],
        "distilrank": manifest["lineage"]["release"],
        "state": "LIVE",
        "uri": f"file://{config.uri}/versions/{third}/student",
    }
    registry.connect(config).rollback(reason="empty results")
    assert {name: version["aliases"] for name, version in server.shown().items()} == {
        first: "anchor",
        second: "champion",
        third: "",
    }
    assert server.models()["distilrank"]["alias-champion"] == second


def test_what_is_shown_already_is_not_written_again(tmp_path: Path, config: Registry, server: Server) -> None:
    fill(config.model_copy(update={"mirror": ""}), tmp_path, "a", "b", "c")
    assert sync(config)
    before = server.control()["kinds"]
    server.control(requests=[])
    assert sync(config) == []
    assert {request.split()[0] for request in server.requests()} == {"GET"} and server.control()["kinds"] == before


def test_a_registry_that_was_there_before_its_mirror_is_shown_whole(
    tmp_path: Path, config: Registry, server: Server
) -> None:
    plain = config.model_copy(update={"mirror": ""})
    versions = fill(plain, tmp_path, "a", "b", "c")
    assert server.requests() == []
    written = sync(config)
    assert sorted(server.shown()) == sorted(versions) and any(versions[0] in line for line in written)
    assert sync(config) == []


def test_a_mirror_that_is_down_fails_nothing_and_is_repaired_by_the_next_change(
    tmp_path: Path, config: Registry, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.control(faults=[500] * 50)
    [first] = fill(config, tmp_path, "a")
    assert registry.connect(config).aliases() == {"anchor": first, "champion": first}
    lines = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(lines) == 3 and f"registry.mirror {server.url}: 500" in lines[0]  # published, champion, anchor
    server.control(faults=[])
    stage_inputs = {"champion": first, "anchor": first}
    second = run(config, stages(tmp_path / "next", "b", **stage_inputs), **stage_inputs)
    assert {name: version["aliases"] for name, version in server.shown().items()} == {
        first: "anchor",
        second: "champion",
    }


@pytest.mark.parametrize("answered", range(8))
def test_what_was_written_half_way_is_completed(
    tmp_path: Path, config: Registry, server: Server, answered: int
) -> None:
    plain = config.model_copy(update={"mirror": ""})
    [name] = fill(plain, tmp_path, "a")
    server.control(faults=[None] * answered + [500])
    with pytest.raises(InputError, match="500"):
        sync(config)
    sync(config)
    [shown] = server.shown().values()
    assert (shown["aliases"], shown["ndcg_at_10"]) == ("anchor, champion", 0.9)
    assert shown["uri"].endswith(f"{name}/student")
    assert len(server.control()["kinds"]["artifacts"]) == 1 and sync(config) == []


def test_a_mirror_that_hangs_is_not_waited_for(
    tmp_path: Path, config: Registry, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_registry, "SECONDS", 0.3)
    server.control(faults=[2.5])
    started = time.monotonic()
    with pytest.raises(InputError, match=r"registry\.mirror http.*: no answer within 0\.3 s"):
        sync(config)
    assert time.monotonic() - started < 2


def test_what_gc_removed_is_archived_and_what_others_wrote_stays(
    tmp_path: Path, config: Registry, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = fill(config.model_copy(update={"mirror": ""}), tmp_path, "a", "b", "c")
    sync(config)
    kinds = server.control()["kinds"]
    [model] = kinds["registered_models"]
    theirs = {"name": "by hand", "state": "LIVE", "registeredModelId": model, "id": "99"}
    kinds["model_versions"]["99"] = theirs
    note = {"metadataType": "MetadataStringValue", "string_value": "seen by Ana"}
    for entity in kinds["model_versions"].values():
        entity.setdefault("customProperties", {})["note"] = note
    server.control(kinds=kinds)
    monkeypatch.setattr(ledger, "MINIMUM_AGE", -1.0)
    backend = registry.connect(config)
    assert backend.collect(1, dry_run=True) == [second] and server.shown()[second]["state"] == "LIVE"
    assert backend.collect(1, dry_run=False) == [second]
    states = {name: version["state"] for name, version in server.shown().items()}
    assert states == {first: "LIVE", second: "ARCHIVED", third: "LIVE", "by hand": "LIVE"}
    backend.move("champion", first, third, action="move", reason="x")
    assert {version["note"] for version in server.shown().values()} == {"seen by Ana"}


@pytest.mark.parametrize(("served", "spoken"), [(["v1"], "v1"), (["v1alpha3"], "v1alpha3"), (["v1", "v1alpha3"], "v1")])
def test_the_interface_is_what_the_server_has(
    tmp_path: Path, config: Registry, server: Server, served: list[str], spoken: str
) -> None:
    server.control(versions=served)
    [name] = fill(config, tmp_path, "a")
    assert set(server.shown()) == {name}
    assert {request.split()[1].split("/")[0] for request in server.requests() if not request.startswith("GET")} == {
        spoken
    }


def test_a_name_belongs_to_one_registry(tmp_path: Path, config: Registry, server: Server) -> None:
    fill(config, tmp_path, "a")
    other = config.model_copy(update={"uri": str(tmp_path / "other")})
    with pytest.raises(InputError, match=r"mirror_name 'distilrank': shows the registry .*registry, expected .*other"):
        sync(other)
    sync(other.model_copy(update={"mirror_name": "other"}))
    assert set(server.models()) == {"distilrank", "other"}


def test_the_token_is_sent_and_its_refusal_names_the_rights_it_needs(
    tmp_path: Path, config: Registry, server: Server
) -> None:
    server.control(token="sesame")
    expected = "expected a bearer token that may list, create and update"
    with pytest.raises(InputError, match=f"401 .* mirror_token_file is empty, {expected}".replace("401 .* ", "401.*")):
        sync(config)
    secret = tmp_path / "token"
    named = config.model_copy(update={"mirror_token_file": str(secret)})
    with pytest.raises(InputError, match=rf"registry\.mirror_token_file: {secret} cannot be read"):
        registry.connect(named).check()
    secret.write_text("wrong\n")
    with pytest.raises(InputError, match=f"mirror_token_file is refused, {expected}"):
        sync(named)
    secret.write_text("sesame\n")  # as a pod's is renewed
    assert sync(named)


def test_a_private_certificate_is_trusted_by_its_file(tmp_path: Path, config: Registry) -> None:
    pem = certificate(tmp_path / "server.pem")
    server = Server(pem, scheme="https")
    try:
        mirrored = config.model_copy(update={"mirror": server.url})
        with pytest.raises(InputError, match=r"certificate verify failed"):
            sync(mirrored)
        assert sync(mirrored.model_copy(update={"mirror_ca_file": str(pem)}))
    finally:
        server.stop()


def certificate(path: Path) -> Path:
    """A certificate of localhost that nobody has signed, with its key."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(encoded + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_an_answer_that_makes_no_sense_is_one_line(config: Registry, server: Server) -> None:
    away = config.model_copy(update={"mirror": "http://localhost:9"})
    with pytest.raises(InputError, match=r"registry\.mirror http://localhost:9: .*onnect"):
        sync(away)
    server.control(faults=[200])
    with pytest.raises(InputError, match=f"registry.mirror {server.url}: "):
        sync(config)


def test_the_sync_command_repairs_the_mirror(
    tmp_path: Path, config: Registry, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = config.model_copy(update={"mirror": ""})
    [name] = fill(plain, tmp_path, "a")
    settings = tmp_path / "shop.yaml"
    settings.write_text(json.dumps({"data": {"source": "demo_shop"}, "registry": config.model_dump()}))

    def command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main(["registry", *arguments, "--config", str(settings)])
        captured = capsys.readouterr()
        return int(exit.value.code or 0), captured.out, captured.err

    status, out, _ = command("mirror")
    assert status == 0 and f"version {name}" in out and out.endswith(" changes\n")
    assert command("mirror")[1] == f"{server.url}: up to date\n"
    server.control(faults=[503] * 9)
    status, out, err = command("promote", name, "--alias", "holdout", "--reason", "A/B", "--json")
    assert status == 0 and json.loads(out)["version"] == name and "warning: registry.mirror" in err
    server.control(faults=[503])
    status, out, err = command("mirror")
    assert status == 2 and err.startswith(f"distilrank: registry.mirror {server.url}: 503")


def test_without_the_client_a_mirror_is_refused_by_name(tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["model_registry"] = None
from distilrank import registry
from distilrank.config import Registry
backend = registry.connect(Registry(uri={str(tmp_path)!r}, mirror="http://localhost:1"))
backend.alias("champion")
backend.check()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "InputError: registry.mirror: this Python has no 'model_registry" in ran.stderr
