"""`distilrank registry`: list, compare, verify, promote and roll back versions."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from distilrank import config
from distilrank import registry as registries
from distilrank.config import flatten
from distilrank.core.errors import InputError
from distilrank.core.progress import printable
from distilrank.core.terminal import AsJson, console, new_table, print_json
from distilrank.registry.mirror import Mirrored
from distilrank.rendering.formatting import format_plain
from distilrank.rendering.labels import METRICS, metric_label

HELP = """Manage promoted students: list and compare versions, and choose the one in use.

A version never changes. An alias such as `champion` points to a version, and the history has every move with its
reason.

    # List the versions and their aliases; show evidence and origin of the version in use
    distilrank registry list
    distilrank registry show champion
    # Show the differences between two versions
    distilrank registry diff anchor champion

    # Go back to the previous version
    distilrank registry rollback --reason "empty results for sofas"
    # Put a version in use by hand
    distilrank registry promote v3f2a91c07be4 --reason "the sofa index is repaired"

For a registry in a bucket, add `--registry gs://shop-models/ranker`. For a cache, a promoter account or a mirror, add a
configuration with a section `registry`: `--config shop.yaml`.
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help=HELP)

Uri = Annotated[
    str,
    typer.Option(
        "--registry",
        metavar="URI",
        help="A folder or gs://BUCKET/PREFIX; overrides the configuration.",
        show_default=config.Registry().uri,
    ),
]
Settings = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration of a run; only its section `registry` is used."),
]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="Id of a version, or an alias.")]
Alias = Annotated[str, typer.Option(metavar="NAME", help="`champion` is in use; `anchor` is the fixed baseline.")]
Expected = Annotated[
    str,
    typer.Option("--expect", metavar="VERSION", help="Fail unless the alias points to this version."),
]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Reason for the history.")]

MIB = 2**20


@app.command("list")
def list_versions(registry: Uri = "", settings: Settings = None, as_json: AsJson = False) -> None:
    """List all versions, oldest first, with the aliases that name them.

    Example: `distilrank registry list --registry gs://shop-models/ranker`
    """
    backend = _connect(registry, settings)
    aliases = backend.aliases()
    manifests = sorted((backend.manifest(version) for version in backend.versions()), key=_age)
    if as_json:
        print_json([_summary(manifest) | {"aliases": _naming(aliases, manifest["id"])} for manifest in manifests])
        return
    if not manifests:
        print(f"registry {backend.uri}: no version yet; a run that passes the gate publishes the first")
        return
    headings = ("version", "", "created", METRICS["ndcg_at_10"].label, METRICS["ece"].label, "outcome", "in place of")
    table = new_table(*headings, title=f"registry {backend.uri}")
    for manifest in manifests:
        replaced, names = manifest["verdict"]["champion"], _naming(aliases, manifest["id"])
        table.add_row(
            manifest["id"],
            ", ".join(names),
            manifest["created"],
            format_plain(manifest["metrics"].get("ndcg_at_10")),
            format_plain(manifest["metrics"].get("ece")),
            manifest["verdict"]["outcome"].replace("_", " "),
            replaced["id"] if replaced else "-",
            style="bold" if registries.CHAMPION in names else None,
        )
    console().print(table)


@app.command("show")
def show_version(
    version: Version = registries.CHAMPION, registry: Uri = "", settings: Settings = None, as_json: AsJson = False
) -> None:
    """Show one version: metrics, checks, override, origin and history.

    Example: `distilrank registry show champion`
    """
    backend = _connect(registry, settings)
    manifest = backend.manifest(registries.resolve(backend, version))
    names = _naming(backend.aliases(), manifest["id"])
    past = [record for record in backend.history() if manifest["id"] in (record["version"], record["previous"])]
    if as_json:
        print_json({**manifest, "aliases": names, "history": past})
        return
    out = console()
    out.print(", ".join([manifest["id"], *names, f"created {manifest['created']}"]), style="bold")
    metrics = new_table("metric", "student", title="On the test queries")
    for name, value in manifest["metrics"].items():
        metrics.add_row(metric_label(name), format_plain(value))
    out.print(metrics)
    verdict = manifest["verdict"]
    checks = new_table("check", "", "detail", title=f"Verdict: {verdict['outcome'].replace('_', ' ')}")
    for check in verdict["checks"]:
        checks.add_row(check["name"], "passed" if check["passed"] else "failed", check["detail"])
    out.print(checks)
    if override := verdict.get("override"):
        out.print(f"overridden by {override['by']} until {override['until']}: {override['reason']}")
    origins = new_table("property", "value", title="Origin")
    for name, value in _origins(manifest).items():
        origins.add_row(name, value)
    out.print(origins)
    moves = new_table("time", "alias", "action", "version", "in place of", "by", "reason", title="History")
    for record in past:
        cells = (record[key] for key in ("since", "alias", "action", "version", "previous", "by", "reason"))
        moves.add_row(*(cell or "-" for cell in cells))
    out.print(moves)


@app.command("diff")
def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="Id of a version, or an alias.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Id of a version, or an alias; differences are B minus A.")],
    registry: Uri = "",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Show the differences between two versions: metrics, settings, origin and files.

    The metrics of two versions are comparable only if both were evaluated on the same test set: compare its digest.

    Example: `distilrank registry diff anchor champion`
    """
    backend = _connect(registry, settings)
    left, right = (backend.manifest(registries.resolve(backend, name)) for name in (before, after))
    differences = diff(left, right)
    if as_json:
        print_json(differences)
        return
    out, ids = console(), (left["id"], right["id"])
    metrics = new_table("metric", *ids, "difference", title="Metrics on the test queries")
    for row in differences["measures"]:
        values = format_plain(row["a"]), format_plain(row["b"]), format_plain(row["difference"], sign="+")
        metrics.add_row(metric_label(row["name"]), *values)
    out.print(metrics)
    for title, rows in (("Settings", differences["settings"]), ("Origin", differences["origin"])):
        table = new_table(title=f"{title} that differ")
        for heading in ("name", *ids):
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(row["name"], *("-" if row[side] is None else str(row[side]) for side in ("a", "b")))
        out.print(table if rows else f"{title}: no difference")
    files = new_table("file", *(f"{version}, bytes" for version in ids), title="Files that differ")
    for row in differences["files"]:
        files.add_row(row["name"], *("-" if row[side] is None else f"{row[side]:,}" for side in ("a", "b")))
    out.print(files if differences["files"] else "Files: no difference")


@app.command("promote")
def promote(
    version: Version,
    reason: Reason,
    alias: Alias = registries.CHAMPION,
    expect: Expected = "",
    registry: Uri = "",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias to an existing version by hand, without the gate.

    Every byte of the version is checked first. If someone else moves the alias in the meantime, their move stands.

    Example: `distilrank registry promote champion --alias anchor --reason "yearly review"`
    """
    backend = _connect(registry, settings)
    target = registries.resolve(backend, version)
    current = backend.alias(alias)
    expected = registries.resolve(backend, expect) if expect else current
    checked_reason = _check_reason(reason)
    with _progress_on_stderr():
        backend.verify(target)
        backend.move(alias, target, expected, action="move", reason=checked_reason)
    _print_move(backend, alias, "was already" if current == target else "", as_json)


@app.command("rollback")
def roll_back(
    reason: Reason,
    alias: Alias = registries.CHAMPION,
    expect: Expected = "",
    registry: Uri = "",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Undo the latest move of an alias. No version is removed, and a second rollback undoes one more move.

    With `--expect`, the version to roll back from, the command can be repeated safely: only the first one has an
    effect. No run promotes that version again; to put it back, use `distilrank registry promote`.

    Example: `distilrank registry rollback --expect v3f2a91c07be4 --reason "empty results for sofas"`
    """
    backend = _connect(registry, settings)
    current, expected = backend.alias(alias), registries.resolve(backend, expect) if expect else ""
    with _progress_on_stderr():
        version = backend.rollback(alias, _check_reason(reason), expected)
    _print_move(backend, alias, "was already" if current == version else "", as_json)


@app.command("verify")
def verify_versions(
    version: Annotated[
        str, typer.Argument(metavar="[VERSION]", help="Id of a version, or an alias; all versions if omitted.")
    ] = "",
    registry: Uri = "",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte against its digest, the history of every alias, and that every alias points to a version.

    Example: `distilrank registry verify champion`
    """
    backend = _connect(registry, settings)
    backend.history()  # otherwise a damaged history would make every version appear damaged
    versions = [registries.resolve(backend, version)] if version else backend.versions()
    problems: dict[str, str] = {}
    for name in versions:
        try:
            backend.verify(name)
        except InputError as error:
            problems[name] = str(error)
    if as_json:
        print_json([{"id": name, "problem": problems.get(name)} for name in versions])
    else:
        table = new_table("version", "state", title=f"registry {backend.uri}")
        for name in versions:
            table.add_row(name, problems.get(name, "every digest matches"))
        console().print(table)
    if problems:
        damaged = ", ".join(problems)
        raise InputError(f"registry {backend.uri}: {len(problems)} of {len(versions)} versions damaged: {damaged}")
    registries.require_champion(backend)
    for alias in backend.aliases():
        registries.resolve(backend, alias)


@app.command("gc")
def collect(
    keep: Annotated[
        int, typer.Option(metavar="N", help="Keep the versions in the last N records of each alias.", min=1)
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, without removing it.")
    ] = False,
    registry: Uri = "",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Remove versions that no alias names or has named recently. History and test evaluations stay.

    Versions published less than a day ago stay too, since a run may be about to promote them.

    Example: `distilrank registry gc --keep 10 --dry-run`
    """
    backend = _connect(registry, settings)
    sizes = {version: _bytes(backend, version) for version in backend.collect(keep, dry_run=True)}
    with _progress_on_stderr():
        removed = list(sizes) if dry_run else backend.collect(keep, dry_run=False)
    rows = [{"id": version, "bytes": sizes.get(version, 0)} for version in removed]
    total = sum(sizes.get(version, 0) for version in removed)
    if as_json:
        print_json({"removed": rows, "bytes": total, "dry_run": dry_run})
        return
    action = "would be removed" if dry_run else "removed"
    for version in removed:
        print(f"{version}: {action}, {sizes.get(version, 0) / MIB:.1f} MiB")
    print(f"registry {backend.uri}: {len(removed)} {action}, {total / MIB:.1f} MiB in total")


@app.command("mirror")
def mirror(settings: Settings = None, registry: Uri = "", as_json: AsJson = False) -> None:
    """Bring the Kubeflow Model Registry of `registry.mirror` up to date.

    Every promotion and rollback does so automatically. Use this command for a new mirror, or after an outage.

    Example: `distilrank registry mirror --config shop.yaml`
    """
    backend = _connect(registry, settings)
    if not isinstance(backend, Mirrored):
        raise InputError(f"registry {backend.uri}: no mirror, expected registry.mirror in the file that --config names")
    written = backend.mirror.sync(backend)
    if as_json:
        print_json(written)
        return
    for line in written:
        print(printable(line))
    print(f"{backend.mirror.url}: {len(written)} changes" if written else f"{backend.mirror.url}: up to date")


def diff(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two manifests.

    Returns:
        `measures`: all metrics, with `difference` (b minus a); `settings` and `origin`: the entries that differ, by
        `name`; `files`: sizes in bytes of the files that differ, None for a version without the file.
    """
    metrics = []
    for name in left["metrics"] | right["metrics"]:
        a, b = left["metrics"].get(name), right["metrics"].get(name)
        metrics.append({"name": name, "a": a, "b": b, "difference": None if a is None or b is None else b - a})
    ours, theirs = left["files"], right["files"]
    changed = [name for name in sorted(ours | theirs) if _digest(ours, name) != _digest(theirs, name)]
    return {
        "a": left["id"],
        "b": right["id"],
        "measures": metrics,
        "settings": _differing(_settings(left), _settings(right)),
        "origin": _differing(_origins(left), _origins(right)),
        "files": [
            {"name": name, **{side: files.get(name, {}).get("bytes") for side, files in (("a", ours), ("b", theirs))}}
            for name in changed
        ],
    }


def _differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = dict.fromkeys([*left, *right])
    return [
        {"name": name, "a": left.get(name), "b": right.get(name)} for name in names if left.get(name) != right.get(name)
    ]


def _settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting of the version's run by its key in a configuration file."""
    stages = {name: stage["config"] for name, stage in manifest["lineage"]["stages"].items()}
    return flatten(stages.pop("preflight") | stages)


def _origins(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the origin of a version apart from settings: run, images, models, test set and digests."""
    lineage, verdict = manifest["lineage"], manifest["verdict"]
    test_set = verdict.get("test_set") or {}
    return {
        "run": lineage["name"],
        "distilrank": lineage["release"],
        **{f"image {name}": reference for name, reference in lineage["images"].items()},
        **{f"compared with {name}": parent or "-" for name, parent in lineage["parents"].items()},
        **{f"{name} model": base for name, base in manifest["models"].items()},
        **{name.replace("_", " "): str(value) for name, value in lineage["resolved"].items() if value},
        **({"test set": test_set["digest"]} if test_set.get("digest") else {}),
        **{f"digest of {name}": digest for name, digest in manifest["digests"].items()},
    }


def _digest(files: Mapping[str, Any], name: str) -> str | None:
    return files[name]["digest"] if name in files else None


def _bytes(backend: registries.Backend, version: str) -> int:
    try:
        return sum(file["bytes"] for file in backend.manifest(version)["files"].values())
    except InputError:  # a damaged version can be removed like any other
        return 0


def _connect(registry: str, settings: Path | None) -> registries.Backend:
    section = config.load(settings).registry if settings else config.Registry()
    backend = registries.connect(section.model_copy(update={"uri": registry}) if registry else section)
    if not backend.exists():
        raise InputError(f"registry {backend.uri}: there is no registry; a run that passes the gate creates it")
    return backend


@contextlib.contextmanager
def _progress_on_stderr() -> Iterator[None]:
    """Send progress messages to standard error, since standard output is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _check_reason(reason: str) -> str:
    if not reason.strip():
        raise InputError("--reason: is empty, expected a reason, which the history keeps")
    try:
        reason.encode()
    except UnicodeEncodeError:  # the shell passed bytes that are not UTF-8
        raise InputError(f"--reason: is not UTF-8, got {reason[:60]!a}") from None
    return " ".join(reason.split())


def _print_move(backend: registries.Backend, alias: str, note: str, as_json: bool) -> None:
    record = [record for record in backend.history() if record["alias"] == alias][-1]
    if as_json:
        print_json(record)
    else:
        line = f"{alias}: {record['version']}, before: {record['previous'] or 'none'}{f' ({note})' if note else ''}"
        print(printable(line))


def _naming(aliases: Mapping[str, str], version: str) -> list[str]:
    return [alias for alias, target in aliases.items() if target == version]


def _summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": manifest["id"],
        "created": manifest["created"],
        "outcome": manifest["verdict"]["outcome"],
        "metrics": manifest["metrics"],
    }


def _age(manifest: Mapping[str, Any]) -> tuple[str, str]:
    return manifest["created"], manifest["id"]
