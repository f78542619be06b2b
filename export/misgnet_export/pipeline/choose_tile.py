"""Chooses the tile size for ``--tile auto``, from maps of validation images by float graphs of several sizes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from misgnet_export.pipeline.agreement import detector_of
from misgnet_export.pipeline.choose_overlap import TOLERANCE, choose_overlap
from misgnet_export.pipeline.context import CHECK_TILES, BuildContext
from misgnet_export.pipeline.float_graph import make_float_graph
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.request import BuildRequest, with_interface
from misgnet_export.pipeline.result import ChosenTile
from misgnet_export.pipeline.scene_measurement import (
    Scene,
    measure_overlaps,
    overlaps_of,
    scenes_of,
    smallest_size,
    tiles_in,
)
from misgnet_export.pipeline.tiles import open_tiles
from misgnet_export.sources.float_model import Source
from misgnet_runtime.bundle import MeasuredTile
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.dataset import TileSet

TILES = (256, 384, 512)


def choose_size(measured: Sequence[MeasuredTile]) -> int:
    """Returns the fastest tile size among those whose F1 is at most 0.2 points below the best."""
    best = max(one.f1 for one in measured)
    return max((one for one in measured if one.f1 >= best - TOLERANCE - 1e-9), key=lambda one: one.megapixels_s).tile


def choose_tile(request: BuildRequest, source: Source, root: Path, log: StageLog) -> ChosenTile:
    """Makes the float graph of each of :data:`TILES` and measures it on the same validation images as scenes.

    Each size has the overlap that :func:`choose_overlap` chooses for it.

    Raises:
        UsageError: The network supports none of the sizes, or only one size at all.
        InputError: No validation image is large enough, or the labels hold no change.
        GateFailed: A graph disagrees with the network.
    """
    assert request.val is not None, "check_request"
    sizes = _supported(source)
    interface = with_interface(replace(request, tile=max(sizes)), source)[1]
    tiles = TileSet.open(request.val, max(sizes), interface.pixels)
    scenes = scenes_of(tiles, max(sizes))
    if not scenes:
        height, width = smallest_size(max(sizes))
        raise InputError(
            f"--tile auto: no image of --val has at least {width} x {height} px; give --tile a number or larger images"
        )
    if not any(scene.label.any() for scene in scenes):
        raise InputError("--tile auto: the labels of --val contain no change; give --tile a number or other images")
    measured = [_measure(replace(request, tile=tile), source, scenes, root, log) for tile in sizes]
    megapixels = sum(scene.pixels for scene in scenes) / 1e6
    with log.stage("choose the tile") as stage:
        tile = choose_size(measured)
        images = f"{len(scenes)} of {plural(len(tiles.sources), 'validation image')}, {megapixels:.1f} megapixels"
        reason = (
            f"auto: fastest size with F1 at most {100 * TOLERANCE:g} points below the best; float graphs in ONNX "
            f"Runtime on {images}"
        )
        stage.finding = f"{tile} px, {reason}"
    return ChosenTile(tile, reason, measured)


def _supported(source: Source) -> list[int]:
    """Returns those of :data:`TILES` that ``source`` supports."""
    if source.fixed_tile is not None:
        raise UsageError(f"--tile auto: the network accepts only tiles of {source.fixed_tile} px; leave --tile out")
    multiple = source.declaration.multiple
    if not (sizes := [tile for tile in TILES if tile % multiple == 0]):
        raise UsageError(f"--tile auto: none of {TILES} is a multiple of {multiple}; give --tile a number")
    return sizes


def _measure(request: BuildRequest, source: Source, scenes: Sequence[Scene], root: Path, log: StageLog) -> MeasuredTile:
    request, interface = with_interface(request, source)
    tile, check_tiles = interface.tile, open_tiles(request.calib, interface).spread(CHECK_TILES)
    model = source.float_model(interface)
    context = BuildContext(
        request=request, root=root, log=log, policy=request.policy, interface=interface,
        entry=source.entry, check_tiles=tuple(check_tiles.tiles()), known=model.known,
    )  # fmt: skip
    graph = make_float_graph(context, model)
    overlaps = [overlap for overlap in overlaps_of(tile) if overlap <= tile // 4]
    with log.stage(f"measure tile {tile}") as stage, detector_of(graph.model, interface) as detector:
        begin = time.perf_counter()
        measured = measure_overlaps(
            detector, scenes, context.policy.threshold, overlaps=overlaps, batch=1, progress=stage.progress
        )
        speed = sum(tiles_in(scenes, tile, overlap) for overlap in overlaps) / (time.perf_counter() - begin)
        overlap, _ = choose_overlap(measured, tile)
        chosen = next(one for one in measured if one.overlap == overlap)
        assert chosen.f1 is not None, "the labels hold change"
        found = MeasuredTile(tile, overlap, chosen.f1, chosen.seam_agreement, speed * (tile - overlap) ** 2 / 1e6)
        stage.finding = (
            f"F1 {found.f1:.4f} with an overlap of {overlap} px, seam agreement {100 * found.seam_agreement:.2f} %, "
            f"{found.megapixels_s:.3f} megapixels/s"
        )
    return found
