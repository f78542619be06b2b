"""Tests the TOML file of a build's options: what it accepts, what it refuses, and that it reads back as written."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import tomllib
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxsim", reason="the compiler needs the [export] extra")
pytest.importorskip("torch", reason="the compiler needs the [export] extra")

from misgnet_export.cli import main as cli
from misgnet_export.pipeline import build as pipeline
from misgnet_export.pipeline.auto_target import parse_requested
from misgnet_export.pipeline.config import read_config, write_config
from misgnet_export.pipeline.request import BuildRequest, check_request
from misgnet_export.sources.options import parse_output
from misgnet_runtime.bundle import MAX_CONFIG
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.options import Stated, bare, make, stated
from support.builds import request_of
from support.commands import exit_code

OPTIONS = stated(BuildRequest)


def request_in(folder: Path, text: str) -> BuildRequest:
    """Returns the request in a file ``build.toml`` of ``folder`` that also has the required options."""
    (folder / "build.toml").write_text(f'source = "w"\ncalib = "c"\neval = "e"\noutput = "o"\n{text}', encoding="utf-8")
    with contextlib.chdir(folder):
        return make(BuildRequest, read_config(Path("build.toml"), BuildRequest))


def refusal(folder: Path, text: str | bytes) -> str:
    (folder / "build.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with contextlib.chdir(folder), pytest.raises(UsageError) as caught:
        read_config(Path("build.toml"), BuildRequest)
    message = str(caught.value)
    assert message.startswith("--config build.toml") and "\n" not in message
    return message


# ---- reading


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("tile = 64", "tile", 64),
        ('tile = "64"', "tile", 64),
        ('tile = "auto"', "tile", "auto"),
        ("[model]\ntile = 64", "tile", 64),
        ("calib_tiles = 3", "calib_tiles", 3),
        ("calib-tiles = 3", "calib_tiles", 3),
        ("control-minutes = 2", "control_minutes", 2.0),
        ("threshold = 0.25", "threshold", 0.25),
        ('threshold = "tuned"', "threshold", "tuned"),
        ("plan-batches = [1, 4]", "plan_batches", (1, 4)),
        ('plan-batches = "1,4"', "plan_batches", (1, 4)),
        ('target = ["cpu", "RTX-sm86"]', "requested", (parse_requested("cpu"), parse_requested("rtx-sm86"))),
        ('target = "cpu"', "requested", (parse_requested("cpu"),)),
        ("split = true", "split", True),
        ("split = false", "split", False),
        ('licence = "a \\"b\\" \\u00e4"', "licence", 'a "b" ä'),
        ("\ufeff", "split", False),
    ],
)
def test_option_is_read_under_its_name(tmp_path: Path, text: str, field: str, value: Any) -> None:
    (tmp_path / "x").mkdir()
    lines = text if text != "\ufeff" else ""
    assert getattr(request_in(tmp_path / "x", lines), field) == value


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ('model-io = "time"', "model_io", "time"),
        ('model-inputs = ["a", "b"]', "model_inputs", ("a", "b")),
        ('model_output = "classes:3"', "model_output", parse_output("classes:3")),
        ("changed = [2, 1]", "changed", (1, 2)),
        ("changed = 1", "changed", (1,)),
        ("mean = [0.5, 1, 2]", "mean", (0.5, 1.0, 2.0)),
        ("std = 0.5", "std", (0.5,)),
        ('keep-float32 = ["a,b", "c"]', "keep_float32", ("a,b", "c")),
    ],
)
def test_option_of_the_network_is_read_in_its_table_and_outside(
    tmp_path: Path, text: str, field: str, value: Any
) -> None:
    assert getattr(request_in(tmp_path, text).model, field) == value
    assert getattr(request_in(tmp_path, f"[model]\n{text}").model, field) == value


def test_relative_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "build.toml").write_text(
        'source = "net.onnx"\ncalib = "../c"\neval = "/e"\noutput = "o"\n[model]\nweights = "w.pt"'
    )
    with contextlib.chdir(tmp_path):
        found = make(BuildRequest, read_config(Path("a/build.toml"), BuildRequest))
    assert (found.source, found.calib, found.evaluation) == ("a/net.onnx", Path("a/../c"), Path("/e"))
    assert (found.output, found.model.weights) == (Path("a/o"), Path("a/w.pt"))


@pytest.mark.parametrize(
    ("source", "read"),
    [("net.py:make", "a/net.py:make"), ("package.module:make", "package.module:make"), ("w.pt", "a/w.pt")],
)
def test_factory_in_a_package_is_no_path(tmp_path: Path, source: str, read: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "build.toml").write_text(f'source = "{source}"')
    with contextlib.chdir(tmp_path):
        assert read_config(Path("a/build.toml"), BuildRequest) == {"source": read}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("calibtiles = 3", ": there is no option 'calibtiles'; did you mean calib-tiles?"),
        ("zzz = 3", ": there is no option 'zzz'; see `misgnet-export build --help`"),
        ("config = 'x'", ": there is no option 'config'; "),
        ("[models]\nbands = 3", ": there is no table 'models'; did you mean model?"),
        ("model = 3", ": 'model' is 3; expected the table [model]"),
        ("[[model]]\nbands = 3", ": 'model' is a list; expected the table [model]"),
        ("[model.x]\nbands = 3", ": there is no table 'x'"),
        ("[tile]\nbands = 3", ": 'tile' is a table; expected text"),
        ("calib_tiles = 3\ncalib-tiles = 3", " has 'calib-tiles' twice; leave one out"),
        ("tile = 64\n[model]\ntile = 64", " has 'tile' twice; leave one out"),
        ("tile = 64\ntile = 64", " is not valid TOML: Cannot overwrite a value"),
        ("calib-tiles = '3'", ": 'calib-tiles' is '3' (a string); expected a whole number"),
        ("calib-tiles = 3.0", ": 'calib-tiles' is 3.0; expected a whole number"),
        ("calib-tiles = true", ": 'calib-tiles' is true; expected a whole number"),
        ("control-minutes = true", ": 'control-minutes' is true; expected a number"),
        ("split = 1", ": 'split' is 1; expected true or false"),
        ("split = 'yes'", ": 'split' is 'yes' (a string); expected true or false"),
        ("licence = 1979-05-27", ": 'licence' is 1979-05-27; expected a string that is not empty"),
        ("calib = ''", ": 'calib' is '' (a string); expected a string that is not empty"),
        ('calib = "a\\u0000"', ": 'calib' is 'a"),
        ("calib = ['a']", ": 'calib' is a list; expected a string that is not empty"),
        ("target = [1]", ": 'target' is a list; expected a string or a list of strings"),
        ("target = 'tpu'", ": unknown target 'tpu'"),
        ("tile = [64]", ": 'tile' is a list; expected text"),
        ("tile = true", ": 'tile' is true; expected text"),
        ("tile = 64.5", ": --tile is '64.5'; it must be a number of pixels, or: auto"),
        ("plan-batches = [[1]]", ": 'plan-batches' is a list; expected a number, a string or a list"),
        ("plan-batches = []", ": 'plan-batches' is a list; expected a number, a string or a list"),
        ("plan-batches = [4, 1]", ": --plan-batches is '4,1'; expected ascending numbers from 1"),
        ("selection = 'best'", ": 'selection' is 'best' (a string); expected one of represent, random, first"),
        ("selection = 1", ": 'selection' is 1; expected one of represent, random, first"),
        ("[model]\nmodel-output = 'logits3'", ": --model-output is 'logits3'; expected logits2, logit1"),
        ("[model]\nbands = 0x" + "f" * 4000, ": 'bands' is a whole number of more than 64 bits; expected"),
        ("seed = " + "9" * 5000, " is not valid TOML"),
        ("x = " + "[" * 5000, " is not valid TOML"),
        ("x", " is not valid TOML: "),
        (b"x = '\xff'", " is not valid TOML: "),
        ("#" * (MAX_CONFIG + 1), f" is larger than {MAX_CONFIG} bytes, which is the limit"),
    ],
)  # fmt: skip
def test_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in refusal(tmp_path, text)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_missing_file_and_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="--config"):
        read_config(tmp_path / name, BuildRequest)


# ---- writing and reading back

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
NAMES = st.text("ab.*_ä /\"'\\\t\n\x7f", min_size=1).filter(lambda text: text.strip() == text)
FINITE = st.floats(-1e29, 1e29)
PARSED: dict[str, st.SearchStrategy[Any]] = {
    "target": st.lists(st.sampled_from(["auto", "cpu", "rtx-sm86,sm120-int8", "jetson-orin"]), min_size=1).map(
        lambda names: tuple(map(parse_requested, names))
    ),
    "tile": st.none() | st.just("auto") | st.integers(0, 1 << 40),
    "threshold": st.just("tuned") | FINITE,
    "plan_batches": st.none() | st.sets(st.integers(1, 99), min_size=1).map(lambda found: tuple(sorted(found))),
    "model_inputs": st.none() | st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    "model_output": st.none() | st.sampled_from(["logit1", "classes:17"]).map(parse_output),
    "changed": st.none() | st.sets(st.integers(0, 99), min_size=1).map(lambda found: tuple(sorted(found))),
    "mean": st.none() | st.lists(FINITE, min_size=1, max_size=16).map(tuple),
    "std": st.none() | st.lists(FINITE, min_size=1, max_size=16).map(tuple),
    "source": TEXTS.filter(lambda text: not text.startswith("/")),
}


def values_of(one: Stated) -> st.SearchStrategy[Any]:
    """Returns any values of an option that the command line can give."""
    if one.name in PARSED:
        return PARSED[one.name]
    kind = bare(one.type)
    some: st.SearchStrategy[Any]
    if get_origin(kind) is Literal:
        some = st.sampled_from(get_args(kind))
    else:
        numbers = st.integers(-(1 << 60), 1 << 60)
        some = {
            bool: st.booleans(),
            int: numbers,
            float: st.floats(allow_nan=False),
            str: TEXTS,
            Path: TEXTS.map(Path),
        }[kind]
    some = st.lists(some).map(tuple) if one.repeated else some
    return st.none() | some if one.default is None else some


@given(st.fixed_dictionaries({name: values_of(one) for name, one in OPTIONS.items()}), st.booleans())
@settings(deadline=None, max_examples=200)
def test_written_options_read_back_as_the_same_request(values: dict[str, Any], comments: bool) -> None:
    request = request_with(values)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("build.toml").write_bytes(write_config(request, comments=comments).encode())
        assert make(BuildRequest, read_config(Path("build.toml"), BuildRequest)) == request


def request_with(values: dict[str, Any]) -> BuildRequest:
    """Returns a request with values by option name, which are not parsed."""
    inner = {one.path[1]: values[name] for name, one in OPTIONS.items() if len(one.path) > 1}
    outer = {one.path[0]: values[name] for name, one in OPTIONS.items() if len(one.path) == 1}
    request = request_of("cpu")
    return replace(request, **outer, model=replace(request.model, **inner))


def test_every_option_is_written_in_the_order_of_its_statement_with_its_help() -> None:
    text = write_config(request_of("cpu"))
    names = [line.removeprefix("# ").partition(" =")[0] for line in text.splitlines() if " =" in line]
    assert names == [name.replace("_", "-") for name in OPTIONS]
    assert "\n# Number of calibration tiles.\ncalib-tiles = 128\n" in text and "\n# val =\n" in text
    assert tomllib.loads(text)["model"] == {"samples": "uint8", "keep-float32": []}


def test_config_without_comments_has_only_values() -> None:
    lines = write_config(request_of("cpu"), comments=False).splitlines()
    assert lines[0] == 'source = "w"' and not any(line.startswith("#") for line in lines)


# ---- the command


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[BuildRequest]]:
    """Collects the requests that the command makes; no build is run."""
    made: list[BuildRequest] = []

    def build(request: BuildRequest, _console: object) -> None:
        made.append(request)
        raise InputError("not built")

    monkeypatch.setattr(pipeline, "build", build)
    monkeypatch.chdir(tmp_path)
    yield made


def run(*words: object) -> int:
    return exit_code(cli.main, "misgnet-export", "build", *words)


def test_command_line_wins_over_the_file_and_replaces_its_lists(requests: list[BuildRequest]) -> None:
    Path("b.toml").write_text(
        'source = "w"\ncalib = "c"\neval = "e"\noutput = "o"\ntarget = ["cpu", "cuda"]\nseed = 3\ntile = 64\n'
        "split = true\nforce = false\n[model]\nkeep-float32 = ['a', 'b']\nbands = 4"
    )
    assert run("--config", "b.toml") == 4
    assert run("v", "--config", "b.toml", "--target", "openvino", "--seed", 0, "--keep-float32", "c", "--force") == 4
    first, second = requests
    assert (first.source, first.seed, first.tile, first.split, first.force) == ("w", 3, 64, True, False)
    assert (second.source, second.seed, second.tile, second.split, second.force) == ("v", 0, 64, True, True)
    assert [one.name for one in second.targets] == ["openvino"] and second.model.keep_float32 == ("c",)
    assert first.model.keep_float32 == ("a", "b") and second.model.bands == 4


def test_required_options_may_be_in_the_file_and_missing_ones_are_named(
    requests: list[BuildRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("b.toml").write_text('calib = "c"')
    assert run("--config", "b.toml", "w") == 2
    assert "missing: --eval FOLDER, -o FOLDER" in capsys.readouterr().err and not requests


def test_printed_config_gives_the_same_request(
    requests: list[BuildRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("net.py:make", "--calib", "c", "--eval", "e", "-o", "o", "--mean", "0.1,0.2", "--licence", 'a"\\b')
    assert run(*words, "--print-config") == 0
    Path("b.toml").write_text(capsys.readouterr().out)
    assert run("--config", "b.toml") == run(*words) == 4
    assert requests[0] == requests[1]


def test_printed_config_of_nothing_is_a_template(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--print-config") == 0
    text = capsys.readouterr().out
    assert "\n# source =\n" in text and "calib" not in tomllib.loads(text)


def test_values_beyond_a_limit_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--print-config", "--control-minutes", -1) == 2
    assert "--control-minutes is -1.0; expected 0 or more" in capsys.readouterr().err


def test_config_longer_than_a_manifest_keeps_is_refused_before_the_build() -> None:
    patterns = tuple(f"{'x' * 1000}{number}" for number in range(100))
    request = request_of("cpu")
    with pytest.raises(UsageError, match="characters in the manifest"):
        check_request(replace(request, model=replace(request.model, keep_float32=patterns)))


GOOD = write_config(request_of("cpu", "rtx-sm86"), comments=False).encode()


@given(st.binary(max_size=60) | st.tuples(st.integers(0, len(GOOD)), st.integers(0, 40), st.binary(max_size=20)))
@settings(deadline=None, max_examples=300)
def test_damaged_file_is_read_or_refused(damage: bytes | tuple[int, int, bytes]) -> None:
    if isinstance(damage, tuple):
        begin, removed, added = damage
        damage = GOOD[:begin] + added + GOOD[begin + removed :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "build.toml")
        path.write_bytes(damage)
        with contextlib.suppress(UsageError):
            read_config(path, BuildRequest)
