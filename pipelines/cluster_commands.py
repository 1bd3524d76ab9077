"""`submit`, `retry` and `schedule`: the commands that talk to a Kubeflow cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Optional

import typer
from rich.console import Console

from distilrank.config import load, parameters
from distilrank.core.errors import InputError, RunStopped
from distilrank.workflow import STAGES, STOPPED, SUCCEEDED, Cause, RunEnd
from pipelines.options import CaFile, ConfigFile, Experiment, Host, Namespace, Overrides, Pipeline, TokenFile

if TYPE_CHECKING:
    from pipelines.kubeflow import Kubeflow
    from pipelines.recurring_runs.spec import DesiredRun, Schedules

EXPERIMENT = "distilrank"

schedule = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help=(
        "Keep recurring runs as a file declares them.\n\n"
        "The file names an owner, and each schedule's pipeline, configuration and cron (five fields, in the cluster's "
        "time zone; six have the second first):\n\n"
        "[bold]owner: search\n\n"
        "schedules:\n\n"
        '- {name: distill-weekly, pipeline: distill, config: shop.yaml, cron: "0 3 * * 1"}\n\n'
        '- {name: monitor-daily, pipeline: monitor, config: shop.yaml, cron: "30 5 * * *"}[/]\n\n'
        "`apply` creates, exchanges, pauses and deletes what it takes; a second time it writes nothing. Recurring runs "
        "of other owners, and those made by hand, are never touched. docs/kubeflow.md tells the rest."
    ),
)

ScheduleFile = Annotated[Path, typer.Option("--file", help="The schedule file.")]
Names = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation
    typer.Argument(metavar="[NAME]...", help="Only these schedules.", show_default="all of the owner's"),
]


def submit(
    config: ConfigFile,
    host: Host,
    pipeline: Annotated[Pipeline, typer.Argument(help="Which pipeline.")] = Pipeline.distill,
    overrides: Overrides = None,
    namespace: Namespace = "",
    experiment: Experiment = EXPERIMENT,
    name: Annotated[
        str, typer.Option(help="The run's name.", show_default="the configuration's name and the time")
    ] = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    compiled: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--pipeline", help="Submit this compiled pipeline, with the parameters of --config, its pods as they are."
        ),
    ] = None,
    cache: Annotated[bool, typer.Option(help="Take over stages of earlier runs that would do the same again.")] = True,
    wait: Annotated[bool, typer.Option(help="Show the stages as they go, and end as the run ends.")] = True,
    timeout_minutes: Annotated[
        float, typer.Option(min=0, help="Wait no longer than this, with exit status 1; the run goes on. 0: no limit.")
    ] = 0.0,
    retry_run: Annotated[
        int,
        typer.Option(
            min=0, help="Run again what failed, so often at most, if its end may pass: an eviction, a lost node."
        ),
    ] = 0,
    fail_on_refusal: Annotated[
        bool, typer.Option("--fail-on-refusal", help="Exit with 3 if the student is refused.")
    ] = False,
) -> None:
    """Run a pipeline once on a Kubeflow cluster.

    Compiles it with the configuration, uploads it unless the cluster has these bytes already, starts a run, prints
    where to look at it, and waits.

    Exit status: 0 the run succeeded (or was started, with --no-wait), 1 it failed, was stopped or took too long, 2 bad
    input, also of a stage, 3 the student was refused and --fail-on-refusal was given, 130 interrupted: the run goes on.
    """
    from pipelines import capacity, packages
    from pipelines import submit as submission

    if fail_on_refusal and (not wait or pipeline != Pipeline.distill):
        raise InputError("--fail-on-refusal: only of distill, and only with --wait")
    if retry_run and not wait:
        raise InputError(f"--retry-run {retry_run}: only with --wait; `python -m pipelines retry` does it later")
    _check_lengths(experiment, name)
    settings = load(config, overrides)
    if compiled is None:
        package, given = packages.compile_package(pipeline, settings, scheduled=False), {}
    else:
        package = submission.read_package(compiled)
        if package.pipeline != pipeline:
            raise InputError(f"--pipeline {compiled}: holds pipeline {package.pipeline!r}, expected {pipeline}")
        capacity.check(package.documents(), settings)
        given = {key: value for key, value in parameters(settings).items() if key in submission.inputs(package)}
    stages = submission.stages(package)
    name = name or f"{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    console = _console()
    kubeflow = _connect(host, namespace, token_file, ca_file)
    kubeflow.check_version(console.print)
    run_id = submission.submit(
        kubeflow,
        package if cache else submission.uncached(package),
        settings,
        name=name,
        experiment=experiment,
        parameters=given | {"name": name},
    )
    url = kubeflow.run_url(run_id)
    console.print(f"{pipeline} {name}: {url}")
    if not wait:
        return
    with _waiting(console, url):
        end = submission.follow(
            kubeflow,
            run_id,
            stages,
            timeout_minutes=timeout_minutes,
            retries=retry_run,
            say=lambda line: console.print(f"  {line}"),
        )
    _show_end(console, end)
    if end.state == SUCCEEDED:
        if fail_on_refusal:
            if not end.outcome:
                raise RuntimeError(f"{kubeflow.host}: gives no log of the stage gate, so its verdict is unknown: {url}")
            if end.outcome == "refused":
                raise typer.Exit(3)
        return
    _raise_failure(end, url)


def retry(
    host: Host,
    run: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Id or name of a run.", show_default="with --failed-since, all that qualify"),
    ] = None,
    failed_since: Annotated[
        str, typer.Option(metavar="AGE", help="Instead of one run: all that failed within e.g. 90m, 6h, 2d.")
    ] = "",
    max_retries: Annotated[
        int, typer.Option(min=1, help="With --failed-since: leave a run alone that was retried so often.")
    ] = 1,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With --failed-since: only runs that this schedule file's owner's schedules started."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Retry a run whose input was refused: what it reads is mended by now.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="With RUN: show the stages as they go, and end as the run ends.")] = True,
    timeout_minutes: Annotated[
        float, typer.Option(min=0, help="Wait no longer than this, with exit status 1; the run goes on. 0: no limit.")
    ] = 0.0,
    namespace: Namespace = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Run again what failed of a run; stages that succeeded stay, and checkpoints are resumed.

    Kubeflow itself starts a pod again only if it was deleted; one that was evicted, ran out of memory or ended with an
    error stays failed, whatever `retries` says. With --failed-since only ends that may pass are retried: evictions,
    lost nodes, lost storage, and once a pod that ran out of memory; never bad input.

    Exit status: as for `submit`; with --failed-since 0 if there was nothing to do, 1 if a retry was refused.
    """
    from pipelines import retries
    from pipelines.submit import follow

    if bool(run) == bool(failed_since):
        raise InputError("retry: expected either RUN or --failed-since AGE")
    if run and file:
        raise InputError("--file: only with --failed-since")
    if force and failed_since:
        raise InputError("--force: only with RUN")
    since = retries.parse_age(failed_since) if failed_since else None
    owner = _owner(file) if file else ""
    kubeflow = _connect(host, namespace, token_file, ca_file)
    console = _console()
    if since is not None:
        refusals = []
        for line, is_refused in retries.retry_failed(kubeflow, since=since, max_retries=max_retries, owner=owner):
            console.print(line)  # at once: what was retried is told, whatever comes after it
            refusals.append(is_refused)
        if not refusals:
            console.print("nothing to retry")
        if any(refusals):
            raise typer.Exit(1)
        return
    assert run is not None
    before = retries.retry_one(kubeflow, run, force=force)
    url = kubeflow.run_url(before.run_id)
    console.print(f"{run} is retried: {url}")
    if not wait:
        return
    with _waiting(console, url):
        end = follow(
            kubeflow,
            before.run_id,
            STAGES,
            timeout_minutes=timeout_minutes,
            failed_at=before.finished_at,
            say=lambda line: console.print(f"  {line}"),
        )
    _show_end(console, end)
    if end.state != SUCCEEDED:
        _raise_failure(end, url)


@contextmanager
def _waiting(console: Console, url: str) -> Iterator[None]:
    """Wait for a run; an interruption ends the wait and not the run, and errors say so."""
    try:
        with console.status("waiting") if console.is_terminal else nullcontext():
            yield
    except KeyboardInterrupt:
        console.print(f"interrupted; the run goes on: {url}")
        raise typer.Exit(130) from None
    except (InputError, RuntimeError) as error:
        raise type(error)(f"{error}; the run goes on: {url}") from None


def _show_end(console: Console, end: RunEnd) -> None:
    """Print how a run ended, and of what failed all that is known."""
    for failure in dict.fromkeys(end.failures):
        console.print(f"✗ {failure}", style="red")
        for line in failure.log_tail:
            console.print(f"    {line}")
        if failure.hint:
            console.print(f"    {failure.hint}")
    if end.state == SUCCEEDED:
        console.print(end.summary if end.summary == "succeeded" else f"succeeded; {end.summary}")


def _raise_failure(end: RunEnd, url: str) -> NoReturn:
    """End as a run ended that did not succeed: bad input is the user's to mend, and has an exit status of its own."""
    if end.state == STOPPED:
        raise RunStopped(f"the run was {end.summary}: {url}")
    if any(failure.cause == Cause.BAD_INPUT for failure in end.failures):
        raise InputError(f"{end.error}: {url}")
    raise RunStopped(f"the run {end.summary}: {url}")


@schedule.command()
def apply(
    file: ScheduleFile,
    host: Host,
    names: Names = None,
    namespace: Namespace = "",
    experiment: Experiment = EXPERIMENT,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Make the recurring runs what the file declares.

    What the owner has and the file does not is deleted, unless NAMEs are given: then nothing else is touched. A changed
    schedule gets a new recurring run; at no moment are two of one name enabled. Whatever interrupts it, the same
    command again completes it.
    """
    from pipelines.recurring_runs import reconcile

    console = _console()
    _check_lengths(experiment)
    declared, wanted = _declared(file, experiment, names)
    kubeflow = _connect(host, namespace, token_file, ca_file)
    kubeflow.check_version(console.print)
    writes = reconcile.apply(
        kubeflow, declared.owner, wanted, zone=declared.zone, names=names or [], say=lambda line: console.print(line)
    )
    for one in wanted:
        if not names or one.name in names:
            tick = reconcile.next_tick(one, declared.zone)
            when = "paused" if one.schedule.paused else f"next {tick:%Y-%m-%d %H:%M:%S %Z}" if tick else "never again"
            console.print(f"{one.name}: {one.schedule.pipeline}, {one.schedule.cron} in {declared.timezone}, {when}")
    console.print(f"{writes} changes" if writes else "nothing to change")


@schedule.command()
def diff(
    file: ScheduleFile,
    host: Host,
    names: Names = None,
    namespace: Namespace = "",
    experiment: Experiment = EXPERIMENT,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Say what `apply` would do, and do nothing; exit status 3 if there is something."""
    from pipelines.recurring_runs import reconcile

    console = _console()
    _check_lengths(experiment)
    declared, wanted = _declared(file, experiment, names)
    kubeflow = _connect(host, namespace, token_file, ca_file)
    kubeflow.check_version(console.print)
    found = reconcile.mark_broken(kubeflow, reconcile.existing(kubeflow, declared.owner))
    steps = reconcile.plan(wanted, found, names or [])
    for step in steps:
        console.print(str(step))
    if steps:
        raise typer.Exit(3)
    console.print("nothing to change")


@schedule.command()
def pause(
    file: ScheduleFile,
    host: Host,
    names: Names = None,
    namespace: Namespace = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Start no more runs, from now on; those under way go on. The next `apply` follows the file again."""
    owner = _owner(file)
    _switch(_connect(host, namespace, token_file, ca_file), owner, names, on=False)


@schedule.command()
def resume(
    file: ScheduleFile,
    host: Host,
    names: Names = None,
    namespace: Namespace = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Start runs again, the last missed one at once. The next `apply` follows the file again."""
    owner = _owner(file)
    _switch(_connect(host, namespace, token_file, ca_file), owner, names, on=True)


@schedule.command()
def delete(
    file: ScheduleFile,
    host: Host,
    names: Names = None,
    namespace: Namespace = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Delete the owner's recurring runs, declared or not; their runs stay. That there are none is fine."""
    from pipelines.recurring_runs import reconcile

    owner = _owner(file)
    gone = reconcile.delete(_connect(host, namespace, token_file, ca_file), owner, names or [])
    _console().print("\n".join(f"{name}: deleted" for name in gone) or f"{owner} has nothing to delete")


def doctor(
    config: ConfigFile,
    host: Host,
    overrides: Overrides = None,
    run: Annotated[
        bool, typer.Option("--run", help="Submit four small runs too, and report what their pods are given.")
    ] = False,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A schedule file, whose time zone is checked."),
    ] = None,
    timeout_minutes: Annotated[float, typer.Option(min=0.1, help="How long the runs may take.")] = 5.0,
    namespace: Namespace = "",
    experiment: Experiment = EXPERIMENT,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """See whether a cluster has what runs need, condition by condition, and what to do about those that do not hold.

    Takes seconds; with --run about a minute, for it takes a pod to see volumes, Secrets, images and the object store.
    The last rows tell how pods end there, where no is as good an answer as yes.

    Exit status: 0 nothing is wrong, 1 something is, 2 bad input.
    """
    from pipelines import doctor as examination
    from pipelines.recurring_runs import spec

    _check_lengths(experiment)
    console = _console()
    settings = load(config, overrides)
    if file:
        spec.read(file)
    findings = []

    def show(rows: Iterable[examination.Finding]) -> None:
        for finding in rows:
            findings.append(finding)
            console.print("\n".join(finding.lines()))

    try:
        kubeflow = _connect(host, namespace, token_file, ca_file)
        show(examination.examine(kubeflow, settings, experiment=experiment, file=file, run=run))
        if run:
            probed = examination.probe(kubeflow, settings, experiment=experiment, timeout_minutes=timeout_minutes)
            show(probed)
    except (InputError, RuntimeError) as error:
        show([examination.Finding("may submit runs" if findings else "host answers", "no", str(error))])
    wrong = sum(finding.is_wrong for finding in findings)
    console.print(f"{wrong} wrong" if wrong else "nothing is wrong")
    if wrong:
        raise typer.Exit(1)


def _owner(file: Path) -> str:
    from pipelines.recurring_runs import spec

    return spec.read(file).owner


def _switch(kubeflow: Kubeflow, owner: str, names: list[str] | None, *, on: bool) -> None:
    from pipelines.recurring_runs import reconcile

    console = _console()
    changed = reconcile.switch(kubeflow, owner, names or [], on=on)
    for name in changed:
        console.print(f"{name}: {'resumed' if on else 'paused'}")
    console.print("until the next `schedule apply`, which follows the file" if changed else "nothing to change")


def _declared(file: Path, experiment: str, names: list[str] | None) -> tuple[Schedules, list[DesiredRun]]:
    """The schedule file, and each of its schedules compiled."""
    from pipelines.recurring_runs import spec

    declared = spec.read(file)
    known = [one.name for one in declared.schedules]
    for name in names or []:
        if name not in known:
            expected = f"expected one of {', '.join(known)}" if known else "for it declares none"
            raise InputError(f"{file}: no schedule is called {name!r}, {expected}")
    return declared, list(spec.compiled(declared, file, experiment=experiment))


def _check_lengths(experiment: str, name: str = "") -> None:
    """Refuse names that Kubeflow's database would refuse, which may be after it has started what they name."""
    from pipelines.kubeflow import EXPERIMENT_CHARACTERS, TEXT_CHARACTERS

    for option, text, limit in (("--experiment", experiment, EXPERIMENT_CHARACTERS), ("--name", name, TEXT_CHARACTERS)):
        if len(text) > limit:
            raise InputError(f"{option} {text[:40]}...: has {len(text)} characters, expected at most {limit}")


def _connect(host: str, namespace: str, token_file: Path | None, ca_file: Path | None) -> Kubeflow:
    from pipelines.kubeflow import Kubeflow

    return Kubeflow(host, namespace=namespace, token_file=token_file, ca_file=ca_file)


def _console() -> Console:
    # The stream as it is now, and lines as long as they are: URLs are copied from them.
    return Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True)
