"""What is checked and resolved before any expensive work; it fails early, by name.

Never cached: the digests and the window found here are what tells the cached stages whether their inputs are new.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from distilrank import registry
from distilrank.config import OVERRIDE_DAYS, Config, Override, Preflight, Prepare
from distilrank.core import artifacts, hardware, normalize, progress
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import sources
from distilrank.data.log_store import LogStore, make_scrubber
from distilrank.data.log_tables import required_clients
from distilrank.data.sources.base import Source
from distilrank.data.window import LogWindow, count_rows_by_day, parse_time, resolve_window
from distilrank.modeling import encoding, references, weights
from distilrank.training import trainjob

STAGE = "preflight"


class Resolved(NamedTuple):
    """What a run is pinned to. Times are ISO 8601 in UTC, all three empty where the log has no time."""

    data_digest: str
    code_digest: str
    teacher_digest: str
    """Of the pretrained models, not of the trained ones."""
    student_digest: str
    reference_start: str
    newest_start: str
    newest_end: str
    champion: str
    """Version id; empty where there is none yet."""
    anchor: str
    """Likewise of the version that no candidate may fall far behind."""
    cache_since: str
    """The day since when results are taken from the cache; empty: of any age."""


class MonitorInputs(NamedTuple):
    """What a look at the newest traffic is pinned to, as in `Resolved`."""

    data_digest: str
    reference_start: str
    newest_start: str
    newest_end: str
    champion: str
    cache_since: str


def check(
    config: Config, *, name: str, schedule_time: str, secrets: Mapping[str, Sequence[str]], output: Path
) -> Resolved:
    """Check that the run can succeed, and resolve what it depends on.

    Args:
        config: the whole configuration.
        name: the run's, by which its report, its version and its notification are known.
        schedule_time: the run's schedule time, ISO 8601, empty for now; used where `window.end` is `schedule`.
        secrets: by the name of each Secret the environment variables, and the folders, that this pod must find of it.
        output: folder for preflight.json.

    Raises:
        InputError: the run has no name, or secrets, data, columns, models (their weights and code, too), registry,
            GPU, disk or log window are not as the configuration says.
    """
    with artifacts.stage(STAGE, output, config=config) as record:
        _check_run(name, schedule_time)
        _check_secrets(secrets)
        for key in ("dev_share", "test_share"):
            if not getattr(config.prepare, key):
                raise InputError(f"prepare.{key} is 0, expected more: a run needs such queries to judge its models by")
        free = _check_disk(config.preflight.free_disk_gib, output)
        device = _check_device(config.compute.device)
        trainjob.check(config.compute)
        _check_workspace(config)
        _check_override(config.gate.override, datetime.now(UTC).date())
        backend = registry.connect(config.registry)
        backend.check()
        source = sources.open(config.data)
        source.check(Problems())
        log = source.log()
        if log is not None:
            required_clients(log, config.prepare)
            make_scrubber(config.prepare.privacy)
        champion, anchor = (backend.alias(alias) for alias in (registry.CHAMPION, registry.ANCHOR))
        registry.require_champion(backend)
        for version, alias in {anchor: registry.ANCHOR, champion: registry.CHAMPION}.items():
            if version:
                folder = backend.fetch(version)  # damage shows now, not after the teacher
                _check_split(config.prepare, f"{alias} {version}", folder)
        with progress.timed(STAGE, "digested the models"):
            used = {config.teacher.model, config.student.model, config.prepare.retriever.model}
            bases = {reference: references.digest(reference) for reference in sorted(used)}
        _check_models(config)
        if config.prepare.from_disagreement:
            from distilrank.modeling import bi_encoder

            if _is_local(config.prepare.retriever.model):
                bi_encoder.check(config.prepare.retriever.model)
        _check_embedded(config)
        window = _pin(config, schedule_time, output, source, bases[config.prepare.retriever.model])
        resolved = Resolved(
            window.data_digest,
            artifacts.code_digest(),
            bases[config.teacher.model],
            bases[config.student.model],
            window.reference_start,
            window.newest_start,
            window.newest_end,
            champion,
            anchor,
            cache_since(config.preflight, datetime.now(UTC)),
        )
        parts = [part.name for part in log.parts] if log is not None else []
        found: dict[str, Any] = {
            **resolved._asdict(),
            "name": name,
            "schedule_time": schedule_time,
            "files": source.files(),
            "log": parts,
            "models": {"teacher": config.teacher.model, "student": config.student.model},
            "device": device,
            "registry": config.registry.uri,
            "free_disk_gib": round(free, 1),
        }
        artifacts.write_json(output / "preflight.json", found)
        artifacts.seal(output)
        record.facts.update(resolved._asdict())
        times = f"window {window.reference_start} to {window.newest_end}" if window.is_timed else "no times"
        progress.log_event(STAGE, "note", f"data {window.data_digest[:12]}, {times}, champion {champion or 'none'}")
        return resolved


def check_monitor(
    config: Config, *, name: str, schedule_time: str, secrets: Mapping[str, Sequence[str]], output: Path
) -> MonitorInputs:
    """Check that the champion can be held against the newest traffic, and resolve which; arguments as for `check`.

    Raises:
        InputError: the run has no name, there is no champion, the log has no times, or data, teacher, registry or log
            window are not as the configuration says.
    """
    with artifacts.stage(STAGE, output, config=config) as record:
        _check_run(name, schedule_time)
        _check_secrets(secrets)
        backend = registry.connect(config.registry)
        champion = registry.resolve(backend, registry.CHAMPION)
        _check_teacher(config.monitor.teacher, champion, backend.fetch(champion))
        _check_workspace(config)
        source = sources.open(config.data)
        source.check(Problems())
        log = source.log()
        if log is None or not log.timed:
            raise InputError("data: the log has no times, expected some: without them no traffic is the newest")
        required_clients(log, config.prepare)
        make_scrubber(config.prepare.privacy)
        reference = config.prepare.retriever.model
        window = _pin(config, schedule_time, output, source, references.digest(reference))
        since = cache_since(config.preflight, datetime.now(UTC))
        watched = MonitorInputs(
            window.data_digest, window.reference_start, window.newest_start, window.newest_end, champion, since
        )
        artifacts.write_json(
            output / "preflight.json",
            watched._asdict() | {"name": name, "schedule_time": schedule_time, "registry": config.registry.uri},
        )
        artifacts.seal(output)
        record.facts.update(watched._asdict())
        progress.log_event(
            STAGE, "note", f"newest traffic {window.newest_start} to {window.newest_end}, champion {champion}"
        )
        return watched


def cache_since(preflight: Preflight, now: datetime) -> str:
    """The first day of the period of `cache_days` days that `now` is in; empty where results keep for ever.

    Stages that take it as an input are computed anew in each period, and those after them too, whose inputs are then
    others. It goes by the clock and not by the schedule's time, which lies in the past where a tick is made up for.
    """
    if not preflight.cache_days:
        return ""
    return date.fromordinal(now.toordinal() // preflight.cache_days * preflight.cache_days).isoformat()


def _pin(config: Config, schedule_time: str, output: Path, source: Source, retriever: str) -> LogWindow:
    """The windows of the log, with the digest of all outside data within them.

    `retriever` is the digest of the model whose tokens and vectors preparation uses.
    """
    log, window = source.log(), LogWindow()
    with progress.timed(STAGE, "digested the data"), _store(config.prepare, output) as store:
        if log is not None and log.timed:
            window = resolve_window(config.window, schedule_time, count_rows_by_day(store, log))
        elif config.window.end != "latest":
            progress.log_event(STAGE, "note", f"window.end {config.window.end} has no effect: the log has no time")
        content = {
            "source": source.digest(),
            "log": [log.settings, store.digests(log, window.first_day, window.end_day)] if log else None,
            "retriever": retriever,
        }
        return replace(window, data_digest=artifacts.digest_json(content))


def _check_workspace(config: Config) -> None:
    """Refuse an Evidently workspace that cannot be used; for a folder that takes no Evidently, which loads slowly."""
    workspace = config.drift.workspace
    if workspace.startswith(("http://", "https://")):
        from distilrank.drift.workspace import check_workspace

        check_workspace(config.drift)
    elif workspace:
        probe = Path(workspace) / f".{uuid.uuid4().hex}.probe"
        try:
            artifacts.write_text(probe, "")
            probe.unlink()
        except (InputError, OSError) as error:
            cause = error.__cause__ or error
            reason = cause.strerror if isinstance(cause, OSError) else str(cause)
            raise InputError(f"drift.workspace {workspace}: cannot be written ({reason})") from None


def _check_override(override: Override, today: date) -> None:
    """Refuse an override that the gate would not follow, since its last day is too far ahead."""
    latest = today + timedelta(days=OVERRIDE_DAYS)
    if override.last_day is not None and override.last_day > latest:
        raise InputError(
            f"gate.override.until is {override.until}, expected {latest} at the latest, {OVERRIDE_DAYS} days from now: "
            "then somebody has to answer for it again"
        )


def _check_embedded(config: Config) -> None:
    """Refuse a student whose encoder the drift stage cannot embed with, where the gate asks for what it would find."""
    if config.gate.max_embedding_auc == 1 or config.drift.encoder != "student":
        return
    if config.student.model.startswith(("hub:", "gs://")):
        return  # what it is shows only once it is fetched
    path = references.resolve(config.student.model) / "config.json"
    kind = artifacts.read_json(path).get("model_type")
    if kind != "bert":
        raise InputError(
            f"drift.encoder: the student, {config.student.model!r}, is of type {kind!r}, expected bert; name a BERT "
            "sentence encoder there, or set drift.embedding_rows to 0 and gate.max_embedding_auc to 1"
        )


def _is_local(reference: str) -> bool:
    """Whether the weights are here, and need neither a download nor a conversion."""
    return not reference.startswith(("hub:", "gs://")) and not reference.endswith(".gguf")


def _check_models(config: Config) -> None:
    """Refuse models that cannot be teacher or student, by their configuration, tokenizer and names of tensors.

    What needs torch or transformers' defaults, which the image `ops` has not, is the rehearsal's.
    """
    teacher, student = config.teacher.model, config.student.model
    for reference in sorted({teacher, student}):
        _check_weights(reference)
    if student.endswith(".gguf"):
        raise InputError(f"student.model {student!r}: a GGUF file holds a decoder, and a student must be an encoder")
    if not teacher.endswith(".gguf"):  # to be converted first
        encoding.load_tokenizer(references.resolve_settings(teacher))
    folder = references.resolve_settings(student)
    encoding.require_encoder(folder)
    encoding.load_tokenizer(folder)


def _check_weights(reference: str) -> None:
    """Refuse a local model whose weights are not those of its architecture; only their names and shapes are read.

    The image `ops` has no torch: there the layers are counted.
    """
    if not _is_local(reference):
        return
    folder = references.resolve(reference)
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        from distilrank.modeling import pretrained

        pretrained.check(folder, num_labels=1)
    else:
        weights.check_depth(folder)


def _check_teacher(teacher: str, champion: str, version: Path) -> None:
    """Refuse a teacher other than the one that the champion learned from: they would disagree without any drift."""
    if not teacher:
        return
    try:
        digest = artifacts.sealed_digest(Path(teacher))
    except InputError as error:
        raise InputError(f"monitor.teacher: {error}") from None
    expected = artifacts.read_json(version / "manifest.json")["digests"]["teacher"]
    if digest != expected:
        raise InputError(
            f"monitor.teacher {teacher}: its digest is {digest[:12]}, but the champion {champion} learned from "
            f"{expected[:12]}; name that teacher's folder, or leave it empty"
        )


def _check_split(prepare: Prepare, version: str, folder: Path) -> None:
    """Refuse to test a champion on queries that it may have learned from, because the split has changed since.

    Another draw is allowed: champion and anchor have learned from its judgements, which flatters them alone.
    """
    before = artifacts.read_json(folder / "metrics.json")["protocol"]["split"]
    if before["salt"] != prepare.salt:
        raise InputError(
            f"prepare.salt is {prepare.salt!r}, but the {version} was trained with {before['salt']!r}: the "
            "test queries would be among those that it learned from; restore the salt or use another registry"
        )
    if before.get("plurals", "apart") != prepare.plurals:
        raise InputError(
            f"prepare.plurals is {prepare.plurals!r}, but the {version} was trained with "
            f"{before.get('plurals', 'apart')!r}: the split is another one; restore it or use another registry"
        )
    if before.get("dotless_i", False) != (prepare.language in normalize.DOTLESS):
        raise InputError(
            f"prepare.language is {prepare.language!r}, but the {version} was trained with I folded "
            f"{'to the dotless i of Turkish' if before.get('dotless_i') else 'to i'}: the split is another one; "
            "restore it or use another registry"
        )
    drawn = before.get("draw", 0)
    if (drawn or prepare.test_fold) and before["test_share"] != prepare.test_share:
        raise InputError(
            f"prepare.test_share is {prepare.test_share:g}, but the {version} was trained with "
            f"{before['test_share']:g}: with test_fold {prepare.test_fold} after {drawn} the sets would overlap; "
            "restore it or use another registry"
        )
    if before["test_share"] < prepare.test_share:
        raise InputError(
            f"prepare.test_share is {prepare.test_share:g}, but the {version} was trained with "
            f"{before['test_share']:g}: it learned from some of the test queries; lower it or use another registry"
        )
    if drawn != prepare.test_fold:
        progress.log_event(
            STAGE,
            "note",
            f"test draw {prepare.test_fold}, the {version} was trained with {drawn}: it has learned from the "
            "judgements that it is tested on now, so the comparison favors it",
        )


def _check_disk(least: float, output: Path) -> float:
    """Free GiB where `output` is."""
    free = shutil.disk_usage(output).free / 2**30
    if free < least:
        raise InputError(
            f"{output}: {free:.1f} GiB free, expected at least {least:g} (preflight.free_disk_gib); free some space"
        )
    return free


def _check_run(name: str, schedule_time: str) -> None:
    """Refuse a run that Kubeflow gave no name, or whose placeholders it left as they are: promotion needs the name.

    A driver leaves a placeholder that its version does not know; without this nothing would notice before `promote`,
    and of a schedule time nothing at all unless the window ends by it.
    """
    if not name.strip():
        raise InputError(
            f"name: is {name!r}, expected the name of the run, which its report and the version that it promotes carry"
        )
    for key, value in (("name", name), ("schedule_time", schedule_time)):
        if "{{" in value:
            raise InputError(
                f"{key}: is {value!r}, a placeholder that this Kubeflow does not replace, expected Kubeflow Pipelines "
                "2.17.0 or newer"
            )
    if schedule_time:
        parse_time(schedule_time, "schedule_time")


def _check_secrets(secrets: Mapping[str, Sequence[str]]) -> None:
    """Pods are started without a Secret that is missing, so that somebody is told of it."""
    for name, wanted in secrets.items():
        for place in wanted:
            if place.startswith("/"):
                missing = "" if any(Path(place).glob("[!.]*")) else f"{place} has no file"
            else:
                missing = "" if os.environ.get(place) else f"the environment variable {place} is not set"
            if missing:
                raise InputError(
                    f"cluster.secrets: {name}: {missing}, expected the Secret in the namespace of the run, with "
                    "the keys that the configuration names"
                )


def _check_device(device: str) -> str:
    """What is known of the configured device, in words."""
    if device == "cuda" and not hardware.has_gpu():
        # In a cluster the GPUs are where the training tasks go, and this task asks for none.
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            return "cuda, not visible from this pod"
        raise InputError("compute.device: 'cuda' asked for, but this machine shows no NVIDIA GPU; use auto or cpu")
    if device == "mps" and sys.platform != "darwin":
        raise InputError(f"compute.device: 'mps' asked for, but this is {sys.platform}; use auto or cpu")
    return device


@contextlib.contextmanager
def _store(prepare: Prepare, output: Path) -> Iterator[LogStore]:
    """The store of the log, or one for this check alone."""
    if prepare.log_cache_dir:
        yield LogStore(Path(prepare.log_cache_dir))
    else:
        with tempfile.TemporaryDirectory(prefix=".log-", dir=output) as folder:
            yield LogStore(Path(folder))
