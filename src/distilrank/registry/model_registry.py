"""Updates of a Kubeflow Model Registry by its official client: a registered model, its versions and their artifacts.

| Model Registry | distilrank registry |
| --- | --- |
| registered model `registry.mirror_name` | the registry, with a property `alias-NAME` for each alias |
| model version, named by id | a version, with properties for metrics, outcome, run, digest and aliases |
| model artifact, named by id | location of the student's files |
| version in state ARCHIVED | a version that `gc` removed |

Older servers have only the API v1alpha3 and the client knows only v1. Both have the same request bodies under different
paths, so the client uses the path that the server has.

The properties of a version are written last. A version that has them therefore has its artifact too, and an interrupted
update is detected and completed. Properties that others have added are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_registry.core import ModelRegistryAPIClient
from model_registry.types import ListOptions, ModelArtifact, ModelVersion, RegisteredModel
from mr_openapi import ApiClient, ArtifactState, Configuration, ModelRegistryServiceApi, ModelVersionState
from mr_openapi.exceptions import ApiException, NotFoundException

from distilrank.core.errors import InputError, one_line
from distilrank.registry.base import Backend

SECONDS = 30.0
"""Timeout of an update in seconds, since a promotion waits for it."""
PAGE = 100
PREFIXES = "/api/model_registry/v1/", "/api/model_registry/v1alpha3/"
OWNER = "distilrank"
FORMAT = "transformers"
"""Format of the artifact: the library that loads the student."""

Properties = dict[str, Any]


class Connection(ApiClient):
    """API client that uses the API version that the server has."""

    is_alpha = False

    async def call_api(self, method: str, url: str, *arguments: Any, **options: Any) -> Any:
        return await super().call_api(
            method, url.replace(*PREFIXES, 1) if self.is_alpha else url, *arguments, **options
        )

    async def find_interface(self) -> None:
        try:
            await ModelRegistryServiceApi(self).get_registered_models(page_size="1")
        except NotFoundException:
            self.is_alpha = True


@dataclass
class Client(ModelRegistryAPIClient):
    """Client that sends all requests over one connection."""

    connection: Connection

    @asynccontextmanager
    async def get_client(self) -> AsyncIterator[ModelRegistryServiceApi]:
        yield ModelRegistryServiceApi(self.connection)


def sync(backend: Backend, url: str, name: str, *, token: str, ca_file: str) -> list[str]:
    """Bring a Model Registry up to date with `backend`, and return a description of each change.

    Args:
        backend: the registry to mirror.
        url: address of the Model Registry.
        name: name of the registered model.
        token: bearer token; empty for none.
        ca_file: PEM file with the certificates that verify the server; empty for the system's certificates.

    Raises:
        InputError: the Model Registry does not answer, refuses, or already shows another registry under this name.
    """
    host = url.rstrip("/")
    # The package's own ModelRegistry patches the event loop, waits five minutes and finds tokens by itself.
    server = Configuration(host=host, access_token=token or None, ssl_ca_cert=ca_file or None)
    try:
        with ThreadPoolExecutor(1) as pool:  # in a notebook, this thread already runs an event loop
            update = asyncio.wait_for(_sync(server, name, backend), SECONDS)
            return pool.submit(asyncio.run, update).result()
    except TimeoutError:
        raise InputError(f"registry.mirror {host}: no answer within {SECONDS:g} s") from None
    except ApiException as error:
        if error.status in (401, 403):
            state = "is refused" if token else "is empty"
            raise InputError(
                f"registry.mirror {host}: {error.status} {error.reason}; registry.mirror_token_file {state}, "
                "expected a bearer token that may list, create and update registered models there"
            ) from None
        raise InputError(f"registry.mirror {host}: {error.status} {error.reason}, {_brief(error.body)}") from None
    except InputError:
        raise
    except Exception as error:  # no answer of a server may make a completed promotion fail
        raise InputError(f"registry.mirror {host}: {_brief(error) or type(error).__name__}") from error


async def _sync(server: Configuration, name: str, backend: Backend) -> list[str]:
    async with Connection(server) as connection:
        await connection.find_interface()
        return await _mirror_all(Client(server, connection), name, backend)


async def _mirror_all(client: Client, name: str, backend: Backend) -> list[str]:
    written: list[str] = []
    aliases = None
    # Another process may have written a newer state meanwhile; the aliases then differ, and are written again.
    while aliases != (aliases := backend.aliases()):
        model = await _model(client, name, backend.uri, aliases, written)
        assert model.id is not None
        mirrored = {version.name: version for version in await _versions(client, model.id)}
        versions = backend.versions()
        for version in versions:
            await _mirror_version(client, model.id, version, mirrored.get(version), backend, aliases, written)
        for version in sorted(mirrored.keys() - set(versions)):
            entry = mirrored[version]
            if entry.state == ModelVersionState.LIVE and _has(entry.custom_properties, {"registry": backend.uri}):
                await client.upsert_model_version(entry.model_copy(update={"state": ModelVersionState.ARCHIVED}))
                written.append(f"archived {version}")
    return written


async def _model(client: Client, name: str, uri: str, aliases: dict[str, str], written: list[str]) -> RegisteredModel:
    expected = {"registry": uri, **{f"alias-{alias}": version for alias, version in aliases.items()}}
    model = await client.get_registered_model_by_params(name)
    if model is None:
        description = "Product rankers that distilrank distilled and promoted"
        model = RegisteredModel(name=name, owner=OWNER, description=description, custom_properties=expected)
        model = await client.upsert_registered_model(model)
        written.append(f"registered model {name}")
    properties = dict(model.custom_properties or {})
    if properties.get("registry", uri) != uri:
        raise InputError(
            f"registry.mirror_name {name!r}: shows the registry {properties['registry']}, expected {uri}; "
            "give each registry a separate name"
        )
    if not _has(properties, expected):
        changed = ", ".join(f"{key} {value}" for key, value in expected.items() if properties.get(key) != value)
        model = model.model_copy(update={"custom_properties": properties | expected})
        model = await client.upsert_registered_model(model)
        written.append(changed)
    return model


async def _versions(client: Client, model: str) -> list[ModelVersion]:
    options = ListOptions(limit=PAGE)
    versions = await client.get_model_versions(model, options)
    while options.next_page_token:
        versions += await client.get_model_versions(model, options)
    return versions


async def _mirror_version(
    client: Client,
    model: str,
    version: str,
    entry: ModelVersion | None,
    backend: Backend,
    aliases: dict[str, str],
    written: list[str],
) -> None:
    expected = {
        "registry": backend.uri,
        "aliases": ", ".join(sorted(alias for alias, target in aliases.items() if target == version)),
    }
    if entry is not None and entry.state == ModelVersionState.LIVE and _has(entry.custom_properties, expected):
        return
    if entry is None:
        entry = await client.upsert_model_version(ModelVersion(name=version, author=OWNER), model)
        written.append(f"version {version}")
    assert entry.id is not None
    properties = dict(entry.custom_properties or {})
    if properties.get("registry") != backend.uri:
        expected |= _properties(backend.manifest(version))
        current = await client.get_model_artifact_by_params(version, entry.id)
        files = {"uri": _uri(backend.location(version)), "model_format_name": FORMAT, "model_format_version": "1"}
        artifact = current or ModelArtifact(name=version, state=ArtifactState.LIVE)
        artifact = artifact.model_copy(update=files)
        if artifact != current:
            await client.upsert_model_version_artifact(artifact, entry.id)
    update = {"state": ModelVersionState.LIVE, "custom_properties": properties | expected}
    await client.upsert_model_version(entry.model_copy(update=update))
    written.append(f"properties of {version}: aliases {expected['aliases'] or 'none'}")


def _properties(manifest: Mapping[str, Any]) -> Properties:
    """Return the scalars of a manifest that the mirror shows as properties, for tables and searches."""
    return {
        **{name: float(value) for name, value in manifest["metrics"].items() if value is not None},
        "created": manifest["created"],
        "outcome": manifest["verdict"]["outcome"],
        "run": manifest["lineage"]["name"],
        "student": manifest["digests"]["student"],
        "distilrank": manifest["lineage"]["release"],
    }


def _has(properties: Mapping[str, Any] | None, expected: Mapping[str, Any]) -> bool:
    return all((properties or {}).get(name) == value for name, value in expected.items())


def _uri(folder: str) -> str:
    return f"{folder if '://' in folder else Path(folder).as_uri()}/student"


def _brief(error: object) -> str:
    return one_line(error or "")
