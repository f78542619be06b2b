"""Tests of what ``BundleSession.predict`` takes: arrays, masked arrays, Pillow images and paths; and of batches."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from misgnet_runtime import BundleSession, InputError, UsageError, open_bundle
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.cli import main as cli
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.inference import tuned
from misgnet_runtime.inference.tuned import Scope, Setting, Tuning
from support.bundles import FLOAT, FORMATS, TILE, bands_bundle, images, images_of, make_bundle, write_image
from support.commands import exit_code
from support.paths import ROOT

BEFORE, AFTER = images(90, 70)
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle", engines=[FLOAT])


@pytest.fixture(scope="module")
def session(bundle: Path) -> Iterator[BundleSession]:
    with open_bundle(bundle) as found:
        yield found


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list to which every call of an engine appends its number of tiles."""
    found: list[int] = []
    infer = OnnxRuntimeEngine._infer

    def counted(self: Any, context: Any, arrays: Any, batch: int) -> Any:
        found.append(batch)
        return infer(self, context, arrays, batch)

    monkeypatch.setattr(OnnxRuntimeEngine, "_infer", counted)
    return found


# Dates


def test_pictures_paths_and_arrays_give_the_same_map(session: BundleSession, tmp_path: Path) -> None:
    wanted = session.predict(BEFORE, AFTER)
    paths = [write_image(tmp_path / f"{name}.png", pixels) for name, pixels in (("a", BEFORE), ("b", AFTER))]
    opaque = Image.fromarray(BEFORE)
    opaque.putalpha(255)
    for dates in (
        paths, [str(path) for path in paths], [Image.fromarray(BEFORE), Image.fromarray(AFTER)],
        [Image.open(paths[0]), AFTER], [opaque, paths[1]],
    ):  # fmt: skip
        found = session.predict(*dates)
        np.testing.assert_array_equal(found.probability, wanted.probability)
        np.testing.assert_array_equal(found.mask, wanted.mask)
    assert wanted.valid.all() and not isinstance(wanted.mask, np.ma.MaskedArray)


def test_exif_orientation_of_a_picture_is_applied_as_for_its_file(session: BundleSession, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90 degrees
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, pixels in zip(paths, (BEFORE, AFTER), strict=True):
        Image.fromarray(pixels).save(path, exif=exif)
    wanted = session.predict(*paths).probability
    assert wanted.shape == (70, 90)
    np.testing.assert_array_equal(session.predict(*map(Image.open, paths)).probability, wanted)


def test_masked_pixels_stay_masked_and_do_not_affect_others(session: BundleSession) -> None:
    hidden = np.zeros(BEFORE.shape, np.bool_)
    hidden[10:30, :20, 1] = True  # one band is enough
    also = np.zeros(BEFORE.shape, np.bool_)
    also[60:, 40:] = True
    before, after = np.ma.MaskedArray(BEFORE, hidden), np.ma.MaskedArray(AFTER, also)
    found = session.predict(before, after)
    valid = ~(hidden | also).any(axis=-1)
    assert isinstance(found.probability, np.ma.MaskedArray) and isinstance(found.mask, np.ma.MaskedArray)
    for array in (found.probability, found.mask):
        np.testing.assert_array_equal(~np.ma.getmaskarray(array), valid)
    np.testing.assert_array_equal(found.valid, valid)
    assert np.isnan(found.probability.data[~valid]).all() and not found.mask.data[~valid].any()
    before, after = before.copy(), after.copy()
    before.data[hidden.any(-1)], after.data[also.any(-1)] = 255, 0  # what lies below a mask
    again = session.predict(before, after)
    np.testing.assert_array_equal(again.probability.data, found.probability.data)
    np.testing.assert_array_equal(BEFORE, images(90, 70)[0])  # the caller's arrays are not modified


def test_masked_array_without_masked_pixels_equals_the_array(session: BundleSession) -> None:
    found = session.predict(np.ma.MaskedArray(BEFORE), AFTER)
    np.testing.assert_array_equal(found.probability.data, session.predict(BEFORE, AFTER).probability)  # type: ignore[attr-defined]
    assert found.valid.all()


def test_masked_array_equals_a_scene_with_nodata(session: BundleSession, tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    from support.scenes import write_raster

    hidden = np.zeros(BEFORE.shape[:2], np.bool_)
    hidden[10:40, :33] = True
    paths = [
        write_raster(tmp_path / f"{index}.tif", np.moveaxis(date, -1, 0), mask=mask, crs=None, transform=None)
        for index, (date, mask) in enumerate(((BEFORE, np.where(hidden, 0, 255).astype(np.uint8)), (AFTER, None)))
    ]
    scene = session.predict_scene(*paths, vector=None)
    found = session.predict(np.ma.MaskedArray(BEFORE, np.repeat(hidden[..., None], 3, -1)), AFTER)
    np.testing.assert_array_equal(found.probability.data, scene.probability)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found.mask.mask, scene.mask.mask)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (BEFORE / 255, r"'before' is float64 \(90, 70, 3\); it must be uint8 \(H, W, 3\); values are not res"),
        (np.moveaxis(BEFORE, -1, 0), r"'before' is uint8 \(3, 90, 70\).*: pass numpy.moveaxis\(image, 0, -1\)"),
        (np.zeros((90, 70, 4), np.uint8), r"'before' is uint8 \(90, 70, 4\).*: pass image\[..., :3\] if the fourth"),
        (BEFORE[..., 0], r"'before' is uint8 \(90, 70\); it must be uint8 \(H, W, 3\)"),
        (np.zeros((0, 70, 3), np.uint8), r"'before' is uint8 \(0, 70, 3\)"),
        (BEFORE[:-1], r"differ in size: 70 x 89 and 70 x 90 px"),
        ([[1]], r"'before' is a builtins.list; pass an array, uint8 \(H, W, 3\), a Pillow image or a path"),
        (Image.fromarray(BEFORE[..., 0]), r"'before' is 8-bit grey, and the network reads 8-bit RGB; .* not a label"),
        (Image.fromarray(BEFORE.astype(np.uint16)[..., 0]), r"'before' is 16-bit grey, and the network reads 8-bit"),
        (Image.new("RGBA", (70, 90)), r"'before' has transparent pixels, .* remove the alpha channel"),
        ("nowhere.png", r"image nowhere.png does not exist"),
    ],
    ids=[
        "floats", "bands first", "four bands", "one band", "no rows", "another size", "a list", "grey picture",
        "16-bit picture", "transparent picture", "no such file",
    ],
)  # fmt: skip
def test_error_names_what_was_found_and_what_is_expected(session: BundleSession, before: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        session.predict(before, AFTER)


def test_damaged_file_of_a_picture_is_an_input_error(session: BundleSession, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", BEFORE)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="the image 'after' is damaged or truncated"):
        session.predict(BEFORE, Image.open(path))


def test_picture_with_16_bits_per_channel_is_not_reduced(session: BundleSession) -> None:
    picture = Image.fromarray(BEFORE)
    picture.tile = [("zip", (0, 0, 70, 90), 0, "RGB;16B")]  # type: ignore[attr-defined]  # as Pillow opens such a PNG
    with pytest.raises(InputError, match="the image 'before' has 16 bits per channel"):
        session.predict(picture, AFTER)


def test_pictures_of_other_formats(tmp_path: Path) -> None:
    grey, four, _ = FORMATS
    before, after = images_of(grey, 40, 50)
    with open_bundle(bands_bundle(tmp_path / "grey", grey)) as session:
        found = session.predict(*(Image.fromarray(date[..., 0]) for date in (before, after)))
        np.testing.assert_array_equal(found.probability, session.predict(before, after).probability)
        with pytest.raises(InputError, match=r": pass image\[..., None\]"):
            session.predict(before[..., 0], after)
    message = "'before' is a Pillow image, which cannot hold 4 bands of uint16"
    with open_bundle(bands_bundle(tmp_path / "four", four)) as session, pytest.raises(InputError, match=message):
        session.predict(Image.new("RGB", (8, 8)), images_of(four, 8, 8)[1])


def test_paths_of_one_file_are_reported_as_by_predict(
    session: BundleSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_image(tmp_path / "a.png", BEFORE)
    with caplog.at_level(logging.WARNING, "misgnet"):
        assert not session.predict(path, path).mask.any()
    assert "BEFORE and AFTER are the same file" in caplog.text


# Options


def test_threshold_and_overlap_apply_to_one_call(session: BundleSession) -> None:
    found = session.predict(BEFORE, AFTER, threshold=0.25)
    np.testing.assert_array_equal(found.mask, found.probability > 0.25)
    for wrong in ({"threshold": 2}, {"overlap": 63}, {"overlap": 2.5}, {"batch": 0}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} "):
            session.predict(BEFORE, AFTER, **wrong)  # type: ignore[arg-type]


WIDE = images(TILE, 6 * 48 + 16)  # a row of six tiles


def test_one_batch_parameter_holds_for_images_and_scenes(bundle: Path, tmp_path: Path, batches: list[int]) -> None:
    def batches_of(session: BundleSession, **more: Any) -> list[int]:
        batches.clear()
        session.predict(*WIDE, **more)
        return [*batches]

    with open_bundle(bundle) as session:
        assert batches_of(session) == [1] * 6
        assert batches_of(session, batch=4) == [4, 2]
        assert batches_of(session, batch=100) == [4, 2]  # the bundle's largest batch is 4
    with open_bundle(bundle, batch=3) as session:
        assert batches_of(session) == [3, 3]
        assert batches_of(session, batch=2) == [2, 2, 2]
    with pytest.raises(UsageError, match="--batch is 0; expected 1 or more"):
        open_bundle(bundle, batch=0)

    found = read_bundle(bundle)
    many = Setting(2, 4)
    tuned.keep(
        Tuning(
            format=tuned.FORMAT, created="2026-01-01T00:00:00+00:00", place=Scope.of(found), gpu="",
            libraries=tuned.libraries_of(found), latency=FLOAT.name, throughput=FLOAT.name,
            settings={FLOAT.name: many}, measurements=[],
        )
    )  # fmt: skip
    with open_bundle(bundle, streams=2) as session:
        assert batches_of(session) == [4, 2]  # as tuned
        assert batches_of(session, batch=3) == [3, 3]
    with open_bundle(bundle, streams=2, batch=2) as session:
        assert batches_of(session) == [2, 2, 2]
    with open_bundle(bundle, streams=2, tuned=False) as session:
        assert batches_of(session) == [1] * 6

    pytest.importorskip("rasterio")
    from support.scenes import write_raster

    paths = [
        write_raster(tmp_path / f"{index}.tif", np.moveaxis(date, -1, 0), crs=None, transform=None)
        for index, date in enumerate(WIDE)
    ]
    for opened, asked, wanted in (
        ({}, {}, [1] * 6), ({"batch": 3}, {}, [3, 3]), ({"batch": 3}, {"batch": 2}, [2, 2, 2]),
        ({"streams": 2}, {}, [4, 2]),
    ):  # fmt: skip
        with open_bundle(bundle, **opened) as session:
            batches.clear()
            session.predict_scene(*paths, vector=None, **asked)
        assert sorted(batches, reverse=True) == wanted


@pytest.mark.parametrize(("words", "wanted"), [((), [1] * 6), (("--batch", 3), [3, 3])])
def test_command_for_two_images_honours_batch(
    bundle: Path, tmp_path: Path, batches: list[int], words: tuple[Any, ...], wanted: list[int]
) -> None:
    paths = [write_image(tmp_path / f"{index}.png", date) for index, date in enumerate(WIDE)]
    out = tmp_path / "mask.png"
    assert exit_code(cli.main, "misgnet-run", "predict", bundle, *paths, "-o", out, "--no-tuned", *words) == 0
    assert batches == wanted


# Silence


def test_nothing_is_printed_and_no_handler_is_installed(bundle: Path, tmp_path: Path) -> None:
    """A warning without a handler would be printed by :data:`logging.lastResort`."""
    pytest.importorskip("rasterio")
    from support.scenes import write_raster

    image = write_image(tmp_path / "a.png", BEFORE)
    scene = write_raster(tmp_path / "a.tif", np.moveaxis(BEFORE, -1, 0), crs=None, transform=None)
    code = """
import logging, sys
import misgnet_runtime
bundle, image, scene = sys.argv[1:]
with misgnet_runtime.open_bundle(bundle) as session:
    session.predict(image, image)
    result = session.predict_scene(scene, scene)
    repr(result), result._repr_html_(), result.polygons, result.probability
assert any("same file" in text for text in result.warnings), result.warnings
assert logging.getLogger().handlers == []
assert [type(one) for one in logging.getLogger("misgnet").handlers] == [logging.NullHandler]
"""
    command = [sys.executable, "-W", "default", "-c", code, str(bundle), str(image), str(scene)]
    paths = {"PYTHONPATH": f"{ROOT / 'runtime'}", "MISGNET_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    ended = subprocess.run(command, check=False, env=paths, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
