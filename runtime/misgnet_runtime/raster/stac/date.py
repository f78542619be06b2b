"""A date that a STAC Item describes: its file, or the files that are read as its bands, and the item itself."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from misgnet_runtime.raster.source import Fetched, Identity, RasterFile, changed
from misgnet_runtime.raster.stated import Stated


@dataclass(frozen=True)
class ItemIdentity(Identity):
    """Identifies an item's text and its files."""

    files: tuple[Identity, ...]


class _Delegating(RasterFile):
    """Reads the bytes of another file."""

    @property
    @abstractmethod
    def file(self) -> RasterFile: ...

    def open(self) -> BinaryIO:
        return self.file.open()

    def dataset(self, rasterio: Any) -> Any:
        return self.file.dataset(rasterio)

    @property
    def fetches(self) -> bool:
        return self.file.fetches

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.file.fetch(ranges)

    def guarded(self) -> AbstractContextManager[None]:
        return self.file.guarded()

    def take_fetched(self) -> Fetched:
        return self.file.take_fetched()

    def close(self) -> None:
        self.file.close()


@dataclass(frozen=True)
class ItemFile(_Delegating):
    """The file of an asset."""

    key: str
    given: RasterFile
    about: Stated  # what the item states about its bands

    @property
    def file(self) -> RasterFile:
        return self.given

    def __str__(self) -> str:
        return str(self.file)

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def path(self) -> Path | None:
        return self.file.path

    @property
    def stated(self) -> Stated:
        return self.about

    def require(self) -> None:
        self.file.require()

    def state(self) -> Hashable:
        return self.file.state()

    def identity(self) -> Identity:
        return self.file.identity()

    def check_unchanged(self, state: Hashable, identity: Identity) -> None:
        self.file.check_unchanged(state, identity)


@dataclass(frozen=True, kw_only=True)
class ItemDate(_Delegating):
    """The chosen assets of an item: one file with all bands, or several with one band each."""

    item: str  # path or address of the item, for messages
    file_name: str  # of the item
    local: Path | None  # the item's own file, if it is on this machine
    read: Callable[[], bytes]  # reads the text of the item again
    sha256: str  # of the text from which the assets were taken
    time: datetime | None  # when the image was taken
    files: tuple[ItemFile, ...]

    @property
    def file(self) -> ItemFile:
        """The only file, or the first one of a stack."""
        return self.files[0]

    def __str__(self) -> str:
        return f"{self.item} ({self._assets})"

    @property
    def _assets(self) -> str:
        return f"asset{'s' * (len(self.files) > 1)} {','.join(file.key for file in self.files)}"

    @property
    def name(self) -> str:
        return self.file_name

    @property
    def paths(self) -> tuple[Path, ...]:
        own = () if self.local is None else (self.local,)
        return (*own, *(path for file in self.files for path in file.paths))

    @property
    def link(self) -> str:
        return self.item

    @property
    def parts(self) -> tuple[ItemFile, ...]:
        return self.files

    @property
    def acquired(self) -> datetime | None:
        return self.time

    def require(self) -> None:
        if self._digest() != self.sha256:
            raise changed(self)
        for file in self.files:
            file.require()

    def state(self) -> Hashable:
        return (self._digest(), *(file.state() for file in self.files))

    def identity(self) -> ItemIdentity:
        """Returns the SHA-256 of the item, and what identifies each of its files."""
        files = tuple(file.identity() for file in self.files)
        named = [f"{file.key} {found.kind} {found.value}" for file, found in zip(self.files, files, strict=True)]
        return ItemIdentity("stac-item", "; ".join([f"item sha256 {self._digest()}", *named]), files)

    def check_unchanged(self, state: Hashable, identity: Identity) -> None:
        assert isinstance(state, tuple) and isinstance(identity, ItemIdentity)
        if self._digest() != state[0]:
            raise changed(self)
        for file, own, found in zip(self.files, state[1:], identity.files, strict=True):
            file.check_unchanged(own, found)

    def take_fetched(self) -> Fetched:
        found = [file.take_fetched() for file in self.files]
        return Fetched(sum(one.size for one in found), sum(one.requests for one in found))

    def close(self) -> None:
        for file in self.files:
            file.close()

    def _digest(self) -> str:
        return hashlib.sha256(self.read()).hexdigest()
