"""A TIFF on a server as the pixels of a date."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.remote.address import Address
from misgnet_runtime.raster.remote.http import Http
from misgnet_runtime.raster.remote.options import RemoteOptions
from misgnet_runtime.raster.remote.reader import GdalBytes, RangeReader, RemoteBytes
from misgnet_runtime.raster.remote.s3 import s3_http
from misgnet_runtime.raster.remote.store import Range
from misgnet_runtime.raster.source import Fetched, Identity, RasterFile, changed


class RemoteFile(RasterFile):
    """A TIFF at an ``https://``, ``http://`` or ``s3://`` address. Nothing is requested before its first use.

    It keeps one identity for its lifetime, also if it is closed and used again.
    """

    def __init__(self, address: Address, options: RemoteOptions) -> None:
        self._address = address
        self._reader = RangeReader(address, http_of(address, options), options)
        self._failures: list[BaseException] = []
        self._reported = Fetched()

    def __str__(self) -> str:
        return str(self._address)

    @property
    def name(self) -> str:
        return self._address.name

    def require(self) -> None:
        self._failures.clear()
        _ = self._reader.size

    def open(self) -> BinaryIO:
        return cast(BinaryIO, RemoteBytes(self._reader))

    def dataset(self, rasterio: Any) -> Any:
        self.require()
        try:
            with warnings.catch_warnings(), self.guarded():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                # GDAL sees a neutral name: it would interpret some characters of an address.
                return rasterio.open("remote.tif", driver="GTiff", opener=self._opener)
        except rasterio.errors.RasterioError as error:
            raise InputError(f"raster {self} cannot be opened as a GeoTIFF: {error}") from error

    def _opener(self, *_: Any, **__: Any) -> GdalBytes:
        return GdalBytes(self._reader, self._failures)

    def state(self) -> Hashable:
        return self._reader.identity  # every request is for this version only

    def identity(self) -> Identity:
        return self._reader.identity

    def check_unchanged(self, state: Hashable, identity: Identity) -> None:
        self._raise_failure()
        self._reader.check()
        if self._reader.identity != identity or state != identity:
            raise changed(self)

    @property
    def fetches(self) -> bool:
        return True

    def fetch(self, ranges: Iterable[Range]) -> None:
        self._reader.fetch(ranges)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]

    def take_fetched(self) -> Fetched:
        total, known = self._reader.fetched, self._reported
        self._reported = total
        return Fetched(total.size - known.size, total.requests - known.requests)

    def close(self) -> None:
        self._reader.close()


def http_of(address: Address, options: RemoteOptions) -> Http:
    """Returns what sends the requests for an address."""
    return s3_http(address, options) if address.scheme == "s3" else Http(address, address.url, options)
