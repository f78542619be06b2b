"""Tests of ``misgnet-run tune``: measuring, choosing, storing and using settings, and unusable stored settings."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from misgnet_runtime import log, open_bundle
from misgnet_runtime.bundle.manifest import EngineEntry, PlanProfile
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.cli import main as cli
from misgnet_runtime.cli.app import out_console
from misgnet_runtime.cli.info import bundle_figures
from misgnet_runtime.engines import ExecutionOptions
from misgnet_runtime.engines.tensorrt import open as opening
from misgnet_runtime.errors import GateFailed, MisgnetError, StorageError, UnavailableError, UsageError
from misgnet_runtime.inference import comparison, self_test, tuned
from misgnet_runtime.inference.comparison import choose
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.inference.split_detector import choose_split
from misgnet_runtime.inference.tuned import Measurement, OptimiseFor, Scope, Setting, Tuning, keep, kept, prepare
from misgnet_runtime.jobs.compile import run as compile_run
from misgnet_runtime.jobs.compile.run import CompileOptions, compile_bundle
from misgnet_runtime.jobs.journal import Raw, open_journal
from misgnet_runtime.measure.tune import TuneReport, settings_of, tune_bundle
from misgnet_runtime.storage.private import PrivateFolder, cache_folder
from support.bundles import (
    FLOAT,
    INT8,
    INTERFACE,
    RTX,
    SPLIT_FLOAT,
    FakeEngine,
    fake_detector,
    images,
    make_bundle,
    write_image,
)
from support.commands import exit_code
from support.device_bundles import DEVICE, device_bundle
from support.fake_cuda import FakeDriver
from support.fake_measure import fake_measure
from support.fake_tensorrt import make_tensorrt

OPENVINO = EngineEntry("openvino", "openvino", FLOAT.file, FLOAT.file, "float32", "any")
GPU = msgspec.structs.replace(DEVICE, batches=(1, 2, 4))
MANY = Setting(2, 1)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that the machine has four cores, and uses an empty cache and text output."""
    log.use("text")
    monkeypatch.setenv("MISGNET_CACHE", str(tmp_path / "cache"))
    for name in ("engines", "inference.tuned"):
        monkeypatch.setattr(f"misgnet_runtime.{name}.usable_cores", lambda: 4)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(make_bundle(tmp_path / "bundle", engines=[FLOAT, INT8, RTX]))


def a_tuning(bundle: Bundle, engine: str = FLOAT.name, **changes: Any) -> Tuning:
    """Returns a tuning in which ``engine`` is the fastest, with two streams for throughput."""
    found = {
        "format": tuned.FORMAT, "created": "2026-01-01T00:00:00+00:00", "place": Scope.of(bundle),
        "gpu": tuned.gpu_of(bundle), "libraries": tuned.libraries_of(bundle), "latency": engine, "throughput": engine,
        "settings": {engine: MANY}, "measurements": [],
    }  # fmt: skip
    return Tuning(**found | changes)


# Measuring


def test_a_cpu_is_measured_with_one_stream_and_with_one_per_core() -> None:
    assert settings_of(FLOAT, 16) == settings_of(OPENVINO, 16) == [Setting(1, 1), Setting(4, 1)]


def test_a_gpu_is_measured_at_the_batches_of_its_plan() -> None:
    found = settings_of(msgspec.structs.replace(DEVICE, batches=(1, 2, 16)), 8)
    assert found == [Setting(streams, batch) for batch in (1, 2, 4, 8) for streams in (1, 2, 4)]


def test_a_gpu_is_measured_at_the_batches_of_its_plans_profiles() -> None:
    profiles = [PlanProfile((size, size, size)) for size in (1, 4)]
    found = settings_of(msgspec.structs.replace(DEVICE, profiles=profiles), 16)
    assert found == [Setting(streams, batch) for batch in (1, 4) for streams in (1, 2, 4)]


def test_settings_are_measured_beside_the_default_in_small_groups(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups are small because each process keeps an engine open."""
    calls = fake_measure(monkeypatch, lambda task: 10.0 * task.streams)
    report = tune_bundle(bundle.path)
    assert [[(task.name, task.streams, task.batch) for task in tasks] for tasks in calls] == [
        [("cpu", 4, 1), ("cpu", 1, 1), ("cpu-float32", 1, 1), ("cpu-float32", 4, 1)]
    ]
    assert [(run.engine, "sm86" in run.reason or "CUDA" in run.reason) for run in report.not_run] == [
        ("rtx-sm86", True)
    ]
    monkeypatch.setattr(comparison, "_PARALLEL", 2)
    calls.clear()
    assert len(tune_bundle(bundle.path).tuning.measurements) == 4
    assert [[task.name for task in tasks] for tasks in calls] == [["cpu", "cpu"], *[["cpu", "cpu-float32"]] * 2]


def test_only_requested_engines_are_measured(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_measure(monkeypatch, lambda task: 10.0)
    report = tune_bundle(bundle.path, ["cpu-float32"])
    assert {task.name for tasks in calls for task in tasks} == {"cpu-float32"}
    assert set(report.tuning.settings) == {"cpu-float32"} and report.not_run == []
    with pytest.raises(UnavailableError, match="a requested engine cannot be measured here: rtx-sm86: "):
        tune_bundle(bundle.path, ["cpu", "rtx-sm86"])


def test_one_core_has_one_setting(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("misgnet_runtime.engines.usable_cores", lambda: 1)
    fake_measure(monkeypatch, lambda task: 10.0)
    (found,) = tune_bundle(bundle.path, ["cpu"]).tuning.measurements
    assert (found.setting, found.ratio, found.spread) == (Setting(1, 1), 1.0, 0.0)


def test_a_setting_that_fails_is_listed_and_the_others_are_measured(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that exhausts the memory kills its own process, not the tuning run."""
    fake_measure(monkeypatch, lambda task: None if (task.name, task.streams) == ("cpu-float32", 4) else 10.0)
    report = tune_bundle(bundle.path)
    assert [(run.engine, run.reason) for run in report.not_run[1:]] == [
        ("cpu-float32, 4 streams, batch 1", "the benchmark of cpu-float32 at batch 1 ended early: no message")
    ]
    assert len(report.tuning.measurements) == 3 and report.tuning.settings["cpu-float32"] == Setting(1, 1)
    fake_measure(monkeypatch, lambda task: None)
    with pytest.raises(MisgnetError, match=r"nothing could be measured: .* ended early"):
        tune_bundle(bundle.path)


def test_an_engine_that_misses_the_golden_tiles_is_never_chosen(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = self_test.golden_agreement

    def golden_agreement(bundle: Bundle, entry: EngineEntry, *more: Any) -> Any:
        if entry.name == "cpu":
            raise GateFailed("engine cpu agrees with the golden tiles in only 3.00 % of pixels")
        return real(bundle, entry, *more)

    monkeypatch.setattr(self_test, "golden_agreement", golden_agreement)
    fake_measure(monkeypatch, lambda task: 100.0 if task.name == "cpu" else 10.0)
    report = tune_bundle(bundle.path)
    assert (report.tuning.latency, report.tuning.throughput) == ("cpu-float32", "cpu-float32")
    assert ("cpu", True) in [(run.engine, "golden tiles in only" in run.reason) for run in report.not_run]
    with pytest.raises(GateFailed, match=r"no engine can be measured here: cpu: .* golden tiles in only 3\.00 %"):
        tune_bundle(make_bundle(tmp_path / "other", engines=[INT8]))


def test_golden_tiles_are_checked_in_full_batches(bundle: Bundle) -> None:
    """An engine may be correct for one tile and wrong for several."""

    class WrongInBatches(FakeEngine):
        def _infer(self, context: Any, arrays: Any, batch: int) -> Any:
            (found,) = super()._infer(context, arrays, batch).values()
            return {"probability": np.float32(1) - found if batch > 1 else found}

    golden, opener = self_test.golden_of(bundle), fake_detector(lambda: WrongInBatches(INTERFACE))
    assert "100.000 %" in self_test.check_golden(bundle, FLOAT, golden, opener=opener)
    with pytest.raises(GateFailed, match="agrees with the golden tiles in only"):
        self_test.check_golden(bundle, FLOAT, golden, batch=2, opener=opener)


# Choosing


def measured(ratio: float, spread: float = 0.01) -> Measurement:
    return Measurement("cpu", MANY, 10 * ratio, ratio, spread, [])


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([measured(1.1), measured(1.3)], 1.3), ([measured(0.9)], 1.0), ([measured(1.1, spread=0.2)], 1.0),
        ([measured(1.3, spread=0.2)], 1.3), ([measured(1.3, spread=0.5), measured(1.2)], 1.2),
    ],
)  # fmt: skip
def test_the_default_is_kept_unless_another_is_faster_by_more_than_the_spread(
    others: list[Measurement], chosen: float
) -> None:
    assert choose([measured(1.0), *others], measured(1.0)).ratio == chosen
    assert choose(others, None).ratio == max(each.ratio for each in others)


def test_latency_and_throughput_may_have_different_engines(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {("cpu", 1): 10.0, ("cpu", 4): 20.0, ("cpu-float32", 1): 12.0, ("cpu-float32", 4): 11.0}
    fake_measure(monkeypatch, lambda task: speeds[task.name, task.streams])
    found = tune_bundle(bundle.path).tuning
    assert (found.latency, found.throughput) == ("cpu-float32", "cpu")
    assert found.settings == {"cpu": Setting(4, 1), "cpu-float32": Setting(1, 1)}
    assert [round(each.ratio, 2) for each in found.measurements] == [1.0, 0.5, 0.6, 0.55]


def test_drift_of_the_machines_speed_does_not_affect_the_choice(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    drift = [1.0, 0.5, 0.25, 1.0, 0.5, 0.25, 1.0]
    fake_measure(monkeypatch, lambda task: [(12.0 if task.name == "cpu-float32" else 10.0) * d for d in drift])
    found = tune_bundle(bundle.path).tuning
    assert found.throughput == "cpu-float32"
    assert {(each.engine, round(each.ratio, 3), round(each.spread, 3)) for each in found.measurements} == {
        ("cpu", 1.0, 0.0), ("cpu-float32", 1.2, 0.0),
    }  # fmt: skip


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle whose plan was compiled here with fakes of CUDA and TensorRT."""
    driver = FakeDriver("sm87", memory=1 << 30)
    for module in (compile_run, opening, tuned):
        monkeypatch.setattr(module, "open_driver", lambda: driver)
    library = make_tensorrt("10.3.0", driver)
    monkeypatch.setitem(sys.modules, library.__name__, library)
    root = device_bundle(tmp_path / "device", GPU)
    compile_bundle(root, CompileOptions())
    return read_bundle(root)


def test_a_gpu_is_tuned_over_streams_and_batches_and_the_result_is_used(
    gpu: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_measure(monkeypatch, lambda task: 100.0 * task.batch + task.streams)
    found = tune_bundle(gpu.path).tuning
    assert [(task.name, task.streams, task.batch) for task in (calls[0][0], calls[-1][0])] == [(GPU.name, 2, 4)] * 2
    assert len(found.measurements) == 9 + 2 and max(map(len, calls)) == 4
    assert (found.latency, found.throughput) == (GPU.name, GPU.name)
    assert found.settings[GPU.name] == Setting(4, 4) and "sm87" in found.gpu
    with open_detector(gpu, optimise_for="throughput") as (detector, entry, reason):
        assert (entry.name, detector.engine.streams, detector.batch) == (GPU.name, 4, 4)
        assert reason == "measured fastest here; tuned here: 4 streams, batch 4"


def test_a_faster_cpu_is_preferred_to_the_gpu(gpu: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a tuning, the GPU is preferred."""
    fake_measure(monkeypatch, lambda task: 10.0 if task.name == GPU.name else 20.0)
    tune_bundle(gpu.path)
    for optimise_for, name in (("latency", FLOAT.name), ("throughput", FLOAT.name), (None, GPU.name)):
        with open_detector(gpu, optimise_for=optimise_for) as (_, entry, _):  # type: ignore[arg-type]
            assert entry.name == name


# Storing


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("HOME", "/home/one")
    assert cache_folder() == Path(os.environ["MISGNET_CACHE"])
    monkeypatch.delenv("MISGNET_CACHE")
    assert cache_folder() == Path("/x/misgnet")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/one/.cache/misgnet")


def test_a_tuning_is_found_only_for_its_bundle(bundle: Bundle, tmp_path: Path) -> None:
    assert kept(bundle) is None
    path = keep(a_tuning(bundle))
    assert path.parent == tmp_path / "cache" / "tuning" and not list(bundle.path.glob("**/*tuning*"))
    assert kept(bundle) == a_tuning(bundle)
    assert kept(read_bundle(make_bundle(tmp_path / "other"))) is None


def test_a_tuning_of_another_machine_is_not_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(a_tuning(bundle))
    with monkeypatch.context() as patch:
        patch.setattr(tuned, "usable_cores", lambda: 2)
        assert kept(bundle) is None
    monkeypatch.setattr(tuned, "describe_machine", lambda: {"processor": "another"})
    assert kept(bundle) is None


def damage(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damaged(path: Path) -> None:
        values = json.loads(path.read_bytes().split(b"\n", 1)[1])
        change(values)
        PrivateFolder(path.parent).write_sealed(path.name, json.dumps(values).encode())

    return damaged


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.write_bytes(b""), "is not used: "),
        (lambda path: path.write_bytes(b"\xff{"), "is not used: "),
        (lambda path: path.write_bytes(b"[" * 100_000), "is not used: "),
        (lambda path: path.write_bytes(b" " * (1 << 21)), "larger than 1048641 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "its contents do not match its digest"),
        (lambda path: path.parent.chmod(0o750), "is open to other users (mode 0750)"),
        (pipe, "it is not a regular file"),
        (damage(lambda v: v.update(format=3)), "it has format 3; this version reads format 2"),
        (
            damage(lambda v: v.update(format=3, more="of a later version")),
            "it has format 3; this version reads format 2",
        ),
        (damage(lambda v: v.update(more=1)), "is not used: "),
        (
            damage(lambda v: v["libraries"].update(onnxruntime="1.0")),
            "measured with onnxruntime 1.0, this machine has 1.",
        ),
        (
            damage(lambda v: v["libraries"].pop("onnxruntime")),
            "measured with onnxruntime (not installed), this machine has 1.",
        ),
        (damage(lambda v: v.update(gpu="H200 (sm90)")), "measured with H200 (sm90), this machine has no GPU"),
        (damage(lambda v: v["place"].update(cores=3)), "made for another bundle or machine"),
        (
            damage(lambda v: v.update(latency="cpu")),
            "or has no settings for one",
        ),
        (
            damage(lambda v: v["settings"].update(gpu=v["settings"]["cpu-float32"])),
            "names engines that the bundle does not",
        ),
        (damage(lambda v: v["settings"]["cpu-float32"].update(batch=5)), "settings that this bundle does not support"),
        (
            damage(lambda v: v["settings"]["cpu-float32"].update(streams=5)),
            "settings that this bundle does not support",
        ),
        (damage(lambda v: v["settings"]["cpu-float32"].update(streams=0)), "is not used: "),
        (damage(lambda v: v.pop("throughput")), "is not used: "),
    ],
)
def test_an_unusable_tuning_is_reported_and_ignored(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], problem: str
) -> None:
    change(keep(a_tuning(bundle)))
    with open_detector(bundle, optimise_for="throughput") as (detector, entry, reason):
        assert (entry.name, detector.engine.streams, detector.batch) == ("cpu", 4, None)
        assert reason.startswith("fastest that runs here")
    warned, *notes = capsys.readouterr().err.splitlines()
    assert warned.startswith(f"warning: the tuning of bundle {bundle.path} in ")
    assert all(note.startswith("not on this machine: ") for note in notes)
    assert problem in warned and f"run misgnet-run tune {bundle.path}" in warned
    bundle_figures(bundle.path)
    assert capsys.readouterr().err.count("warning: the tuning") == 1


@pytest.mark.parametrize("entry", [FLOAT, RTX])
def test_a_tuning_of_an_earlier_version_is_reported_in_one_line(
    bundle: Bundle, entry: EngineEntry, capsys: pytest.CaptureFixture[str]
) -> None:
    """In format 1, each engine had its own file, whose name depended on the engine."""
    place = {
        "bundle_sha256": bundle.digest(), "engine": entry.name, "processor": Scope.of(bundle).processor, "cores": 4,
        "gpu": "", "library": "",
    }  # fmt: skip
    name = hashlib.sha256(json.dumps(place, separators=(",", ":")).encode()).hexdigest()[:32]
    switches = {"spinning": True, "arena": False, "pinning": False, "hyper_threading": False}
    found = {"setting": {"threads": 2, "streams": 1, "batch": 1, "engine": switches}, "gain": 0.1}
    values = {
        "format": 1, "created": "2026-01-01T00:00:00+00:00", "place": place | {"library": "onnxruntime 1.32.0"},
        "latency": found, "throughput": found, "trials": [],
    }  # fmt: skip
    folder = PrivateFolder.of("tuning")
    folder.prepare()
    path = folder.write_sealed(f"{name}.json", json.dumps(values, indent=2).encode())
    with open_detector(bundle, FLOAT.name, optimise_for="throughput") as (detector, _, reason):
        assert (reason, detector.engine.streams) == ("as requested", 4)
    warned = capsys.readouterr().err
    assert warned == (
        f"warning: the tuning of bundle {bundle.path} in {path} is not used: it has format 1; this version reads "
        f"format 2; run misgnet-run tune {bundle.path}\n"
    )
    keep(a_tuning(bundle))
    assert kept(bundle) and not capsys.readouterr().err


def test_an_unwritable_cache_is_reported_before_measuring(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError, match=r"folder .* cannot be used: .*; set MISGNET_CACHE to another folder"):
        tune_bundle(bundle.path)
    (tmp_path / "cache").unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StorageError, match="it is not writable"):
        prepare()


# Using


@pytest.mark.parametrize(
    ("execution", "optimise_for", "expected"),
    [
        (ExecutionOptions(), "throughput", (2, 4, "as requested; tuned here: 2 streams, batch 4")),
        (ExecutionOptions(streams=3), "throughput",
         (3, 4, "as requested; tuned here, except for the requested options: 3 streams, batch 4")),
        (ExecutionOptions(batch=1, threads=2), "throughput",
         (2, 1, "as requested; tuned here, except for the requested options: 2 streams, batch 1")),
        (ExecutionOptions(), "latency", (1, 1, "as requested; tuned here: 1 stream, batch 1")),
        (ExecutionOptions(), None, (4, None, "as requested")),
    ],
)  # fmt: skip
def test_requested_options_override_tuned_settings(
    bundle: Bundle, execution: ExecutionOptions, optimise_for: OptimiseFor | None, expected: tuple[int, int | None, str]
) -> None:
    keep(a_tuning(bundle, settings={FLOAT.name: Setting(2, 4)}))
    with open_detector(bundle, FLOAT.name, execution, optimise_for=optimise_for) as (detector, _, reason):
        assert (detector.engine.streams, detector.batch, reason) == expected
    if optimise_for:  # an engine that was not measured uses the defaults
        with open_detector(bundle, INT8.name, optimise_for=optimise_for) as (detector, _, reason):
            assert (detector.engine.streams, reason) == (4, "as requested")


def test_a_tuned_engine_that_no_longer_opens_is_replaced_and_the_reason_given(bundle: Bundle) -> None:
    keep(a_tuning(bundle, RTX.name))
    with open_detector(bundle, optimise_for="throughput") as (_, entry, reason):
        assert (entry.name, reason) == ("cpu", "fastest that runs here")


def test_the_parts_of_a_split_engine_use_the_setting_of_the_whole(tmp_path: Path) -> None:
    bundle = read_bundle(make_bundle(tmp_path / "split", engines=[SPLIT_FLOAT, INT8]))
    keep(a_tuning(bundle, settings={FLOAT.name: Setting(3, 2)}))
    with choose_split(bundle, optimise_for="throughput") as (parts, _, reason):
        assert (parts.encoder.streams, parts.head.streams, parts.batch) == (3, 3, 2)
        assert reason == "measured fastest here; tuned here: 3 streams, batch 2"
    keep(a_tuning(bundle, INT8.name))
    with choose_split(bundle, optimise_for="throughput") as (parts, entry, reason):
        assert (entry.name, parts.encoder.streams, parts.batch) == (FLOAT.name, 4, None)
        assert reason == "fastest that runs here"


def test_an_open_bundle_reports_tuned_settings(bundle: Bundle) -> None:
    keep(a_tuning(bundle, settings={FLOAT.name: Setting(2, 4)}))
    for streams, on, engine, reason in (
        (1, True, "cpu-float32", "measured fastest here; tuned here: 1 stream, batch 1"),
        (2, True, "cpu-float32", "measured fastest here; tuned here: 2 streams, batch 4"),
        (1, False, "cpu", "fastest that runs here"),
    ):
        with open_bundle(bundle.path, "auto", streams, tuned=on) as session:
            assert session.engine.name == engine and session.reason.startswith(reason)


@pytest.mark.parametrize(
    ("now", "advice"),
    [
        ({"--batch": "4"}, "tune chooses --batch unless they are given: pass --batch 1 to resume, or start over"),
        ({"--batch": "4", "--streams": "1"}, "--batch and --streams unless .* pass --batch 1 --streams 2 to resume"),
        (
            {"the engine": "cpu-float32 on CPU", "--batch": "4"},
            "tune or compile chooses .* pass --batch 1 --engine cpu to resume",
        ),
        ({"the engine": "cpu on CPU (OpenVINO)"}, r"now it is cpu on CPU \(OpenVINO\); rerun the same command"),
        ({"--batch": "4", "--overlap": "16"}, "started with --batch 1, and now it is 4; rerun the same command"),
    ],
)
def test_a_run_started_before_tuning_explains_how_to_resume(tmp_path: Path, now: dict[str, str], advice: str) -> None:
    raw, output = Raw("probability.raw", 2, 4, "a map"), tmp_path / "change.tif"
    then = {"the engine": "cpu on CPU", "--batch": "1", "--streams": "2", "--overlap": "8"}
    with open_journal(output, raw, then, restart=False) as journal:
        journal.add([np.zeros((1, 4), np.uint8)], ())
    with pytest.raises(UsageError, match=advice), open_journal(output, raw, then | now, restart=False):
        pass


# The command


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces measuring: the float32 engine is 1.5 times as fast, and more streams are faster."""
    fake_measure(monkeypatch, lambda task: (15.0 if task.name == FLOAT.name else 10.0) * (1 + 0.1 * task.streams))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command in this process; returns its exit code, stdout and stderr."""
    monkeypatch.setattr(out_console, "_width", 80)

    def call(*arguments: object) -> tuple[int, str, str]:
        return exit_code(cli.main, "misgnet-run", *arguments), *capsys.readouterr()

    yield call
    log.use("text")


def test_the_command_shows_one_table_and_later_runs_use_it(
    run: Run, quick: None, bundle: Bundle, tmp_path: Path
) -> None:
    report = tmp_path / "tune.json"
    code, out, err = run("tune", bundle.path, "--json", report)
    assert code == 0 and "…" not in out
    rows = [line.split() for line in out.splitlines() if line.lstrip().startswith("cpu")]
    assert ["cpu-float32", "1", "1", "16.50", "1.18", "0.0", "one", "pair"] in rows
    assert ["cpu-float32", "4", "1", "21.00", "1.50", "0.0", "many", "pairs"] in rows
    assert ["cpu", "4", "1", "14.00", "1.00", "0.0", "many", "pairs,", "if", "named"] in rows
    assert "for one pair: cpu-float32, 1 stream, batch 1, 16.50 pairs/s" in out
    assert "for many pairs: cpu-float32, 4 streams, batch 1, 21.00 pairs/s" in out
    assert "not on this machine: rtx-sm86 (" in out and "Medians of 7 alternating rounds" in out
    assert "measuring for 120 s, 1 of 1: cpu, 4 streams, batch 1; cpu, 1 stream, batch 1; " in err
    found = msgspec.json.decode(report.read_bytes(), type=TuneReport)
    assert len(found.tuning.measurements) == 4 and Path(found.file).is_file()
    info = run("info", bundle.path)[1]
    assert (
        "runs on CPU; tuned here for many pairs: 4 streams, batch 1; "
        "measured fastest here for one pair and for many pairs" in info
    )
    assert "auto selects cpu-float32: measured fastest here\n" in info

    before, after = (write_image(tmp_path / f"{i}.png", pixels) for i, pixels in enumerate(images(70, 50)))
    predict = ("predict", bundle.path, before, after, "-o", tmp_path / "mask.png", "--force")
    assert "engine cpu-float32 (measured fastest here; tuned here: 1 stream, batch 1)" in run(*predict)[1]
    assert "engine cpu (as requested; tuned here: 1 stream, batch 1)" in run(*predict, "--engine", "cpu")[1]
    assert "engine cpu (fastest that runs here" in run(*predict, "--no-tuned")[1]


def test_scenes_use_the_settings_tuned_for_throughput(
    run: Run, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from misgnet_runtime.jobs.scene import predict as predict_module
    from support.scenes import scene, write_raster

    real, used = predict_module.infer, list[tuple[int, int]]()

    def infer(task: Any, *more: Any) -> Any:
        used.append((task.batch, task.streams))
        return real(task, *more)

    monkeypatch.setattr(predict_module, "infer", infer)
    keep(a_tuning(bundle, settings={FLOAT.name: Setting(2, 3)}))
    pair = [write_raster(tmp_path / f"{date}.tif", pixels) for date, pixels in zip("ab", scene(100, 90), strict=True)]
    predict = ("predict", bundle.path, *pair, "--force", "-o", tmp_path / "change.tif")
    assert "cpu-float32 (measured fastest here; tuned here: 2 streams, batch 3)" in run(*predict)[1]
    output = run(*predict, "--batch", 1, "--streams", 1)[1]
    assert "tuned here, except for the requested options: 1 stream, batch 1)" in output
    assert "cpu-float32 (as requested)" in run(*predict, "--no-tuned", "--engine", FLOAT.name)[1]
    assert used == [(3, 2), (1, 1), (1, 4)]


def test_folders_use_the_settings_tuned_for_throughput(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    keep(a_tuning(bundle, settings={FLOAT.name: Setting(2, 3)}))
    for date, pixels in zip("ab", images(70, 50), strict=True):
        write_image(tmp_path / date / "x.png", pixels)
    predict = ("predict", bundle.path, tmp_path / "a", tmp_path / "b", "-o")
    assert "(measured fastest here; tuned here: 2 streams, batch 3)" in run(*predict, tmp_path / "masks")[1]
    found = run(*predict, tmp_path / "others", "--batch", 1)[1]
    assert "tuned here, except for the requested options: 2 streams, batch 1)" in found
    assert "(fastest that runs here" in run(*predict, tmp_path / "more", "--no-tuned")[1]


@pytest.mark.parametrize("load", [0.2, 1.5])
def test_a_busy_machine_is_reported(
    run: Run, quick: None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, load: float
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    err = run("tune", bundle.path, "--engine", "cpu")[2]
    assert ("warning: the load average of the last minute is 1.5;" in err) is (load > 1)


def test_json_output_has_one_result(run: Run, quick: None, bundle: Bundle) -> None:
    code, out, err = run("--log", "json", "tune", bundle.path, "--engine", "cpu")
    (result,) = map(json.loads, out.splitlines())
    assert code == 0 and result["tuning"]["measurements"][0]["ratio"] == 1
    assert {json.loads(line)["event"] for line in err.splitlines()} - {"warning"} == {"note"}


def test_invalid_numbers_are_usage_errors(run: Run, quick: None, bundle: Bundle) -> None:
    for minutes in ("0", "-1", "nan", "inf"):
        code, _, err = run("tune", bundle.path, "--minutes", minutes)
        assert code == 2 and "--minutes is " in err
    assert run("tune", bundle.path, "--engine", "tpu")[0] == 2


def test_an_interruption_keeps_the_stored_tuning(run: Run, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keep(a_tuning(bundle))
    before = path.read_bytes()

    def measure(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "measure", measure)
    code, _, err = run("tune", bundle.path)
    assert code == 130 and err.endswith("interrupted; nothing was left behind\n")
    assert path.read_bytes() == before


def test_real_processes_are_measured(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROUNDS", 2), ("_WARM_UP_SECONDS", 0.1)):
        monkeypatch.setattr(comparison, name, value)
    found = tune_bundle(bundle.path, ["cpu", "cpu-float32"], 0.001).tuning
    assert {(each.engine, each.setting.streams) for each in found.measurements} == {
        (engine, streams) for engine in ("cpu", "cpu-float32") for streams in (1, 4)
    }
    assert all(each.pairs_per_second > 0 and each.ratio > 0 and each.rounds for each in found.measurements)
    assert kept(bundle) == found
