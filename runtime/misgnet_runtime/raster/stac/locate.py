"""Finds what a date is read from: a path, an address, or the assets of a STAC Item at either."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.limits import STAC_ITEM_BYTES
from misgnet_runtime.raster.declared import Declared
from misgnet_runtime.raster.remote import RemoteOptions, is_address, locate, read_document
from misgnet_runtime.raster.remote.address import hidden
from misgnet_runtime.raster.source import LocalFile, RasterFile
from misgnet_runtime.raster.stac.assets import choose, stated
from misgnet_runtime.raster.stac.date import ItemDate, ItemFile
from misgnet_runtime.raster.stac.item import parse_item
from misgnet_runtime.storage.files import is_file

_SUFFIXES = (".json", ".geojson")


def is_item(text: str) -> bool:
    """Returns whether a path or an address is that of a STAC Item: it ends in .json or .geojson, or is of a STAC API.

    A STAC API serves items at addresses of the form ``https://.../collections/NAME/items/NAME``.
    """
    path = urlsplit(text).path if is_address(text) else text
    parts = path.rstrip("/").split("/")
    return path.lower().endswith(_SUFFIXES) or (is_address(text) and len(parts) > 4 and parts[-2] == "items")


def locate_dates(
    given: Sequence[RasterFile | Path | str], declared: Sequence[Declared], remote: RemoteOptions
) -> list[RasterFile]:
    """Returns what each date is read from; one that is a RasterFile already stays as it is.

    Args:
        given: Paths, addresses, or STAC Items at either.
        declared: The options of each date.
        remote: Whether a network may be used.

    Raises:
        UsageError: Assets are chosen, and the date is no STAC Item; or as :func:`locate_item`.
        InputError: As :func:`locate_item`.
    """
    found = [_located(one, about, remote) for one, about in zip(given, declared, strict=True)]
    if any(about.assets for about in declared) and not any(isinstance(date, ItemDate) for date in found):
        raise UsageError("--assets chooses assets of a STAC Item, and no date is one; omit it, or give the item's file")
    return found


def _located(given: RasterFile | Path | str, declared: Declared, remote: RemoteOptions) -> RasterFile:
    if isinstance(given, RasterFile):
        return given
    if is_item(str(given)):
        return locate_item(str(given), declared.assets, remote)
    found = locate(str(given), remote)
    if declared.assets and "assets" not in declared.shared:
        raise UsageError(f"assets {','.join(declared.assets)} are chosen, but {found} is not a STAC Item")
    return found


def locate_item(text: str, assets: Sequence[str] | None, remote: RemoteOptions) -> ItemDate:
    """Reads a STAC Item and returns the chosen ``assets``; None: its only GeoTIFF.

    Raises:
        InputError: The item cannot be read or is not valid, an asset does not exist or lies in a forbidden place.
        UsageError: It is on a server, and ``remote`` does not allow a network.
    """
    at_address = is_address(text)
    read = partial(read_document, text, remote, STAC_ITEM_BYTES) if at_address else partial(_text, Path(text))
    content, own = read(), locate(text, remote)
    item = parse_item(content, str(own))
    find = partial(_remote_file, text, remote) if at_address else partial(_local_file, Path(text))
    files = []
    for key, asset in choose(item, assets, str(own)):
        where = f"asset '{key}' of STAC Item {own}"
        files.append(ItemFile(key, find(asset.href, where), stated(asset, where)))
    return ItemDate(
        item=str(own), file_name=own.name, local=own.path, read=read, sha256=hashlib.sha256(content).hexdigest(),
        time=item.acquired, files=tuple(files),
    )  # fmt: skip


def named_paths(item: Path) -> list[Path]:
    """Returns the local files that an item in a local file names; none if it cannot be read."""
    try:
        assets = parse_item(_text(item), str(item)).assets
    except InputError:
        return []
    return [item.parent / asset.href for asset in assets.values() if not is_address(asset.href)]


def _text(path: Path) -> bytes:
    if not is_file(path):
        raise InputError(f"STAC Item {path} does not exist")
    try:
        with path.open("rb") as file:
            return file.read(STAC_ITEM_BYTES + 1)
    except OSError as error:
        raise InputError(f"STAC Item {path} cannot be read: {error.strerror}") from error


def _local_file(item: Path, href: str, where: str) -> RasterFile:
    """Returns the file of an asset: an absolute path, or one relative to the item's folder."""
    if is_address(href):
        raise InputError(
            f"{where} is at {hidden(href)}, and an item in a local file may name only local paths; give the item's own "
            "address with --remote, or download the asset and correct its href"
        )
    return LocalFile(item.parent / href)


def _remote_file(item: str, remote: RemoteOptions, href: str, where: str) -> RasterFile:
    """Returns the file of an asset: an address of the item's own scheme, or one relative to the item."""
    found = _joined(item, href)
    scheme, own = (text.partition("://")[0].lower() for text in (found, item))
    if scheme != own:
        raise InputError(
            f"{where} is at {hidden(href)}, and an item at an {own}:// address may name only {own}:// addresses; give "
            "the addresses of rasters themselves"
        )
    try:
        return locate(found, remote)
    except UsageError as error:
        raise InputError(f"{where}: {error}") from error


def _joined(item: str, href: str) -> str:
    """Resolves a reference against the item's address (RFC 3986); unlike urljoin, also for s3://."""
    if is_address(href):
        return href
    scheme, _, rest = item.partition("://")
    try:
        return scheme + urljoin(f"https://{rest}", href).removeprefix("https")
    except ValueError:
        return href
