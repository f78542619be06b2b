"""Tests the command ``misgnet-run``: atomic results, one line per error, and the exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from misgnet_runtime.cli import main as cli
from misgnet_runtime.cli.app import make_app, out_console, run_app
from misgnet_runtime.engines import Engine
from misgnet_runtime.errors import GateFailed, InputError, MisgnetError, UnavailableError, UsageError
from misgnet_runtime.inference.self_test import verify_bundle
from misgnet_runtime.inference.split_detector import SplitDetector
from support.bundles import (
    FLOAT,
    INT8,
    RTX,
    SPLIT_FLOAT,
    SPLIT_INT8,
    TILE,
    edit,
    expected,
    images,
    make_bundle,
    write_image,
)
from support.commands import exit_code
from support.paths import ROOT

SIZE = (90, 150)
OLD = b"an older mask"


@dataclass
class Place:
    """A bundle, a pair and an output in a temporary folder."""

    root: Path

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def output(self) -> Path:
        return self.root / "out" / "mask.png"

    def predict(self, *more: str, bundle: str | None = None, output: Path | None = None) -> list[str]:
        """Returns the command line."""
        pair = [str(self.root / name) for name in ("before.png", "after.png")]
        return ["predict", bundle or str(self.bundle), *pair, "-o", str(output or self.output), *more]


@dataclass
class Outcome:
    code: int
    out: str
    error: str


Run = Callable[..., Outcome]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    make_bundle(tmp_path / "bundle", engines=[FLOAT, INT8, RTX])
    for name, pixels in zip(("before", "after"), images(*SIZE), strict=True):
        write_image(tmp_path / f"{name}.png", pixels)
    return Place(tmp_path)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> Outcome:
        return Outcome(exit_code(cli.main, "misgnet-run", *arguments), *capsys.readouterr())

    return call


def failed(outcome: Outcome, code: int) -> str:
    """Checks that an outcome failed with ``code``, and returns its error line."""
    assert (outcome.code, outcome.out) == (code, ""), outcome
    *notes, error = outcome.error.splitlines()
    assert error.startswith("error: ") and all(note.startswith("not on this machine: ") for note in notes)
    return error


# Outputs


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_mask_is_written(place: Place, run: Run, slash: str) -> None:
    outcome = run(*place.predict("--engine", "cpu-float32", bundle=f"{place.bundle}{slash}"))
    assert (outcome.code, outcome.error) == (0, "")
    with Image.open(place.output) as mask:
        assert (mask.mode, mask.format) == ("L", "PNG")
        found = np.asarray(mask)
    changed = expected(*images(*SIZE)) > 0.5
    np.testing.assert_array_equal(found, np.where(changed, 255, 0))
    share = f"{100 * changed.mean():.2f} % changed of valid pixels, 100.00 % valid"
    assert f"{place.output}: 150 x 90 px, {share}, engine cpu-float32 (as requested)" in outcome.out
    assert list(place.output.parent.iterdir()) == [place.output]


def test_auto_reports_the_engines_it_skipped_in_one_short_line(place: Place, run: Run) -> None:
    outcome = run(*place.predict())
    assert outcome.out.endswith(", engine cpu (fastest that runs here)\n")
    assert re.fullmatch(r"not on this machine: rtx-sm86 \([^;:]+\)\n", outcome.error)


def test_an_existing_output_is_kept_without_force(place: Place, run: Run) -> None:
    place.output.parent.mkdir()
    place.output.write_bytes(OLD)
    assert "--force" in failed(run(*place.predict()), 2)
    assert place.output.read_bytes() == OLD
    assert run(*place.predict("--force")).code == 0
    assert place.output.read_bytes() != OLD


# Failures


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


BREAKS: dict[str, tuple[int, str, Callable[[Place], object]]] = {
    "no image": (4, "before.png", lambda p: (p.root / "before.png").unlink()),
    "a truncated image": (4, "after.png", lambda p: truncate(p.root / "after.png")),
    "no picture": (4, "after.png", lambda p: (p.root / "after.png").write_text("x")),
    "another size": (4, "8 x 4 px", lambda p: write_image(p.root / "after.png", images(4, 8)[0])),
    "a grey image": (4, "before.png", lambda p: write_image(p.root / "before.png", images(4, 8)[0][..., 0])),
    "no bundle": (4, "is not a bundle", lambda p: (p.bundle / "manifest.json").unlink()),
    "a tampered graph": (4, "int8.onnx", lambda p: (p.bundle / "graphs/int8.onnx").write_bytes(b"x")),
    "a tampered report": (4, "report.html", lambda p: (p.bundle / "evidence/report.html").write_text("x")),
    "an extra file": (4, "'extra'", lambda p: (p.bundle / "extra").touch()),
    "another tile": (4, "tile 32", lambda p: edit(p.bundle, lambda m: m.update(tile=32))),
}


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_run_does_not_change_the_output(place: Place, run: Run, name: str, existing: bool) -> None:
    code, words, change = BREAKS[name]
    change(place)
    if existing:
        place.output.parent.mkdir()
        place.output.write_bytes(OLD)
    assert words in failed(run(*place.predict("--force")), code)
    assert place.output.exists() is existing
    if existing:
        assert place.output.read_bytes() == OLD
        assert list(place.output.parent.iterdir()) == [place.output]


def test_an_unknown_engine_is_a_usage_error(place: Place, run: Run) -> None:
    assert "it has cpu-float32, cpu, rtx-sm86" in failed(run(*place.predict("--engine", "gpu")), 2)


def test_an_engine_without_its_device_is_unavailable(place: Place, run: Run) -> None:
    line = failed(run(*place.predict("--engine", "rtx-sm86")), 5)
    assert len(line) > len("error: \n")
    assert not place.output.exists()


def test_a_file_in_place_of_the_output_folder_is_refused(place: Place, run: Run) -> None:
    (place.root / "out").write_text("x")
    assert "cannot be written" in failed(run(*place.predict()), 4)
    assert (place.root / "out").read_text() == "x"


def test_a_folder_in_place_of_the_output_is_refused(place: Place, run: Run) -> None:
    place.output.mkdir(parents=True)
    failed(run(*place.predict()), 2)
    failed(run(*place.predict("--force")), 2)
    assert list(place.output.parent.iterdir()) == [place.output]


@pytest.mark.parametrize(
    "arguments", [["predict"], ["predict", "b", "x", "y"], ["fly"], ["info"], ["verify", "b", "--gpu"], []]
)
def test_an_invalid_call_exits_with_2(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).code == 2


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["info", "--help"], ["verify", "--help"]])
def test_help_exits_with_0(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).code == 0


# info and verify


def test_info_shows_which_engines_run_here(place: Place, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_console, "width", 300)
    outcome = run("info", str(place.bundle))
    assert outcome.code == 0
    first, second, *others = outcome.out.splitlines()
    assert first == "auto selects cpu: fastest that runs here"
    assert re.fullmatch(r"not on this machine: rtx-sm86 \([^;:]+\)", second)
    for words in (
        "tile 64 px",
        "gate: F1 at most 0.5 points below the float model's",
        "0.9000",
        "cpu, for any processor: runs on CPU",
        "golden/tiles.npz",
    ):
        assert any(words in line for line in others)


def test_info_says_that_no_engine_runs(tmp_path: Path, run: Run) -> None:
    outcome = run("info", str(make_bundle(tmp_path / "bundle", engines=[RTX])))
    assert outcome.code == 0
    assert outcome.out.startswith("auto selects no engine: none of this bundle runs on this machine\nnot on this ")


def test_info_shows_the_target_of_each_engine(place: Place, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("misgnet_runtime.machine.cpu_flags", lambda: {"avx2"})
    edit(place.bundle, lambda m: m["engines"][1].update(needs=["avx512_vnni", "avx_vnni"]))
    lines = run("info", str(place.bundle)).out.splitlines()
    assert "cpu-float32, for any processor: runs on CPU" in lines
    assert lines[1].startswith("not on this machine: rtx-sm86 (")
    assert lines[1].endswith("); cpu (needs avx512_vnni or avx_vnni)")


def test_info_shows_features_that_an_engine_lacks(place: Place, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "notes", ("batches are not replayed as CUDA graphs: pycuda does not support them",))
    out = run("info", str(place.bundle)).out
    assert "runs on CPU; batches are not replayed as CUDA graphs: pycuda does not support them\n" in out


def test_info_shows_the_engine_that_runs_on_any_gpu(place: Place, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    edit(place.bundle, lambda m: m["engines"][0].update(name="cuda", kind="onnxruntime-cuda"))
    out = run("info", str(place.bundle)).out
    assert "cuda (onnxruntime without CUDA)" in out.splitlines()[1]


def test_info_shows_which_engines_are_split(tmp_path: Path, run: Run) -> None:
    lines = run("info", str(make_bundle(tmp_path / "bundle", engines=[FLOAT, SPLIT_INT8]))).out.splitlines()
    rows = {tuple(line.split()[:3]) for line in lines if line.startswith("cpu")}
    assert rows >= {("cpu-float32", "float32", "no"), ("cpu", "int8", "yes")}


def test_info_prints_texts_without_interpreting_markup(place: Place, run: Run) -> None:
    def change(m: dict) -> None:  # type: ignore[type-arg]
        m.update(class_names=["[/]"], licence="[/bold]", metrics={})
        m["engines"][0].update(precision="[/b]")
        m["files"][0].update(role="[/r]")
        m["quantization"][0].update(calibrator="[/g]")

    edit(place.bundle, change)
    outcome = run("info", str(place.bundle))
    assert outcome.code == 0
    for words in ("[/]", "[/bold]", "[/b]", "[/r]", "[/g]", "n/a"):
        assert words in outcome.out


@pytest.mark.parametrize("metrics", [{"engines": 1}, {"engines": [1]}, {"engines": [{"engine": "cpu", "scores": 1}]}])
def test_info_refuses_metrics_of_another_form(place: Place, run: Run, metrics: object) -> None:
    edit(place.bundle, lambda m: m.update(metrics=metrics))
    outcome = run("info", str(place.bundle))
    assert outcome.code == 4 and "metrics cannot be read" in outcome.error


def test_verify_checks_engines_that_run_here(place: Place, run: Run) -> None:
    outcome = run("verify", str(place.bundle))
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "5 files match their digests"
    assert lines[1] == "cpu-float32: 100.000 % of the golden tiles' pixels agree"
    assert lines[2].startswith("cpu: 9") and lines[3].startswith("not on this machine: rtx-sm86 (")
    assert run("verify", str(place.bundle), "--engine", "cpu").out.splitlines() == [lines[0], lines[2]]


def test_verify_finds_a_wrong_engine(tmp_path: Path, run: Run) -> None:
    outcome = run("verify", str(make_bundle(tmp_path / "bundle", flip=True)))
    assert outcome.code == 3
    assert "error: engine cpu-float32 agrees with the golden tiles in only 0" in outcome.error


def test_verify_checks_that_split_parts_match_the_whole_graph(tmp_path: Path, run: Run) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[SPLIT_FLOAT, INT8])
    lines = run("verify", str(bundle)).out.splitlines()
    assert lines[1].endswith("agree; encoder and head, run separately, agree with the whole graph in 100.000 %")
    assert lines[2].startswith("cpu: ") and "encoder" not in lines[2]


@pytest.mark.parametrize("wrong", (0.0, np.nan))
def test_verify_finds_wrong_parts(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[SPLIT_FLOAT])
    monkeypatch.setattr(SplitDetector, "compare", lambda *_: np.full((1, TILE, TILE), wrong, np.float32))
    outcome = run("verify", str(bundle))
    assert outcome.code == 3
    assert "encoder and head of engine cpu-float32 agree with the engine in only " in outcome.error


def test_verify_fails_if_no_engine_runs(place: Place, run: Run) -> None:
    assert run("verify", str(place.bundle), "--engine", "gpu").code == 2
    assert run("verify", str(place.bundle), "--engine", "rtx-sm86").code == 5
    edit(place.bundle, lambda m: m.update(engines=m["engines"][2:]))
    with pytest.raises(UnavailableError, match="no engine was checked"):
        list(verify_bundle(place.bundle))


# Exit codes


@pytest.mark.parametrize("kind", [MisgnetError, UsageError, GateFailed, InputError, UnavailableError])
def test_an_error_is_one_line_and_an_exit_code(kind: type[MisgnetError], capsys: pytest.CaptureFixture[str]) -> None:
    def app() -> None:
        raise kind("many\n  lines\tof text")

    with pytest.raises(SystemExit) as ended:
        run_app(app)
    assert ended.value.code == kind.exit_code
    assert capsys.readouterr().err == "error: many lines of text\n"


def test_an_interruption_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app("x", "x")

    @app.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert exit_code(lambda: run_app(app), "x") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_subprocess_exits_the_same_way(place: Place) -> None:
    (place.bundle / "extra").touch()
    command = [sys.executable, "-m", "misgnet_runtime", *place.predict()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (4, "")
    assert ended.stderr.startswith("error: bundle ") and ended.stderr.count("\n") == 1
