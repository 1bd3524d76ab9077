"""Trainings that are killed, shared out over processes, or go wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from distilrank.config import Compute, Lora, Optimizer, Teacher, TrainJob
from distilrank.core import artifacts
from distilrank.core.errors import InputError, RunStopped
from distilrank.modeling.runtime import setup_runtime
from distilrank.training import launch, loop
from distilrank.training.checkpoints import Checkpoints
from tests.small_teachers import CPU, config, digest, train, write_judgements


@pytest.fixture(scope="module")
def judgements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judgements(tmp_path_factory.mktemp("prepared") / "judgements")


# Restart --------------------------------------------------------------------------------------------------------------

TRAIN = """
import sys
from pathlib import Path
from distilrank.teacher import train as teacher
from distilrank.config import Compute, Teacher
config, compute, judgements, output = sys.argv[1:]
teacher.train(
    Teacher.model_validate_json(config),
    Compute.model_validate_json(compute),
    judgements=Path(judgements),
    model_digest="d" * 64,
    output=Path(output),
)
"""


def start(teacher_config: Teacher, compute: Compute, judgements: Path, output: Path) -> subprocess.Popen:
    arguments = [teacher_config.model_dump_json(), compute.model_dump_json(), str(judgements), str(output)]
    return subprocess.Popen([sys.executable, "-c", TRAIN, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(
    models: Path, judgements: Path, tmp_path: Path
) -> None:
    teacher_config = config(models, lora=Lora(rank=4, alpha=8, dropout=0.1))  # so that random states matter too
    whole = digest(train(teacher_config, judgements, tmp_path / "whole"))
    compute = CPU.model_copy(update={"checkpoint_dir": str(tmp_path / "checkpoints"), "checkpoint_seconds": 0.0})
    process = start(teacher_config, compute, judgements, tmp_path / "killed")
    deadline = time.monotonic() + 90
    while not list((tmp_path / "checkpoints").glob("teacher-*/step-0000001*.pt")):  # some steps in, by its own files
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / artifacts.SEAL).exists()
    process = start(teacher_config, compute, judgements, tmp_path / "killed")
    output = process.communicate()[0]
    assert process.returncode == 0 and "resumes after step" in output
    assert digest(tmp_path / "killed") == whole
    assert not list((tmp_path / "checkpoints").iterdir()), "checkpoints go when what they lead to is safe"


def test_a_kill_between_any_two_steps_costs_nothing(models: Path, judgements: Path, tmp_path: Path, monkeypatch):
    teacher_config = config(models, optimizer={"epochs": 2, "accumulate": 2})
    whole = digest(train(teacher_config, judgements, tmp_path / "whole"))
    save, folder = Checkpoints.save, tmp_path / "checkpoints"

    class Killed(Exception):
        pass

    def save_and_die(self, step, state):
        save(self, step, state)
        if step in deaths:
            deaths.remove(step)
            raise Killed

    deaths = {1, 2, 4, 5}
    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    while deaths:
        with pytest.raises(Killed):
            train(teacher_config, judgements, tmp_path / "broken", checkpoint_dir=str(folder), checkpoint_seconds=0.0)
    assert (
        digest(
            train(teacher_config, judgements, tmp_path / "broken", checkpoint_dir=str(folder), checkpoint_seconds=0.0)
        )
        == whole
    )


def test_checkpoints_of_other_inputs_are_not_taken(models: Path, tmp_path: Path) -> None:
    compute = CPU.model_copy(update={"checkpoint_dir": str(tmp_path)})
    fp32, bf16 = setup_runtime(CPU), setup_runtime(CPU.model_copy(update={"precision": "bf16"}))
    keys = {
        loop.open_checkpoints(*arguments).folder
        for arguments in (
            ("teacher", compute, fp32, {"judgements": "a"}, config(models)),
            ("teacher", compute, fp32, {"judgements": "a"}, config(models, lift_over_bm25=0.5)),  # not of its course
            ("teacher", compute, fp32, {"judgements": "b"}, config(models)),
            ("student", compute, fp32, {"judgements": "a"}, config(models)),
            ("teacher", compute, fp32, {"judgements": "a"}, config(models, batches="queries")),
            ("teacher", compute, bf16, {"judgements": "a"}, config(models)),
        )
    }
    assert len(keys) == 5
    assert loop.open_checkpoints("teacher", CPU, fp32, {}, config(models)).folder is None


# Several processes ----------------------------------------------------------------------------------------------------


def test_two_processes_take_the_steps_of_one(models: Path, judgements: Path, tmp_path: Path) -> None:
    teacher_config = config(models, lora=Lora(rank=4, alpha=8), optimizer={"accumulate": 3, "epochs": 3})
    # three batches a step are rounded up to four, so that each of the two has two
    alone = config(models, lora=Lora(rank=4, alpha=8), optimizer={"accumulate": 4, "epochs": 3})
    single = train(alone, judgements, tmp_path / "single")
    double = train(teacher_config, judgements, tmp_path / "double", processes=2)
    curves = [artifacts.read_json(folder / "metrics.json")["curve"] for folder in (single, double)]
    assert [row["step"] for row in curves[0]] == [row["step"] for row in curves[1]]
    for ours, theirs in zip(*curves):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours["dev_ndcg_at_10"] == pytest.approx(theirs["dev_ndcg_at_10"], abs=5e-3)
    assert {path.name for path in double.iterdir()} == {path.name for path in single.iterdir()}
    artifacts.verify(double)


@pytest.mark.usefixtures("warm_workers")
def test_an_error_in_a_training_of_several_processes_reads_as_in_one_process(
    models: Path, judgements: Path, tmp_path: Path
):
    with pytest.raises(InputError, match="nowhere"):
        train(config(models, model=str(tmp_path / "nowhere")), judgements, tmp_path / "t", processes=2)
    assert not (tmp_path / "t" / artifacts.SEAL).exists()


@pytest.mark.parametrize("kind", ["finite", "memory"])
@pytest.mark.usefixtures("warm_workers")
def test_an_error_in_another_process_is_reported(
    models: Path, judgements: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = tmp_path / "site" / "sitecustomize.py"  # what Python imports first, in the workers too
    hook.parent.mkdir()
    trouble = 'float("nan") * value' if kind == "finite" else "boom()"
    hook.write_text(
        f"""
import os, sys
if os.environ.get("RANK") == "1":
    import torch
    from distilrank.training import losses
    def boom():
        raise torch.OutOfMemoryError("no")
    honest = losses.soft_cross_entropy
    def soft_cross_entropy(*arguments):
        value = honest(*arguments)
        return {trouble}
    losses.soft_cross_entropy = soft_cross_entropy
"""
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(hook.parent), os.environ.get("PYTHONPATH", "")]))
    expected = r"the loss became nan at step 1, in a batch" if kind == "finite" else "out of memory on cpu"
    with pytest.raises(RunStopped, match=expected):
        train(config(models), judgements, tmp_path / "t", processes=2)


@pytest.mark.usefixtures("warm_workers")
def test_nodes_report_what_the_stage_reports(models: Path, judgements: Path, tmp_path: Path, monkeypatch) -> None:
    jobs = []

    def run(name, command, compute, stage, *, heartbeat):  # a cluster of one node
        jobs.append(name)
        assert heartbeat.parent == Path(command[-1]).parent
        heartbeat.touch()
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        if subprocess.run([*torchrun, *command[1:]], check=False).returncode:
            raise RunStopped("the TrainJob has failed")

    monkeypatch.setattr(launch.runner, "run", run)
    nodes = {
        "nodes": 2,
        "checkpoint_dir": str(tmp_path / "volume" / "checkpoints"),
        "trainjob": TrainJob(claim="shared", mount=str(tmp_path / "volume"), gpus=0),
    }
    output = train(config(models), judgements, tmp_path / "t", **nodes)
    artifacts.verify(output)
    with pytest.raises(RunStopped, match=r"expected a lift above 0\.9"):
        train(config(models, lift_over_bm25=0.9), judgements, tmp_path / "u", **nodes)
    assert len(set(jobs)) == 2, "each is a TrainJob of its own"


@pytest.mark.usefixtures("warm_workers")
def test_nodes_that_nobody_waits_for_end_and_resume_with_the_next_attempt(
    models: Path, judgements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hook = tmp_path / "site" / "sitecustomize.py"
    artifacts.write_text(hook, "from distilrank.training.trainjob import heartbeat\nheartbeat.BEAT_SECONDS = 0.01\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(hook.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(launch.heartbeat, "BEAT_SECONDS", 0.01)
    silent = True

    def run(name, command, compute, stage, *, heartbeat):  # a cluster of one node
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        with contextlib.nullcontext() if silent else launch.heartbeat.beating(heartbeat):
            if silent:  # the pod that made the job was killed ten minutes ago
                heartbeat.touch()
                os.utime(heartbeat, (time.time() - 600,) * 2)
            if subprocess.run([*torchrun, *command[1:]], check=False).returncode:
                raise RunStopped("the TrainJob has failed")

    monkeypatch.setattr(launch.runner, "run", run)
    nodes = {
        "nodes": 2,
        "checkpoint_dir": str(tmp_path / "volume" / "checkpoints"),
        "trainjob": TrainJob(claim="shared", mount=str(tmp_path / "volume"), gpus=0, orphan_minutes=5),
    }
    with pytest.raises(RunStopped, match="the TrainJob has failed"):
        train(config(models), judgements, tmp_path / "t", **nodes)
    assert "teacher | stopped | no pod has waited for this training for 5 minutes" in capfd.readouterr().out
    silent = False
    artifacts.verify(train(config(models), judgements, tmp_path / "t", **nodes))


def test_two_trainings_of_one_process_may_differ_in_precision(models: Path, judgements: Path, tmp_path: Path) -> None:
    for number, lora in enumerate((Lora(rank=4), Lora(rank=4, dropout=0.1))):  # folded: no autocast; not: autocast
        train(config(models, lora=lora), judgements, tmp_path / str(number), precision="bf16")


def test_workers_are_distinguished_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launch.is_distributed(CPU) and launch.is_main()
    two = CPU.model_copy(update={"processes": 2})
    assert launch.is_distributed(two) and launch.processes(two) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not launch.is_distributed(two) and not launch.is_main()


@pytest.mark.parametrize("accumulate, processes, size", [(1, 1, 1), (3, 1, 3), (1, 4, 4), (4, 2, 4), (5, 2, 6)])
def test_a_step_gives_each_process_the_same_number_of_batches(accumulate: int, processes: int, size: int) -> None:
    epochs = [[np.array([number]) for number in range(11)], [np.array([number]) for number in range(3)]]
    steps = loop.split_into_steps(epochs, accumulate, processes)
    assert [len(batches) for epoch, batches in steps if epoch == 1][:-1] == [size] * ((11 - 1) // size)
    for epoch, batches in enumerate(epochs, start=1):
        assert [int(batch[0]) for number, group in steps if number == epoch for batch in group] == [
            int(batch[0]) for batch in batches
        ]


# What goes wrong ------------------------------------------------------------------------------------------------------


def run_fit(loss, *, evaluate=lambda current: 0.5, optimizer: dict | None = None) -> loop.Outcome:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    settings = {"epochs": 1, "learning_rate": 0.1, "evaluations": 2, "warmup": 0.0, **(optimizer or {})}
    return loop.fit(
        loop.Logits(model, torch.device("cpu")),
        [[np.array([row, row + 1]) for row in range(0, 12, 2)]],
        options=loop.FitOptions("teacher", Optimizer(**settings), setup_runtime(CPU)),
        hooks=loop.FitHooks(
            loss=lambda current, rows: loss(model, rows),
            evaluate=evaluate,
            name_rows=lambda rows: f"rows {rows.tolist()}",
        ),
        checkpoints=Checkpoints(None),
    )


def test_a_loss_that_is_not_finite_names_its_rows() -> None:
    def loss(model, rows):
        value = model(torch.ones(2)).sum()
        return value * float("nan") if 6 in rows else value

    with pytest.raises(RunStopped, match=r"the loss became nan at step 4, in a batch of 2 \(rows \[6, 7\]\); lower te"):
        run_fit(loss)


def test_a_gradient_that_is_not_finite_names_its_rows() -> None:
    def loss(model, rows):  # the root of 0 is finite, its slope is not
        return (model(torch.zeros(2)) - model.bias).abs().sqrt().sum()

    with pytest.raises(RunStopped, match=r"gradient became nan at step 1, in a batch of 2 \(rows \[0, 1\]\)"):
        run_fit(loss)


def test_too_little_memory_is_reported_with_advice() -> None:
    def loss(model, rows):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunStopped, match=r"out of memory on cpu .* lower teacher\.optimizer\.batch_tokens and raise"):
        run_fit(loss)


def test_training_stops_early_with_the_best_weights() -> None:
    scores, weights = iter([0.7, 0.9, 0.8, 0.6, 0.5, 0.4]), []

    def evaluate(model):
        weights.append(model.weight.detach().clone())
        return next(scores)

    model = {}

    def loss(current, rows):
        model["it"] = current
        return current(torch.ones(2)).square().sum()

    outcome = run_fit(loss, evaluate=evaluate, optimizer={"evaluations": 6, "patience": 2})
    assert [row["dev_ndcg_at_10"] for row in outcome.curve] == [0.7, 0.9, 0.8, 0.6]
    assert outcome.best_score == 0.9 and outcome.best_step == 2
    torch.testing.assert_close(model["it"].weight, weights[1])
