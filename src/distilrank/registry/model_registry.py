"""Writing to a Kubeflow Model Registry by its official client: a registered model, its versions and their artifacts.

| there | here |
| --- | --- |
| registered model `registry.mirror_name` | the registry; a property `alias-NAME` for each alias |
| model version, named by its id | a version; measures, outcome, run, digest and aliases are its properties |
| model artifact, named by its id | where the student's files are |
| a version in state ARCHIVED | a version that `gc` removed |

Older servers have the interface v1alpha3 alone and the client speaks v1 alone, which has the same bodies under another
path; so the path is the one that the server has.

A version gets its properties last, so one that has them has its artifact too, and what was written half-way is found
and completed. Properties that others have added stay.
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
"""Longest that a mirror may take, since a promotion waits for it."""
PAGE = 100
PREFIXES = "/api/model_registry/v1/", "/api/model_registry/v1alpha3/"
OWNER = "distilrank"
FORMAT = "transformers"
"""Of the artifact: what loads a student's folder."""

Properties = dict[str, Any]


class Connection(ApiClient):
    """The client's way to the server, in the interface that it serves."""

    alpha = False

    async def call_api(self, method: str, url: str, *given: Any, **named: Any) -> Any:
        return await super().call_api(method, url.replace(*PREFIXES, 1) if self.alpha else url, *given, **named)

    async def find_interface(self) -> None:
        try:
            await ModelRegistryServiceApi(self).get_registered_models(page_size="1")
        except NotFoundException:
            self.alpha = True


@dataclass
class Client(ModelRegistryAPIClient):
    """The client, with one connection for all that it asks."""

    connection: Connection

    @asynccontextmanager
    async def get_client(self) -> AsyncIterator[ModelRegistryServiceApi]:
        yield ModelRegistryServiceApi(self.connection)


def sync(backend: Backend, url: str, name: str, *, token: str, ca_file: str) -> list[str]:
    """Write what a Model Registry lacks of `backend`, and return the changes in words; empty: it was up to date.

    Args:
        url: address of the Model Registry.
        name: of the registered model.
        token: bearer token; empty: none.
        ca_file: certificates in PEM form that the server's is checked with; empty: the system's.

    Raises:
        InputError: the Model Registry does not answer, refuses, or shows another registry under this name.
    """
    host = url.rstrip("/")
    # ModelRegistry of the same package patches the event loop, waits five minutes and takes tokens that nobody named.
    server = Configuration(host=host, access_token=token or None, ssl_ca_cert=ca_file or None)
    try:
        with ThreadPoolExecutor(1) as pool:  # a notebook has a loop of its own in this thread
            shown = asyncio.wait_for(_sync(server, name, backend), SECONDS)
            return pool.submit(asyncio.run, shown).result()
    except TimeoutError:
        raise InputError(f"registry.mirror {host}: no answer within {SECONDS:g} s") from None
    except ApiException as error:
        if error.status in (401, 403):
            wanted = "a bearer token that may list, create and update registered models there"
            given = "is refused" if token else "is empty"
            raise InputError(
                f"registry.mirror {host}: {error.status} {error.reason}; registry.mirror_token_file {given}, "
                f"expected {wanted}"
            ) from None
        raise InputError(f"registry.mirror {host}: {error.status} {error.reason}, {_brief(error.body)}") from None
    except InputError:
        raise
    except Exception as error:  # whatever a server answers, a promotion that is done must not fail by it
        raise InputError(f"registry.mirror {host}: {_brief(error) or type(error).__name__}") from error


async def _sync(server: Configuration, name: str, backend: Backend) -> list[str]:
    async with Connection(server) as connection:
        await connection.find_interface()
        return await _show_all(Client(server, connection), name, backend)


async def _show_all(client: Client, name: str, backend: Backend) -> list[str]:
    written: list[str] = []
    aliases = None
    # Whoever shows an older state than another process has just shown finds the aliases moved, and shows them again.
    while aliases != (aliases := backend.aliases()):
        model = await _model(client, name, backend.uri, aliases, written)
        assert model.id is not None
        shown = {version.name: version for version in await _versions(client, model.id)}
        present = backend.versions()
        for version in present:
            await _show(client, model.id, version, shown.get(version), backend, aliases, written)
        for version in sorted(shown.keys() - set(present)):
            one = shown[version]
            if one.state == ModelVersionState.LIVE and _has(one.custom_properties, {"registry": backend.uri}):
                await client.upsert_model_version(one.model_copy(update={"state": ModelVersionState.ARCHIVED}))
                written.append(f"archived {version}")
    return written


async def _model(client: Client, name: str, uri: str, aliases: dict[str, str], written: list[str]) -> RegisteredModel:
    wanted = {"registry": uri, **{f"alias-{alias}": version for alias, version in aliases.items()}}
    model = await client.get_registered_model_by_params(name)
    if model is None:
        description = "Product rankers that distilrank distilled and promoted"
        model = RegisteredModel(name=name, owner=OWNER, description=description, custom_properties=wanted)
        model = await client.upsert_registered_model(model)
        written.append(f"registered model {name}")
    properties = dict(model.custom_properties or {})
    if properties.get("registry", uri) != uri:
        raise InputError(
            f"registry.mirror_name {name!r}: shows the registry {properties['registry']}, expected {uri}; "
            "give each registry a name of its own"
        )
    if not _has(properties, wanted):
        changed = ", ".join(f"{key} {value}" for key, value in wanted.items() if properties.get(key) != value)
        model = model.model_copy(update={"custom_properties": properties | wanted})
        model = await client.upsert_registered_model(model)
        written.append(changed)
    return model


async def _versions(client: Client, model: str) -> list[ModelVersion]:
    options = ListOptions(limit=PAGE)
    found = await client.get_model_versions(model, options)
    while options.next_page_token:
        found += await client.get_model_versions(model, options)
    return found


async def _show(
    client: Client,
    model: str,
    version: str,
    shown: ModelVersion | None,
    backend: Backend,
    aliases: dict[str, str],
    written: list[str],
) -> None:
    wanted = {
        "registry": backend.uri,
        "aliases": ", ".join(sorted(alias for alias, target in aliases.items() if target == version)),
    }
    if shown is not None and shown.state == ModelVersionState.LIVE and _has(shown.custom_properties, wanted):
        return
    if shown is None:
        shown = await client.upsert_model_version(ModelVersion(name=version, author=OWNER), model)
        written.append(f"version {version}")
    assert shown.id is not None
    properties = dict(shown.custom_properties or {})
    if properties.get("registry") != backend.uri:
        wanted |= _properties(backend.manifest(version))
        known = await client.get_model_artifact_by_params(version, shown.id)
        files = {"uri": _uri(backend.location(version)), "model_format_name": FORMAT, "model_format_version": "1"}
        artifact = known or ModelArtifact(name=version, state=ArtifactState.LIVE)
        artifact = artifact.model_copy(update=files)
        if artifact != known:
            await client.upsert_model_version_artifact(artifact, shown.id)
    update = {"state": ModelVersionState.LIVE, "custom_properties": properties | wanted}
    await client.upsert_model_version(shown.model_copy(update=update))
    written.append(f"properties of {version}: aliases {wanted['aliases'] or 'none'}")


def _properties(manifest: Mapping[str, Any]) -> Properties:
    """What a version shows of its manifest: scalars only, for tables and searches."""
    return {
        **{name: float(value) for name, value in manifest["metrics"].items() if value is not None},
        "created": manifest["created"],
        "outcome": manifest["verdict"]["outcome"],
        "run": manifest["lineage"]["name"],
        "student": manifest["digests"]["student"],
        "distilrank": manifest["lineage"]["release"],
    }


def _has(properties: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    return all((properties or {}).get(name) == value for name, value in wanted.items())


def _uri(folder: str) -> str:
    return f"{folder if '://' in folder else Path(folder).as_uri()}/student"


def _brief(error: object) -> str:
    return one_line(error or "")
