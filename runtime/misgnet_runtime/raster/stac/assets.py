"""Chooses assets of a STAC Item, and collects what the item states about their bands; nothing is guessed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.stac.item import Asset, Band, Item
from misgnet_runtime.raster.stated import Stated, StatedBand

_GEOTIFF = ("image/tiff", "image/vnd.stac.geotiff")
_MOST_LISTED = 20  # assets named in a message


def choose(item: Item, wanted: Sequence[str] | None, name: str) -> list[tuple[str, Asset]]:
    """Returns the assets to read, with their keys.

    Args:
        item: The item.
        wanted: Keys of assets, in the network's order of bands; None: the only GeoTIFF of pixel data.
        name: The item's name, for messages.

    Raises:
        InputError: An asset does not exist or is not a GeoTIFF, or none is named and several can be meant.
    """
    if wanted is None:
        found = [(key, asset) for key, asset in item.assets.items() if _is_geotiff(asset) and _is_data(asset)]
        if len(found) != 1:
            raise InputError(
                f"STAC Item {name} has {len(found)} GeoTIFF assets of pixel data; choose one with all bands, or one "
                f"for each band in the network's order: --assets red,green,blue{_listed(item)}"
            )
        return found
    for key in wanted:
        if key not in item.assets:
            raise InputError(f"STAC Item {name} has no asset '{key}'; choose others with --assets{_listed(item)}")
        if not _is_geotiff(item.assets[key]):
            raise InputError(
                f"asset '{key}' of STAC Item {name} is {item.assets[key].type}, and only GeoTIFFs are read"
            )
    return [(key, item.assets[key]) for key in wanted]


def stated(asset: Asset, where: str) -> Stated:
    """Returns what an item states about the bands of an asset; ``where`` names both for messages.

    Raises InputError if its lists of bands have different lengths, or state different values.
    """
    lists = [bands for bands in (asset.bands, asset.raster_bands, asset.eo_bands) if bands]
    if len({len(bands) for bands in lists}) > 1:
        raise InputError(f"{where} lists {' and '.join(str(len(bands)) for bands in lists)} bands; correct the item")
    common = _band((), asset, where)
    return Stated(where, tuple(_band(band, asset, where) for band in zip(*lists, strict=True)), common)


def _band(lists: Sequence[Band], asset: Asset, where: str) -> StatedBand:
    """Combines a band's entries in all lists; what they do not state is that of the asset."""

    def value(*names: str) -> Any:
        found = {getattr(band, name) for band in lists for name in names} - {None}
        if len(found) > 1:
            raise InputError(f"{where} states {' and '.join(map(str, sorted(found)))} for one band; correct the item")
        whole = (getattr(asset, name, None) for name in names)
        return found.pop() if found else next((one for one in whole if one is not None), None)

    nodata = value("nodata")
    return StatedBand(
        colour=value("common_name", "common_name_2"), dtype=value("data_type"),
        nodata=None if nodata is None else float(nodata), scale=value("scale", "scale_2"),
        offset=value("offset", "offset_2"), unit=value("unit"),
    )  # fmt: skip


def _is_geotiff(asset: Asset) -> bool:
    if asset.type is None:
        return asset.href.partition("?")[0].lower().endswith((".tif", ".tiff"))
    return asset.type.partition(";")[0].strip().lower() in _GEOTIFF


def _is_data(asset: Asset) -> bool:
    return asset.roles is None or "data" in asset.roles


def _listed(item: Item) -> str:
    """Lists the GeoTIFF assets with the colours of their bands."""
    geotiffs = [(key, asset) for key, asset in item.assets.items() if _is_geotiff(asset)]
    some = ", ".join(key[:64] + _colours(asset) for key, asset in geotiffs[:_MOST_LISTED])
    more = f", and {len(geotiffs) - _MOST_LISTED} more" if len(geotiffs) > _MOST_LISTED else ""
    return f"; its GeoTIFF assets: {some}{more}" if geotiffs else "; it has no GeoTIFF asset"


def _colours(asset: Asset) -> str:
    names = [band.common_name_2 or band.common_name or band.name for band in asset.bands or asset.eo_bands]
    known = [name[:32] for name in names[:8] if name]
    return f" ({', '.join(known)})" if known else ""
