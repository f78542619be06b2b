"""Tests the demo bundle and the demo scene with the commands of README.md, and that they can be made again."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

rasterio = pytest.importorskip("rasterio", reason="the demo scene needs the [geo] extra")

from examples.make_demo import PROFILE, SEED, SIZE, build_bundle, draw_scene
from misgnet.synthetic import make_pair
from misgnet_export.cli import main as export_cli
from misgnet_runtime.bundle import Manifest, read_bundle
from misgnet_runtime.cli import main as cli
from support.commands import exit_code
from support.paths import DEMO_WEIGHTS, ROOT

BUNDLE, SCENE = ROOT / "examples" / "demo_bundle", ROOT / "examples" / "demo_scene"
if not BUNDLE.is_dir():
    pytest.skip("the sdist lacks the demo bundle", allow_module_level=True)
DATES = (SCENE / "before.tif", SCENE / "after.tif")


def f1(found: NDArray[np.bool_], label: NDArray[np.bool_]) -> float:
    return float(2 * (found & label).sum() / (found.sum() + label.sum()))


def test_command_of_the_readme_maps_the_demo_scene(tmp_path: Path) -> None:
    change, report = tmp_path / "change.tif", tmp_path / "change.html"
    assert exit_code(cli.main, "misgnet-run", "predict", BUNDLE, *DATES, "-o", change, "--report", report) == 0
    with rasterio.open(change) as raster:
        found = raster.read(1) == 1
        assert raster.crs == PROFILE["crs"] and raster.transform == PROFILE["transform"]
    assert f1(found, make_pair(SEED, SIZE).label) > 0.9
    assert "data:image/" in report.read_text(encoding="utf-8")


def test_python_of_the_readme_maps_the_demo_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "README.md", "exec"), {})
    share = re.search(r"([\d.]+)% of the pixels changed", capsys.readouterr().out)
    assert share is not None and abs(float(share[1]) - 100 * make_pair(SEED, SIZE).label.mean()) < 2
    assert (tmp_path / "change.gpkg").stat().st_size > 0


def test_engine_agrees_with_the_golden_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(cli.main, "misgnet-run", "verify", BUNDLE) == 0
    share = re.search(r"cpu: ([\d.]+) % of the golden tiles' pixels agree", capsys.readouterr().out)
    assert share is not None and float(share[1]) > 99.5


def test_bundle_is_small_and_has_no_float_graph() -> None:
    bundle = read_bundle(BUNDLE)
    manifest = bundle.manifest
    assert not manifest.float_graph and [(e.name, e.precision) for e in manifest.engines] == [("cpu", "int8")]
    assert "float graph" not in {entry.role for entry in manifest.files}
    assert {e["engine"] for e in manifest.metrics["engines"]} == {"cpu-float32", "cpu"}  # it was evaluated
    files = [path for path in BUNDLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15_000_000
    assert sum(path.stat().st_size for path in DATES) < 1_000_000
    texts = "".join(path.read_text(encoding="utf-8") for path in files if path.suffix in (".json", ".html"))
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", texts), "a folder of a machine"
    assert (BUNDLE / "evidence" / "report.html").read_text(encoding="utf-8").count("Threshold") == 1


def test_parity_asks_for_a_bundle_with_the_float_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(export_cli.main, "misgnet-export", "parity", BUNDLE, "--eval", tmp_path) == 4
    assert "has no float graph, which `misgnet-export parity` compares engines with" in capsys.readouterr().err
    assert exit_code(cli.main, "misgnet-run", "info", BUNDLE) == 0
    assert "without the float graph" in capsys.readouterr().out


def test_scene_is_the_drawn_one(tmp_path: Path) -> None:
    label = draw_scene(tmp_path)
    assert 0.1 < label.mean() < 0.2
    for path in DATES:
        with rasterio.open(path) as kept, rasterio.open(tmp_path / path.name) as drawn:
            assert (kept.crs, kept.transform, kept.shape) == (drawn.crs, drawn.transform, drawn.shape)
            assert np.abs(kept.read().astype(int) - drawn.read()).mean() < 2  # versions of JPEG differ


@pytest.mark.slow
def test_build_from_the_kept_file_reproduces_the_manifest(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the build needs the [export] extra")
    shutil.copy(ROOT / "examples" / "demo_bundle.toml", tmp_path)
    (tmp_path / DEMO_WEIGHTS.name).symlink_to(DEMO_WEIGHTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "PYTHONPATH", os.pathsep.join(str(ROOT / name) for name in SOURCES))
        build_bundle(tmp_path)
    kept, made = (read_bundle(path).manifest for path in (BUNDLE, tmp_path / "demo_bundle"))
    assert chosen(made) == chosen(kept)
    if (kept.machine["features"], kept.tool_versions) == (made.machine["features"], made.tool_versions):
        assert measured(made) == measured(kept)
    for found, expected in zip(made.metrics["engines"], kept.metrics["engines"], strict=True):
        assert abs(found["scores"]["f1"] - expected["scores"]["f1"]) < 0.005


SOURCES = ("", "export", "calibration", "runtime")


def chosen(manifest: Manifest) -> dict[str, Any]:
    """Returns what a build with the same options and tiles states on every machine."""
    fields = (
        "interface",
        "model",
        "config",
        "threshold",
        "overlap",
        "source_weights_sha256",
        "calibration",
        "features",
    )
    return {
        **{name: getattr(manifest, name) for name in fields},
        "engines": [(entry.name, entry.kind, entry.file, entry.precision) for entry in manifest.engines],
        "files": [(entry.path, entry.role, entry.precision) for entry in manifest.files],
        "gate": (manifest.min_f1_ratio, manifest.gate, manifest.float_graph),
    }


def measured(manifest: Manifest) -> dict[str, Any]:
    """Returns the manifest without times, speeds and machine, and without digests of files that state these."""
    found = msgspec.to_builtins(manifest)
    for name in ("created", "latency", "machine"):
        del found[name]
    for quantization in found["quantization"]:
        for repair in quantization["repairs"]:
            del repair["seconds"]
    found["files"] = [entry for entry in found["files"] if entry["role"] != "evidence"]
    return found
