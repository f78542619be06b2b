"""Tests that every option of ``build`` is a field of its request and is set from the command line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

pytest.importorskip("onnxsim", reason="the compiler needs the [export] extra")
pytest.importorskip("torch", reason="the compiler needs the [export] extra")

from misgnet_export.cli import main as cli
from misgnet_export.pipeline import build as pipeline
from misgnet_export.pipeline.request import BuildRequest
from misgnet_export.sources.options import ModelOptions, ModelOutput
from misgnet_runtime.bundle.targets import parse_target
from misgnet_runtime.errors import InputError
from support.commands import exit_code
from support.paths import DEMO_WEIGHTS

REQUIRED = {"source": "w", "calib": Path("c"), "evaluation": Path("e"), "output": Path("o")}
GIVEN = ("misgnet-export", "build", "w", "--calib", "c", "--eval", "e", "-o", "o")
# By field: its options on the command line, and its value. Every field with a default gets a different value here.
OTHERS: dict[str, tuple[list[object], Any]] = {
    "val": (["--val", "v"], Path("v")),
    "requested": (
        ["--target", "cpu", "--target", "rtx-sm89,sm86", "--target", "AUTO"],
        (parse_target("cpu"), parse_target("rtx-sm86,sm89"), "auto"),
    ),
    "force": (["--force"], True),
    "tile": (["--tile", 64], 64),
    "max_batch": (["--max-batch", 8], 8),
    "plan_batches": (["--plan-batches", "1,2,8"], (1, 2, 8)),
    "calib_tiles": (["--calib-tiles", 32], 32),
    "selection": (["--selection", "first"], "first"),
    "observer": (["--observer", "mse"], "mse"),
    "observations": (["--observations", "seen.npz"], Path("seen.npz")),
    "placement": (["--placement", "all"], "all"),
    "repair": (["--repair", "never"], "never"),
    "control_minutes": (["--control-minutes", 0.5], 0.5),
    "seed": (["--seed", 3], 3),
    "max_f1_drop": (["--max-f1-drop", -1], -1.0),
    "min_f1_ratio": (["--min-f1-ratio", 0.99], 0.99),
    "gate": (["--gate", "upper"], "upper"),
    "threshold": (["--threshold", "tuned"], "tuned"),
    "input_form": (["--input", "float32"], "float32"),
    "output_form": (["--output-form", "logits"], "logits"),
    "bundle_version": (["--bundle-version", 7], 7),
    "licence": (["--licence", "MIT"], "MIT"),
    "on_device": (["--on-device"], True),
    "ship_eval": (["--ship-eval", 5], 5),
    "timing_cache": (["--timing-cache", "t"], Path("t")),
    "split": (["--split"], True),
    "float_graph": (["--no-float-graph"], False),
}
# The same of the options that describe the network.
MODEL: dict[str, tuple[list[object], Any]] = {
    "weights": (["--weights", "w.pt"], Path("w.pt")),
    "state_key": (["--state-key", "ema"], "ema"),
    "model_io": (["--model-io", "stacked"], "stacked"),
    "model_inputs": (["--model-inputs", "x1, x2"], ("x1", "x2")),
    "model_output_name": (["--model-output-name", "y"], "y"),
    "model_output": (["--model-output", "classes:5"], ModelOutput("classes", 5)),
    "changed": (["--changed", "2,1"], (1, 2)),
    "bands": (["--bands", 4], 4),
    "samples": (["--samples", "uint16"], "uint16"),
    "normalization": (["--normalization", "half"], "half"),
    "mean": (["--mean", "0.1,0.2"], (0.1, 0.2)),
    "std": (["--std", "1"], (1.0,)),
    "scale": (["--scale", 10000], 10000.0),
    "multiple": (["--multiple", 16], 16),
    "resolution": (["--resolution", 0.5], 0.5),
    "keep_float32": (["--keep-float32", "head.*", "--keep-float32", "neck"], ("head.*", "neck")),
}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[BuildRequest]:
    """Collects the requests that the command makes; no build is run."""
    made: list[BuildRequest] = []

    def build(request: BuildRequest, _console: object) -> None:
        made.append(request)
        raise InputError("not built")

    monkeypatch.setattr(pipeline, "build", build)
    return made


def test_request_without_options_has_defaults(requests: list[BuildRequest]) -> None:
    assert exit_code(cli.main, *GIVEN) == 4
    assert requests == [BuildRequest(**REQUIRED)]
    assert requests[0].requested == ("auto",) and requests[0].policy.threshold == 0.5


@pytest.mark.parametrize(("quiet", "shown"), [([], "done: calibrate\n"), (["-q"], ""), (["--quiet"], "")])
def test_a_quiet_build_prints_no_stages(
    quiet: list[str], shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(_: BuildRequest, console: Any) -> None:
        console.print("done: calibrate")
        raise InputError("stop")

    monkeypatch.setattr(pipeline, "build", build)
    assert exit_code(cli.main, *GIVEN, *quiet) == 4
    assert capsys.readouterr() == (shown, "error: stop\n")


def test_help_states_that_the_default_target_is_auto() -> None:
    (target,) = (one for one in typer.main.get_command(cli.app).commands["build"].params if one.name == "target")
    assert target.show_default == "auto" and "auto (cpu, and on x86_64 with OpenVINO" in target.help


def test_every_field_is_set_by_its_option(requests: list[BuildRequest]) -> None:
    assert OTHERS.keys() == {field.name for field in fields(BuildRequest)} - REQUIRED.keys() - {"model"}
    assert MODEL.keys() == {field.name for field in fields(ModelOptions)}
    words = [word for given, _ in (*OTHERS.values(), *MODEL.values()) for word in given]
    assert exit_code(cli.main, *GIVEN, *words) == 4
    model = ModelOptions(**{name: value for name, (_, value) in MODEL.items()})
    others = {name: value for name, (_, value) in OTHERS.items()}
    assert requests == [BuildRequest(**REQUIRED, **others, model=model)]
    default = BuildRequest(**REQUIRED)
    assert all(getattr(default, name) != value for name, value in others.items())
    assert all(getattr(default.model, name) != value for name, (_, value) in MODEL.items())


def test_everything_that_is_missing_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(cli.main, "misgnet-export", "build", "--calib", "c") == 2
    assert capsys.readouterr().err == "error: missing: SOURCE, --eval FOLDER, -o FOLDER\n"


def test_help_marks_the_required_options() -> None:
    params = typer.main.get_command(cli.app).commands["build"].params
    assert {param.name for param in params if param.required} == {"source", "calib", "eval", "output"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "best"], "--threshold is 'best'; it must be a number between 0 and 1, or: tuned"),
        (["--target", "tpu"], "unknown target 'tpu'; choose from cpu, cpu-vnni"),
        (["--target", "tpu"], "; or auto"),
        (["--target", "auto,cpu"], "unknown target 'auto,cpu'"),
        (["--target", "auto", "--on-device"], "--on-device was given, but no target compiles its plan on the device"),
        (["--control-minutes", "-1"], "--control-minutes is -1.0; expected 0 or more"),
        (["--control-minutes", "nan"], "--control-minutes is nan"),
        (["--no-float-graph", "--target", "cuda"], "--target cuda opens the float graph; leave out --no-float-graph"),
        (["--ship-eval", "-1"], "--ship-eval is -1; expected 0 or more"),
        (["--bundle-version", "-1"], "--bundle-version is -1; expected 0 or more"),
        (["--min-f1-ratio", "0.99", "--max-f1-drop", "1"], "--max-f1-drop 1 and --min-f1-ratio 0.99 were both given"),
        (["--min-f1-ratio", "99.9"], "--min-f1-ratio is 99.9; it must be more than 0 and at most 1"),
        (["--min-f1-ratio", "nan"], "--min-f1-ratio is nan"),
        (["--max-f1-drop", "inf"], "--max-f1-drop is inf; expected a finite number of points"),
        (["--model-output", "logits"], "--model-output is 'logits'; expected logits2, logit1"),
        (["--changed", "1,1"], "--changed is '1,1'; expected numbers of classes"),
        (["--bands", "17"], "--bands is 17; expected 1 to 16"),
        (["--tile", "large"], "--tile is 'large'; it must be a number of pixels, or: auto"),
        (["--tile", "auto"], "--tile auto requires --val"),
        (["--max-batch", "1"], "--max-batch is 1"),
        (["--plan-batches", "1,32"], "--plan-batches has 32, but --max-batch is 16"),
        (["--threshold", "1"], "--threshold is 1.0; it must be between 0 and 1"),
        (["--observer", "percentile 0"], "--observer is 'percentile 0'"),
        (["--threshold", "tuned"], "--threshold tuned requires --val"),
    ],
)
def test_invalid_options_are_rejected_by_name(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(cli.main, *GIVEN, *words) == 2
    assert message in capsys.readouterr().err


def test_tile_that_the_network_does_not_support_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("misgnet-export", "build", DEMO_WEIGHTS, *GIVEN[3:], "--tile", 100)
    assert exit_code(cli.main, *words) == 2
    assert "--tile is 100; it must be a multiple of 32, at least 32" in capsys.readouterr().err
