"""Tests of ``misgnet-run bench``: default settings, table, JSON report and refused options."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from misgnet_runtime import log
from misgnet_runtime.bundle import MANIFEST
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.bundle.signing.policy import Trust
from misgnet_runtime.cli import main as cli
from misgnet_runtime.cli.bench import lines, tables
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import InputError, UnavailableError, UsageError
from misgnet_runtime.inference.comparison import NotRun
from misgnet_runtime.inference.throughput import RailEnergy, Timing, WarmUp
from misgnet_runtime.log import SafeConsole
from misgnet_runtime.measure.bench import run as run_module
from misgnet_runtime.measure.bench.matrix import RunsHere, make_matrix, tasks_of
from misgnet_runtime.measure.bench.options import BenchOptions
from misgnet_runtime.measure.bench.report import (
    BenchReport,
    Conditions,
    Power,
    SceneFigure,
    Settings,
    choose_reference,
    fastest,
    ratios_to,
)
from misgnet_runtime.measure.bench.run import run_bench
from misgnet_runtime.measure.bench.scene import SceneTask, run_scene
from misgnet_runtime.measure.sensors.clocks import Clock, DeviceState
from misgnet_runtime.storage.files import file_sha256
from misgnet_runtime.tables import print_table
from support.bundles import FLOAT, INT8, INTERFACE, RTX, make_bundle
from support.commands import exit_code

QUICK = ("--seconds", "0.02", "--rounds", "2", "--warm-up", "0", "--threads", "1")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", engines=[FLOAT, INT8, RTX])


@pytest.fixture
def bundle(root: Path) -> Bundle:
    return read_bundle(root)


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the command in this process; returns its exit code, stdout and stderr."""

    def call(*arguments: str, form: str = "text") -> tuple[int, str, str]:
        return exit_code(cli.main, "misgnet-run", "--log", form, "bench", root, *arguments), *capsys.readouterr()

    with warnings.catch_warnings():
        yield call
    log.use("text")


# Engines and settings


def test_all_engines_that_run_here_are_measured_by_default(bundle: Bundle) -> None:
    matrix = make_matrix(bundle, BenchOptions(), cores_here=lambda: 6)
    assert matrix.runs == [RunsHere("cpu", "int8", "CPU"), RunsHere("cpu-float32", "float32", "CPU")]
    assert [entry.engine for entry in matrix.not_run] == ["rtx-sm86"]
    assert matrix.not_run[0].reason.startswith("TensorRT for RTX") or "CUDA" in matrix.not_run[0].reason
    assert matrix.settings() == [(1, 1), (1, 4), (4, 1), (4, 4)]


@pytest.mark.parametrize(("largest", "batches"), [(1, [1]), (3, [1, 3]), (16, [1, 4, 16]), (64, [1, 4, 16])])
def test_default_batches_depend_on_the_largest_batch(bundle: Bundle, largest: int, batches: list[int]) -> None:
    manifest = msgspec.structs.replace(bundle.manifest, interface=msgspec.structs.replace(INTERFACE, max_batch=largest))
    assert make_matrix(replace(bundle, manifest=manifest), BenchOptions(engines=("cpu",))).batches == batches


def test_default_streams_do_not_exceed_the_threads(bundle: Bundle) -> None:
    assert make_matrix(bundle, BenchOptions(engines=("cpu",), threads=1)).streams == [1]
    assert make_matrix(bundle, BenchOptions(engines=("cpu",), threads=3)).streams == [1, 3]


def test_requested_settings_are_measured_once_each(bundle: Bundle) -> None:
    options = BenchOptions(
        engines=("cpu-float32", "cpu", "cpu"), batches=(2, 1, 2), streams=(3,), threads=2, warm_up=1.5
    )
    matrix = make_matrix(bundle, options)
    assert matrix.settings() == [(1, 3), (2, 3)]
    tasks = tasks_of(bundle, matrix, options, 2, 3)
    assert [task.entry for task in tasks] == [FLOAT, INT8]
    assert {(task.batch, task.streams, task.threads, task.warm_up) for task in tasks} == {(2, 3, 2, 1.5)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BenchOptions(engines=("tpu",)), "has no engine 'tpu'; it has cpu-float32, cpu, rtx-sm86"),
        (BenchOptions(batches=(1, 5)), "--batch is 5; the engines of this bundle support at most 4"),
        (BenchOptions(batches=(0,)), "--batch is 0; expected 1 or more"),
        (BenchOptions(streams=(2, -1)), "--streams is -1"),
        (BenchOptions(threads=0), "--threads is 0"),
        (BenchOptions(rounds=0), "--rounds is 0"),
        (BenchOptions(seconds=0), "--seconds is 0"),
        (BenchOptions(seconds=float("nan")), "--seconds is nan"),
        (BenchOptions(seconds=float("inf")), "--seconds is inf"),
        (BenchOptions(warm_up=-1), "--warm-up is -1"),
    ],
)
def test_invalid_options_are_refused(bundle: Bundle, options: BenchOptions, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_matrix(bundle, options)


def test_a_requested_engine_that_does_not_run_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(UnavailableError, match=r"a requested engine does not run here: rtx-sm86: \w+"):
        make_matrix(bundle, BenchOptions(engines=("cpu", "rtx-sm86")))


def test_a_bundle_whose_engines_do_not_run_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no engine runs here: rtx-sm86: "):
        make_matrix(read_bundle(make_bundle(tmp_path / "rtx", engines=[RTX])), BenchOptions())


# Comparisons and output


def timing(engine: str, precision: str, speed: float, batch: int = 1, streams: int = 1, **more: Any) -> Timing:
    rounds, warm = [speed * 0.9, speed * 1.1], WarmUp(6, 0.4, True, 0.01)
    return Timing(
        engine=engine, precision=precision, batch=batch, calls=10, p50_ms=5.0, p90_ms=66.6, p99_ms=123.4,
        pairs_per_second=speed, max_ms=2345.6, streams=streams, rounds=rounds, warm_up=warm, **more,
    )  # fmt: skip


TIMINGS = [
    timing("cpu", "int8", 30.0), timing("cpu-float32", "float32", 20.0), timing("cpu", "int8", 36.0, 4, 2),
    timing("cpu-float32", "float32", 24.0, 4, 2),
]  # fmt: skip
ORIN = DeviceState(
    [Clock(f"CPU {i}-{i + 3}", 1190 + i, 115, 1984, "schedutil") for i in (0, 4)]
    + [Clock("GPU", 918, 918, 918, "nvhost_podgov")], 3199.0, {"cpu-thermal": 48.25}, {},
)  # fmt: skip
SILENT = DeviceState([], None, {}, {})


def conditions(state: DeviceState = SILENT, modes: tuple[str | None, str | None] = (None, None)) -> Conditions:
    machine = {"processor": "a processor", "cores": 2, "memory_gib": 8.0, "features": ["avx2"]}
    return Conditions(
        machine=machine, versions={"numpy": "2"}, power_modes=modes, before=state, during=state, after=state
    )


def report(timings: list[Timing] = TIMINGS, **changes: Any) -> BenchReport:
    name = choose_reference(timings)
    found = BenchReport(
        created="2026-01-01T00:00:00+00:00", bundle="bundle", bundle_version=1, bundle_sha256="0" * 64,
        settings=Settings(5.0, 2, 10.0, 2), engines=[RunsHere("cpu", "int8", "CPU")],
        not_run=[NotRun("rtx-sm86", "no driver; install it", "no driver")],
        timings=timings, reference=name, ratios=ratios_to(name, timings),
        power=Power([], ["no RAPL counters"]), conditions=conditions(), scene=None, warnings=[],
    )  # fmt: skip
    return msgspec.structs.replace(found, **changes)


def printed(found: BenchReport, width: int = 80) -> str:
    console = SafeConsole(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    for table in tables(found):
        print_table(table, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_speeds_are_compared_with_float32_at_the_same_batch_and_streams() -> None:
    assert choose_reference(TIMINGS) == "cpu-float32"
    assert ratios_to("cpu-float32", TIMINGS) == [1.5, 1.0, 1.5, 1.0]
    assert fastest(TIMINGS) is TIMINGS[2]
    only = [timing("openvino", "int8", 30.0), timing("openvino-bf16", "bf16", 15.0)]
    assert choose_reference(only) == "openvino" and ratios_to("openvino", only) == [1.0, 0.5]


def test_the_table_fits_80_columns_without_truncation() -> None:
    long = timing("openvino-int8[b]ab", "bf16", 1234.5, 4, 2)
    *lines, caption, _ = printed(report([*TIMINGS, long])).splitlines()
    assert max(map(len, lines)) <= 80
    for cells in (
        ("cpu", "1, 1", "5.0", "66.6", "123", "2346", "30.0", "27.0 to 33.0", "1.50 x"),
        ("openvino-int8[b]ab", "4, 2", "1111 to 1358", "51.44 x"),
    ):
        assert any(all(cell in line for cell in cells) for line in lines), cells
    assert caption == "Ratio: speed relative to cpu-float32 at the same batch and streams"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_figure_is_printed_whole_at_any_width(width: int) -> None:
    shown = printed(report([*TIMINGS, timing("rtx-sm86-sm89-sm120-int8", "int8", 1234.5, 4, 2)]), width)
    for words in ("rtx-sm86-sm89-sm120-int8", "2346", "27.0 to 33.0", "1111 to 1358", "51.44 x"):
        assert words in shown
    assert max(map(len, shown.splitlines())) <= max(width, 67) and "…" not in shown


def test_energy_is_shown_by_rail() -> None:
    assert "rail" not in printed(report())
    rails = [RailEnergy("VDD_IN", 12.345, 0.41, True), RailEnergy("VDD_SOC", 2.0, 0.0667, False)]
    shown = printed(report([timing("cpu", "int8", 30.0, energy=rails)]))
    for cells in (("VDD_IN (the whole module)", "12.35", "0.4100"), ("VDD_SOC ", "2.00", "0.0667")):
        assert any(all(cell in line for cell in cells) for line in shown.splitlines()), cells


def test_the_conditions_of_the_benchmark_are_printed() -> None:
    found = list(lines(report(warnings=["the machine throttled 3 times: core too hot"])))
    assert found[0] == "a processor, 2 cores, 8.0 GiB, avx2"
    assert "each engine ran in its own process with 2 threads" in found[1]
    assert (
        "alternated in 2 rounds, for about 5 s (10 calls) each" in found[1] and "at most 10 s: 0.4 to 0.4 s" in found[1]
    )
    assert "not on this machine: rtx-sm86 (no driver)" in found
    assert "clocks not reported by this system; temperatures not reported by this system" in found
    assert "power not measured: no RAPL counters" in found
    assert not any(line.startswith(("power mode", "scene", "power by")) for line in found)


def test_tail_latency_is_compared_with_that_of_a_matrix_product() -> None:
    """Only at batch 1 and one stream, where the product was timed."""
    product = timing("matrix product", "float32", 99.0)
    found = list(lines(report(matrix_product=msgspec.structs.replace(product, p50_ms=5.0, p99_ms=6.0))))
    words = (
        "cpu 24.68, cpu-float32 24.68; for comparison, a float32 matrix product of NumPy (5.0 ms) in the same rounds"
    )
    assert f"p99 / p50 of single calls at batch 1: {words}: 1.20" in found
    assert not any("matrix product" in line for line in lines(report()))


def test_the_state_of_a_jetson_is_printed() -> None:
    there = msgspec.structs.replace(conditions(ORIN, ("MAXN (0)", "15W (2)")), after=SILENT)
    found = list(lines(report(conditions=there, power=Power(["INA3221"], []))))
    assert "power mode MAXN (0) before, 15W (2) after" in found
    clocks = "CPU 1190 to 1194 of 1984 MHz (schedutil), GPU 918 of 918 MHz (nvhost_podgov, pinned), memory 3199 MHz"
    words = f"clocks {clocks}; temperatures cpu-thermal 48.2 °C"
    assert f"before: {words}" in found
    assert f"while engines ran (median clocks, highest temperatures): {words}" in found
    assert any(line.startswith("power by INA3221: ") for line in found)
    assert not any("not measured" in line for line in found)


def test_energy_is_power_over_the_time_of_a_pair(root: Path) -> None:
    class Meter:
        source, total = "a fake", "VDD_IN"

        def read(self) -> dict[str, float]:
            return {"VDD_IN": 12.0, "VDD_SOC": 3.0}

    options = BenchOptions(engines=("cpu",), batches=(1, 2), streams=(1,), threads=1, seconds=0.02, rounds=2, warm_up=0)
    found = run_bench(root, options, meters_here=lambda: ([Meter()], []))
    assert found.matrix_product is not None and [t.batch for t in found.timings] == [1, 2]
    for timing in (*found.timings, found.matrix_product):
        whole, part = timing.energy
        assert (whole.rail, whole.total, part.rail, part.total) == ("VDD_IN", True, "VDD_SOC", False)
        assert whole.watts == pytest.approx(12) and part.watts == pytest.approx(3)
        assert whole.joules_per_pair == pytest.approx(12 / timing.pairs_per_second)


# The command


def test_the_command_prints_a_table_and_writes_json(run: Run, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "bench.json"
    code, out, _ = run(*QUICK, "--batch", "1", "--batch", "3", "--streams", "2", "--json", str(path))
    assert code == 0
    for words in ("Latency per call", "cpu-float32", "1, 2", "3, 2", "power not measured: "):
        assert words in out
    assert "not on this machine: rtx-sm86 (" in out
    found = msgspec.json.decode(path.read_bytes(), type=BenchReport)
    assert [(t.engine, t.batch, t.streams) for t in found.timings] == [
        ("cpu", 1, 2), ("cpu-float32", 1, 2), ("cpu", 3, 2), ("cpu-float32", 3, 2),
    ]  # fmt: skip
    assert all(len(t.rounds) == 2 and t.warm_up and not t.warm_up.steady for t in found.timings)
    assert found.bundle_sha256 == file_sha256(root / MANIFEST) and found.matrix_product is None
    assert found.conditions.machine["python"] and found.conditions.versions["numpy"]
    assert found.created.endswith("+00:00")
    assert found.warnings[-1].startswith("not steady after the warm-up (engine at batch, streams): cpu at 1, 2; ")


def test_json_output_has_the_report_on_one_line(run: Run) -> None:
    code, out, error = run(*QUICK, "--engine", "cpu", "--batch", "1", form="json")
    found = json.loads(out)
    assert (code, found["event"], found["level"]) == (0, "result", "info")
    assert [(timing["engine"], timing["batch"]) for timing in found["timings"]] == [("cpu", 1)]
    events = [json.loads(line)["event"] for line in error.splitlines()]
    assert "progress" in events and set(events) <= {"progress", "warning"}


def test_an_existing_json_file_is_kept_and_nothing_is_measured(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text("old")
    code, out, error = run("--json", str(path))
    assert (code, out, path.read_text()) == (2, "", "old") and "--force" in error


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--engine", "tpu"), 2, "has no engine 'tpu'"),
        (("--batch", "17"), 2, "support at most 4"),
        (("--engine", "rtx-sm86"), 5, "does not run here"),
    ],
)
def test_the_command_prints_one_line_for_an_error(run: Run, arguments: tuple[str, ...], code: int, words: str) -> None:
    found, out, error = run(*QUICK, *arguments)
    assert (found, out) == (code, "") and words in error and error.count("error: ") == 1


# A scene


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    before, after = (write_raster(tmp_path / f"{i}.tif", pixels) for i, pixels in enumerate(scene(300, 210)))
    return before, after


def test_the_speed_of_a_scene_is_compared_with_its_engine(root: Path, pair: tuple[Path, Path]) -> None:
    options = BenchOptions(
        engines=("cpu-float32",), batches=(2,), streams=(2,), threads=2, seconds=0.02, rounds=1, warm_up=0.0, scene=pair
    )
    found = run_bench(root, options).scene
    assert found is not None
    assert (found.engine, found.batch, found.streams) == ("cpu-float32", 2, 2)
    assert found.tiles >= 6 * 4 and found.seconds > 0  # tiles of 64 px with an overlap of 16
    assert found.tiles_per_second == pytest.approx(found.tiles / found.seconds)
    assert found.share == pytest.approx(found.tiles_per_second / found.engine_pairs_per_second)


def test_the_peak_memory_of_a_scene_is_measured(root: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "change.tif"
    found = run_scene(SceneTask(bundle=root, before=pair[0], after=pair[1], output=out, engine="cpu"))
    assert out.is_file() and found.tiles >= 6 * 4
    assert 20 << 20 < found.peak_bytes < 2 << 30


def test_the_command_of_a_scene_has_the_measured_setting_and_the_signature_policy(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("bundle", "before", "after", "output")}
    execution = ExecutionOptions(threads=3, streams=2, batch=4)
    trust = Trust(tmp_path / "key", allow_older=True)
    plain, signed = SceneTask(**paths, engine="cpu"), SceneTask(**paths, engine="cpu", execution=execution, trust=trust)
    predict = ["predict", "--engine", "cpu", "-o", str(paths["output"]), "--no-tuned"]
    end = ["--", *(str(paths[name]) for name in ("bundle", "before", "after"))]
    assert plain.command()[-12:] == ["--log", "json", *predict, *end]
    words = ["--log", "json", "--require-signature", str(tmp_path / "key"), "--allow-older", *predict]
    assert signed.command()[-21:] == [*words, "--threads", "3", "--streams", "2", "--batch", "4", *end]


def test_a_failed_scene_raises_the_error_of_predict(root: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    task = SceneTask(bundle=root, before=pair[0], after=pair[1], output=tmp_path / "change.tif", engine="tpu")
    with pytest.raises(UsageError, match=r"predict on .*0.tif and .*1.tif: bundle .* has no engine 'tpu'"):
        run_scene(task)


def test_a_scene_without_a_required_scale_is_refused_before_measuring(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    from support.scenes import scene, write_raster

    deep = [write_raster(tmp_path / f"{i}.tif", p.astype("uint16")) for i, p in enumerate(scene(80, 80))]
    monkeypatch.setattr(run_module, "make_matrix", lambda *_: pytest.fail("something slow"))
    with pytest.raises(InputError, match="--scale"):
        run_bench(root, BenchOptions(scene=(deep[0], deep[1])))


def test_a_missing_scene_is_an_error(run: Run) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    code, out, error = run(*QUICK, "--scene", "nowhere.tif", "neither.tif")
    assert (code, out) == (4, "") and "nowhere.tif" in error


def test_the_speed_of_the_scene_is_printed() -> None:
    scene = SceneFigure(
        engine="cpu",
        batch=4,
        streams=2,
        tiles=900,
        seconds=50.0,
        tiles_per_second=18.0,
        engine_pairs_per_second=20.0,
        share=0.9,
    )
    words = "scene with cpu, batch 4, streams 2: 900 tiles in 50.0 s, 18.0 tiles/s, 0.90 of the engine's 20.0 pairs/s"
    assert words in lines(report(scene=scene))
