"""Tests the whole build with demo weights and small synthetic tiles."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

pytest.importorskip("torch", reason="the build needs the [export] extra")

from misgnet.synthetic import write_split
from misgnet_export.cli.main import main
from misgnet_export.pipeline.choose_overlap import choose_overlap
from misgnet_export.pipeline.result import FLOAT_ENGINE
from misgnet_export.pipeline.targets import recipes_of
from misgnet_runtime.accuracy.evaluation_tiles import evaluate_on_device, evaluation_files, read_evaluation
from misgnet_runtime.bundle.manifest import decode_manifest
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.targets import parse_target
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.machine import architecture
from misgnet_runtime.raster.dataset import TileSet
from support.commands import exit_code
from support.deepness import DeepnessModel
from support.paths import DEMO_WEIGHTS as WEIGHTS
from support.paths import ROOT

TILE = 128
OTHER = "cpu-vnni" if architecture() == "aarch64" else "cpu-arm"  # a processor that this one is not


# Options that skip choosing a calibrator, repairs and accuracy control.
QUICK = ("--observer", "max", "--repair", "never", "--control-minutes", 0)


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def environment() -> dict[str, str]:
    """Returns variables that make the checkout importable like an installation."""
    paths = [ROOT, ROOT / "export", ROOT / "calibration", ROOT / "runtime"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "COLUMNS": "100"}


def build_arguments(data: Path, output: Path, *more: object) -> list[object]:
    return [
        "build", WEIGHTS, "--calib", data / "train", "--val", data / "val", "--eval", data / "test",
        "--tile", TILE, "--calib-tiles", 16, "--target", "cpu", "-o", output, *more,
    ]  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    for seed, (name, count) in enumerate({"train": 4, "val": 3, "test": 4}.items(), start=900):
        write_split(folder / name, count, seed, 256)  # cut into four tiles each
    return folder


@pytest.fixture(scope="session")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds a split bundle for the CPU and for a Jetson, the whole build of the default tier; see QUICK."""
    return built(data, tmp_path_factory, ["cpu", "jetson-orin-int8"], *QUICK)


@pytest.fixture(scope="session")
def bundle_of_many_targets(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds a split bundle for the CPU, another processor, a Jetson and the installed optional engines."""
    targets = ["cpu", OTHER, "jetson-orin-int8"]
    if has("openvino"):
        targets += ["openvino"]
    if has("tensorrt_rtx"):
        targets += ["rtx-sm89,sm86", "rtx-sm86-fp16"]
    return built(data, tmp_path_factory, targets)


@pytest.fixture(params=["bundle", pytest.param("bundle_of_many_targets", marks=pytest.mark.slow)])
def each_bundle(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def built(data: Path, tmp_path_factory: pytest.TempPathFactory, targets: list[str], *more: object) -> Path:
    output = tmp_path_factory.mktemp("built") / "bundle"
    # Points: with so few tiles, INT8 need not keep 99.9 % of F1.
    options: list[object] = ["--split", "--threshold", "tuned", "--ship-eval", "10", "--max-f1-drop", 0.5]
    options += ["--resolution", 0.5, *more]
    options += [word for target in targets for word in ("--target", target)]
    result = run("misgnet_export", *build_arguments(data, output, *options))
    assert result.returncode == 0, result.stdout + result.stderr
    return output


def test_bundle_contains_the_files_of_its_manifest(each_bundle: Path) -> None:
    manifest = read_bundle(each_bundle).manifest
    assert {e.name for e in manifest.engines} >= {"cpu", "cpu-float32", "jetson-orin-int8"}
    assert manifest.tile == TILE and manifest.inputs[0].shape == [-1, TILE, TILE, 3]
    assert [item.name for item in each_bundle.parent.iterdir()] == ["bundle"], "nothing is left beside the bundle"


@pytest.mark.slow
def test_every_target_becomes_an_engine(bundle_of_many_targets: Path) -> None:
    expected = {"cpu", "cpu-float32", OTHER, "jetson-orin-int8"}
    expected |= {"openvino"} if has("openvino") else set()
    expected |= {"rtx-sm86,sm89-int8", "rtx-sm86,sm89-fp16", "rtx-sm86-fp16"} if has("tensorrt_rtx") else set()
    assert {entry.name for entry in read_bundle(bundle_of_many_targets).manifest.engines} == expected


def test_threshold_is_tuned_on_the_validation_tiles(bundle: Path) -> None:
    manifest = decode_manifest(bundle / "manifest.json")
    number, f1, half = re.fullmatch(
        r"tuned: ([0-9.]+) on 12 validation tiles: F1 ([0-9.]+), ([0-9.]+) with 0.5", manifest.threshold_from
    ).groups()
    assert float(number) == manifest.threshold and float(f1) >= float(half) > 0.5
    assert json.loads((bundle / "evidence" / "parity.json").read_text())["threshold"] == manifest.threshold
    assert manifest.threshold_from in (bundle / "evidence" / "report.html").read_text()


def test_every_graph_states_what_it_is(bundle: Path) -> None:
    """The metadata agree with the manifest, also of the parts, and with the tuned threshold."""
    manifest, found = decode_manifest(bundle / "manifest.json"), {}
    for path in sorted((bundle / "graphs").glob("*.onnx")):
        props = {p.key: p.value for p in onnx.load(path).metadata_props}
        found[path.stem] = props.pop("misgnet_io")
        assert props.pop("misgnet_name") == manifest.model.name
        assert props.pop("misgnet_licence") == manifest.licence
        assert props.pop("misgnet_source_weights_sha256") == manifest.source_weights_sha256
        assert {key: json.loads(value) for key, value in props.items()} == {
            "misgnet_version": manifest.bundle_version,
            "misgnet_bands": ["red", "green", "blue"],
            "misgnet_scale": 1 / 255,
            "misgnet_mean": [0.485, 0.456, 0.406],
            "misgnet_std": [0.229, 0.224, 0.225],
            "misgnet_resolution": 0.5,
            "misgnet_threshold": manifest.threshold,
        }
    assert found == {
        name + part: io
        for name in ("float", "int8_cpu", "int8_tensorrt")
        for part, io in (("", "pair"), ("_encoder", "encoder"), ("_head", "head"))
    }


def test_overlap_is_measured_on_validation_images(bundle: Path, data: Path) -> None:
    manifest = decode_manifest(bundle / "manifest.json")
    assert [one.overlap for one in manifest.overlaps] == [0, TILE // 16, TILE // 8, TILE // 4, TILE // 2]
    assert choose_overlap(manifest.overlaps, TILE)[0] == manifest.overlap <= TILE // 4
    assert all(one.f1 > 0.5 and one.seam_agreement > 0.9 for one in manifest.overlaps)
    assert re.search(r"F1 at most 0.2 points .*; cpu\S* on 3 of 3 validation images, 0.2 mega", manifest.overlap_from)
    assert "Seam agreement" in (bundle / "evidence" / "report.html").read_text()
    assert f"overlap {manifest.overlap} px" in run("misgnet_runtime", "info", bundle).stdout


def test_every_engine_is_split_and_its_parts_reproduce_its_output(each_bundle: Path) -> None:
    manifest = decode_manifest(each_bundle / "manifest.json")
    sides = [TILE // 4, TILE // 8, TILE // 16]
    assert [f.shape for f in manifest.features] == [
        [-1, c, side, side] for c, side in zip((64, 128, 320), sides, strict=True)
    ]
    for engine in manifest.engines:
        assert engine.split
        whole = engine.file.rpartition(".")
        assert engine.split.encoder == f"{whole[0]}_encoder.{whole[2]}"
        assert engine.split.head == f"{whole[0]}_head.{whole[2]}"
    assert manifest.file("head graph for cpu").precision == "int8"
    result = run("misgnet_runtime", "verify", each_bundle)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("cpu")]
    assert len(lines) >= 2 and all(line.endswith("in 100.000 %") or "not run" in line for line in lines)
    stages = json.loads((each_bundle / "evidence" / "build.json").read_text())["stages"]
    assert {"split float", "split cpu"} <= {stage["name"] for stage in stages}


def test_jetson_entry_has_everything_needed_to_compile_on_the_device(bundle: Path) -> None:
    opened = read_bundle(bundle)
    entry = opened.engine_entry("jetson-orin-int8")
    assert entry.compiled == "to be compiled on the device" and entry.file == entry.graph == "graphs/int8_tensorrt.onnx"
    assert (entry.compute_capabilities, entry.platform, entry.batches) == (["sm87"], "linux-aarch64", (1, 4, 4))
    assert entry.split.encoder == entry.split.encoder_graph and entry.split.head == entry.split.head_graph
    (parity,) = (e for e in opened.manifest.metrics["engines"] if e["engine"] == "jetson-orin-int8")
    assert (parity["status"], parity["reason"]) == ("proxy", "to be compiled on the device")
    assert parity["verdict"]["passed"] and parity["device"] == "CPU"


def test_gate_of_the_device_agrees_with_the_build(bundle: Path, data: Path) -> None:
    """On the ten shipped tiles of sixteen, the float graph reproduces the shipped masks, and INT8 passes."""
    opened = read_bundle(bundle)
    assert [len(read_evaluation(bundle / path)) for path in evaluation_files(opened)] == [8, 2]
    for name in ("cpu-float32", "cpu"):
        with open_detector(opened, name) as (detector, entry, _):
            found = evaluate_on_device(opened, entry, detector.probability, detector.engine.device)
        assert found.verdict.passed and len(found.tiles) == 10 and found.interval.sources == 4
        assert found.agreement > (0.99999 if name == "cpu-float32" else 0.99)
    names = {ref.name for ref in TileSet.open(data / "test", TILE)}
    assert {tile.name for tile in found.tiles} < names


def test_compile_reports_missing_tensorrt(bundle: Path) -> None:
    result = run("misgnet_runtime", "compile", bundle)
    assert result.returncode == 5 and "TensorRT" in result.stderr, result.stderr
    result = run("misgnet_runtime", "info", bundle)
    assert "not on this machine: jetson-orin-int8 (" in result.stdout


# On a GPU, INT8 pays only in places: see docs/benchmarks/plans.md.
LEAST_INT8 = {"tensorrt": 0.45, "rtx": 0.25}


def test_quantized_graphs_are_small_and_mostly_quantized(each_bundle: Path) -> None:
    manifest = decode_manifest(each_bundle / "manifest.json")
    sizes = {f.path: f.size for f in manifest.files}
    for entry in manifest.quantization:
        if entry.recipe == "tensorrt-fp16":
            assert sizes[entry.graph] <= 0.6 * sizes["graphs/float.onnx"] and entry.shares()["float16"] > 0.8
            continue
        on_gpu = entry.recipe in LEAST_INT8
        assert sizes[entry.graph] <= (0.6 if on_gpu else 0.4) * sizes["graphs/float.onnx"]
        assert entry.int8_share_of_multiply_adds > LEAST_INT8.get(entry.recipe, 0.9)


def test_evidence_covers_every_engine_and_tile(each_bundle: Path) -> None:
    parity = json.loads((each_bundle / "evidence" / "parity.json").read_text())
    assert parity["tiles"] == 16 and parity["sources"] == 4 and parity["reference"] == "PyTorch float32"
    for engine in parity["engines"]:
        assert len(engine["tiles"]) == 16
        assert engine["status"] == ("proxy" if engine["engine"].startswith(("rtx", "jetson", OTHER)) else "run")
        assert engine["verdict"]["passed"]
    assert "data:image" in (each_bundle / "evidence" / "report.html").read_text()


def test_overlapping_stages_are_logged_in_the_order_of_the_targets(each_bundle: Path) -> None:
    stages = json.loads((each_bundle / "evidence" / "build.json").read_text())["stages"]
    names = [stage["name"] for stage in stages]
    recipes = [name for name in names if name.startswith("quantize to INT8 for ")]
    targets = [
        parse_target(entry.name) for entry in read_bundle(each_bundle).manifest.engines if entry.name != FLOAT_ENGINE
    ]
    assert recipes == [f"quantize to INT8 for {recipe.name}" for recipe in recipes_of(targets) if recipe.int8]
    reference = names.index("evaluate PyTorch float32")
    compiled = [i for i, name in enumerate(names) if name.startswith("compile ")]
    assert names.index(recipes[-1]) < min(compiled, default=reference) <= max(compiled, default=reference) <= reference


@pytest.mark.slow
def test_plans_for_two_gpus_are_compiled_from_the_graphs_of_their_precision(bundle_of_many_targets: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="no TensorRT-RTX")
    entry = read_bundle(bundle_of_many_targets).engine_entry("rtx-sm86,sm89-int8")
    assert entry.compute_capabilities == ["sm86", "sm89"] and entry.graph == "graphs/int8_rtx.onnx"
    assert (bundle_of_many_targets / entry.file).stat().st_size > 1_000_000
    for profile in entry.profiles:
        assert profile.kernels and profile.bytes_moved and profile.context_bytes
    evidence = {path.name for path in (bundle_of_many_targets / "evidence").glob("plan_*.json")}
    assert f"plan_{Path(entry.file).stem}.json" in evidence and len(evidence) % 3 == 0, "each plan is split"
    assert "Kernels of one inference" in run("misgnet_export", "inspect", bundle_of_many_targets, "--plan").stdout
    fp16 = read_bundle(bundle_of_many_targets).engine_entry("rtx-sm86-fp16")
    assert (fp16.precision, fp16.graph) == ("float16", "graphs/float16_tensorrt-fp16.onnx")


def test_float_int8_and_pytorch_agree_on_a_pair(bundle: Path, data: Path, tmp_path: Path) -> None:
    """The pair is one tile: the engines blend tiles, and PyTorch does not."""
    pair = [tmp_path / f"{date}.png" for date in ("A", "B")]
    for path in pair:
        Image.open(data / "test" / path.stem / "pair_00001.png").crop((0, 0, TILE, TILE)).save(path)
    masks = {}
    for engine in ("cpu", "cpu-float32"):
        out = tmp_path / f"{engine}.png"
        assert run("misgnet_runtime", "predict", bundle, *pair, "-o", out, "--engine", engine).returncode == 0
        masks[engine] = read_image_mask(out)
    out, threshold = tmp_path / "torch.png", decode_manifest(bundle / "manifest.json").threshold
    same = ["--tile", TILE, "--threshold", threshold]
    assert run("misgnet", "predict", WEIGHTS, *pair, *same, "-o", out).returncode == 0
    assert (masks["cpu-float32"] == read_image_mask(out)).mean() > 0.9999
    assert (masks["cpu"] == read_image_mask(out)).mean() > 0.98
    assert masks["cpu"].any()


def read_image_mask(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) > 0


def test_model_for_deepness_gives_the_mask_of_predict(bundle: Path, data: Path, tmp_path: Path) -> None:
    """The demo network in INT8 on one tile, which predict does not blend."""
    pair = [np.asarray(Image.open(data / "test" / date / "pair_00001.png"))[:TILE, :TILE] for date in "AB"]
    for date, image in zip("AB", pair, strict=True):
        Image.fromarray(image).save(tmp_path / f"{date}.png")
    words = ("misgnet-export", "publish", bundle, "--as", "deepness", "-o", tmp_path / "published")
    assert exit_code(main, *words) == 0
    model, mask = DeepnessModel(tmp_path / "published/change.onnx"), tmp_path / "mask.png"
    dates = (tmp_path / "A.png", tmp_path / "B.png")
    assert run("misgnet_runtime", "predict", bundle, *dates, "-o", mask, "--engine", "cpu").returncode == 0
    expected, found = read_image_mask(mask), model.mask(np.concatenate(pair, -1)[None])[0]
    assert expected.any() and (found == expected).mean() > 0.9999
    assert model.metadata["resolution"] == 50.0  # cm


def test_parity_command_needs_no_torch(bundle: Path, data: Path, tmp_path: Path) -> None:
    blocked = "import sys; sys.modules.update(torch=None, onnx=None); from misgnet_export.cli.main import main; main()"
    out = [tmp_path / "parity.json", tmp_path / "parity.xml"]
    arguments = ["parity", bundle, "--eval", data / "test", "--json", out[0], "--junit", out[1]]
    command = [sys.executable, "-c", blocked, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(out[0].read_text())["reference"] == "the bundle's float graph"
    assert b"<testsuite" in out[1].read_bytes()


def test_failed_parity_exits_with_3_and_writes_its_results(bundle: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "parity.json"
    result = run("misgnet_export", "parity", bundle, "--eval", data / "test", "--json", out, "--max-f1-drop", -100)
    assert result.returncode == 3 and "F1 drop" in result.stderr
    assert not json.loads(out.read_text())["engines"][0]["verdict"]["passed"]


def test_modified_bundle_is_rejected_by_parity(bundle: Path, data: Path, tmp_path: Path) -> None:
    graph = bundle / "graphs" / "int8_cpu.onnx"
    original = graph.read_bytes()
    try:
        graph.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        result = run("misgnet_export", "parity", bundle, "--eval", data / "test")
    finally:
        graph.write_bytes(original)
    assert result.returncode == 4 and "int8_cpu.onnx" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_failed_gate_leaves_evidence_and_no_bundle(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    result = run("misgnet_export", *build_arguments(data, output, "--max-f1-drop", -100, *QUICK))
    assert result.returncode == 3, result.stderr
    assert not output.exists()
    rejected = tmp_path / "bundle.rejected"
    assert {p.name for p in rejected.iterdir()} >= {"parity.json", "report.html"}
    assert not list(rejected.rglob("*.onnx")) and not (rejected / "manifest.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["bundle.rejected"]
    assert "Verdict" in result.stdout
    assert [line.partition(":")[0] for line in result.stderr.strip().splitlines()] == ["warning", "error"]


@pytest.mark.parametrize("stage", ["export to ONNX", pytest.param("evaluate cpu", marks=pytest.mark.slow)])
def test_killed_build_leaves_no_bundle_and_the_next_build_cleans_up(data: Path, tmp_path: Path, stage: str) -> None:
    output = tmp_path / "bundle"
    command = [sys.executable, "-u", "-m", "misgnet_export", *map(str, build_arguments(data, output, *QUICK))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout
    for line in process.stdout:
        if line.startswith(f"done: {PREVIOUS[stage]}"):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    left = list(tmp_path.iterdir())
    assert all(p.name.startswith(".bundle.building-") or p.name == ".bundle.lock" for p in left)
    refused = run("misgnet_export", *build_arguments(tmp_path, output))  # invalid input, but it cleans up first
    assert refused.returncode == 4
    assert list(tmp_path.iterdir()) == []


PREVIOUS = {"export to ONNX": "read the network", "evaluate cpu": "evaluate PyTorch"}


def test_existing_bundle_survives_refused_and_failed_builds(bundle: Path, data: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    assert run("misgnet_export", *build_arguments(data, bundle)).returncode == 2
    broken = run("misgnet_export", *build_arguments(data / "nowhere", bundle, "--force"))
    assert broken.returncode == 4 and "nowhere" in broken.stderr
    assert (bundle / "manifest.json").read_bytes() == before


BAD_REQUESTS = {
    "an unknown target": (["--target", "tpu"], 2, "tpu"),
    "a tile size that is not a multiple of 32": (["--tile", "100"], 2, "100"),
    "too few calibration tiles": (["--calib-tiles", "8"], 4, "at least 16"),
    "a threshold that is not a number": (["--threshold", "best"], 2, "or: tuned"),
    "a threshold to tune for a mask": (["--threshold", "tuned", "--output-form", "mask"], 2, "requires --val"),
    "TensorRT without a GPU or its library": (["--target", "tensorrt"], 5, "tensorrt"),
    "a licence that is too long for the manifest": (["--licence", "x" * 5000], 2, "5000 characters"),
    "a compute capability that does not exist": (["--target", "rtx-sm11"], 2, "sm11"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_invalid_requests_are_rejected_early(
    case: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, code, message = BAD_REQUESTS[case]
    if "rtx" in more[-1]:
        pytest.importorskip("tensorrt_rtx", reason="no TensorRT-RTX")
    if more[-1] == "tensorrt" and has("tensorrt"):
        pytest.skip("this machine has TensorRT")
    found = exit_code(main, "misgnet-export", *build_arguments(data, tmp_path / "bundle", *more))
    errors = capsys.readouterr().err
    assert found == code, errors
    assert message in errors.lower() and len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_images_cannot_be_used_for_calibration_and_evaluation(data: Path, tmp_path: Path) -> None:
    arguments = build_arguments(data, tmp_path / "bundle")
    arguments[arguments.index(data / "test")] = data / "train"
    result = run("misgnet_export", *arguments)
    assert result.returncode == 4 and "pair_00000" in result.stderr


def test_parity_json_is_a_typed_report(bundle: Path) -> None:
    from misgnet_runtime.accuracy.parity import ParityReport

    report = msgspec.json.decode((bundle / "evidence" / "parity.json").read_bytes(), type=ParityReport)
    assert report.passed and report.changed_share > 0
