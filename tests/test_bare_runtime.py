"""Tests that the runtime works without torch, onnx and the project's other packages, and is cheap to import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from misgnet_runtime.bundle.manifest import EngineKind
from support.bundles import FLOAT, RTX, images, make_bundle, write_image
from support.paths import ROOT

# This finder runs before Python's own: a module that it refuses appears not to be installed.
BARE = """
import sys
from importlib.abc import MetaPathFinder

ABSENT = {"torch", "onnx", "onnxsim", "onnxscript", "scipy", "jinja2", "safetensors", "sklearn", "cuda", "pycuda",
          "cryptography", "model_signing", "pynvml",
          "tensorrt", "tensorrt_rtx", "rasterio", "pyogrio", "shapely",
          "misgnet", "misgnet_export", "misgnet_calibration"}

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def python(code: str, *arguments: str) -> str:
    """Returns the output of a new interpreter with only the runtime of this project on its path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_every_module_imports_and_a_bundle_runs(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[RTX, FLOAT])
    pair = [str(write_image(tmp_path / f"{i}.png", pixels)) for i, pixels in enumerate(images(70, 50))]
    code = (
        BARE
        + """
import importlib, pkgutil
import misgnet_runtime

for module in pkgutil.walk_packages(misgnet_runtime.__path__, "misgnet_runtime."):
    importlib.import_module(module.name)
assert not {name.partition(".")[0] for name in sys.modules} & ABSENT
from misgnet_runtime.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
"""
    )
    out = python(code, "predict", str(bundle), *pair, "-o", str(tmp_path / "mask.png"))
    assert (tmp_path / "mask.png").is_file()
    assert out.endswith("engine cpu-float32 (fastest that runs here)\n")


@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_libraries_send_no_telemetry(kind: EngineKind, tmp_path: Path) -> None:
    """By default, both libraries store an identifier of the user or device in the home directory and send reports."""
    pytest.importorskip(kind)
    engine = msgspec.structs.replace(FLOAT, name="asked", kind=kind)
    bundle = make_bundle(tmp_path / "bundle", engines=[FLOAT, engine])
    pair = [str(write_image(tmp_path / f"{i}.png", pixels)) for i, pixels in enumerate(images(70, 50))]
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT / "runtime")}
    code = """
import sys
sys.addaudithook(lambda event, arguments: sys.exit(f"{event} {arguments}") if event.startswith("socket.") else None)
from misgnet_runtime.cli.main import main
main()
"""
    command = [sys.executable, "-c", code, "predict", str(bundle), *pair, "--engine", "asked"]
    subprocess.run([*command, "-o", str(tmp_path / "mask.png")], check=True, env=environment, timeout=120)
    assert [path for path in home.rglob("*") if "misgnet" not in path.parts and path.is_file()] == []


def test_imports_of_package_and_command_load_no_heavy_library() -> None:
    code = """
import sys
import misgnet_runtime
first = set(sys.modules)
import misgnet_runtime.cli.main
print(sorted(n for n in first if "." not in n and n in {"numpy", "onnxruntime", "msgspec", "typer", "rich", "PIL"}))
print(sorted(n for n in sys.modules if n in {"numpy", "onnxruntime", "PIL"}))
"""
    assert python(code).split() == ["[]", "[]"]


def test_export_except_build_imports_without_torch_and_onnx() -> None:
    """Bundles are verified, reported, served and installed on machines that do not build them."""
    modules = (
        "cli.main", "pipeline.reparity", "report.precision", "integrations.triton.repository",
        "integrations.publish.run", "integrations.wheelhouse", "integrations.signing",
    )  # fmt: skip
    paths = [str(ROOT / name) for name in ("export", "calibration")]
    python(f"""
import importlib, sys
sys.modules.update(torch=None, onnx=None, onnxsim=None, misgnet=None)
sys.path[:0] = {paths}
for name in {modules}:
    importlib.import_module("misgnet_export." + name)
""")
