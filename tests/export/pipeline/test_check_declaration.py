"""Tests the warnings about networks that were declared wrongly, and the requests that a network cannot serve."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the build needs the [export] extra")

from misgnet_export.pipeline.check_declaration import Swapped, check_declaration, swap_warnings
from misgnet_export.pipeline.evaluate import Reference
from misgnet_export.pipeline.request import BuildRequest, check_model
from misgnet_export.sources.declaration import Declaration
from misgnet_runtime.accuracy.parity import evaluate_tiles
from misgnet_runtime.bundle import ModelEntry
from misgnet_runtime.errors import UsageError
from misgnet_runtime.raster.dataset import TileSet
from support.builds import FakeSource, context_of, interface_of, request_of
from support.bundles import write_image

REQUEST = request_of("cpu")
INTERFACE = interface_of(REQUEST)
PAIR = FakeSource(entry=ModelEntry(source="onnx", name="net.onnx"))
MISGNET = FakeSource()

Images = NDArray[Any]


def brighter(before: Images, after: Images) -> NDArray[np.float32]:
    """Calls a pixel changed if its first band became brighter: it depends on the dates' order and on the bands'."""
    return (after[..., 0] > before[..., 0]).astype(np.float32)


@pytest.fixture
def tiles(tmp_path: Path) -> TileSet:
    """Pairs whose changes are brighter in the first band; the last band has noise of its own."""
    generator = np.random.default_rng(0)
    for index in range(3):
        label = generator.random((32, 32)) < 0.2
        before = generator.integers(50, 60, (32, 32, 3), np.uint8)
        after = before.copy()
        after[..., 0] += 100 * label.astype(np.uint8)
        after[..., 2] += (100 * (generator.random((32, 32)) < 0.2)).astype(np.uint8)
        for part, pixels in (("A", before), ("B", after), ("label", label.astype(np.uint8) * 255)):
            write_image(tmp_path / "set" / part / f"{index}.png", pixels)
    return TileSet.open(tmp_path / "set", 32)


def warnings_of(
    tiles: TileSet, predict: Callable[[Images, Images], NDArray[np.float32]], source: FakeSource = PAIR
) -> list[str]:
    model = replace(source.float_model(INTERFACE), predict=predict)
    reference = Reference("fake", evaluate_tiles("fake", predict, tiles, 0.5))
    return check_declaration(context_of(REQUEST), source, model, tiles, reference)


def test_right_declaration_gives_no_warning(tiles: TileSet) -> None:
    assert warnings_of(tiles, brighter) == []


def test_swapped_dates_are_found_and_the_remedy_named(tiles: TileSet) -> None:
    (found,) = warnings_of(tiles, lambda before, after: brighter(after, before) + (after[..., 1] == 50) * 1.0)
    assert "with the dates swapped and" in found and found.endswith("exchange the names in --model-inputs")
    stacked = replace(PAIR, declaration=Declaration(io="stacked"))
    (found,) = swap_warnings(Swapped(0.5, dates=0.8, bands=0.505), stacked, 1)
    assert found == (
        "F1 is 0.8000 with the dates swapped and 0.5000 as declared, on 1 evaluation tile: let the network take "
        "BEFORE first"
    )


def test_reversed_bands_are_found(tiles: TileSet) -> None:
    (found,) = warnings_of(tiles, lambda before, after: brighter(before[..., ::-1], after[..., ::-1]))
    assert "F1 is 1.0000 with the bands reversed" in found and "BGR" in found


@pytest.mark.parametrize(("value", "message"), [(0.0, "no change at all"), (1.0, "change in 100.0 % of all pixels")])
@pytest.mark.parametrize("labelled", [True, False])
def test_masks_without_or_full_of_change_are_reported(
    tiles: TileSet, value: float, message: str, labelled: bool
) -> None:
    if not labelled:
        shutil.rmtree(tiles.root / "label")
        tiles = TileSet.open(tiles.root, 32, labels="optional")
    (found,) = warnings_of(tiles, lambda before, _: np.full(before.shape[:3], value, np.float32))
    assert f"the float model finds {message} on the evaluation tiles: check --model-output" in found


def test_nothing_is_swapped_without_a_declaration_or_labels(tiles: TileSet) -> None:
    def swapped(before: Images, after: Images) -> NDArray[np.float32]:
        return brighter(after, before) + (after[..., 1] == 50) * np.float32(1)

    assert warnings_of(tiles, swapped, MISGNET) == []
    shutil.rmtree(tiles.root / "label")
    assert warnings_of(TileSet.open(tiles.root, 32, labels="optional"), swapped) == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (replace(REQUEST, split=True), "--split: the network does not encode the dates separately"),
        (request_of("torch-tensorrt"), "--target torch-tensorrt is for a MISGNet checkpoint"),
        (request_of("cpu", "rtx-sm86"), "--target rtx-sm86-int8: TensorRT reads no uint16 images; add --input float32"),
    ],
)
def test_requests_that_a_network_cannot_serve_are_refused(asked: BuildRequest, message: str) -> None:
    wide = msgspec.structs.replace(INTERFACE, input="uint16", samples="uint16")
    with pytest.raises(UsageError, match=message):
        check_model(asked, PAIR.float_model(wide))
    check_model(request_of("cpu"), PAIR.float_model(wide))
    check_model(request_of("rtx-sm86"), PAIR.float_model(INTERFACE))
