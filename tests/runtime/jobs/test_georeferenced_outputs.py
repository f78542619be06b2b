"""Tests that georeferenced inputs are run as scenes for any output name, and that a PNG's losses are reported."""

from __future__ import annotations

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.transform import from_origin

from misgnet_runtime.cli import main as cli
from misgnet_runtime.jobs.folder import predict_folders
from misgnet_runtime.jobs.scene.options import SceneOptions
from support.bundles import FLOAT, make_bundle, write_image
from support.commands import exit_code
from support.ends import die_at, in_child
from support.scenes import read, scene, write_raster

H, W = 96, 80
BEFORE, AFTER = scene(H, W)
FAR = from_origin(799_984, 4_999_992, 0.5, 0.5)  # 400 km further east


class Place:
    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        self.before, self.after = root / "A" / "a.tif", root / "B" / "a.tif"
        self.dates(BEFORE, AFTER)

    def dates(self, before: NDArray[Any], after: NDArray[Any], **options: Any) -> None:
        write_raster(self.before, before, **options)
        write_raster(self.after, after, **options)

    def run(self, out: str, *more: str, folders: bool = False) -> tuple[int, str]:
        """Runs predict and returns exit code and stderr."""
        dates = (self.before.parent, self.after.parent) if folders else (self.before, self.after)
        code = exit_code(
            cli.main, "misgnet-run", "predict", self.bundle, *dates, "-o", self.root / out, "--engine", "cpu-float32",
            *more,
        )  # fmt: skip
        return code, self._capsys.readouterr().err

    def mask(self, out: str) -> NDArray[Any]:
        with Image.open(self.root / out) as image:
            assert (image.format, image.mode) == ("PNG", "L")
            return np.asarray(image)


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, capsys)


# --- one pair


def test_a_png_mask_equals_the_change_raster(place: Place) -> None:
    assert place.run("out.tif")[0] == 0
    code, error = place.run("mask.png")
    assert (
        code == 0 and "mask.png keeps no georeferencing" in error and "EPSG:32633" in error and "warning" not in error
    )
    changed = read(place.root / "out.tif")
    assert changed.any() and np.array_equal(place.mask("mask.png"), np.where(changed == 1, 255, 0))
    assert sorted(path.name for path in place.root.iterdir()) == ["A", "B", "bundle", "mask.png", "out.tif"]


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "place": ({"transform": FAR}, "offset by half a pixel or more"),
    "crs": ({"crs": "EPSG:32634"}, "different coordinate systems"),
    "nowhere": ({"crs": None, "transform": None, "nodata": 3}, "are not both georeferenced"),
}


@pytest.mark.parametrize("folders", [False, True])
@pytest.mark.parametrize("case", DIFFERENT)
def test_rasters_of_different_grids_are_refused(place: Place, case: str, folders: bool) -> None:
    options, words = DIFFERENT[case]
    write_raster(place.after, AFTER, **options)
    code, error = place.run("out" if folders else "mask.png", folders=folders)
    assert code == 4 and words in error
    assert not list(place.root.rglob("*.png"))


@pytest.mark.parametrize("folders", [False, True])
def test_values_that_are_not_8_bit_need_a_scaling(place: Place, folders: bool) -> None:
    place.dates(BEFORE.astype(np.uint16) * 100, AFTER.astype(np.uint16) * 100)
    out = "out" if folders else "mask.png"
    code, error = place.run(out, folders=folders)
    assert code == 4 and "contains uint16" in error
    assert place.run(out, "--scale", str(1 / 25500), folders=folders)[0] == 0


@pytest.mark.parametrize("hidden", ["nodata", "mask", "alpha"])
def test_nodata_in_a_png_is_warned_of(place: Place, hidden: str) -> None:
    there = np.full((H, W), 255, np.uint8)
    there[: H // 2] = 0
    after = np.where(there, AFTER, 7)
    alpha = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", "alpha")]
    if hidden == "nodata":
        write_raster(place.after, after, nodata=7)
    elif hidden == "mask":
        write_raster(place.after, after, mask=there)
    else:
        write_raster(place.after, np.concatenate([after, there[None]]), colours=alpha)
    code, error = place.run("mask.png")
    assert (
        code == 0
        and "warning: 50.00 % of the pixels are nodata; in mask.png they are 0, like unchanged pixels" in error
    )
    mask = place.mask("mask.png")
    assert not mask[: H // 2].any() and mask[H // 2 :].any()


def test_a_mask_inside_a_plain_tiff_is_used(place: Place) -> None:
    there = np.full((H, W), 255, np.uint8)
    there[: H // 2] = 0
    place.dates(BEFORE, AFTER, crs=None, transform=None)
    write_raster(place.after, AFTER, crs=None, transform=None, mask=there)
    assert "50.00 % of the pixels are nodata" in place.run("mask.png")[1]


def test_options_for_scenes_are_accepted_with_a_png_output(place: Place) -> None:
    code, error = place.run("mask.png", "--bands", "3,2,1", "--probability", str(place.root / "p.tif"))
    assert code == 0, error
    write_image(place.before, np.moveaxis(BEFORE, 0, 2))
    write_image(place.after, np.moveaxis(AFTER, 0, 2))
    code, error = place.run("other.png", "--bands", "3,2,1")
    assert code == 2 and "plain mask" in error and "choose an output that ends in .tif" in error


def test_a_raster_and_an_image_are_refused(place: Place) -> None:
    place.after = write_image(place.root / "B" / "a.png", np.moveaxis(AFTER, 0, 2))
    code, error = place.run("mask.png")
    assert code == 4 and "A/a.tif is a raster (it has a pixel scale" in error and "a.png is not a TIFF" in error


@pytest.mark.parametrize("folders", [False, True])
def test_a_raster_is_not_read_as_an_image_without_rasterio(
    place: Place, monkeypatch: pytest.MonkeyPatch, folders: bool
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    code, error = place.run("out" if folders else "mask.png", folders=folders)
    assert code == 5 and "pip install 'misgnet-export[geo]'" in error
    assert not list(place.root.rglob("*.png"))


def test_an_interrupted_png_is_resumed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import misgnet_runtime.jobs.scene.run as module

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_png", full)
        with suppress(OSError):
            place.run("mask.png")
    assert not (place.root / "mask.png").exists()
    assert place.run("mask.png")[0] == 0 and place.mask("mask.png").any()


def test_a_scene_too_large_for_a_png_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("misgnet_runtime.jobs.scene.predict.MOST_PNG_PIXELS", H * W - 1)
    code, error = place.run("mask.png")
    assert code == 4 and "choose -o mask.tif" in error


# --- folders


def test_a_folder_of_rasters_gives_change_rasters(place: Place) -> None:
    for folder, pixels in (("A", BEFORE), ("B", AFTER)):
        write_image(place.root / folder / "plain.png", np.moveaxis(pixels, 0, 2))
    code, error = place.run("out", folders=True)
    assert code == 0, error
    assert sorted(path.name for path in (place.root / "out").iterdir()) == ["a.tif", "plain.png"]
    place.run("single.tif")
    assert np.array_equal(read(place.root / "out" / "a.tif"), read(place.root / "single.tif"))
    with rasterio.open(place.root / "out" / "a.tif") as dataset:
        assert dataset.crs.to_epsg() == 32633 and dataset.nodata == 255
    assert place.run("out", folders=True)[0] == 2
    assert place.run("out", "--force", folders=True)[0] == 0


def test_a_folder_reports_the_valid_share(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    write_raster(place.after, np.concatenate([AFTER[:, : H // 4] * 0 + 7, AFTER[:, H // 4 :]], 1), nodata=7)
    line = ("predict", place.bundle, place.before.parent, place.after.parent, "-o", place.root / "out")
    assert exit_code(cli.main, "misgnet-run", *line) == 0
    assert "75.00 % valid" in capsys.readouterr().out


def test_options_for_one_pair_are_refused_for_folders(place: Place) -> None:
    code, error = place.run("out", "--probability", "p.tif", folders=True)
    assert code == 2 and "for one pair" in error
    for folder in ("A", "B"):
        (place.root / folder / "a.tif").unlink()
        write_image(place.root / folder / "plain.png", np.moveaxis(BEFORE, 0, 2))
    code, error = place.run("out", "--align", folders=True)
    assert code == 2 and "options for GeoTIFFs were given, but the folders hold none" in error


def test_a_folder_of_rasters_resumes_after_kill(place: Place) -> None:
    for name in "bc":
        for date, pixels in ((place.before, BEFORE), (place.after, AFTER)):
            write_raster(date.with_name(f"{name}.tif"), pixels)
    out = place.root / "out"

    def run() -> int:
        return predict_folders(
            place.bundle, place.before.parent, place.after.parent, out, SceneOptions(engine="cpu-float32")
        ).resumed

    def killed(point: int) -> None:
        die_at(point)
        run()

    run()
    wanted = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(wanted) == ["a.tif", "b.tif", "c.tif"]
    resumed = set()
    for point in range(2, 60, 9):
        shutil.rmtree(out)
        if in_child(partial(killed, point)) == 0:
            break
        resumed.add(run())
        assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted
    assert resumed >= {0, 1, 2}


def test_an_interrupted_folder_refuses_other_options(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raster(place.before.with_name("b.tif"), BEFORE)
    write_raster(place.after.with_name("b.tif"), AFTER, transform=FAR)
    assert place.run("out", folders=True)[0] == 4
    assert [path.name for path in (place.root / "out").iterdir() if path.is_file()] == ["a.tif"]
    code, error = place.run("out", "--bands", "3,2,1", folders=True)
    assert code == 2 and "the options of scenes" in error
    write_raster(place.after.with_name("b.tif"), AFTER)
    assert place.run("out", folders=True)[0] == 0
