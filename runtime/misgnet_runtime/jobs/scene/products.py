"""Writes the outputs of a finished map besides rasters: polygons, quick look, page, styles and STAC Item."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.formatting import format_change
from misgnet_runtime.jobs.scene.report.content import LISTED, Facts, page_of, shown_date
from misgnet_runtime.jobs.scene.report.page import render
from misgnet_runtime.jobs.scene.report.pictures import MOST_PIXELS, make_pictures
from misgnet_runtime.jobs.scene.stac_item import write_stac_item
from misgnet_runtime.raster import quicklook, styles
from misgnet_runtime.raster.changes import Changes, find_changes
from misgnet_runtime.raster.geotiff import load_rasterio, open_geotiff
from misgnet_runtime.raster.overview import SceneReader
from misgnet_runtime.raster.polygons import Attributes, write_polygons
from misgnet_runtime.raster.reader import Pair
from misgnet_runtime.raster.resolution import ground_steps
from misgnet_runtime.raster.writer import Coverage, Probabilities
from misgnet_runtime.storage.atomic import resumable_errors

_STYLES = {"output_style": styles.change_raster, "probability_style": styles.probability_raster}


@dataclass(frozen=True, kw_only=True)
class FinishedMap:
    """A map of which the change raster is written."""

    pair: Pair  # both dates, open
    change: Path  # the change raster
    probabilities: Probabilities
    coverage: Coverage
    facts: Facts
    places: Mapping[str, Path]  # final paths of all outputs, by option


def write_products(found: FinishedMap, paths: Mapping[str, Path]) -> int | None:
    """Writes those of the outputs that ``paths`` names, and returns the number of polygons; None: none are requested.

    Raises:
        UnavailableError: A library is missing.
        InputError, StorageError: As :func:`write_polygons`; StorageError also if the disk is full.
    """
    for name, style in _STYLES.items():
        if path := paths.get(name):
            with resumable_errors(path):
                path.write_text(style(), "utf-8")
    changes = _changes(found, paths)
    if path := paths.get("vector"):
        inputs, options = found.facts.inputs, found.facts.options
        about = Attributes(
            scene=found.facts.scene, before=inputs.before.acquired, after=inputs.after.acquired
        )  # fmt: skip
        write_polygons(path, changes.listed, inputs.grid, about, options.simplify)
    _write_pictures(found, changes, paths)
    if path := paths.get("stac_item"):
        with resumable_errors(path):
            write_stac_item(path, found.facts, paths, found.places)
    return changes.count if "vector" in paths else None


def _changes(found: FinishedMap, paths: Mapping[str, Path]) -> Changes:
    """Returns the changed areas that the outputs need: all for polygons, and the largest for the page."""
    if not paths.keys() & {"vector", "report"}:
        return Changes([], 0, 0)
    most, options = None if "vector" in paths else LISTED, found.facts.options
    return find_changes(found.change, found.probabilities, found.facts.inputs.grid, options.min_area, most)


def _write_pictures(found: FinishedMap, changes: Changes, paths: Mapping[str, Path]) -> None:
    """Writes quick look and page, which show the same overview: of the part of the scene that has data."""
    if not paths.keys() & {"quicklook", "report"}:
        return
    with ExitStack() as stack:
        change = stack.enter_context(open_geotiff(load_rasterio("a scene"), found.change))
        reader = SceneReader(found.pair, found.facts.inputs.scalings, change)
        most = MOST_PIXELS if "report" in paths else quicklook.MOST_PIXELS
        overview = reader.fitting(found.coverage.rows, found.coverage.columns, most)
        if path := paths.get("quicklook"):
            with resumable_errors(path):
                quicklook.write_quicklook(path, overview.reduced(quicklook.MOST_PIXELS), _labels(found.facts))
        if path := paths.get("report"):
            listed = Changes(changes.listed[:LISTED], changes.count, changes.area)
            pictures = make_pictures(reader, overview, listed.listed)
            page = render(page_of(found.facts, listed, pictures))
            with resumable_errors(path):
                path.write_bytes(page)


def _labels(facts: Facts) -> quicklook.Labels:
    dates = facts.inputs.before, facts.inputs.after
    return quicklook.Labels(
        names=(dates[0].origin.name, dates[1].origin.name),
        dates=(shown_date(dates[0].acquired), shown_date(dates[1].acquired)),
        change=format_change(facts.changed_share, facts.valid_share),
        steps=ground_steps(load_rasterio("a scene"), facts.inputs.grid),
    )
