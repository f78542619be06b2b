"""Reads ranges of a remote file: one identity, each byte fetched once, several requests at once.

Each request after the first carries If-Match or If-Unmodified-Since, and the answer's ETag or time, its Content-Range
and its length are compared, so that bytes of two versions of a file are never mixed. RFC 9110, sections 8.8, 13 and 14.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.remote.address import Address
from misgnet_runtime.raster.remote.http import CONNECTIONS, Http, Response
from misgnet_runtime.raster.remote.options import RemoteOptions
from misgnet_runtime.raster.remote.store import Range, Store, merged
from misgnet_runtime.raster.source import Fetched, Identity

_AHEAD = 1 << 14  # bytes fetched at least: directories are read in many small parts
_AT_ONCE = 4 << 20  # bytes of one request; larger ranges are fetched in parallel
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_LONGEST = 256  # characters of an ETag or time


@dataclass(frozen=True)
class _Version:
    """A version of the file, as the server states it."""

    size: int  # bytes
    etag: str | None  # as in the header; None: there is no strong one
    modified: str | None  # the time, as in the header

    @property
    def identity(self) -> Identity:
        if self.etag is not None:
            return Identity("etag", self.etag.strip('"'))
        return Identity("size-and-time", f"{self.size} bytes, {self.modified}")

    @property
    def condition(self) -> dict[str, str]:
        """The header with which the server answers only for this version."""
        if self.etag is not None:
            return {"If-Match": self.etag}
        return {"If-Unmodified-Since": self.modified or ""}


class RangeReader:
    """Reads a remote file. One thread at a time may use it.

    Args:
        address: Where the file is, for messages.
        http: Sends the requests.
        options: The bound on what is fetched.
    """

    def __init__(self, address: Address, http: Http, options: RemoteOptions) -> None:
        self._address, self._http, self._options = address, http, options
        self._version: _Version | None = None
        self._store: Store | None = None
        self._threads: ThreadPoolExecutor | None = None

    @property
    def fetched(self) -> Fetched:
        """What was fetched so far."""
        return Fetched(self._http.fetched, self._http.requests)

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self._opened()[0].size

    @property
    def identity(self) -> Identity:
        """What identifies the file's content: its strong ETag, or else its size and time."""
        return self._opened()[0].identity

    def close(self) -> None:
        """Drops the bytes that are kept, and closes the connections; a later use fetches the same version again."""
        if self._store is not None:
            self._store.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.close()
        self._store = self._threads = None

    def read(self, start: int, count: int) -> bytes:
        """Returns at most ``count`` bytes at ``start``, fewer at the end of the file; raises as :meth:`fetch`."""
        version, store = self._opened()
        stop = min(start + count, version.size)
        if missing := store.missing(start, stop):
            self._get_all([(missing[0][0], min(version.size, max(missing[-1][1], missing[0][0] + _AHEAD)))])
        return store.read(start, stop)

    def fetch(self, ranges: Iterable[Range]) -> None:
        """Fetches what is missing of ranges within the file, several requests at once.

        Raises:
            InputError: The file was replaced or removed, or the server does not support ranges.
            NetworkError: The server cannot be reached; a later call may succeed.
            StorageError: The temporary folder is full.
        """
        version, store = self._opened()
        wanted = merged(((start, min(stop, version.size)) for start, stop in ranges), 1 << 62)
        self._get_all([gap for start, stop in wanted for gap in store.missing(start, stop)])

    def check(self) -> None:
        """Raises InputError if the file was replaced or removed since it was opened."""
        version, _ = self._opened()
        if version.size:
            self._get((0, 1))

    def _opened(self) -> tuple[_Version, Store]:
        """Returns the version that is read; the first call asks for the start of the file."""
        if self._store is None or self._version is None:
            self._http.open()
            version, content = self._part((0, _AHEAD))
            self._version, self._store = version, Store()
            self._store.add(0, content)
        return self._version, self._store

    def _get_all(self, ranges: list[Range]) -> None:
        parts = merged(ranges, _AT_ONCE)
        self._check_limit(sum(stop - start for start, stop in parts))
        if len(parts) <= 1:
            for part in parts:
                self._get(part)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(CONNECTIONS, "misgnet-fetch")
        for _ in self._threads.map(self._get, parts):
            pass

    def _check_limit(self, more: int) -> None:
        most = self._options.most_bytes
        if self._http.fetched + more > most:
            raise InputError(
                f"more than {most / (1 << 30):g} GiB of {self._address} would be fetched; raise --remote-limit, or "
                "download the file and give its path"
            )

    def _get(self, part: Range) -> None:
        _, content = self._part(part)
        if self._store is not None:
            self._store.add(part[0], content)

    def _part(self, part: Range) -> tuple[_Version, bytes]:
        """Fetches one range, which is cut at the end of the file if its size is not known yet."""
        known, (start, stop) = self._version, part
        headers = {
            "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity", **(known.condition if known else {})
        }  # fmt: skip
        response = self._http.get(headers, stop - start)
        found = self._stated(response, part)
        if known is not None and found != known:
            raise self._changed()
        return found, response.content

    def _stated(self, response: Response, part: Range) -> _Version:
        """Returns the version that an answer states; raises InputError unless it holds the bytes of ``part``."""
        start, stop = part
        if response.status == 412:
            raise self._changed()
        if response.status == 416:
            raise self._changed() if self._version else InputError(f"{self._address} is empty; check the address")
        if response.status != 206:
            raise InputError(
                f"the server of {self._address} does not support range requests; download the file and give its path"
            )
        if (response.headers.get("Content-Encoding") or "identity").lower() != "identity":
            raise self._invalid("is compressed")
        stated = _RANGE.fullmatch(response.headers.get("Content-Range") or "")
        if stated is None:
            raise self._invalid("does not state its range and the size of the file")
        first, last, size = map(int, stated.groups())
        if self._version and size != self._version.size:
            raise self._changed()
        if (first, last + 1) != (start, min(stop, size)) or len(response.content) != last + 1 - first:
            raise self._invalid(
                f"holds {len(response.content):,} bytes, stated as {first:,} to {last:,} of {size:,}; bytes {start:,} "
                f"to {stop - 1:,} were requested"
            )
        return self._version_of(size, response.headers)

    def _version_of(self, size: int, headers: Mapping[str, str]) -> _Version:
        etag, modified = (_valid(headers.get(name)) for name in ("ETag", "Last-Modified"))
        if etag is not None and not etag.startswith("W/"):
            return _Version(size, etag, None)
        if modified is None:
            raise InputError(
                f"the server of {self._address} states neither a strong ETag nor Last-Modified, so a change of the "
                "file could not be noticed; download the file and give its path"
            )
        return _Version(size, None, modified)

    def _changed(self) -> InputError:
        return InputError(
            f"raster {self._address} was changed while it was read; when it is complete, rerun the command with "
            "--restart"
        )

    def _invalid(self, why: str) -> InputError:
        return InputError(f"the server's answer for {self._address} {why}; download the file and give its path")


def _valid(header: str | None) -> str | None:
    """Returns a header's text; None if it is empty, too long or not printable."""
    text = (header or "").strip()
    return text if text and len(text) <= _LONGEST and text.isascii() and text.isprintable() else None


class RemoteBytes(io.RawIOBase):
    """A remote file as a binary file; raises as :meth:`RangeReader.read`."""

    def __init__(self, reader: RangeReader) -> None:
        self._reader, self._at = reader, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, origin: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._reader.size}[origin]
        self._at = base + offset
        return self._at

    def read(self, count: int = -1) -> bytes:
        found = self._reader.read(self._at, self._reader.size - self._at if count < 0 else count)
        self._at += len(found)
        return found


class GdalBytes(RemoteBytes):
    """A remote file for GDAL, which would ignore errors, or report them as damaged pixels.

    The first error is kept in ``failure``, also a KeyboardInterrupt, and GDAL reads no more bytes.
    """

    def __init__(self, reader: RangeReader, failures: list[BaseException]) -> None:
        super().__init__(reader)
        self._failures = failures

    def read(self, count: int = -1) -> bytes:
        if self._failures:
            return b""
        try:
            return super().read(count)
        except BaseException as error:
            self._failures.append(error)
            return b""

    def __enter__(self) -> Any:
        return self
