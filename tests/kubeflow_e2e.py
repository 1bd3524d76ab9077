"""End to end on a Kubeflow Pipelines: what a user does there, each step with what must come of it and a time limit.

    make e2e-kubeflow                               # the stub of this source tree, which runs pipelines as processes
    make e2e-kubeflow KFP_HOST=http://localhost:8888 KUBECONFIG=~/.kube/config \\
        E2E_OPTIONS="--set cluster.images.ops=... --set cluster.images.train=..."

The runs are small: the built-in shop with little of everything. They need a registry that outlives a pod: the claim
that the chart makes (with a kubeconfig), or one that --claim names. What cannot be tried is listed with its reason, and
the last line counts it: `N passed, N failed, N skipped`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pyarrow import fs

from distilrank import workflow
from pipelines.kubeflow import Kubeflow
from tests import tiny_models, warm
from tests.kfp_server import DOCUMENT
from tests.listener import Listener

ROOT = Path(__file__).resolve().parent.parent
HELM = ROOT / ".venv" / "tools" / "helm"
RELEASE = "distilrank-e2e"
MOUNT = "/distilrank"
CONFIG = ROOT / "benchmarks" / "containers.yaml"
TINY = {
    "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
    "teacher": {"lora": {"rank": 4}, "min_deviation": 0, "optimizer": {"batch_tokens": 8192}},
    "label": {"min_deviation": 0},
    "gate": {"min_score_spread": 0, "max_latency_ratio": 0},
}
"""What random weights of a few thousand parameters need, in place of the images' real models."""
POLL_SECONDS = 1.0


class NotTried(Exception):
    """Why a check cannot be made here."""


@dataclass
class Result:
    """What a command printed, and how it ended."""

    status: int
    output: str

    def __str__(self) -> str:
        return f"exit status {self.status}, output:\n{self.output}"


@dataclass
class Session:
    """One Kubeflow Pipelines, and what is known of it."""

    host: str
    folder: Path
    options: argparse.Namespace
    is_stub: bool
    listener: Listener | None = None
    claim: str = ""
    name: str = field(default_factory=lambda: f"e2e-{time.strftime('%H%M%S')}")

    @cached_property
    def kubeflow(self) -> Kubeflow:
        """Its API."""
        return Kubeflow(self.host, namespace=self.options.namespace, token_file=self.options.token_file)

    def config(self, **sections: Any) -> Path:
        """A configuration file: the small one, with the volume, the listener and `sections` in it."""
        values = yaml.safe_load(CONFIG.read_text())
        volume = self.folder / "volume" if self.is_stub else Path(MOUNT)
        layers: list[dict[str, Any]] = [
            {
                "name": self.name,
                "registry": {"uri": str(volume / self.name / "registry")},
                "compute": {"checkpoint_dir": str(volume / self.name / "resume")},
                "prepare": {"log_cache_dir": str(volume / self.name / "log"), "shards": 2},
                "cluster": {"volumes": [{"claim": self.claim, "path": str(volume)}]},
            }
        ]
        if self.is_stub:
            models = self.folder / "models"
            layers += [TINY, {part: {"model": str(models / name)} for part, name in MODELS.items()}]
        if self.listener:
            layers.append({"cluster": {"notify": {"webhook": self.listener.url}}})
        for layer in (*layers, sections):
            values = _merged(values, layer)
        path = self.folder / f"config-{len(list(self.folder.glob('config-*')))}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    def call(self, *arguments: object, minutes: float = 30) -> Result:
        """Run `python -m pipelines`."""
        command = [sys.executable, "-m", "pipelines", *map(str, arguments), "--host", self.host]
        if self.options.namespace:
            command += ["--namespace", self.options.namespace]
        if self.options.token_file:
            command += ["--token-file", str(self.options.token_file)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, timeout=60 * minutes
        )
        return Result(done.returncode, done.stdout)

    def submit(self, name: str, *arguments: object, **sections: Any) -> Result:
        """Run `distill` with the user's own settings and those of `sections`, to its end."""
        settings = [part for setting in self.options.set for part in ("--set", setting)]
        config = self.config(**sections)
        return self.call("submit", "--config", config, *settings, "--name", f"{self.name}-{name}", *arguments)

    def start(self, name: str, **sections: Any) -> str:
        """Start `distill`, and return the id of the run."""
        result = self.submit(name, "--no-wait", **sections)
        assert result.status == 0, result
        return result.output.strip().rpartition("/")[2]

    def wait_for(self, what: str, condition: Callable[[], Any], minutes: float) -> Any:
        """The first true value of `condition`."""
        deadline = time.monotonic() + 60 * minutes
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {minutes:g} minutes for {what}"
            time.sleep(POLL_SECONDS)
        return value

    def running_pod(self, run: str, task: str) -> str:
        """The pod that runs a task, empty where none does yet."""
        pods = workflow.attempts(self.kubeflow.workflow(run), task)
        return pods[-1].pod if pods and pods[-1].phase == "Running" else ""

    def kubernetes(self) -> Any:
        """The core API of Kubernetes.

        Raises:
            NotTried: no kubeconfig is given.
        """
        if not self.options.kubeconfig:
            raise NotTried("needs KUBECONFIG")
        import kubernetes

        client = kubernetes.config.new_client_from_config(config_file=self.options.kubeconfig)
        return kubernetes.client.CoreV1Api(client)

    def post_stub(self, path: str) -> None:
        """Act on the stub as nobody could on a cluster."""
        urllib.request.urlopen(urllib.request.Request(f"{self.host}{path}", method="POST"), timeout=30).close()


MODELS = {"teacher": "decoder", "student": "encoder"}
SEEDS = {"worse": 7, "scheduled": 11, "resumed": 13, "stopped": 17}
"""Of the student's training: another one is another student, which is not the champion."""


def _merged(base: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in layer.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict) and "source" not in value
        merged[key] = _merged(merged[key], value) if is_section else value  # another source has other keys
    return merged


def _student(seed: str) -> dict[str, Any]:
    return {"optimizer": {"seed": SEEDS[seed]}}


# The checks, in their order ------------------------------------------------------------------------------------------


def chart_goes_in(session: Session) -> None:
    """The chart is installed, and its volume is prepared and checked as a pod of a run would use it."""
    session.kubernetes()
    values = {
        "kubeflow": {"host": session.options.cluster_host, "namespace": session.options.runs_namespace},
        "storage": {"enabled": True, "accessMode": session.options.access_mode, "size": "5Gi", "keep": False},
        "configurations": {"shop": {"data": {"source": "demo_shop"}}},
        "schedules": [
            {
                "name": f"{session.name}-paused",
                "pipeline": "distill",
                "config": "shop",
                "cron": "0 3 1 1 *",
                "paused": True,
            }
        ],
    }
    for setting in session.options.set:
        key, _, value = setting.partition("=")
        if key.startswith("cluster.images."):
            repository, _, tag = value.rpartition(":")
            values.setdefault("images", {})[key.rpartition(".")[2]] = {"repository": repository, "tag": tag}
    path = session.folder / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    _helm(
        session,
        "upgrade",
        "--install",
        RELEASE,
        str(ROOT / "helm" / "distilrank"),
        "--values",
        str(path),
        "--timeout",
        "20m",
    )
    names = [recurring_run.display_name for recurring_run in session.kubeflow.recurring_runs()]
    assert f"{session.name}-paused" in names, names


def doctor_finds_nothing_wrong(session: Session) -> None:
    """`doctor --run` says yes to all that runs need."""
    result = session.call("doctor", "--config", session.config(), "--run", *_settings(session))
    assert result.status == 0, result


def cold_start_promotes(session: Session) -> None:
    """The first run promotes the first champion."""
    result = session.submit("first", "--fail-on-refusal")
    assert result.status == 0, result
    assert re.search(r"^succeeded; promoted as the first champion: v[0-9a-f]{12}$", result.output, re.M), result


def the_same_again_is_unchanged(session: Session) -> None:
    """The same data make the same student: unchanged, nothing wrong, and stages come from the cache."""
    started = time.monotonic()
    result = session.submit("again", "--fail-on-refusal")
    assert result.status == 0, result
    assert re.search(
        r"^succeeded; unchanged: the student is the champion v[0-9a-f]{12} itself$", result.output, re.M
    ), result
    print(f"      a cached run took {time.monotonic() - started:.0f} s")


def a_worse_student_is_refused(session: Session) -> None:
    """A student below the policy's minimum is refused, by name of the check, with exit status 3."""
    gate = {"min_metrics": {"ndcg_at_10": 0.9999}}
    result = session.submit("worse", "--fail-on-refusal", gate=gate, student=_student("worse"))
    assert result.status == 3, result
    assert re.search(r"^succeeded; the student was refused \(.*minimum_ndcg_at_10.*\)$", result.output, re.M), result


def bad_input_is_reported(session: Session) -> None:
    """A run that cannot read its data fails in preflight, with the reason and the exit status of bad input."""
    data = {"source": "home_depot", "path": "/not/there"}
    result = session.submit("wrong", data=data)
    assert result.status == 2, result
    assert re.search(r"^✗ preflight: bad input: .*/not/there", result.output, re.M), result


def notifications_tell_the_same(session: Session) -> None:
    """Each of these ends was told, in the same words."""
    if session.listener is None:
        raise NotTried("needs --listen ADDRESS, an address of this machine that pods reach")
    expected = {
        "first": r"promoted as the first champion: v[0-9a-f]{12}",
        "again": r"unchanged: the student is the champion v[0-9a-f]{12} itself",
        "worse": r"the student was refused \(.*minimum_ndcg_at_10.*\)",
        "wrong": r"failed: preflight: bad input: .*/not/there.*",
    }
    texts = [post["text"] for post in session.listener.posts]
    for name, words in expected.items():
        pattern = rf"distilrank {session.name}-{name}: {words}"
        assert any(re.fullmatch(pattern, text) for text in texts), f"no message {pattern!r} among {texts}"


def a_recurring_run_promotes(session: Session) -> None:
    """A schedule starts a run, and that run promotes, though Kubeflow gives it no name."""
    due = datetime.now(session.options.zone) + timedelta(minutes=2)
    config = session.config(
        student=_student("scheduled"), gate={"champion_margin": 1, "anchor_margin": 1, "slices": False}
    )
    overrides = dict(setting.split("=", 1) for setting in session.options.set)
    plan = {
        "name": f"{session.name}-soon",
        "pipeline": "distill",
        "config": str(config),
        "cron": f"{due.minute} {due.hour} {due.day} {due.month} *",
        "set": {key: yaml.safe_load(value) for key, value in overrides.items()},
    }
    path = session.folder / "schedules.yaml"
    path.write_text(yaml.safe_dump({"owner": session.name, "schedules": [plan]}))
    result = session.call("schedule", "apply", "--file", path)
    assert result.status == 0, result
    (recurring,) = [
        recurring_run
        for recurring_run in session.kubeflow.recurring_runs()
        if recurring_run.display_name == plan["name"]
    ]
    try:

        def started() -> Any:
            runs = session.kubeflow.runs()
            return next((run for run in runs if run.recurring_run_id == recurring.recurring_run_id), None)

        run = session.wait_for("the schedule's run", started, 5)
        end = session.wait_for("its end", lambda: _ended(session, run.run_id), 30)
        assert end.summary.startswith("promoted v"), end.summary
    finally:
        result = session.call("schedule", "delete", "--file", path)
    assert result.status == 0, result


def a_deleted_pod_is_started_again(session: Session) -> None:
    """A pod that is deleted while it trains is started again and resumes from its checkpoint."""
    core = None if session.is_stub else session.kubernetes()
    run = session.start("resumed", **_slow_teacher(session), cluster={"stages": {"teacher": {"retries": 2}}})
    pod = session.wait_for("a checkpoint of the teacher", lambda: _trains(session, run), 15)
    if core is None:
        session.post_stub(f"/stub/runs/{run}/tasks/train-teacher:delete-pod")
    else:
        core.delete_namespaced_pod(pod, session.options.runs_namespace)
    end = session.wait_for("the end of the run", lambda: _ended(session, run), 30)
    assert end.state == "SUCCEEDED", end.summary
    log = session.kubeflow.task_log(run, "train-teacher")
    assert "resumes after step" in log, log[-2000:]


def a_terminated_run_is_retried(session: Session) -> None:
    """A run that somebody terminates is reported as stopped by a person; a retry resumes from its checkpoint."""
    run = session.start("stopped", **_slow_teacher(session, rate=6e-4), student=_student("stopped"))
    session.wait_for("a checkpoint of the teacher", lambda: _trains(session, run), 15)
    session.kubeflow.terminate(run)
    end = session.wait_for("the end of the run", lambda: _ended(session, run), 5)
    assert end.summary == "stopped by a person", end.summary
    result = session.call("retry", run)
    assert result.status == 0, result
    assert "succeeded" in result.output.splitlines()[-1], result
    log = session.kubeflow.task_log(run, "train-teacher")
    assert "resumes after step" in log, log[-2000:]


def an_expired_artifact_is_named(session: Session) -> None:
    """What a lifecycle rule deleted below a cached result is named in one line, with the way out, which works."""
    result = session.submit("kept")
    assert result.status == 0, result
    _expire(session, "teacher")
    result = session.submit("expired")
    assert result.status == 2 and "--no-cache" in result.output, result
    assert re.search(r"teacher.*(expired|gone)", result.output), result
    result = session.submit("afresh", "--no-cache")
    assert result.status == 0, result


def chart_goes_out(session: Session) -> None:
    """The chart leaves neither schedules nor Jobs."""
    core = session.kubernetes()
    _helm(session, "uninstall", RELEASE, "--timeout", "10m")
    names = [recurring_run.display_name for recurring_run in session.kubeflow.recurring_runs()]
    assert f"{session.name}-paused" not in names, names
    import kubernetes

    jobs = kubernetes.client.BatchV1Api(core.api_client).list_namespaced_job(session.options.runs_namespace)
    left = [job.metadata.name for job in jobs.items if job.metadata.name.startswith(RELEASE)]
    assert not left, left


CHECKS: tuple[tuple[Callable[[Session], None], float], ...] = (
    (chart_goes_in, 25),
    (doctor_finds_nothing_wrong, 10),
    (cold_start_promotes, 30),
    (the_same_again_is_unchanged, 10),
    (a_worse_student_is_refused, 30),
    (bad_input_is_reported, 5),
    (notifications_tell_the_same, 1),
    (a_recurring_run_promotes, 40),
    (a_deleted_pod_is_started_again, 45),
    (a_terminated_run_is_retried, 45),
    (an_expired_artifact_is_named, 45),
    (chart_goes_out, 15),
)
"""Checks in order, each with its time limit in minutes."""


def _settings(session: Session) -> list[str]:
    return [part for setting in session.options.set for part in ("--set", setting)]


def _slow_teacher(session: Session, rate: float = 5e-4) -> dict[str, Any]:
    """A teacher that trains long enough to be met at work, and writes a checkpoint each second."""
    epochs = 60 if session.is_stub else 6
    optimizer = {"epochs": epochs, "batch_tokens": 512, "learning_rate": rate, "evaluations": 1}
    return {"compute": {"checkpoint_seconds": 1}, "teacher": {"optimizer": optimizer}}


def _trains(session: Session, run: str) -> str:
    """The pod of a teacher that has written a checkpoint, empty where it has not come so far."""
    end = _ended(session, run)
    assert end is None, f"the run ended before: {end.summary}"
    pod = session.running_pod(run, "train-teacher")
    log = session.kubeflow.task_log(run, "train-teacher") if pod else ""
    # Two lines are seconds apart, and a checkpoint is a second old at most.
    return pod if log.count("| teacher | progress |") >= 2 else ""


def _ended(session: Session, run_id: str) -> Any:
    run = session.kubeflow.run(run_id)
    assert run is not None, f"run {run_id} is gone"
    return session.kubeflow.end(run_id) if run.state in ("SUCCEEDED", "FAILED", "CANCELED") else None


def _expire(session: Session, name: str) -> None:
    """Delete every artifact `name` of the runs made here, as a lifecycle rule would."""
    if session.is_stub:
        folders = [path for path in (session.folder / "stub" / "artifacts").rglob(name) if path.is_dir()]
        assert folders, f"no artifact {name} below {session.folder}"
        for folder in folders:
            shutil.rmtree(folder)
        return
    if not session.options.s3_endpoint:
        raise NotTried("needs --s3-endpoint HOST:PORT of the object store, and its keys")
    store = fs.S3FileSystem(
        access_key=session.options.s3_access_key,
        secret_key=session.options.s3_secret_key,
        endpoint_override=session.options.s3_endpoint,
        scheme="http",
    )
    runs = {run.run_id for run in session.kubeflow.runs() if run.display_name.startswith(session.name)}
    selector = fs.FileSelector(session.options.s3_root, recursive=True)
    files = [info.path for info in store.get_file_info(selector) if info.type == fs.FileType.File]
    expired = [path for path in files if set(path.split("/")) & runs and name in path.split("/")[:-1]]
    assert expired, f"no artifact {name} below {session.options.s3_root}"
    for path in expired:
        store.delete_file(path)


def _helm(session: Session, *arguments: str) -> None:
    command = [str(HELM), *arguments, "--kubeconfig", session.options.kubeconfig]
    # Hooks are waited for. Not --wait: a claim may be bound only when the hook that comes then makes a pod for it.
    command += ["--namespace", session.options.runs_namespace]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Running them --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _stub(folder: Path) -> Iterator[str]:
    """The stub of this source tree with tiny models; its host."""
    tiny_models.write(folder / "models")
    (folder / "volume").mkdir()  # what pods would have mounted
    command = [sys.executable, "-m", "tests.kfp_cluster", "--port", "0", "--folder", str(folder / "stub")]
    with warm.python() as python:
        environment = os.environ | python.environment
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()
            process.wait()


def run(session: Session, only: list[str]) -> int:
    """Make the checks, print a line for each, and return how many failed."""
    passed, failed, skipped = 0, 0, 0
    for check, minutes in CHECKS:
        name = check.__name__.replace("_", " ")
        if only and check.__name__ not in only:
            print(f"  -   {name}: not asked for (--only)", flush=True)
            skipped += 1
            continue
        started = time.monotonic()
        try:
            check(session)
            seconds = time.monotonic() - started
            assert seconds < 60 * minutes, f"took {seconds / 60:.1f} minutes, at most {minutes:g}"
        except NotTried as reason:
            print(f"  -   {name}: not tried: {reason}", flush=True)
            skipped += 1
        except Exception as error:  # a check that breaks must not keep the others from being made
            print(f"  ✗   {name} ({time.monotonic() - started:.0f} s)", flush=True)
            text = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
            print("\n".join(f"        {line}" for line in text.splitlines()), flush=True)
            failed += 1
        else:
            print(f"  ✓   {name} ({seconds:.0f} s)", flush=True)
            passed += 1
    print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return failed


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--host", default=os.environ.get("KFP_HOST", ""), help="URL of Kubeflow Pipelines; empty: the stub.")
    add(
        "--namespace",
        default=os.environ.get("KFP_NAMESPACE", ""),
        help="Namespace, in multi-user mode that of your profile.",
    )
    add(
        "--token-file",
        type=Path,
        default=os.environ.get("KFP_TOKEN_FILE"),
        help="File with a bearer token.",
    )
    add(
        "--kubeconfig",
        default=os.environ.get("KUBECONFIG", ""),
        help="Kubeconfig for checks that need Kubernetes.",
    )
    add("--cluster-host", default="http://ml-pipeline:8888", help="URL of the API from pods.")
    add("--runs-namespace", default="kubeflow", help="Namespace of the runs' pods.")
    add("--claim", default="", help="PersistentVolumeClaim that pods can write to; empty: the chart's.")
    add("--access-mode", default="ReadWriteOnce", help="Access mode of the chart's claim.")
    add("--listen", default="", metavar="ADDRESS", help="Address of this machine that pods can reach.")
    add("--time-zone", default="UTC", help="Time zone in which the cluster evaluates schedules.")
    add("--s3-endpoint", default="", metavar="HOST:PORT", help="Object store.")
    add("--s3-access-key", default="minio")
    add("--s3-secret-key", default="minio123")
    add("--s3-root", default="mlpipeline/v2/artifacts", help="Bucket and prefix of artifacts.")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="Override a setting. Repeatable.",
    )
    add("--only", action="append", default=[], choices=[check.__name__ for check, _ in CHECKS], metavar="CHECK")
    add("--keep", action="store_true", help="Keep the working folder.")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; exit status 1 if one failed."""
    from zoneinfo import ZoneInfo

    options = _parse(arguments)
    options.zone = ZoneInfo(options.time_zone)
    if options.host and not (options.claim or options.kubeconfig):
        print("e2e-kubeflow: expected KUBECONFIG, or --claim NAME of a volume that pods can write", file=sys.stderr)
        return 2
    if not options.host and not DOCUMENT.exists():
        print(
            f"e2e-kubeflow: the stub validates requests by {DOCUMENT}, which does not exist; expected KFP_HOST",
            file=sys.stderr,
        )
        return 2
    folder = Path(tempfile.mkdtemp(prefix="distilrank-e2e-"))
    with contextlib.ExitStack() as stack:
        if not options.keep:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        host = options.host or stack.enter_context(_stub(folder))
        address = options.listen or ("" if options.host else "127.0.0.1")
        listener = stack.enter_context(Listener(address)) if address else None
        session = Session(host, folder, options, not options.host, listener, options.claim or RELEASE)
        print(f"{host}{' (the stub of this source tree)' if session.is_stub else ''}, files in {folder}", flush=True)
        return 1 if run(session, options.only) else 0


if __name__ == "__main__":
    raise SystemExit(main())
