"""Rasters on servers, which are read by range requests; only with ``--remote``. Cheap to import.

:func:`locate` turns a path or an address into what a date is read from, and :func:`read_document` fetches a small
file, such as JSON.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.raster.remote.address import Address, is_address
from misgnet_runtime.raster.remote.options import NO_REMOTE, RemoteOptions

if TYPE_CHECKING:
    from misgnet_runtime.raster.source import RasterFile

__all__ = ["NO_REMOTE", "Address", "RemoteOptions", "is_address", "locate", "read_document"]


def locate(text: str, options: RemoteOptions) -> RasterFile:
    """Returns the raster at a path or an address; nothing is read yet.

    Raises:
        UsageError: It is an address, and ``options`` do not allow a network; or the address is not valid.
        UnavailableError: A library for remote rasters is missing.
    """
    from misgnet_runtime.raster.source import LocalFile

    if not is_address(text):
        return LocalFile(Path(text))
    from misgnet_runtime.raster.remote.file import RemoteFile

    return RemoteFile(_allowed(text, options), options)


def read_document(text: str, options: RemoteOptions, most: int) -> bytes:
    """Fetches a whole file of at most ``most`` bytes from an address.

    Raises:
        UsageError: As :func:`locate`.
        InputError: The file is larger, does not exist, or access is denied.
        NetworkError: The server cannot be reached; a later call may succeed.
    """
    from misgnet_runtime.raster.remote.file import http_of

    address = _allowed(text, options)
    http = http_of(address, options)
    try:
        response = http.get({"Accept-Encoding": "identity"}, most)
    finally:
        http.close()
    if response.status != 200:
        raise InputError(f"{address} cannot be fetched: the server answered HTTP {response.status}; check the address")
    if len(response.content) > most:
        raise InputError(f"{address} has more than {most:,} bytes, which are the limit; check the address")
    return response.content


def _allowed(text: str, options: RemoteOptions) -> Address:
    address = Address.parse(text)
    if not options.remote:
        raise UsageError(f"{address} is on a server, and no network is used by default; allow it with --remote")
    return address
