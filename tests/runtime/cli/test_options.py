"""Tests that each option is one field, from which commands, tables and journals are derived."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer

from misgnet_runtime.cli import main as cli
from misgnet_runtime.cli.app import make_app, run_app
from misgnet_runtime.cli.options import Given, none_required, takes_options
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.batch.options import BatchOptions
from misgnet_runtime.jobs.batch.row import RowOptions
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.series.options import SeriesOptions
from misgnet_runtime.jobs.watch.options import WatchOptions
from misgnet_runtime.options import check, group, make, option, settings, stated
from misgnet_runtime.parsers import numbers
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.remote.options import RemoteOptions
from support.commands import exit_code
from support.paths import ROOT

# Adds one field to SceneOptions: modules imported after this use the extended class.
ONE_MORE = """
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from misgnet_runtime.jobs.scene import options as module
from misgnet_runtime.options import option

@dataclass(frozen=True, kw_only=True)
class SceneOptions(module.SceneOptions):
    haze: float = option(0.0, help="how much haze is removed", minimum=0, changes_output=True)
    chatty: bool = option(True, help="say less")

module.SceneOptions = SceneOptions
"""


def python(code: str, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime"), "COLUMNS": "200"}
    command = [sys.executable, "-c", ONE_MORE + code, *words]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("command", ["predict", "encode", "series", "batch", "watch"])
def test_a_new_field_is_an_option_of_every_command(command: str) -> None:
    shown = python("from misgnet_runtime.cli.main import main; main()", command, "--help")
    assert "--haze" in shown and "how much haze is removed" in shown and "[default: 0.0]" in shown
    assert "--no-chatty" in shown and "say less" in shown


def test_a_new_field_is_a_table_column_and_changes_what_counts_as_finished(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,before,after,haze,no-chatty\na,x.tif,y.tif,2,yes\nb,x.tif,y.tif,,\n")
    code = """
from misgnet_runtime.jobs.batch.table import read_table
first, second = read_table(Path(sys.argv[1]), {}, Path("out"))
print(first.options().haze, first.options().chatty, second.options().haze, second.options().chatty)
others = [replace(first, words=words) for words in ({"haze": "2"}, {"haze": "3"})]
print(first.key("b") == others[0].key("b"), first.key("b") == others[1].key("b"))
"""
    assert python(code, str(tmp_path / "t.csv")).split() == ["2.0", "False", "0.0", "True", "True", "False"]


def test_a_new_field_is_among_the_settings_of_a_resumable_run() -> None:
    code = """
from misgnet_runtime.jobs.watch.options import WatchOptions
from misgnet_runtime.jobs.folder import _shown
from misgnet_runtime.jobs.series.options import feature_settings
print(SceneOptions(haze=2.0).settings(overlap=16, batch=1, streams=1)["--haze"])
print(WatchOptions(scene=SceneOptions(haze=3.0)).settings()["haze"])
print(_shown(SceneOptions(haze=4.0)).endswith(" haze 4.0"))
print(feature_settings(SceneOptions(haze=5.0), overlap=16))
print(any("chatty" in name for name in SceneOptions().settings(overlap=16, batch=1, streams=1)))
"""
    assert python(code).splitlines() == ["2.0", "3.0", "True", "{'--overlap': '16', '--haze': '5.0'}", "False"]


def test_settings_on_disk_equal_those_of_earlier_versions(tmp_path: Path) -> None:
    asked = SceneOptions(align=True, min_area=4, vector=tmp_path / "v.gpkg", execution=ExecutionOptions(threads=3))
    assert asked.settings(overlap=64, batch=4, streams=2) == {
        "--align": "True", "--batch": "4", "--cog": "False", "--min-area": "4", "--overlap": "64",
        "--simplify": "0.0", "--streams": "2", "--vector": str(tmp_path.resolve() / "v.gpkg"),
    }  # fmt: skip
    scene = SceneOptions(both=Declared(bands=(3.0, 2.0, 1.0)), after=Declared(stretch=(2.0, 98.0)), overlap=8)
    assert WatchOptions(scene=scene, vector="fgb").settings() == {
        "probability": "False", "vector": "fgb", "quicklook": "False", "before-bands": "(3.0, 2.0, 1.0)",
        "after-bands": "(3.0, 2.0, 1.0)", "after-stretch": "(2.0, 98.0)", "align": "False", "overlap": "8",
        "cog": "False", "min_area": "0.0", "simplify": "0.0",
    }  # fmt: skip


# --- option classes


@dataclass(frozen=True, kw_only=True)
class Inner:
    tile: int = option(256, help="side of a tile", minimum=32, maximum=1024, changes_output=True)
    fast: bool = option(True, help="slower")


@dataclass(frozen=True, kw_only=True)
class Request:
    weights: Path = option(help="checkpoint", positional=True)
    evaluation: Path = option(help="folder", name="eval", short="-e")
    targets: tuple[str, ...] = option(("cpu",), help="repeated for more", name="target")
    sizes: tuple[int, ...] = option((), help="repeated for more", parse=int, repeated=True)
    gate: Literal["point", "upper"] = option("point", help="which", changes_output=True)
    scale: tuple[float, ...] | None = option(None, help="one or three", parse=numbers(1, 3, like="0.1"))
    picture: Path | None = option(None, help="a picture", suffixes=(".png",), changes_output=True)
    key: str | None = option(None, help="of an encrypted file", envvar="MISGNET_TEST_KEY")
    inner: Inner = group(Inner)
    other: Inner = group(Inner, prefix="other_", without=("fast",), fixed={"fast": False}, help="as {flag}, elsewhere")


def called(*words: str) -> Request:
    found: list[Request] = []

    @takes_options
    def build(*, request: Request) -> None:
        """Build."""
        found.append(request)

    app = make_app("x", "x")
    app.command()(build)
    app.command("rest")(lambda: None)
    app(["build", *words], standalone_mode=False)
    return found[0]


def test_options_in_any_order_give_the_same_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISGNET_TEST_KEY", "secret")
    assert called("w", "-e", "x") == Request(
        weights=Path("w"), evaluation=Path("x"), key="secret", other=Inner(fast=False)
    )
    found = called(
        "--target", "a", "--other-tile=64", "--no-fast", "w", "--scale", "1,2,3", "--eval", "x", "--target=b", "--gate",
        "upper", "--sizes", "1", "--tile", "32", "--sizes", "2",
    )  # fmt: skip
    assert found == Request(
        weights=Path("w"), evaluation=Path("x"), targets=("a", "b"), sizes=(1, 2), gate="upper", scale=(1, 2, 3),
        key="secret", inner=Inner(tile=32, fast=False), other=Inner(tile=64, fast=False),
    )  # fmt: skip


def test_a_repeated_option_accepts_a_single_text() -> None:
    assert make(Request, {"weights": "w", "eval": "x", "target": "a", "sizes": "3"}).targets == ("a",)
    with pytest.raises(UsageError, match="--sizes"):
        make(Request, {"weights": "w", "eval": "x", "sizes": ["3", "x"]})


def test_help_shows_the_fields_texts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(IndexError):  # help does not call the command
        called("--help")
    shown = capsys.readouterr().out
    for words in ("checkpoint", "--eval", "-e", "[default: cpu]", "as --tile, elsewhere", "MISGNET_TEST_KEY"):
        assert words in shown
    assert "--other-fast" not in shown and "None" not in shown and "()" not in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tile": "many"}, "--tile is 'many'; expected a whole number"),
        ({"tile": "8"}, "--tile is 8; expected 32 to 1,024"),
        ({"other_tile": "2000"}, "--other-tile is 2000; expected 32 to 1,024"),
        ({"no_fast": "perhaps"}, "--no-fast is 'perhaps'; expected yes or no"),
        ({"scale": "1,2"}, "--scale is '1,2'; expected 1 or 3 numbers, for example 0.1"),
        ({"picture": "x.jpg"}, "--picture is x.jpg; choose a name that ends in .png"),
        ({"nothing": "1"}, "there is no option --nothing"),
    ],
)
def test_invalid_texts_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(make(Request, {"weights": Path("w"), "eval": Path("x"), **given}))
    assert str(caught.value) == message


def test_settings_hold_options_that_change_the_output_and_resolved_values(tmp_path: Path) -> None:
    asked = Request(weights=Path("w"), evaluation=Path("x"), picture=tmp_path / "p.png")
    assert settings(asked, tile=64, no_fast=True) == {
        "gate": "point", "picture": str(tmp_path.resolve() / "p.png"), "tile": "64", "no_fast": "True",
        "other_tile": "256",
    }  # fmt: skip


def test_options_as_text_equal_the_cells_of_a_table() -> None:
    given: dict[str, Any] = {"min_area": 4.0, "cog": True, "align": False, "no_tuned": True, "overlap": None}
    assert make(BatchOptions, given).words == {"min_area": "4.0", "cog": "yes", "no_tuned": "yes"}
    with pytest.raises(UsageError, match="--batch is 0"):
        make(BatchOptions, {"batch": 0}).check()


@pytest.mark.parametrize("kind", [SceneOptions, SeriesOptions, WatchOptions, BatchOptions, RowOptions])
def test_every_option_has_help_and_a_panel(kind: type) -> None:
    found = stated(kind)
    assert all(one.option.help for one in found.values())
    made = make(kind, {})
    for one in found.values():
        assert one.path[0] in {field.name for field in fields(made)}
        one.value_in(made)


def test_columns_are_the_options_of_predict() -> None:
    assert stated(RowOptions).keys() - stated(SceneOptions).keys() == {"output"}
    # A row may not allow a network.
    assert stated(SceneOptions).keys() - stated(RemoteOptions).keys() <= stated(RowOptions).keys()
    assert not stated(RemoteOptions).keys() & stated(RowOptions).keys()
    assert (stated(BatchOptions).keys() | {"output"}) >= stated(RowOptions).keys()


def test_options_of_one_date_override_options_of_both() -> None:
    asked = make(SceneOptions, {"scale": "0.1", "bands": "3,2,1", "after_scale": "0.2"})
    before, after = asked.dates
    assert (before.scale, before.bands, after.scale, after.bands) == ((0.1,), (3, 2, 1), (0.2,), (3, 2, 1))
    assert before.shared == {"assets", "bands", "scale", "offset"} and after.shared == {"assets", "bands", "offset"}
    assert replace(asked, align=True).dates == asked.dates


def test_an_invalid_value_exits_with_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("predict", "b", "x.tif", "y.tif", "-o", tmp_path / "o.tif", "--before-bands", "1,x", "--cog")
    assert exit_code(cli.main, "misgnet-run", *words) == 2
    assert "--before-bands is '1,x'; expected 1 to 16 numbers, for example 3,2,1" in capsys.readouterr().err


@dataclass(frozen=True, kw_only=True)
class Visit:
    place: Path = option(help="Where.", metavar="FOLDER")
    count: int = option(3, help="How many.")
    names: tuple[str, ...] = option((), name="name", help="A name.")
    quiet: bool = option(True, help="Quiet.")


def test_given_options_are_only_those_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[dict[str, Any]] = []
    app = make_app("program", "Help.")

    @app.command()
    @takes_options
    def first(
        given: Annotated[Given, Visit],
        *,
        config: Annotated[str, typer.Option(callback=none_required, is_eager=True)] = "",
    ) -> None:
        """Help."""
        calls.append(dict(given))
        make(Visit, given)

    @app.command()
    def second() -> None:
        """Help."""

    for words in ((), ("--place", "p"), ("--count", 3, "--name", "a", "--name", "b", "--no-quiet")):
        exit_code(partial(run_app, app), "program", "first", *words)
    assert calls == [{}, {"place": Path("p")}, {"count": 3, "name": ["a", "b"], "no_quiet": True}]
    assert capsys.readouterr().err.count("error: missing: --place FOLDER\n") == 2
    (place,) = (one for one in typer.main.get_command(app).commands["first"].params if one.name == "place")
    assert place.required
