"""Loads the three sets of tiles, and selects the calibration tiles."""

from __future__ import annotations

import warnings

from misgnet_calibration.statistics.tile_selection import (
    FeatureExtractor,
    FewTilesWarning,
    Selection,
    draw_tiles,
    pixel_features,
    select_tiles,
)
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.pipeline.request import BuildRequest
from misgnet_export.pipeline.result import Sets
from misgnet_export.pipeline.tiles import open_tiles
from misgnet_export.sources.float_model import FloatModel
from misgnet_runtime.callables import Progress
from misgnet_runtime.formatting import plural
from misgnet_runtime.log import current
from misgnet_runtime.raster.dataset import TileSet, read_source
from misgnet_runtime.raster.leakage import check_disjoint

_DECISION_TILES = 32
_REPRESENT = "representative of the set: stratified by change and brightness, spread"


def load_sets(request: BuildRequest, model: FloatModel, log: StageLog) -> Sets:
    """Loads the three sets. Raises InputError for damaged files and for images in two sets."""
    with log.stage("read the tiles") as stage:
        calib, evaluation = (open_tiles(path, model.interface) for path in (request.calib, request.evaluation))
        val = open_tiles(request.val, model.interface) if request.val else None
        _check_sets(calib, val, evaluation, stage.progress)
        decision = val.spread(_DECISION_TILES) if val is not None else None
        _read_all([s for s in (decision, evaluation) if s is not None], stage.progress)
        stage.finding = (
            f"{plural(len(calib), 'calibration tile')}, {plural(len(val or ()), 'validation tile')}, "
            f"{plural(len(evaluation), 'evaluation tile')}{'' if evaluation.labelled else ', without labels'}"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FewTilesWarning)
        chosen, how, selection = _select(request, model.features, calib, log)
    for warning in caught:
        current().warning(str(warning.message))
    return Sets(
        calib=chosen, val=val, decision=decision, evaluation=evaluation, chosen=how, selection=selection,
    )  # fmt: skip


def _select(
    request: BuildRequest, features: FeatureExtractor | None, calib: TileSet, log: StageLog
) -> tuple[TileSet, str, Selection | None]:
    """Selects calibration tiles; returns them, the method in words, and the reasons if they represent a larger set."""
    count = min(request.calib_tiles, len(calib))
    selection = None
    with log.stage("select calibration tiles") as stage:
        if request.selection == "represent" and count < len(calib):
            selection = select_tiles(calib, count, request.seed, features or pixel_features, stage.progress)
            spread = "the float encoder's features" if features else "statistics of their pixels"
            chosen, how = selection.tiles, f"{_REPRESENT} in {spread}"
        elif request.selection == "first":
            chosen, how = calib.subset(range(count)), "the first ones"
        else:
            chosen = draw_tiles(calib, count, request.seed)
            how = "drawn at random" if count < len(calib) else "all of them"
        if selection is None:
            _read_all([chosen], stage.progress)
        stage.finding = f"{count} of {plural(len(calib), 'tile')}, {how}"
    return chosen, how, selection


def _check_sets(calib: TileSet, val: TileSet | None, evaluation: TileSet, progress: Progress) -> None:
    check_disjoint(calib, evaluation, ("calibration", "evaluation"), progress)
    if val is not None:
        check_disjoint(calib, val, ("calibration", "validation"), progress)
        check_disjoint(val, evaluation, ("validation", "evaluation"), progress)


def _read_all(sets: list[TileSet], progress: Progress) -> None:
    """Reads every image once, so that a damaged one is reported now and not minutes later."""
    sources = [source for tiles in sets for source in tiles.sources if source.observed.files is None]
    for done, source in enumerate(sources, 1):
        read_source(source)
        progress(done, len(sources))
