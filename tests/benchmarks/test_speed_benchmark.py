"""Tests of ``python -m benchmarks.speed``: guests, rounds, ratios, targets, table and plot."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from msgspec.structs import replace as changed

pytest.importorskip("onnxruntime.quantization", reason="the benchmarks need the [export] extra")
torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from benchmarks.contest.contenders import ONNX_RUNTIME, OPENVINO, OPENVINO_OWN
from benchmarks.contest.guest import ContenderFailed, Guest, Program, foreign, own
from benchmarks.contest.guests import exchange
from benchmarks.contest.handover import hand_over
from benchmarks.contest.start import open_start
from benchmarks.speed import predictions, race
from benchmarks.speed import scene as scene_module
from benchmarks.speed.__main__ import main
from benchmarks.speed.entrants import (
    ALONE,
    EAGER,
    Context,
    Entrant,
    bundle_engines,
    chooses_precision,
    grid,
    guest_entrant,
    networks,
)
from benchmarks.speed.own import network
from benchmarks.speed.peaks import Multiplier, best_peak, measure_peaks
from benchmarks.speed.plot import draw, heights
from benchmarks.speed.predictions import Exam, examine, open_for
from benchmarks.speed.predictions import start as start_entrant
from benchmarks.speed.race import Course, Times, latency_of, throughput_of
from benchmarks.speed.ratios import best_peer, timed_rows, with_ratios
from benchmarks.speed.report import (
    Absent,
    Latency,
    Peak,
    Report,
    Row,
    Scene,
    ScenePath,
    SceneRound,
    Setting,
    Target,
    Throughput,
    Tried,
    Work,
)
from benchmarks.speed.run import targets_here
from benchmarks.speed.scene import Command, ScenePair, commands, make_pair, measure_scene, run_command
from benchmarks.speed.table import markdown
from benchmarks.speed.targets import targets_of
from benchmarks.speed.work import work_of
from misgnet_runtime import machine
from misgnet_runtime.bundle import EngineEntry
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.errors import UsageError
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.files import file_sha256
from misgnet_runtime.storage.schema import encode
from support import bundles, graphs

FLOAT_GRAPH = bundles.DATA / "tiny_float.onnx"
PIXEL = Work(400, 100)  # 1,000 operations per pair


def throughput(median: float, setting: Setting = ALONE) -> Throughput:
    return Throughput(setting, median, 0.9 * median, 1.1 * median, [median], [Tried(setting, median)])


def row(key: str, engine: str, speed: float | None, side: Any = "peer", **values: Any) -> Row:
    given: dict[str, Any] = {"f1": 0.8, "drop_points": 0.0, "agreement": 1.0} | values
    found = throughput(speed) if speed else None
    return Row(key, given.pop("title", key), engine, side, throughput=found, **given)


ROWS = [
    row("straight onnxruntime own", "ONNX Runtime", 10),
    row("straight openvino f32", "OpenVINO", 12, precision="f32"),
    row(EAGER, "PyTorch", 4, title="PyTorch, eager float32"),
    row("quantize_static onnxruntime own", "ONNX Runtime", 14),
    row("nncf-transformer openvino f32", "OpenVINO", 20, precision="f32", f1=0.1, drop_points=70.0),
    row("ours cpu-float32 onnxruntime float32", "ONNX Runtime", 12.5, "ours", precision="float32"),
    row("ours float graph openvino float32", "OpenVINO", 14, "ours", precision="float32"),
    row("ours cpu onnxruntime int8", "ONNX Runtime", 30, "ours", title="ours cpu", precision="int8", f1=0.7995),
    row("ours openvino openvino int8", "OpenVINO", 41, "ours", title="ours openvino", precision="int8", f1=0.798),
]
PEAKS = [
    Peak("float32", "NumPy", 512, 5e4, 4e4, 6e4), Peak("int8", "A", 512, 5e4, 4e4, 6e4),
    Peak("int8", "B", 1024, 6e4, 5e4, 7e4), Peak("int8", "C", 0, 0.0, 0.0, 0.0, "it crashed"),
]  # fmt: skip


def test_ratios_refer_to_the_reference_the_best_peer_eager_and_the_matrix_peaks() -> None:
    rows = {r.key: r for r in with_ratios(ROWS, PIXEL, PEAKS)}
    best = best_peer(list(rows.values()))
    # Neither one of ours nor the fastest peer, which lost its F1.
    assert best and best.key == "quantize_static onnxruntime own"
    ours = rows["ours cpu onnxruntime int8"]
    assert (ours.to_best_peer, ours.to_eager) == (30 / 14, 7.5)
    assert ours.f1_ratio == pytest.approx(0.999375) and rows["nncf-transformer openvino f32"].f1_ratio == 0.125
    assert (ours.of_float32_peak, ours.of_int8_peak) == (0.6, 0.5)
    assert best_peak(PEAKS, "int8") == PEAKS[2]
    without = with_ratios([row("a", "PyTorch", None, failed="no", f1=None)], PIXEL, [])[0]
    assert (without.to_best_peer, without.to_eager, without.of_int8_peak, without.f1_ratio) == (None,) * 4


def targets(rows: list[Row], scene: Scene | None = None, features: Sequence[str] = ()) -> dict[str, Target]:
    return {t.name: t for t in targets_of(with_ratios(rows, PIXEL, PEAKS), scene, features)}


def test_targets_compare_rows_that_keep_f1() -> None:
    found = targets(ROWS)
    # The faster engine, and the faster peer, lost too much F1; such a peer is named.
    speed = found["pairs/s, best engine against best peer"]
    assert speed.reached and speed.asked == "at least 1.4 times"
    assert speed.found == (
        "2.14 times (ours cpu in ONNX Runtime, int8 against quantize_static onnxruntime own in ONNX Runtime; "
        "1.50 times nncf-transformer openvino f32 in OpenVINO, f32, whose F1 ratio is 0.1250)"
    )
    assert found["ONNX Runtime against its `quantize_static` default, pairs/s"].found.startswith("2.14 times")
    floats = [t for name, t in found.items() if name.startswith("float graph")]
    assert [(t.found[:4], t.asked, t.reached) for t in floats] == [
        ("1.25", "at least 1.2 times", True), ("1.17", "at least 1 times", True), ("not ", "at least 1 times", None),
    ]  # fmt: skip
    assert {(t.found, t.reached) for t in targets([row("a", "PyTorch", None)]).values()} == {("not measured", None)}


@pytest.mark.parametrize(
    ("features", "asked", "reached", "stretch"),
    [
        (["avx512_vnni", "amx_int8"], "at least 1.25 times, stretch 1.5", True, True),
        (["avx2"], "at least 1.4", True, False),
    ],
)
def test_targets_depend_on_the_processor(features: list[str], asked: str, reached: bool, stretch: bool) -> None:
    found = targets(ROWS, features=features)["pairs/s, best engine against best peer"]
    assert found.asked.startswith(asked) and (found.reached, found.stretch) == (reached, stretch)


def test_bf16_is_compared_with_bf16() -> None:
    rows = [
        *ROWS, row("straight openvino own", "OpenVINO", 100, precision="bf16"),
        row("ours float graph openvino bf16", "OpenVINO", 90, "ours", precision="bf16"),
    ]  # fmt: skip
    found = targets(rows)
    assert found["float graph against the straight export, OpenVINO f32, pairs/s"].found.startswith("1.17")
    bf16 = found["float graph against the straight export, OpenVINO BF16, pairs/s"]
    assert bf16.found.startswith("0.90") and bf16.reached is False


def test_the_single_pair_is_compared_by_p50() -> None:
    rows = [
        changed(r, latency=Latency(ms, 99, 1, 99, 9))
        for r, ms in zip(ROWS, (50, 40, 80, 60, 9, 45, 39, 30, 20), strict=True)
    ]
    found = targets(rows)["single pair, p50, best engine against best peer"]
    assert found.found.startswith("1.33 times (ours cpu in ONNX Runtime, int8 against straight openvino f32")
    assert found.reached


def path(side: Any, f1: float, *rounds: tuple[float, float, float]) -> ScenePath:
    """Returns a path with 100 tiles; ``rounds``: seconds, seconds of the tiles, and pairs/s of the engine."""
    return ScenePath(side, side, "e", f1, [SceneRound(a, b, 100, c) for a, b, c in rounds])


LOOP_PATH = path("peer", 0.8, (20, 18, 6), (20, 19, 6), (26, 24, 5))
SCENE = Scene(2000, [LOOP_PATH, path("ours", 0.8, (10, 9, 12), (11, 9.5, 11), (10, 8.5, 12))])


def test_scene_targets_state_the_whole_path_its_start_and_end_and_the_share_of_the_engine() -> None:
    found = [t for name, t in targets(ROWS, SCENE).items() if name.startswith("scene of 2,000 px")]
    assert [(t.found, t.reached) for t in found] == [
        ("2.00 times (0.40 and 0.20 Mpixel/s, F1 ratio 1.0000)", True), ("1.50 s", True), ("0.957 (e)", True),
        ("0.877 (e)", False),
    ]  # fmt: skip
    slower = targets(ROWS, changed(SCENE, paths=[LOOP_PATH, path("ours", 0.79, (1, 1, 100))]), ["amx_bf16"])
    whole, outside, *_ = (t for name, t in slower.items() if name.startswith("scene"))
    assert whole.reached is False and "F1 ratio 0.9875" in whole.found and not whole.stretch
    assert outside.asked == "under 1.2 s together"
    failed = changed(SCENE, paths=[LOOP_PATH, ScenePath("ours", "ours", failed="it crashed")])
    assert [t.reached for name, t in targets(ROWS, failed).items() if name.startswith("scene")] == [
        None, None, None, False,
    ]  # fmt: skip


def test_work_counts_the_macs_with_weights_and_between_activations() -> None:
    model = graphs.parsed(
        """attention (float[1,6,8] x) => (float[1,6,6] y) {
            q_q = MatMul (x, w)
            k_t = Transpose <perm = [0, 2, 1]> (x)
            y = MatMul (q_q, k_t)
        }""",
        {"w": np.ones((8, 8), np.float32)},
    )  # fmt: skip
    assert work_of(model) == Work(6 * 8 * 8, 6 * 6 * 8)
    assert work_of(model).operations == 2 * (384 + 288)


@pytest.mark.parametrize(
    ("threads", "batch", "streams", "wanted"),
    [(2, 4, True, ["1 x 1", "2 x 1", "1 x 4"]), (1, 4, True, ["1 x 1", "1 x 4"]), (8, 1, False, ["1 x 1"])],
)
def test_the_grid_has_only_supported_settings(threads: int, batch: int, streams: bool, wanted: list[str]) -> None:
    assert [f"{s.streams} x {s.batch}" for s in grid(threads, batch, streams=streams)] == wanted


def report(rows: list[Row]) -> Report:
    sets = {"calibration_tiles": 128, "evaluation_tiles": 80, "evaluation_images": 5}
    machine = {"processor": "some", "cores": 2, "memory_gib": 8, "features": []}
    product = Latency(10.0, 12.0, 9.0, 11.0, 100)
    return Report(
        "2026-01-01T00:00:00+00:00", machine, {"threads": 2, "rounds": 5, "seconds": 2.0, "scene_rounds": 3}, sets,
        "0" * 64, "1" * 64, PIXEL, rows, [Absent("NNCF in OpenVINO's own precision", "it has no BF16")], product, PEAKS,
        SCENE if rows else None, [
            Target("a", "at least 1", "2", True), Target("b", "at least 3", "2", False), Target("c", "4", "-", None),
            Target("d", "at least 1, stretch 2", "3", True, True),
        ],
        0.1, 2.0,
    )  # fmt: skip


def test_the_table_states_all_conditions_of_the_measurement() -> None:
    rows = with_ratios([*ROWS, row("x", "OpenVINO", None, failed="no | such\nkernel")], PIXEL, PEAKS)
    rows[0] = changed(rows[0], latency=Latency(50.0, 60.0, 1, 2, 9), notes=["slow"])
    text = markdown(report(rows)).splitlines()
    assert {line.count("|") for line in text[: 2 + len(rows)]} == {13}
    assert text[2].endswith("| 50.0, 60.0 | 10.0 (9.0 to 11.0) | 1 x 1 | 0.71 | 2.50 | 20 %, 17 % |")
    assert "| the best | 3.50 |" in text[5] and text[9].startswith(
        "| **ours cpu** | ONNX Runtime, int8 | 0.7995 | 0.000 | 0.9994 |"
    )
    assert text[11].startswith("| x | OpenVINO | failed: no / such kernel |")
    body = "\n".join(text)
    assert "| a | at least 1 | 2 | reached |" in body and "| b | at least 3 | 2 | **not reached** |" in body
    assert "| 3 | reached, and the stretch goal |" in body and "2,000 x 2,000 px" in body
    assert "| **ours** | e | 0.8000 | 0.40 (0.36 to 0.40) | 10.0 | 1.50 | 100 | 11.1 | 12.0 | 0.957 |" in text
    without = markdown(changed(report(rows), scene=None))
    assert "whole path" not in without.lower()
    for words in (
        "load average 0.1 before the run, 2.0 at its end", "p99 / p50 is 1.20", "by B, 1024 rows", "slow.",
        "No row: NNCF in OpenVINO's own precision: it has no BF16.", "1 x 1 10.0",
    ):  # fmt: skip
        assert words in body
    assert msgspec.json.decode(encode(report(rows)), type=Report) == report(rows)


def test_the_plot_has_a_label_for_each_row(tmp_path: Path) -> None:
    from matplotlib.figure import Figure
    from PIL import Image

    drawn: list[str] = []
    text = Figure().subplots().__class__.text

    def keep(self: Any, x: float, y: float, words: str, **rest: Any) -> Any:
        drawn.append(words)
        return text(self, x, y, words, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure().subplots().__class__, "text", keep)
        draw(report([*ROWS, row("unscored", "OpenVINO", 5, f1=None)]), tmp_path / "plot.png")
    assert len(drawn) == len(ROWS) and any("F1 0.100" in words for words in drawn)
    assert min(Image.open(tmp_path / "plot.png").size) > 600
    draw(report([]), tmp_path / "empty.png")
    points, bottom, top = heights(ROWS)
    assert top == 0.8 and points[4] == bottom > 0.78


def test_latency_and_throughput_are_computed_from_rounds() -> None:
    found = latency_of([[10.0] * 50, [20.0] * 49 + [100.0]])
    assert (found.p50_ms, found.lowest, found.highest, found.calls) == (15, 10, 20, 100)
    assert 20 < found.p99_ms < 100
    tried = [Tried(ALONE, 1.0), Tried(Setting(1, 4), 9.0)]
    best = throughput_of([10.0, 8.0, 9.0], tried)
    assert (best.setting, best.median, best.lowest, best.highest) == (Setting(1, 4), 9.0, 8.0, 10.0)


class FakeGuest:
    """Replies at once; fails at the request ``broken``. A call takes ``ms``, a batch of four three times as long."""

    def __init__(self, key: str, ms: float = 10.0, broken: str = "") -> None:
        self.key, self.ms, self.broken = key, ms, broken
        self.calls: list[str] = []
        self.opened: list[tuple[int, int]] = []

    def call(self, do: str, **request: Any) -> dict[str, Any]:
        self.calls.append(do)
        if do == self.broken:
            raise ContenderFailed(f"{self.key} cannot {do}")
        if do == "open":
            self.opened.append((request.get("streams", 0), request.get("batch", 0)))
            return {}
        if do == "time":
            return {"ms": [5 * self.ms] + [self.ms] * (request["calls"] - 1)}
        factor = 3 if request["batch"] == 4 else 1
        return {"seconds": request["calls"] * factor * self.ms / 1000}

    def pause(self) -> None:
        self.calls.append("pause")

    def __enter__(self) -> FakeGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append("close")


def entrant(key: str, **changes: Any) -> Entrant:
    given: dict[str, Any] = {
        "key": key, "title": key, "engine": "ONNX Runtime", "side": "peer", "program": Program(key, (), {}),
        "opening": {}, "settings": grid(2, 4),
    }  # fmt: skip
    return Entrant(**given | changes)


def test_entrants_alternate_and_a_failed_one_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests = {
        "fast": FakeGuest("fast", 10), "slow": FakeGuest("slow", 40), "dead": FakeGuest("dead", broken="open"),
        "lame": FakeGuest("lame", broken="rate"),
    }  # fmt: skip
    product = FakeGuest("product")
    monkeypatch.setattr(race, "start", lambda entrant, log, limit: guests[entrant.key])
    monkeypatch.setattr(race, "Guest", lambda *_: product)
    course = Course(tiles=tmp_path, threads=2, rounds=3, seconds=0.2, work=tmp_path, limit_s=10.0)
    times, matrix = race.race(course, [entrant(key) for key in guests])
    assert times["dead"] == Times(failed="dead cannot open")
    assert times["lame"].latency and times["lame"].throughput is None and times["lame"].failed == "lame cannot rate"
    fast, slow = times["fast"].throughput, times["slow"].throughput
    assert fast and slow and fast.setting == Setting(1, 4) == slow.setting
    assert fast.median == pytest.approx(4 / 0.03) and slow.median == pytest.approx(4 / 0.12)
    assert {(t.setting.streams, t.setting.batch) for t in fast.tried} == {(1, 1), (2, 1), (1, 4)}
    assert guests["fast"].opened == [
        (1, 1),
        (1, 1),
        (2, 1),
        (1, 4),
        (1, 4),
    ]  # calls, three trials, the best
    latency = times["fast"].latency
    assert latency and (latency.p50_ms, latency.p99_ms, latency.calls) == (
        10,
        10,
        3 * 20,
    )  # not the first call
    assert matrix and product.calls[:2] == ["open", "pause"]
    assert all(guest.calls[-1] == "close" for guest in (*guests.values(), product))


def test_a_paused_guest_uses_no_cpu_time(tmp_path: Path) -> None:
    script = tmp_path / "busy.py"
    script.write_text(
        "import sys, threading, time, json\n"
        "def spin():\n    while True: pass\n"
        "threading.Thread(target=spin, daemon=True).start()\n"
        "for line in sys.stdin: print(json.dumps({'cpu': time.process_time()}), flush=True)\n"
    )
    with Guest(Program("busy", (sys.executable, str(script)), {}), tmp_path / "log", 20.0) as guest:
        guest.call("anything")
        time.sleep(0.2)
        before = guest.call("anything")["cpu"]
        guest.pause()
        time.sleep(0.6)
        after = guest.call("anything")["cpu"]
    assert before > 0 and after - before < 0.3


def test_batches_wrap_around_and_threads_share_an_engine() -> None:
    tiles = {"before": np.arange(5)[:, None]}
    assert exchange.batch_of(tiles, 4, 3)["before"].ravel().tolist() == [4, 0, 1]
    batches: list[int] = []

    def predict(inputs: exchange.Inputs) -> np.ndarray:
        batches.append(len(inputs["before"]))
        return inputs["before"]

    for run_all in (None, exchange.in_threads(predict, 2)):
        assert exchange.seconds_for(exchange.Opened(predict, {}, run_all), tiles, 2, 7) > 0
    assert batches == [2] * 14


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exam]:
    folder = tmp_path_factory.mktemp("exam")
    root = folder / "eval"
    for index, (before, after) in enumerate(zip(*bundles.images(3, bundles.TILE, bundles.TILE), strict=True)):
        label = np.zeros((bundles.TILE, bundles.TILE), np.uint8)
        label[:20] = 255
        for part, pixels in (("A", before), ("B", after), ("label", label)):
            bundles.write_image(root / part / f"{index}.png", pixels)
    tiles = TileSet.open(root, bundles.TILE)
    handed = hand_over(tiles, bundles.INTERFACE, folder / "handed")
    (folder / "work").mkdir()
    yield Exam(
        tiles=tiles,
        handed=handed,
        interface=bundles.INTERFACE,
        threshold=0.33,
        threads=2,
        work=folder / "work",
        limit_s=60.0,
    )


def context(tmp_path: Path, python: Path = Path(sys.executable), **changes: Any) -> Context:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"none")
    given = read_bundle(bundles.make_bundle(tmp_path / "bundle", engines=(bundles.FLOAT, bundles.INT8, bundles.RTX)))
    return Context(
        bundle=given, weights=weights, straight=FLOAT_GRAPH, python_of=lambda name: python, threads=2, work=tmp_path
    )


def test_guests_predict_the_same_at_every_setting_and_predictions_are_kept(
    exam: Exam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses real processes: ONNX Runtime as a peer, and the bundle's engines as in the runtime."""
    start = context(tmp_path)
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx2"})
    ours, absent = bundle_engines(start)
    assert [a.title for a in absent] == ["this project, `rtx-sm86`"]
    assert [(e.title, e.engine) for e in ours] == [
        ("this project, float graph", "ONNX Runtime"), ("this project, `cpu`", "ONNX Runtime"),
        ("this project, float graph", "OpenVINO"),
    ]  # fmt: skip
    peer = guest_entrant(start, "straight", "straight export", ONNX_RUNTIME, start.straight)
    gone = guest_entrant(start, "nncf", "NNCF", OPENVINO, ContenderFailed("NNCF could not be installed"))
    found, _ = examine(exam, [peer, gone, *ours[:2]])
    rows = [row for row, _ in found]
    assert rows[1].failed == "NNCF could not be installed"
    assert rows[0].f1 and rows[0].drop_points == 0 and rows[0].agreement == 1
    assert rows[2].agreement == 1 and rows[2].side == "ours"
    assert rows[3].agreement and rows[3].agreement > 0.8

    for one in (peer, ours[0]):
        with start_entrant(one, tmp_path / "log", 60.0) as guest:
            for setting in one.settings:
                open_for(guest, one, 2, setting)
                asked = {"tiles": exam.handed, "batch": setting.batch, "calls": 2 * setting.streams}
                assert guest.call("rate", **asked)["seconds"] > 0
                guest.call("predict", tiles=exam.handed, out=tmp_path / "out.npy")
                kept = np.load(exam.work / "answers" / one.key.replace(" ", "-") / "answers.npy")
                np.testing.assert_allclose(np.load(tmp_path / "out.npy"), kept, atol=1e-6)

    monkeypatch.setattr(predictions, "start", lambda *_: pytest.fail("stored predictions were computed again"))
    again, _ = examine(exam, [peer, *ours[:2]])
    assert [row for row, _ in again] == [rows[0], *rows[2:]]


def test_a_default_precision_that_has_a_row_already_is_reported(exam: Exam, monkeypatch: pytest.MonkeyPatch) -> None:
    class Same(FakeGuest):
        def call(self, do: str, **request: Any) -> dict[str, Any]:
            if do == "predict":
                np.save(request["out"], np.zeros((3, bundles.TILE, bundles.TILE), np.float32))
            return {"precision": self.key, "versions": {}, "peak_mib": 1.0}

    start_of = {"first": "", "asked": "f32", "left": "f32", "other": "bf16"}
    monkeypatch.setattr(predictions, "start", lambda entrant, *_: Same(start_of[entrant.key]))
    work = exam.work / "own"
    work.mkdir(exist_ok=True)
    straight = {"title": "straight export", "engine": "OpenVINO"}
    own_choice = entrant("left", **straight, precision="its own precision", made_of=("x",))
    assert chooses_precision(own_choice)
    line = [entrant("first"), entrant("asked", **straight, precision="f32"), own_choice]
    rows, absent = examine(replace(exam, work=work), line)
    assert [row.key for row, _ in rows] == ["first", "asked"]
    assert absent[0].title == "straight export in OpenVINO's own precision" and "f32" in absent[0].reason
    rows, absent = examine(replace(exam, work=work), [*line[:2], replace(own_choice, key="other")])
    assert [row.precision for row, _ in rows] == ["", "f32", "bf16"] and not absent


def test_the_network_in_pytorch_has_the_inputs_and_outputs_of_the_graphs(
    exam: Exam, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Difference(torch.nn.Module):
        def forward(self, before: Any, after: Any) -> Any:
            return (before.float() - after.float()).abs().mean(-1) / 255

    monkeypatch.setattr(network, "_network", lambda weights, interface, compiled: Difference())
    opened = network.open_engine(
        {"weights": "w", "interface": msgspec.to_builtins(exam.interface), "compiled": False, "threads": 1}
    )
    inputs = exchange.batch_of(exchange.load_tiles(str(exam.handed)), 0, 2)
    np.testing.assert_allclose(
        opened.predict(inputs), bundles.expected(inputs["before"], inputs["after"]), atol=1e-5
    )  # fmt: skip
    assert "torch" in opened.description["versions"]


def test_pytorch_entrants_use_batches_and_depend_on_the_weights(tmp_path: Path) -> None:
    eager, compiled = networks(context(tmp_path))
    assert [s.streams for s in eager.settings] == [1, 1] and eager.key == EAGER
    assert (eager.opening["compiled"], compiled.opening["compiled"]) == (False, True)
    assert file_sha256(tmp_path / "weights.safetensors") in eager.made_of
    assert eager.identity != compiled.identity


def test_a_bundle_requires_its_own_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"some")
    root = bundles.make_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match="pass them as --weights"):
        open_start(root, None, [], tmp_path)
    with pytest.raises(UsageError, match=r"has SHA-256 .*, but the bundle was built from 0000000000000000"):
        open_start(root, weights, [], tmp_path)
    bundles.edit(root, lambda m: m.update(source_weights_sha256=file_sha256(weights)))
    assert open_start(root, weights, [], tmp_path)[1] == weights
    with pytest.raises(UsageError, match="WEIGHTS is the checkpoint already"):
        open_start(weights, weights, [], tmp_path)

    built: list[list[str]] = []

    def build(_: Path, options: list[str], output: Path) -> Path:
        built.append(options)
        return output if output.exists() else bundles.make_bundle(output)

    for options in (["--a"], ["--a"], ["--b"]):
        open_start(weights, None, options, tmp_path / "work", builder=build)
    assert built == [["--a", "--force"], ["--b", "--force"]]


def test_peaks_use_the_best_size_and_a_failed_library_is_reported(tmp_path: Path) -> None:
    course = Course(tiles=tmp_path, threads=1, rounds=1, seconds=0.1, work=tmp_path, limit_s=60.0)
    here = own("benchmarks.speed.own.multiply", OPENBLAS_NUM_THREADS="1")
    there = foreign(Path(sys.executable), "multiply_onnxruntime.py")
    found = measure_peaks(
        course,
        [
            Multiplier("float32", "NumPy", here, {"library": "numpy"}),
            Multiplier("int8", "ONNX Runtime", there, {"kind": "int8"}),
            Multiplier("int8", "nobody", there, {"kind": "int3"}),
            Multiplier("int8", "absent", ContenderFailed("not installed"), {}),
        ],
    )
    assert [(p.library, p.failed) for p in found if p.library in ("NumPy", "absent")] == [
        ("NumPy", ""), ("absent", "not installed")
    ]  # fmt: skip
    assert all(p.lowest > 1e8 and p.rows >= 512 for p in found if not p.failed)
    assert next(p for p in found if p.library == "nobody").failed.endswith("KeyError: 'int3'")


def test_rows_with_incomplete_timing_have_a_note() -> None:
    rows = timed_rows(ROWS[:2], {ROWS[0].key: Times(failed="it died")}, PIXEL, [])
    assert rows[0].notes == ["timing is incomplete: it died"] and rows[0].throughput is None


@pytest.mark.parametrize("option", ["--rounds", "--seconds", "--threads", "--scene-side"])
def test_invalid_numbers_are_usage_errors(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["w", "--calib", "c", "--eval", "e", option, "0"])
    assert exited.value.code == 2 and f"{option} is 0" in capsys.readouterr().err


def test_engines_that_choose_their_precision_are_recognised(tmp_path: Path) -> None:
    start = context(tmp_path)
    made = [guest_entrant(start, "s", "s", e, FLOAT_GRAPH) for e in (ONNX_RUNTIME, OPENVINO, OPENVINO_OWN)]
    assert [chooses_precision(one) for one in made] == [False, False, True]
    assert len({one.key for one in made}) == 3
    assert onnx.load(start.straight)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx2"}, ["cpu", "openvino"]),
        ({"avx512_vnni", "avx512_bf16"}, ["cpu", "cpu-vnni", "openvino", "openvino-bf16", "openvino-int8-bf16"]),
    ],
)
def test_all_cpu_targets_of_this_processor_are_included(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: list[str]
) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    monkeypatch.setattr(machine, "architecture", lambda: "x86_64")
    assert targets_here() == expected


def test_the_float_graph_is_run_in_bf16_where_the_processor_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx512_bf16"})
    *_, float32, bf16 = bundle_engines(context(tmp_path))[0]
    assert [(e.title, e.engine, e.precision) for e in (float32, bf16)] == [
        ("this project, float graph", "OpenVINO", precision) for precision in ("float32", "bf16")
    ]
    assert float32.key != bf16.key
    assert msgspec.convert(bf16.opening["entry"], EngineEntry).precision == "bf16"  # the guest reads it so


def test_a_scene_is_made_of_the_evaluation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    label = np.zeros((32, 32), np.uint8)
    label[:8] = 255
    for part, pixels in (("A", bundles.images(32, 32)[0]), ("B", bundles.images(32, 32)[1]), ("label", label)):
        bundles.write_image(tmp_path / part / "0.png", pixels)
    pair = make_pair(tmp_path, 64, tmp_path)
    assert pair.before.is_file() and pair.after.is_file() and pair.label.sum() == 2 * 8 * 64
    monkeypatch.setattr(scene_module, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install .* --skip scene"):
        make_pair(tmp_path, 64, tmp_path)


SCRIPT = """import sys, json, numpy, rasterio
mask = numpy.zeros((16, 16), numpy.uint8)
mask[:8] = 1
with rasterio.open(sys.argv[1], "w", driver="GTiff", height=16, width=16, count=1, dtype="uint8") as file:
    file.write(mask, 1)
print("a message of a library")
print(json.dumps({"tiles": 4, "seconds": 0.01}))
"""


def test_scene_commands_alternate_and_each_runs_between_two_measurements_of_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    label = np.zeros((16, 16), bool)
    label[:8] = True
    pair = ScenePair(pixels=16, before=tmp_path / "A.tif", after=tmp_path / "B.tif", label=label)
    guests = {key: FakeGuest(key) for key in ("ours", "peer")}
    monkeypatch.setattr(scene_module, "start", lambda entrant, log, limit: guests[entrant.key])
    monkeypatch.setattr(scene_module, "open_for", lambda guest, *_: guest.call("open") or {"precision": "int8"})

    def command(side: Any, line: list[str]) -> Command:
        return Command(
            title=side, side=side, line=lambda output: [sys.executable, *line, str(output)], variables=dict(os.environ),
            engine=lambda result: (entrant(side), Setting(2, 1)),
        )  # fmt: skip

    course = Course(tiles=tmp_path, threads=1, rounds=2, seconds=0.1, work=tmp_path, limit_s=60.0)
    broken = command("broken", ["-c", "raise SystemExit(3)", "x.py"])
    found = measure_scene(course, pair, [command("peer", [str(script)]), command("ours", [str(script)]), broken])
    peer, ours, failed = found.paths
    assert (ours.f1, ours.engine, len(ours.rounds), len(peer.rounds)) == (1.0, "ONNX Runtime, int8", 2, 2)
    assert ours.rounds[0].tiles == 4 and ours.rounds[0].engine_rate == pytest.approx(100)
    assert ours.outside == pytest.approx(ours.seconds - 0.01, abs=1e-6) and ours.share == pytest.approx(4)
    measured = ["rate", "rate", "pause"]
    assert guests["ours"].calls == ["open", *5 * measured, "close"]  # once at first, twice in each round
    assert failed.failed.startswith("x failed with exit code 3") and not failed.rounds
    with pytest.raises(ContenderFailed, match="did not end within 0"):
        run_command([sys.executable, "-c", "import time; time.sleep(9)", "x.py"], {}, replace(course, limit_s=0.2))


def test_scene_commands_use_the_straight_export_and_the_defaults_of_predict(tmp_path: Path) -> None:
    given = context(tmp_path)
    pair = ScenePair(pixels=16, before=tmp_path / "A.tif", after=tmp_path / "B.tif", label=np.zeros((1, 1), bool))
    loop, predict = commands(given, pair)
    words = loop.line(tmp_path / "out.tif")
    assert words[1].endswith("tiled_loop.py") and words[2] == str(FLOAT_GRAPH)
    assert words[words.index("--overlap") + 1] == str(bundles.TILE // 4)
    assert loop.engine({})[1].streams > 1  # OpenVINO's throughput hint
    assert not {"--engine", "--overlap"} & set(predict.line(tmp_path / "out.tif"))
    used, setting = predict.engine({"engine": "cpu"})
    assert used.title == "this project, `cpu`" and setting.batch == 1


def test_the_tiled_loop_blends_overlapping_tiles(tmp_path: Path) -> None:
    """Runs the script: the tiny graph's output is the mean difference of the dates, so the whole mask is known."""
    pytest.importorskip("openvino", reason="the loop runs the graph in OpenVINO")
    rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
    dates = bundles.images(100, 150)
    for name, pixels in zip(("A", "B"), dates, strict=True):
        profile = {"driver": "GTiff", "height": 100, "width": 150, "count": 3, "dtype": "uint8", "photometric": "RGB"}
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile) as file:
            file.write(pixels.transpose(2, 0, 1))
    line = [sys.executable, str(scene_module.LOOP), str(FLOAT_GRAPH)]
    line += [str(tmp_path / name) for name in ("A.tif", "B.tif", "out.tif")]
    course = Course(tiles=tmp_path, threads=1, rounds=1, seconds=0.1, work=tmp_path, limit_s=60.0)
    _, result = run_command([*line, "--overlap", "16", "--threshold", "0.33", "--threads", "2"], os.environ, course)
    assert result["tiles"] == 2 * 3 and result["seconds"] > 0
    expected = bundles.expected(dates[0][None], dates[1][None])[0]
    with rasterio.open(tmp_path / "out.tif") as file:
        mask = file.read(1)
    clear = np.abs(expected - 0.33) > 1e-4
    np.testing.assert_array_equal(mask[clear], (expected > 0.33)[clear])
