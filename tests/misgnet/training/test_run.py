"""Tests whole training runs on small tiles: their output, resuming after interruptions, and replacing older runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="the network needs the [train] extra")

from safetensors import safe_open

from misgnet.checkpoint import load_checkpoint, load_network, save_checkpoint
from misgnet.evaluation import evaluate, predict_probability
from misgnet.synthetic import write_split
from misgnet.training import Counters, EpochReport, Recipe, Report, Start, StepReport, resume, train
from misgnet.training.losses import LossWeights
from misgnet_runtime.errors import GateFailed, InputError, UsageError
from misgnet_runtime.raster.dataset import TileSet, stack
from support.paths import DEMO_WEIGHTS as WEIGHTS
from support.paths import ROOT

SHORT = Recipe(batch=2, epochs=3, learning_rate=1e-4, precision="fp32", seed=3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    write_split(folder / "train", 6, seed=1, size=64)
    write_split(folder / "val", 3, seed=2, size=64)
    return folder


def sets(data: Path) -> tuple[TileSet, TileSet]:
    return TileSet.open(data / "train", 64), TileSet.open(data / "val", 64)


def entries(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [entry for line in lines if (entry := json.loads(line))["kind"] == kind]


def losses(run: Path) -> list[float]:
    steps = entries(run, "step")
    assert [entry["step"] for entry in steps] == list(range(len(steps)))
    return [entry["loss"] for entry in steps]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run without interruptions."""
    run = tmp_path_factory.mktemp("whole") / "run"
    outcome = train(*sets(data), run, SHORT, device=CPU)
    assert (outcome.step, outcome.epoch, outcome.finished) == (9, 3, True)
    return run


def misgnet(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'runtime'}"}
    command = [sys.executable, "-m", "misgnet", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **options)


def as_options(recipe: Recipe) -> list[object]:
    return ["--tile", 64, "--batch", recipe.batch, "--epochs", recipe.epochs, "--learning-rate", recipe.learning_rate,
            "--precision", recipe.precision, "--seed", recipe.seed]  # fmt: skip


def test_run_writes_weights_log_curves_and_state(whole: Path, data: Path) -> None:
    names = {path.name for path in whole.iterdir()} - {"tensorboard"}
    assert names == {
        "best.safetensors", "best_fp16.safetensors", "last.safetensors", "state.safetensors", "config.json",
        "log.jsonl", "curves.png", "curves.svg",
    }  # fmt: skip
    validations = entries(whole, "validation")
    best = max(entry["f1"] for entry in validations)
    assert [entry["epoch"] for entry in validations] == [1, 2, 3]
    assert evaluate(load_network(whole / "best.safetensors"), sets(data)[1]).f1 == pytest.approx(best, abs=1e-6)
    last = evaluate(load_network(whole / "last.safetensors"), sets(data)[1]).f1
    assert last == pytest.approx(validations[-1]["f1"], abs=1e-6)
    with safe_open(whole / "best_fp16.safetensors", framework="pt") as file:
        assert file.metadata()["val_f1"] == f"{best:.4f}"
    assert len(losses(whole)) == 9 and all(np.isfinite(losses(whole)))
    assert validations[0]["train_loss"] == pytest.approx(np.mean(losses(whole)[:3]))
    with Image.open(whole / "curves.png") as picture:
        assert min(picture.size) > 300
    assert "<svg" in (whole / "curves.svg").read_text()
    config = json.loads((whole / "config.json").read_text())
    assert config["recipe"]["learning_rate"] == 1e-4 and config["tiles"]["train"]["count"] == 6


def test_tensorboard_shows_the_numbers_of_the_log(whole: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    board = accumulator.EventAccumulator(str(whole / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses(whole))
    found = [event.value for event in board.Scalars("val/f1")]
    assert found == pytest.approx([entry["f1"] for entry in entries(whole, "validation")])


@pytest.mark.slow
def test_same_seed_repeats_the_run_and_another_seed_does_not(whole: Path, data: Path, tmp_path: Path) -> None:
    train(*sets(data), tmp_path / "same", SHORT, device=CPU, workers=1)
    train(*sets(data), tmp_path / "other", replace(SHORT, seed=4), device=CPU)
    assert losses(tmp_path / "same") == losses(whole)
    assert losses(tmp_path / "other") != losses(whole)
    first, second = (load_checkpoint(run / "last.safetensors") for run in (whole, tmp_path / "same"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_resume_after_stop_equals_an_uninterrupted_run(
    stop_after: int, whole: Path, data: Path, tmp_path: Path
) -> None:
    reports: list[Report] = []
    run = tmp_path / "run"

    def stopped() -> bool:
        return sum(isinstance(report, StepReport) for report in reports) == stop_after

    outcome = train(*sets(data), run, SHORT, device=CPU, listen=reports.append, stopped=stopped)
    assert (outcome.step, outcome.finished) == (stop_after, False)
    assert resume(*sets(data), run, device=CPU).finished
    assert losses(run) == losses(whole)
    assert [e["f1"] for e in entries(run, "validation")] == [e["f1"] for e in entries(whole, "validation")]
    for name in ("best.safetensors", "last.safetensors"):
        mine, theirs = load_checkpoint(run / name), load_checkpoint(whole / name)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs), name


@pytest.mark.slow
def test_resume_after_kill_equals_an_uninterrupted_run(whole: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = misgnet("train", data, "-o", run, *as_options(SHORT))
    _wait_for(lambda: run.exists() and (run / "log.jsonl").exists() and len(_lines(run)) >= 6, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (run / "state.safetensors").exists() and not (run / "last.safetensors").exists()
    with (run / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')  # as left by a kill during a write
    again = misgnet("train", data, "-o", run, "--tile", 64, "--resume")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert losses(run) == pytest.approx(losses(whole), abs=1e-5)
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in whole.iterdir())


@pytest.mark.slow
def test_interrupt_saves_the_state_and_names_the_resume_option(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = misgnet("train", data, "-o", run, *as_options(replace(SHORT, epochs=500)))
    _wait_for(lambda: (run / "log.jsonl").exists() and len(_lines(run)) >= 2, process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" in output and "Traceback" not in errors
    with safe_open(run / "state.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["counters"])["step"] == len(entries(run, "step"))


def test_resume_does_not_change_a_finished_run(whole: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert resume(*sets(data), whole, device=CPU).finished
    assert before == {path: path.stat().st_mtime_ns for path in whole.iterdir()}


def test_resume_refuses_other_options_tiles_or_damaged_files(whole: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--learning-rate 0.0001, not 0.001"):
        resume(*sets(data), whole, {"learning_rate": 1e-3}, device=CPU)
    with pytest.raises(UsageError, match="--focal-gamma"):
        resume(*sets(data), whole, {"focal_gamma": 1.0}, device=CPU)
    train_tiles, val_tiles = sets(data)
    with pytest.raises(InputError, match="other tiles in train: their number was 6 and is 3 in"):
        resume(val_tiles, val_tiles, whole, device=CPU)
    with pytest.raises(InputError, match="there is no run to resume"):
        resume(train_tiles, val_tiles, tmp_path / "nowhere", device=CPU)
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "state.safetensors"):
        (broken / name).write_bytes((whole / name).read_bytes()[: 10**6])
    with pytest.raises(InputError, match=r"state\.safetensors is damaged"):
        resume(train_tiles, val_tiles, broken, device=CPU)


@pytest.mark.slow
def test_image_damaged_in_epoch_3_loses_no_finished_epoch(whole: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "train", 6, seed=1, size=64)
    write_split(tmp_path / "val", 3, seed=2, size=64)
    path, run = tmp_path / "train" / "B" / "pair_00003.png", tmp_path / "run"
    content = path.read_bytes()

    def damage(report: Report) -> None:
        if isinstance(report, EpochReport) and report.epoch == 2:
            path.write_bytes(content[:200])

    with pytest.raises(InputError, match=r"pair_00003.png is damaged.*--resume; .*run holds 2 finished epochs"):
        train(*sets(tmp_path), run, SHORT, device=CPU, listen=damage)
    path.write_bytes(content)
    assert resume(*sets(tmp_path), run, device=CPU).finished
    assert losses(run) == losses(whole)


def test_error_names_a_label_with_invalid_values(tmp_path: Path) -> None:
    write_split(tmp_path / "train", 2, seed=1, size=64)
    write_split(tmp_path / "val", 2, seed=2, size=64)
    label = tmp_path / "train" / "label" / "pair_00001.png"
    Image.fromarray((np.arange(64 * 64) % 255).astype(np.uint8).reshape(64, 64)).save(label)
    with pytest.raises(InputError, match=r"pair_00001.png has the values 0, 1, 2.*0 and 255"):
        train(*sets(tmp_path), tmp_path / "run", SHORT, device=CPU)


@pytest.mark.slow
def test_full_disk_is_reported_and_existing_files_are_kept(data: Path, tmp_path: Path) -> None:
    """Simulated by a limit on the size of files: the weights fit (40 MB), the state (152 MB) does not."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 20, 100 << 20))

    run = tmp_path / "run"
    process = misgnet("train", data, "-o", run, *as_options(SHORT), preexec_fn=limit)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 4
    assert "state.safetensors cannot be written: File too large" in errors and "Traceback" not in errors
    assert not [path for path in run.iterdir() if path.name.startswith(".") or path.name == "state.safetensors"]
    load_checkpoint(run / "best.safetensors")


@pytest.mark.slow
def test_older_run_is_kept_until_the_new_one_has_saved_a_state(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(*sets(data), run, replace(SHORT, epochs=1), device=CPU)
    weights = (run / "best.safetensors").read_bytes()
    with pytest.raises(UsageError, match="exists"):
        train(*sets(data), run, SHORT, device=CPU)
    with pytest.raises(GateFailed, match="diverged at step"):
        train(*sets(data), run, replace(SHORT, learning_rate=1e30, clip_norm=0, epochs=9), device=CPU, force=True)
    assert (run / "best.safetensors").read_bytes() == weights
    train(*sets(data), run, replace(SHORT, epochs=1, seed=9), device=CPU, force=True)
    assert (run / "best.safetensors").read_bytes() != weights
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_older_run_is_restored_after_a_kill_before_the_first_save(data: Path, tmp_path: Path) -> None:
    run, old = tmp_path / "run", tmp_path / ".run.old"
    for folder in (run, old):
        folder.mkdir()
        (folder / "log.jsonl").write_text(folder.name)
    with pytest.raises(GateFailed):
        train(*sets(data), run, replace(SHORT, learning_rate=1e30, clip_norm=0), device=CPU, force=True)
    assert (run / "log.jsonl").read_text() == ".run.old" and not old.exists()
    train(*sets(data), run, SHORT, device=CPU, force=True, stopped=lambda: True)
    old.mkdir()  # as left by a kill after the first save
    resume(*sets(data), run, device=CPU, stopped=lambda: True)
    assert not old.exists()


def test_run_with_almost_no_time_makes_one_step(data: Path, tmp_path: Path) -> None:
    outcome = train(*sets(data), tmp_path / "run", replace(SHORT, minutes=1e-9), device=CPU)
    assert (outcome.step, outcome.finished) == (1, True)
    assert load_network(tmp_path / "run" / "best.safetensors")


@pytest.mark.slow
def test_fine_tuning_keeps_the_initial_weights_if_training_makes_them_worse(data: Path, tmp_path: Path) -> None:
    recipe = replace(SHORT, learning_rate=0.3, epochs=1, ema=0.0)
    outcome = train(*sets(data), tmp_path / "run", recipe, Start(init=WEIGHTS), device=CPU)
    validations = entries(tmp_path / "run", "validation")
    assert [entry["step"] for entry in validations] == [0, 3]
    assert outcome.best_f1 == validations[0]["f1"] > (validations[1]["f1"] or 0)
    best, start = load_checkpoint(tmp_path / "run" / "best.safetensors"), load_checkpoint(WEIGHTS)
    assert all(torch.equal(best[key], start[key]) for key in start)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_encoder_and_norms_stay_bit_identical(precision: str, data: Path, tmp_path: Path) -> None:
    recipe = replace(SHORT, freeze=("encoder", "norms"), epochs=1, precision=precision)
    train(*sets(data), tmp_path / "run", recipe, Start(init=WEIGHTS), device=CPU)
    start, end = load_checkpoint(WEIGHTS), load_checkpoint(tmp_path / "run" / "last.safetensors")
    changed = {key for key in start if not torch.equal(start[key], end[key])}
    assert changed and not any(key.startswith("backbone.") or ".bn" in key for key in changed)


@pytest.mark.slow
def test_distillation_moves_predictions_towards_those_of_the_teacher(data: Path, tmp_path: Path) -> None:
    """Trains the teacher's weights with added noise; the loss consists only of the distillation loss."""
    draw = torch.Generator().manual_seed(0)
    teacher, noisy = load_network(WEIGHTS), load_network(WEIGHTS)
    for value in noisy.parameters():
        value.data += 0.2 * value.data.std(unbiased=False) * torch.randn(value.shape, generator=draw)
    save_checkpoint(noisy, tmp_path / "noisy.safetensors")
    recipe = replace(SHORT, loss=LossWeights(0, 0), distill=1.0, epochs=8, freeze=("norms",))
    train(*sets(data), tmp_path / "run", recipe, Start(tmp_path / "noisy.safetensors", None, WEIGHTS), device=CPU)
    tiles = stack(list(sets(data)[0].tiles()))
    predictions = [
        predict_probability(x, *tiles) for x in (teacher, noisy, load_network(tmp_path / "run/last.safetensors"))
    ]
    before, after = (np.abs(prediction - predictions[0]).mean() for prediction in predictions[1:])
    assert after < 0.7 * before


@pytest.mark.slow
def test_resume_restores_the_scale_of_float16_training(data: Path, tmp_path: Path) -> None:
    recipe = replace(SHORT, precision="fp16", epochs=1, freeze=("encoder",))
    start = Start(init=WEIGHTS)
    train(*sets(data), tmp_path / "whole", recipe, start, device=CPU)
    run, reports = tmp_path / "run", []
    stopped = lambda: len(reports) >= 2  # noqa: E731 - after the initial validation and one step
    train(*sets(data), run, recipe, start, device=CPU, listen=reports.append, stopped=stopped)
    with safe_open(run / "state.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["scaler"])["scale"] > 0
    resume(*sets(data), run, device=CPU)
    assert losses(run) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_joint_batch(data: Path, tmp_path: Path) -> None:
    """Uses gloo on the CPU; batch norms are frozen, because each process would normalise its own part.

    The learning rate is low because Adam and the exponents of the guidance amplify rounding errors at every step.
    """
    recipe = replace(SHORT, epochs=2, freeze=("norms",), learning_rate=1e-6)
    train(*sets(data), tmp_path / "one", recipe, Start(init=WEIGHTS), device=CPU)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "misgnet"]
    options = ["train", data, "-o", tmp_path / "two", *as_options(recipe), "--init", WEIGHTS, "--freeze", "norms"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'runtime'}"}
    done = subprocess.run(
        [*command, *map(str, options)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    norms = [[entry["gradient_norm"] for entry in entries(tmp_path / name, "step")] for name in ("one", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=2e-2)
    scores = [[entry["f1"] for entry in entries(tmp_path / name, "validation")] for name in ("one", "two")]
    assert scores[1] == pytest.approx(scores[0], abs=2e-3)


def test_divergence_raises_gate_failed(data: Path, tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="diverged at step"):
        train(*sets(data), tmp_path / "run", replace(SHORT, learning_rate=1e30, clip_norm=0), device=CPU)


def test_counters_hold_the_position_within_an_epoch(data: Path, tmp_path: Path) -> None:
    stops = iter([False] * 3 + [True])
    outcome = train(*sets(data), tmp_path / "run", SHORT, device=CPU, stopped=lambda: next(stops))
    expected = Counters(step=4, epoch=1, epoch_step=1)
    assert replace(outcome, seconds=0.0, best_f1=expected.best_f1) == expected


def _lines(run: Path) -> list[str]:
    return (run / "log.jsonl").read_text().splitlines()


def _wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
