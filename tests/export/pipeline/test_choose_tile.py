"""Tests the choice of the tile size for ``--tile auto``: the rule, and the stage with fake graphs."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

pytest.importorskip("torch", reason="the build needs the [export] extra")

from misgnet_export.pipeline import choose_tile as module
from misgnet_export.pipeline.choose_tile import choose_size, choose_tile
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.result import ChosenTile
from misgnet_export.sources.declaration import Declaration
from misgnet_runtime.bundle import Interface, MeasuredTile
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.inference.detector import ChangeDetector
from support.builds import FakeSource, request_of
from support.bundles import FakeEngine, write_image

SIZES = (32, 64)


def measured(*found: tuple[int, float, float]) -> list[MeasuredTile]:
    return [MeasuredTile(tile, tile // 8, f1, 0.99, speed) for tile, f1, speed in found]


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ([(256, 0.770, 2.0), (384, 0.771, 1.5), (512, 0.773, 1.0)], 384),
        ([(256, 0.771, 2.0), (384, 0.771, 1.5), (512, 0.773, 1.0)], 256),  # exactly 0.2 points below the best
        ([(256, 0.760, 2.0), (384, 0.765, 1.5), (512, 0.773, 1.0)], 512),
        ([(256, 0.770, 1.0), (384, 0.770, 1.0), (512, 0.770, 1.0)], 256),
        ([(256, 0.770, 1.0), (384, 0.770, 1.1), (512, 0.770, 1.2)], 512),
    ],
)
def test_fastest_size_with_nearly_the_best_f1_is_chosen(found: list[tuple[int, float, float]], chosen: int) -> None:
    assert choose_size(measured(*found)) == chosen


class BlindAtItsEdge(FakeEngine):
    """Sees no change in the first quarter of a tile's rows, so that larger tiles are not better."""

    def _output(self, probability: NDArray[np.float32]) -> NDArray[Any]:
        probability = probability.copy()
        probability[:, : (16 if self.interface.tile == 32 else 2)] = 0
        return probability


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    for index in range(2):
        label = (np.random.default_rng(index).random((20, 20)) < 0.3).repeat(10, 0).repeat(10, 1)
        before = np.full((200, 200, 3), index, np.uint8)
        after = before + (200 * label[:, :, None]).astype(np.uint8)
        for part, pixels in (("A", before), ("B", after), ("label", label.astype(np.uint8) * 255)):
            write_image(tmp_path / part / f"{index}.png", pixels)
    return tmp_path


def choose(
    sets: Path, monkeypatch: pytest.MonkeyPatch, source: FakeSource | None = None
) -> tuple[ChosenTile, list[tuple[str, float, str]]]:
    """Runs the stage on fakes; also returns the finished stages."""
    monkeypatch.setattr(module, "TILES", SIZES)

    def fake_graph(context: BuildContext, _: object) -> SimpleNamespace:
        assert context.check_tiles[0].before.shape == (context.interface.tile, context.interface.tile, 3)
        return SimpleNamespace(model=None)

    def fake_detector(_: object, interface: Interface) -> ChangeDetector:
        return ChangeDetector(BlindAtItsEdge(interface), interface)

    monkeypatch.setattr(module, "make_float_graph", fake_graph)
    monkeypatch.setattr(module, "detector_of", fake_detector)
    log = StageLog(Console(file=io.StringIO()))
    request = request_of("cpu", tile="auto", val=sets, calib=sets)
    return choose_tile(request, source or FakeSource(), Path(), log), log.done


def test_each_size_is_measured_on_the_same_images(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, stages = choose(sets, monkeypatch)
    assert [one.tile for one in chosen.measured] == [32, 64] and chosen.tile == 64
    small, large = chosen.measured
    assert small.f1 < large.f1 and small.overlap <= 8 and large.overlap <= 16
    assert all(one.megapixels_s > 0 and 0 < one.seam_agreement <= 1 for one in chosen.measured)
    assert chosen.reason.endswith("on 2 of 2 validation images, 0.1 megapixels")
    assert [name for name, _, _ in stages] == ["measure tile 32", "measure tile 64", "choose the tile"]


def test_only_sizes_that_the_network_supports_are_measured(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, _ = choose(sets, monkeypatch, FakeSource(declaration=Declaration(multiple=64)))
    assert [one.tile for one in chosen.measured] == [64]
    with pytest.raises(UsageError, match=r"none of \(32, 64\) is a multiple of 48"):
        choose(sets, monkeypatch, FakeSource(declaration=Declaration(multiple=48)))
    with pytest.raises(UsageError, match="accepts only tiles of 64 px; leave --tile out"):
        choose(sets, monkeypatch, FakeSource(fixed_tile=64))


def test_images_that_are_too_small_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("A", "B"):
        write_image(tmp_path / part / "0.png", np.zeros((100, 154, 3), np.uint8))
    write_image(tmp_path / "label" / "0.png", np.zeros((100, 154), np.uint8))
    with pytest.raises(InputError, match="no image of --val has at least 155 x 101 px"):
        choose(tmp_path, monkeypatch)


def test_labels_without_change_are_refused(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (sets / "label").iterdir():
        write_image(path, np.zeros((200, 200), np.uint8))
    with pytest.raises(InputError, match="the labels of --val contain no change"):
        choose(sets, monkeypatch)
