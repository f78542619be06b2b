"""Tests that changed shares refer to valid pixels, and are reported with the valid share in text, JSON and tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from misgnet_runtime.cli import main as cli
from support.bundles import FLOAT, SPLIT_FLOAT, images, make_bundle, write_image
from support.commands import exit_code
from support.scenes import read, scene, write_raster

H, W = 100, 80
BEFORE, AFTER = scene(H, W)
EMPTY = np.zeros_like(AFTER)
Outcome = tuple[int, str, str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def called(*words: object) -> Outcome:
        capsys.readouterr()
        code = exit_code(cli.main, "misgnet-run", *words)
        return code, *capsys.readouterr()

    return called


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns a folder of dates (all, three quarters and no pixels valid) and of bundles, one of them split."""
    make_bundle(tmp_path / "bundle", engines=[FLOAT])
    make_bundle(tmp_path / "split", engines=[SPLIT_FLOAT])
    partly = AFTER.copy()
    partly[:, 75:] = 0
    for name, pixels, options in (
        ("before", BEFORE, {}),
        ("partly", partly, {"nodata": 0}),
        ("none", EMPTY, {"nodata": 0}),
    ):
        write_raster(tmp_path / f"{name}.tif", pixels, **options)
    return tmp_path


@pytest.mark.parametrize(
    ("share", "valid", "words"),
    [
        (None, 0.0, "no valid pixels"),
        (0.0, 1.0, "0.00 % changed of valid pixels, 100.00 % valid"),
        (0.123, 0.97, "12.30 % changed of valid pixels, 97.00 % valid"),
        (1.0, 0.999999, "100.00 % changed of valid pixels, > 99.99 % valid"),
        (0.5, 1e-6, "50.00 % changed of valid pixels, < 0.01 % valid"),
    ],
)
def test_shares_are_formatted(share: float | None, valid: float, words: str) -> None:
    from misgnet_runtime.formatting import format_change

    assert format_change(share, valid) == words


@pytest.mark.parametrize("command", ["predict", "series"])
def test_a_scene_without_valid_pixels_is_not_reported_as_unchanged(call: Any, folder: Path, command: str) -> None:
    dates = folder / "before.tif", folder / "none.tif"
    given = ("predict", folder / "bundle", *dates, "-o", folder / "out/none.tif")
    if command == "series":
        given = ("series", folder / "split", *dates, "-o", folder / "out")
    code, out, error = call(*given)
    assert code == 0 and "no valid pixels" in out and "changed" not in out
    assert "warning: " in error and "has no valid pixels" in error
    code, out, _ = call(*given, "--force", "--restart", "--log", "json")
    if command == "series":  # finished dates stay
        return
    figures = json.loads(out)
    assert (figures["changed_share"], figures["valid_share"], figures["nodata_share"]) == (None, 0, 1)


@pytest.mark.parametrize("command", ["predict", "series"])
def test_shares_are_of_valid_pixels(call: Any, folder: Path, command: str) -> None:
    dates = folder / "before.tif", folder / "partly.tif"
    given = ("predict", folder / "bundle", *dates, "-o", folder / "out/partly.tif")
    if command == "series":
        given = ("series", folder / "split", *dates, "-o", folder / "out")
    code, out, _ = call(*given)
    change = read(folder / "out/partly.tif")
    share = (change == 1).sum() / (change != 255).sum()
    assert code == 0 and f"{100 * share:.2f} % changed of valid pixels, 75.00 % valid" in out


def test_json_states_valid_and_changed_share_of_a_scene(call: Any, folder: Path) -> None:
    _, out, _ = call("predict", folder / "bundle", folder / "before.tif", folder / "partly.tif", "-o",
                     folder / "p.tif", "--log", "json")  # fmt: skip
    change, figures = read(folder / "p.tif"), json.loads(out)
    assert figures["valid_share"] == 0.75
    assert figures["changed_share"] == pytest.approx((change == 1).sum() / (change != 255).sum())


def test_a_batch_reports_shares_in_lines_and_tables(call: Any, folder: Path) -> None:
    rows = [f"{name},before.tif,{name}.tif" for name in ("partly", "none")]
    (folder / "scenes.csv").write_text("\n".join(["id,before,after", *rows]) + "\n")
    code, out, _ = call("batch", folder / "bundle", folder / "scenes.csv", "-o", folder / "out")
    assert code == 0 and "none: no valid pixels: none.tif" in out
    assert "% changed of valid pixels, 75.00 % valid: partly.tif" in out
    with (folder / "out/results.csv").open(newline="") as file:
        partly, none = csv.DictReader(file)
    assert (none["changed_share"], none["valid_share"], none["nodata_share"]) == ("", "0.0", "1.0")
    assert partly["valid_share"] == "0.75" and float(partly["changed_share"]) > 0
    code, out, _ = call("batch", folder / "bundle", folder / "scenes.csv", "-o", folder / "out", "--log", "json")
    assert code == 0 and json.loads(out)["earlier"] == 2  # a record without a share is read


def test_all_pixels_of_plain_images_are_valid(call: Any, folder: Path) -> None:
    for name, pixels in zip(("b", "a"), images(70, 90), strict=True):
        write_image(folder / name / "x.png", pixels)
    for before, after, output in (("b/x.png", "a/x.png", "mask.png"), ("b", "a", "masks")):
        given = ("predict", folder / "bundle", folder / before, folder / after, "-o", folder / output)
        code, out, _ = call(*given)
        assert code == 0 and "% changed of valid pixels, 100.00 % valid" in out
        _, out, _ = call(*given, "--force", "--log", "json")
        assert json.loads(out)["valid_share"] == 1
