"""Tests of the INT8 comparison without the peers' environments, and with quantize_static of this environment."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime.quantization", reason="the benchmarks need the [export] extra")

from benchmarks.contest import environments, guest, kept, ours, peers
from benchmarks.contest.contenders import ONNX_RUNTIME, OPENVINO, OPENVINO_OWN, PEERS, Contender
from benchmarks.contest.environments import REQUIREMENTS, interpreters, pins, prepare
from benchmarks.contest.guest import GUESTS, ContenderFailed, Guest, foreign
from benchmarks.contest.handover import hand_over, replay
from benchmarks.contest.ours import Recorded, Sets, open_sets
from benchmarks.contest.share import Product, costs_of, plain, products_of, run_products, share_of
from benchmarks.int8_peers import graphs as contenders_graphs
from benchmarks.int8_peers.__main__ import check
from benchmarks.int8_peers.comparison import _is_duplicate, compare
from benchmarks.int8_peers.graphs import Graph, Task, candidates
from benchmarks.int8_peers.report import Made, Report, Row, table
from benchmarks.int8_peers.timing import Speed, measure, speed
from misgnet_runtime.bundle.checked import CheckedFiles
from misgnet_runtime.bundle.manifest import Interface, Normalization
from misgnet_runtime.bundle.preprocessing import normalise
from misgnet_runtime.bundle.quantization import Calibration
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.raster.dataset import TileSet
from support import bundles, graphs

INTERFACE = Interface(graphs.SIDE, 4)
STEM, BODY, HEAD = 32 * 32 * 3 * 9 * 16, 32 * 32 * 16 * 9 * 16, 32 * 32 * 16

_NETWORK = """
small (uint8[batch,32,32,3] before, uint8[batch,32,32,3] after) => (float[batch,32,32] probability) {
    head_before = Cast <to = 1> (before)
    head_after = Cast <to = 1> (after)
    head_difference = Sub (head_after, head_before)
    head_nchw = Transpose <perm = [0, 3, 1, 2]> (head_difference)
    head_scaled = Mul (head_nchw, gain)
    stem_conv = Conv <pads = [1, 1, 1, 1]> (head_scaled, stem_w, stem_b)
    stem_relu = Relu (stem_conv)
    body_conv = Conv <pads = [1, 1, 1, 1]> (stem_relu, body_w, stem_b)
    body_relu = Relu (body_conv)
    head_nhwc = Transpose <perm = [0, 2, 3, 1]> (body_relu)
    head_product = MatMul (head_nhwc, out_w)
    head_map = Squeeze (head_product, last_axis)
    probability = Sigmoid (head_map)
}
"""


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants = {
        "gain": np.float32(1 / 64), "stem_w": weight(16, 3, 3, 3), "stem_b": weight(16, 1)[:, 0] / 4,
        "body_w": weight(16, 16, 3, 3), "out_w": weight(16, 1), "last_axis": [-1],
    }  # fmt: skip
    return graphs.parsed(_NETWORK, constants)


# Two products are INT8; the others have a float activation, a float weight, 32 bits, or two activations.
_QUANTIZED = """
counted (float[1,16,32] x) => (float[1,16,32] y) {
    x_q = QuantizeLinear (x, scale, zero)
    x_dq = DequantizeLinear (x_q, scale, zero)
    x_back = Transpose <perm = [0, 2, 1]> (x_dq)
    x_moved = Transpose <perm = [0, 2, 1]> (x_back)
    w_dq = DequantizeLinear (w_int8, scale, zero)
    v_q = QuantizeLinear (v, scale, zero)
    v_dq = DequantizeLinear (v_q, scale, zero)
    s_dq = DequantizeLinear (s_int32, scale)
    both_one = MatMul (x_moved, w_dq)
    both_two = MatMul (x_dq, v_dq)
    weight_only = MatMul (x, w_dq)
    activation_only = MatMul (x_dq, v)
    wide_weight = MatMul (x_dq, s_dq)
    attention = MatMul (x_dq, x_back)
    y_a = Add (both_one, both_two)
    y_b = Add (weight_only, activation_only)
    y_c = MatMul (attention, y_a)
    y_d = Add (y_b, y_c)
    y = Add (y_d, wide_weight)
}
"""


def test_a_product_is_int8_if_weight_and_activation_are_dequantized_from_eight_bits() -> None:
    weight = np.ones((32, 32), np.int8)
    model = graphs.parsed(
        _QUANTIZED,
        {
            "scale": np.float32(0.1), "zero": np.int8(0), "w_int8": weight,
            "v": weight.astype(np.float32), "s_int32": weight.astype(np.int32),
        },
    )  # fmt: skip
    found = {product.names[0]: product.int8 for product in products_of(model)}
    assert found == {
        "both/MatMul_both_one": True, "both/MatMul_both_two": True, "weight/MatMul_weight_only": False,
        "activation/MatMul_activation_only": False, "wide/MatMul_wide_weight": False,
    }  # fmt: skip
    costs = dict.fromkeys(found, 1) | {"both/MatMul_both_one": 5}
    assert share_of(products_of(model), costs).share == 6 / 9


def test_costs_are_the_macs_of_one_pair() -> None:
    assert costs_of(network()) == {
        "stem/Conv_stem_conv": STEM, "body/Conv_body_conv": BODY, "head/MatMul_head_product": HEAD
    }  # fmt: skip


def test_renamed_products_are_recognised_and_count_once() -> None:
    costs = {"a/Conv_1": 6, "b/MatMul_2": 3, "c/MatMul_3": 1}
    products = [
        Product(["a/Conv_1/WithoutBiases", "Multiply_7"], True),
        Product(["a/Conv_1_token_4"], True),
        Product(["b/MatMul_2/DequantizationMultiply", "x/Add_9"], True),
        Product(["c/MatMul_3"], False),
        Product(["unknown_fusion"], True),
    ]
    found = share_of(products, costs)
    assert (found.share, found.nodes, found.of, found.unknown) == (0.9, 2, 3, ["unknown_fusion"])
    assert plain("a/Conv_1/WithoutBiases_nchwc_token_12") == "a/Conv_1"
    assert plain("a/Conv_1/fq_output_0") == "a/Conv_1"


def test_int8_products_of_onnxruntime_are_recognised_by_their_operators() -> None:
    nodes = [
        onnx.helper.make_node("QLinearConv", [], ["a"], "one_token_1"),
        onnx.helper.make_node("MatMulIntegerToFloat", [], ["b"], "two", domain="com.microsoft"),
        onnx.helper.make_node("MatMul", [], ["c"], "three"),
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "optimised", [], []))
    assert run_products(model) == [Product(["one_token_1", "a"], True), Product(["two", "b"], True)]


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_tiles_are_written_in_order(tmp_path: Path, form: Any) -> None:
    tiles = TileSet.open(graphs.write_tiles(tmp_path / "tiles", 5), graphs.SIDE)
    folder = hand_over(tiles, Interface(graphs.SIDE, 4, input=form), tmp_path / "handed")
    assert sorted(path.name for path in folder.iterdir()) == ["after.npy", "before.npy"]
    for name, expected in zip(("before", "after"), graphs.images(5), strict=True):
        found = np.load(folder / f"{name}.npy")
        assert np.array_equal(found, expected if form == "uint8" else normalise(expected, Normalization()))


def test_predictions_are_replayed_tile_by_tile(tmp_path: Path) -> None:
    predictions = np.random.default_rng(0).random((5, 32, 32), np.float32)
    np.save(tmp_path / "answers.npy", predictions)
    predict = replay(tmp_path / "answers.npy", INTERFACE, 5)
    before, after = graphs.images(5)
    assert np.array_equal(predict(before[:3], after[:3]), predictions[:3])
    assert np.array_equal(predict(before[3:], after[3:]), predictions[3:])
    with pytest.raises(ContenderFailed, match=r"the shape \(5, 32, 32\); the interface requires \(6, 32, 32\)"):
        replay(tmp_path / "answers.npy", INTERFACE, 6)


def task(tmp_path: Path, **changes: Any) -> Task:
    onnx.save(network(), tmp_path / "float.onnx")
    (tmp_path / "work").mkdir()
    given: dict[str, Any] = {
        "float_graph": tmp_path / "float.onnx", "own_graph": tmp_path / "float.onnx", "own": Made(1.0, 2.0),
        "own_notes": (), "interface": INTERFACE, "threshold": 0.5,
        "calibration": TileSet.open(graphs.write_tiles(tmp_path / "calib", 4), graphs.SIDE),
        "evaluation": TileSet.open(labelled(tmp_path / "eval", 4), graphs.SIDE), "work": tmp_path / "work",
        "python_of": lambda name: Path(sys.executable), "threads": 1, "rounds": 2, "seconds": 0.01, "limit_s": 60.0,
        "given_engines": (ONNX_RUNTIME,),
    }  # fmt: skip
    return Task(**given | changes)


def labelled(root: Path, count: int) -> Path:
    """Writes tiles whose labels have some change, so that F1 is defined."""
    from PIL import Image

    graphs.write_tiles(root, count, seed=1)
    for path in (root / "label").iterdir():
        label = np.zeros((graphs.SIDE, graphs.SIDE), np.uint8)
        label[:16] = 255
        Image.fromarray(label).save(path)
    return root


def peer(key: str, **changes: Any) -> Contender:
    template = next(p for p in PEERS if p.key == "quantize_static")
    values = {name: getattr(template, name) for name in template.__dataclass_fields__}
    return Contender(**values | {"key": key, "title": key} | changes)


def test_quantize_static_is_compared_and_failed_contenders_have_a_row(tmp_path: Path) -> None:
    def python_of(name: str) -> Path:
        if name == "nowhere":
            raise ContenderFailed("nowhere.txt cannot be installed: no such package")
        return Path(sys.executable)

    peers = (
        peer("good"), peer("absent", environment="nowhere"), peer("odd", settings={"no_such_setting": 1}),
    )  # fmt: skip
    rows = compare(task(tmp_path, peers=peers, python_of=python_of))
    by_key = {row.contender: row for row in rows}
    assert [row.contender for row in rows] == ["float32", "good", "absent", "odd", "this project"]
    assert (by_key["float32"].drop_points, by_key["float32"].agreement) == (0, 1)
    assert by_key["this project"].f1 == by_key["float32"].f1
    assert by_key["absent"].failed == "nowhere.txt cannot be installed: no such package"
    assert "no_such_setting" in by_key["odd"].failed and by_key["odd"].f1 is None
    good = by_key["good"]
    assert good.int8_in_graph and good.int8_in_graph.share == 1 and not good.int8_in_graph.unknown
    assert good.int8_as_run and good.int8_as_run.share > 0.9 and not good.int8_as_run.unknown
    assert by_key["float32"].int8_in_graph == by_key["float32"].int8_as_run
    assert good.agreement and 0.9 < good.agreement < 1
    assert good.made and good.made.seconds and good.made.peak_mib and good.made.peak_mib > 10
    for key in ("float32", "good", "this project"):
        found = by_key[key].speed
        assert found and 0 < found.lowest <= found.median <= found.highest


def test_a_later_run_reuses_unchanged_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized: list[str] = []
    real = peers._quantize_in_guest

    def counting(source: Any, contender: Contender, *rest: Any) -> Any:
        quantized.append(contender.key)
        return real(source, contender, *rest)

    monkeypatch.setattr(peers, "_quantize_in_guest", counting)
    first = task(tmp_path, peers=(peer("same"), peer("other")))
    (_, *before, _) = candidates(contenders_graphs.prepare(first))
    (first.work / "other" / "answer.json").write_text('{"key": "cut o')
    (_, *after, _) = candidates(contenders_graphs.prepare(first))
    assert quantized == ["same", "other", "other"]
    assert before[0] == after[0] and isinstance(after[1].graph, Graph) and after[1].graph.path.is_file()
    changed = replace(first, peers=(peer("same", settings={"per_channel": True}),))
    candidates(contenders_graphs.prepare(changed))
    assert quantized == ["same", "other", "other", "same"]


def test_an_unrelated_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(UsageError, match="was not made by an earlier run"):
        kept.open_folder(tmp_path / "photos")
    kept.open_folder(tmp_path / "run")
    kept.open_folder(tmp_path / "run")


def test_the_comparison_fails_if_the_float_graph_fails(tmp_path: Path) -> None:
    broken = task(tmp_path, peers=(), python_of=lambda name: Path(sys.executable), threads="many")
    with pytest.raises(ContenderFailed, match=r"run_onnxruntime.py failed: "):
        compare(broken)


def test_an_engines_default_precision_has_no_second_row_if_it_is_the_requested_one() -> None:
    requested = Row("nncf", "NNCF", OPENVINO.name, "f32")
    assert _is_duplicate(Row("nncf", "NNCF", OPENVINO_OWN.name, "f32"), requested)
    assert not _is_duplicate(Row("nncf", "NNCF", OPENVINO_OWN.name, "bf16"), requested)
    assert not _is_duplicate(Row("other", "NNCF", OPENVINO_OWN.name, "f32"), requested)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("raise SystemExit('no such graph')", "guest.py failed: no such graph"),
        ("import os; os.kill(os.getpid(), 9)", "guest.py was killed by SIGKILL: no message"),
        ("import time; time.sleep(60)", "guest.py did not reply within 0.01 minutes"),
    ],
)
def test_a_failed_guest_is_reported_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(guest, "GUESTS", tmp_path)
    (tmp_path / "guest.py").write_text(script)
    log = tmp_path / "log.txt"
    log.write_text("words of an earlier guest\n")
    with (
        Guest(foreign(Path(sys.executable), "guest.py"), log, 0.6) as opened,
        pytest.raises(ContenderFailed, match=words),
    ):
        opened.call("anything")


def test_guests_do_not_import_this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "here")
    assert "PYTHONPATH" not in guest.foreign_environment()
    for path in GUESTS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith(("misgnet", "benchmarks"))], path


def test_every_contender_has_a_script_and_pinned_requirements() -> None:
    for one in PEERS:
        for environment, script in [(one.environment, one.script), *((e.environment, e.script) for e in one.engines)]:
            assert (GUESTS / script).is_file()
            assert pins(REQUIREMENTS / f"{environment}.txt")
    assert pins(REQUIREMENTS / "modelopt.txt")["torch"] == "2.13.0"
    assert len({one.key for one in PEERS}) == len(PEERS)


@pytest.mark.parametrize("line", ["numpy", "numpy>=2  # new", "numpy==2.0"])
def test_a_requirement_without_a_pin_or_a_reason_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "any.txt").write_text(f"# head\n\nonnx[all]==1.0  # reads graphs\n{line}\n")
    with pytest.raises(InputError, match="is not a pin with a reason"):
        pins(tmp_path / "any.txt")


def test_an_environment_is_reinstalled_only_if_its_pins_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[Path] = []
    (tmp_path / "any.txt").write_text("onnx==1.0  # reads graphs\n")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    monkeypatch.setattr(environments.venv, "create", lambda folder, **_: folder.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(environments, "_install", lambda python, requirements, limit_s: installed.append(python))
    for _ in range(2):
        assert prepare("any", tmp_path / "cache", 1.0) == tmp_path / "cache/any/bin/python"
    (tmp_path / "any.txt").write_text("onnx==1.1  # reads graphs\n")
    prepare("any", tmp_path / "cache", 1.0)
    assert len(installed) == 2


def test_a_failed_installation_is_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "any.txt").write_text("onnx==1.0  # reads graphs\n")
    fake = tmp_path / "cache/any/bin/python"
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)

    def create(folder: Path, **_: Any) -> None:
        fake.parent.mkdir(parents=True, exist_ok=True)
        fake.write_text("#!/bin/sh\necho 'ERROR: no such version' >&2\nexit 1\n")
        fake.chmod(0o755)

    monkeypatch.setattr(environments.venv, "create", create)
    for _ in range(2):
        with pytest.raises(ContenderFailed, match=r"any.txt cannot be installed: ERROR: no such version"):
            prepare("any", tmp_path / "cache", 10.0)


def test_a_failed_environment_is_not_tried_again_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def fail(name: str, cache: Path, limit_s: float) -> Path:
        tried.append(name)
        raise ContenderFailed("no such version")

    monkeypatch.setattr(environments, "prepare", fail)
    python_of = interpreters(tmp_path, 1.0)
    for _ in range(3):
        with pytest.raises(ContenderFailed, match="no such version"):
            python_of("any")
    assert tried == ["any"]


def test_the_speed_is_the_median_of_the_rounds_with_extremes() -> None:
    assert speed([[100.0, 100.0], [50.0], [200.0]]) == Speed(10.0, 5.0, 20.0, 100.0, 4)


def test_guests_alternate_and_a_failed_one_does_not_stop_the_others() -> None:
    turns: list[str] = []

    class Fake:
        def __init__(self, name: str, good: bool) -> None:
            self.name, self.good = name, good

        def call(self, do: str, **request: Any) -> dict[str, Any]:
            turns.append(self.name)
            if not self.good:
                raise ContenderFailed("it died")
            return {"ms": [10.0] * request["calls"]}

        def pause(self) -> None:
            turns.append(f"{self.name} paused")

    guests: Any = {0: Fake("a", True), 1: Fake("b", False), 2: Fake("c", True)}
    found = measure(guests, Path(), 2, 0.1)
    assert [turn for turn in turns if "paused" not in turn] == ["c", "b", "a", "a", "c", "c", "a"]
    assert all(turns[index + 1] == f"{name} paused" for index, name in enumerate(turns) if name in ("a", "c"))
    assert found == {0: Speed(100, 100, 100, 10, 20), 1: "it died", 2: Speed(100, 100, 100, 10, 20)}


def report(rows: list[Row]) -> Report:
    machine = {"processor": "some", "cores": 2, "memory_gib": 8, "features": []}
    sets = {
        "calibration_tiles": 128, "calibration_chosen": "drawn", "evaluation_tiles": 80, "evaluation_images": 5
    }  # fmt: skip
    return Report(machine, {"threads": 2, "rounds": 5, "load_before": 0.3}, sets, "F1 equals the bundle's own.", rows)


def test_the_table_has_a_line_for_every_row_including_failed_ones() -> None:
    rows = [
        Row("float32", "float32", "ONNX Runtime", f1=0.5, drop_points=0.0, agreement=1.0, speed=Speed(10, 9, 11, 1, 5)),
        Row("x", "X, default", "OpenVINO", "bf16", f1=0.4, drop_points=10.0, agreement=0.9, notes=["broken: much"],
            speed=Speed(20, 19, 21, 1, 5), made=Made(12.0, 3.0, 2048.0, {"nncf": "3.4.0", "numpy": "2"})),
        Row("y", "Y", "ONNX Runtime", failed="no | such\nkernel"),
    ]  # fmt: skip
    text = table(report(rows)).splitlines()
    assert {line.count("|") for line in text[:5]} == {10}
    assert text[3].startswith("| X, default | OpenVINO, bf16 | 0.4000 | 10.000 | 90.000 % |")
    assert "20.0 (19.0 to 21.0), 2.00 x | 3, 2.0 | 12.0 |" in text[3]
    assert text[4].startswith("| Y | ONNX Runtime | failed: no / such kernel |")
    assert "- X, default: broken: much." in text
    assert text[-1] == "- Versions: nncf 3.4.0."


def bundle(tmp_path: Path, calibration: Calibration) -> Bundle:
    """Makes a bundle whose manifest states ``calibration``, for tiles of 32 px."""
    root = bundles.make_bundle(tmp_path / "bundle")
    from misgnet_runtime.bundle.manifest import decode_manifest

    manifest = msgspec.structs.replace(decode_manifest(root / "manifest.json"), tile=32, calibration=calibration)
    return Bundle(path=root, manifest=manifest, files=CheckedFiles(root))


@pytest.mark.parametrize("indices", [[0, 3, 5, *range(6, 19)], list(range(16))])
def test_the_bundles_calibration_tiles_are_found(tmp_path: Path, indices: list[int]) -> None:
    tiles = TileSet.open(graphs.write_tiles(tmp_path / "calib", 20), 32)
    chosen = tiles.subset(indices)
    opened = bundle(tmp_path, Calibration(16, chosen.digest(), 0, "none"))
    names = [{"name": ref.name} for ref in tiles.subset([0, 3, 5, *range(6, 19)])]
    (opened.path / "evidence/selection.json").write_bytes(msgspec.json.encode({"tiles": names}))
    evaluation = labelled(tmp_path / "eval", 2)
    sets = open_sets(opened, tmp_path / "calib", evaluation)
    assert [ref.name for ref in sets.calibration] == [ref.name for ref in chosen]
    with pytest.raises(InputError, match="was calibrated on 16 tiles that are not in"):
        open_sets(opened, graphs.write_tiles(tmp_path / "other", 20, seed=9), evaluation)


def test_figures_are_checked_against_the_bundles_evidence(tmp_path: Path) -> None:
    tiles = TileSet.open(graphs.write_tiles(tmp_path / "eval", 2), 32)
    sets = Sets(tiles, "drawn", tiles)
    rows = [Row("float32", "float32", "ONNX Runtime", f1=0.8), Row("this project", "ours", "ONNX Runtime", f1=0.79)]
    known = Recorded({"cpu-float32": 0.80001, "cpu": 0.79}, tiles.digest(), 1.0, ["calibrate"])
    assert check(rows, known, sets).endswith(
        "equals the bundle's: 0.8000 here, 0.8000 there; 0.7900 here, 0.7900 there."
    )
    wrong = Recorded({"cpu-float32": 0.801, "cpu": 0.79}, tiles.digest(), 1.0, [])
    assert "DIFFERS FROM the bundle's: 0.8000 here, 0.8010 there" in check(rows, wrong, sets)
    assert "no F1" in check([], known, sets)
    assert "another set" in check(rows, Recorded({}, "0" * 64, None, []), sets)


@pytest.mark.parametrize(
    ("stage", "counts"),
    [
        ("calibrate", True), ("quantize to INT8 for cpu", True), ("quantize to INT8 for tensorrt", False),
        ("select calibration tiles", False), ("evaluate cpu", False), ("measure throughput", False),
    ],
)  # fmt: skip
def test_build_stages_that_make_int8_are_recognised(stage: str, counts: bool) -> None:
    assert ours._makes_int8(stage) is counts
