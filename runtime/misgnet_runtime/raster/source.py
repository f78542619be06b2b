"""Where a date's pixels come from: a TIFF in a local file. TIFFs in other places implement the same class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from misgnet_runtime.errors import InputError
from misgnet_runtime.raster.geotiff import open_geotiff
from misgnet_runtime.raster.stated import Stated
from misgnet_runtime.raster.tiff import opened
from misgnet_runtime.storage.files import file_sha256, is_file, is_folder
from misgnet_runtime.storage.snapshot import FileStamp


@dataclass(frozen=True)
class Identity:
    """Identifies the content that was read; interrupted runs and the tags of outputs record it."""

    kind: Literal["sha256", "etag", "size-and-time", "stac-item"]
    value: str

    def __str__(self) -> str:
        return self.value if self.kind == "sha256" else f"{self.kind} {self.value}"

    @property
    def tag(self) -> str:
        """The end of the tag that records it: ``SHA256``."""
        return self.kind.upper().replace("-", "_")


@dataclass(frozen=True)
class Fetched:
    """What was fetched over a network."""

    size: int = 0  # bytes
    requests: int = 0


class RasterFile(ABC):
    """A TIFF. Its text is its full name, for messages."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The file name, without folders."""

    @property
    def stem(self) -> str:
        """The file name without its ending."""
        return Path(self.name).stem

    @property
    def path(self) -> Path | None:
        """The local file, which no output may replace; None: there is none."""
        return None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All local files that it is read from."""
        return () if self.path is None else (self.path,)

    @property
    def link(self) -> str:
        """A reference for catalogues, if it is not a local file; without secrets."""
        return str(self)

    @property
    def parts(self) -> tuple[RasterFile, ...]:
        """The files of a STAC Item: one with all bands, or one for each band, in order; empty: it is a file itself."""
        return ()

    @property
    def stated(self) -> Stated | None:
        """What a STAC Item states about its pixels."""
        return None

    @property
    def acquired(self) -> datetime | None:
        """When the image was taken, if known from elsewhere than the file's own tags."""
        return None

    @abstractmethod
    def require(self) -> None:
        """Raises InputError if there is no such file."""

    @abstractmethod
    def open(self) -> BinaryIO:
        """Opens the bytes, to read the directories of the TIFF; raises InputError if that fails."""

    @abstractmethod
    def dataset(self, rasterio: Any) -> Any:
        """Opens the pixels with GDAL's GTiff driver; raises InputError if that fails."""

    @abstractmethod
    def state(self) -> Hashable:
        """Returns a value that changes when the content does, cheaply; raises InputError if it cannot be had."""

    @abstractmethod
    def identity(self) -> Identity:
        """Returns what identifies the whole content."""

    @abstractmethod
    def check_unchanged(self, state: Hashable, identity: Identity) -> None:
        """Raises InputError if the content changed since :meth:`state` and :meth:`identity` returned these values."""

    @property
    def fetches(self) -> bool:
        """Whether bytes come over a network, so that :meth:`fetch` of the next blocks saves time."""
        return False

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetches byte ranges, from the first byte to the one after the last, before they are read."""
        del ranges

    def guarded(self) -> AbstractContextManager[None]:
        """Returns a context for calls of GDAL, which raises the error that GDAL met, and hid, while reading bytes."""
        return nullcontext()

    def take_fetched(self) -> Fetched:
        """Returns what was fetched since the last call."""
        return Fetched()

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Frees what is kept of the content; the file may be used again."""


def changed(file: RasterFile) -> InputError:
    return InputError(
        f"raster {file} was changed while it was read; when it is complete, rerun the command with --restart"
    )


@dataclass(frozen=True)
class LocalFile(RasterFile):
    """A TIFF on this machine."""

    local: Path

    def __str__(self) -> str:
        return str(self.local)

    @property
    def name(self) -> str:
        return self.local.name

    @property
    def path(self) -> Path:
        return self.local

    def require(self) -> None:
        if not is_file(self.local):
            found = "is a folder; give a GeoTIFF in it" if is_folder(self.local) else "does not exist"
            raise InputError(f"raster {self.local} {found}")

    def open(self) -> BinaryIO:
        return opened(self.local)

    def dataset(self, rasterio: Any) -> Any:
        return open_geotiff(rasterio, self.local)

    def state(self) -> FileStamp:
        try:
            return FileStamp.of(self.local)
        except OSError as error:
            raise InputError(f"raster {self.local} can no longer be read: {error.strerror}") from error

    def identity(self) -> Identity:
        return Identity("sha256", file_sha256(self.local))

    def check_unchanged(self, state: Hashable, identity: Identity) -> None:
        now = self.state()
        if now == state:
            return
        # The last field also changes with links and permissions, which leave the bytes as they are.
        if not isinstance(state, FileStamp) or now[:-1] != state[:-1] or self.identity() != identity:
            raise changed(self)


def as_source(given: RasterFile | Path) -> RasterFile:
    """Returns the raster of a local path; any other source unchanged."""
    return LocalFile(given) if isinstance(given, Path) else given


def local_paths(*sources: RasterFile | Path) -> list[Path]:
    """Returns the local files among ``sources``."""
    return [path for source in sources for path in as_source(source).paths]
