"""`python -m pipelines submit`, `retry` and `doctor`: single runs on a Kubeflow cluster, and whether it suits them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer
from rich.console import Console

from distilrank.config import load, parameters
from distilrank.core.errors import InputError, RunStopped
from distilrank.workflow import STAGES, STOPPED, SUCCEEDED, Cause, RunEnd
from pipelines.options import (
    DEFAULT_EXPERIMENT,
    Cache,
    CaFile,
    ConfigFile,
    Experiment,
    Host,
    Namespace,
    Overrides,
    Pipeline,
    Timeout,
    TokenFile,
    check_lengths,
    connect,
    new_console,
)
from pipelines.schedule_commands import read_owner


def submit(
    config: ConfigFile,
    host: Host,
    pipeline: Annotated[Pipeline, typer.Argument(help="Pipeline to run.")] = Pipeline.distill,
    overrides: Overrides = None,
    namespace: Namespace = "",
    experiment: Experiment = DEFAULT_EXPERIMENT,
    name: Annotated[
        str, typer.Option(help="Name of the run.", show_default="the configuration's name and the time")
    ] = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    compiled: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--pipeline",
            help="Submit this compiled pipeline with its own pod settings and the parameters of --config.",
        ),
    ] = None,
    cache: Cache = True,
    wait: Annotated[bool, typer.Option(help="Wait for the end of the run, and show its stages.")] = True,
    timeout_minutes: Timeout = 0.0,
    retry_run: Annotated[
        int,
        typer.Option(
            min=0, help="Maximum number of retries after a transient failure, such as an eviction or a lost node."
        ),
    ] = 0,
    fail_on_refusal: Annotated[
        bool, typer.Option("--fail-on-refusal", help="Exit with status 3 if the gate refuses the student.")
    ] = False,
) -> None:
    """Run a pipeline once on a Kubeflow cluster.

    Compiles the pipeline with the configuration, uploads it unless the cluster has the same bytes already, starts a
    run, prints its URL, and waits for its end.

    Exit status: 0 the run succeeded (with --no-wait: was started), 1 it failed, was stopped or timed out, 2 bad input,
    also if a stage found it, 3 the student was refused and --fail-on-refusal was given, 130 interrupted; the run
    continues.
    """
    from pipelines import capacity, packages
    from pipelines import submit as submission

    if fail_on_refusal and (not wait or pipeline != Pipeline.distill):
        raise InputError("--fail-on-refusal: expected the pipeline distill and --wait")
    if retry_run and not wait:
        raise InputError(f"--retry-run {retry_run}: expected --wait; without it, use `python -m pipelines retry` later")
    check_lengths(experiment, name)
    settings = load(config, overrides)
    if compiled is None:
        package, values = packages.compile_package(pipeline, settings, scheduled=False), {}
    else:
        package = submission.read_package(compiled)
        if package.pipeline != pipeline:
            raise InputError(f"--pipeline {compiled}: contains the pipeline {package.pipeline!r}, expected {pipeline}")
        capacity.check(package.documents(), settings)
        values = {key: value for key, value in parameters(settings).items() if key in submission.inputs(package)}
    stages = submission.stages(package)
    name = name or f"{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    console = new_console()
    kubeflow = connect(host, namespace, token_file, ca_file)
    kubeflow.check_version(console.print)
    run_id = submission.submit(
        kubeflow,
        package if cache else submission.uncached(package),
        settings,
        name=name,
        experiment=experiment,
        parameters=values | {"name": name},
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
            report=lambda line: console.print(f"  {line}"),
        )
    _show_end(console, end)
    if end.state == SUCCEEDED:
        if fail_on_refusal:
            if not end.outcome:
                raise RuntimeError(f"{kubeflow.host}: no log of the stage gate, so the verdict is unknown: {url}")
            if end.outcome == "refused":
                raise typer.Exit(3)
        return
    _raise_failure(end, url)


def retry(
    host: Host,
    run: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="ID or name of a run.", show_default="with --failed-since, all that qualify"),
    ] = None,
    failed_since: Annotated[
        str,
        typer.Option(metavar="AGE", help="Instead of RUN: all runs that failed within e.g. 90m, 6h or 2d."),
    ] = "",
    max_retries: Annotated[
        int, typer.Option(min=1, help="With --failed-since: maximum number of retries of one run.")
    ] = 1,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With --failed-since: only runs that the schedules of this file's owner started."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Retry a run that failed on bad input, if the data has been corrected."),
    ] = False,
    wait: Annotated[bool, typer.Option(help="With RUN: wait for the end of the run, and show its stages.")] = True,
    timeout_minutes: Timeout = 0.0,
    namespace: Namespace = "",
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Rerun the failed stages of a run. Succeeded stages are kept, and training resumes from checkpoints.

    Kubeflow itself restarts a pod only if it was deleted. A pod that was evicted, ran out of memory or ended with an
    error stays failed, whatever `retries` says. With --failed-since, only transient failures are retried: evictions,
    lost nodes, lost storage, and once a pod that ran out of memory; never bad input.

    Exit status: as for `submit`; with --failed-since 0 if there was nothing to do, 1 if a retry was refused.
    """
    from pipelines import retries
    from pipelines.submit import follow

    if bool(run) == bool(failed_since):
        raise InputError("retry: expected either RUN or --failed-since AGE")
    if run and file:
        raise InputError("--file: expected --failed-since with it")
    if force and failed_since:
        raise InputError("--force: expected RUN, not --failed-since")
    since = retries.parse_age(failed_since) if failed_since else None
    owner = read_owner(file) if file else ""
    kubeflow = connect(host, namespace, token_file, ca_file)
    console = new_console()
    if since is not None:
        refusals = []
        for line, is_refused in retries.retry_failed(kubeflow, since=since, max_retries=max_retries, owner=owner):
            console.print(line)  # immediately, so that it is shown even if a later retry fails
            refusals.append(is_refused)
        if not refusals:
            console.print("nothing to retry")
        if any(refusals):
            raise typer.Exit(1)
        return
    assert run is not None
    failed_run = retries.retry_one(kubeflow, run, force=force)
    url = kubeflow.run_url(failed_run.run_id)
    console.print(f"{run}: retried: {url}")
    if not wait:
        return
    with _waiting(console, url):
        end = follow(
            kubeflow,
            failed_run.run_id,
            STAGES,
            timeout_minutes=timeout_minutes,
            failed_at=failed_run.finished_at,
            report=lambda line: console.print(f"  {line}"),
        )
    _show_end(console, end)
    if end.state != SUCCEEDED:
        _raise_failure(end, url)


@contextmanager
def _waiting(console: Console, url: str) -> Iterator[None]:
    """Context of waiting for a run: an interruption or an error ends the wait but not the run, and says so."""
    try:
        with console.status("waiting") if console.is_terminal else nullcontext():
            yield
    except KeyboardInterrupt:
        console.print(f"interrupted; the run continues: {url}")
        raise typer.Exit(130) from None
    except (InputError, RuntimeError) as error:
        raise type(error)(f"{error}; the run continues: {url}") from None


def _show_end(console: Console, end: RunEnd) -> None:
    """Print how a run ended: each failure with its log and a hint, or a summary."""
    for failure in dict.fromkeys(end.failures):
        console.print(f"✗ {failure}", style="red")
        for line in failure.log_tail:
            console.print(f"    {line}")
        if failure.hint:
            console.print(f"    {failure.hint}")
    if end.state == SUCCEEDED:
        console.print(end.summary if end.summary == "succeeded" else f"succeeded; {end.summary}")


def _raise_failure(end: RunEnd, url: str) -> NoReturn:
    """Raise the error for a run that did not succeed; bad input has a separate exit status."""
    if end.state == STOPPED:
        raise RunStopped(f"the run was {end.summary}: {url}")
    if any(failure.cause == Cause.BAD_INPUT for failure in end.failures):
        raise InputError(f"{end.error}: {url}")
    raise RunStopped(f"the run {end.summary}: {url}")


def doctor(
    config: ConfigFile,
    host: Host,
    overrides: Overrides = None,
    run: Annotated[
        bool, typer.Option("--run", help="Also submit four small runs, and report what their pods are given.")
    ] = False,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Schedule file whose time zone is checked."),
    ] = None,
    timeout_minutes: Annotated[float, typer.Option(min=0.1, help="Time limit of the runs.")] = 5.0,
    namespace: Namespace = "",
    experiment: Experiment = DEFAULT_EXPERIMENT,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
) -> None:
    """Check whether a cluster meets the requirements of runs, and say what to do about those that it does not meet.

    Takes seconds, with --run about a minute: volumes, Secrets, images and the object store can only be checked from a
    pod. The last rows describe how pods end on the cluster; there, "no" is not a problem.

    Exit status: 0 without problems, 1 with problems, 2 bad input.
    """
    from pipelines import doctor as examination
    from pipelines.recurring_runs import spec

    check_lengths(experiment)
    console = new_console()
    settings = load(config, overrides)
    if file:
        spec.read(file)
    findings = []

    def show(rows: Iterable[examination.Finding]) -> None:
        for finding in rows:
            findings.append(finding)
            console.print("\n".join(finding.lines()))

    try:
        kubeflow = connect(host, namespace, token_file, ca_file)
        show(examination.examine(kubeflow, settings, experiment=experiment, file=file, run=run))
        if run:
            probed = examination.probe(kubeflow, settings, experiment=experiment, timeout_minutes=timeout_minutes)
            show(probed)
    except (InputError, RuntimeError) as error:
        show([examination.Finding("may submit runs" if findings else "host responds", "no", str(error))])
    problems = sum(finding.is_problem for finding in findings)
    console.print(f"{problems} problem{'' if problems == 1 else 's'}")
    if problems:
        raise typer.Exit(1)
