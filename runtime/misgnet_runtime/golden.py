"""Golden tiles: a few inputs with expected outputs, for an engine's first use on another machine."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from misgnet_runtime.errors import InputError
from misgnet_runtime.files import is_no_file

if TYPE_CHECKING:
    from misgnet_runtime.bundle import Bundle

_MOST_BYTES = 512 << 20  # of all arrays: a small archive can unfold to any size
READ_ERRORS = (  # what NumPy's reader raises on damaged archives
    OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, MemoryError, SyntaxError,
    RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError,
)  # fmt: skip


@dataclass(frozen=True)
class GoldenTiles:
    """uint8 (G, T, T, 3) of both dates, and the float model's probability of change, float32 (G, T, T)."""

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    probability: NDArray[np.float32]


def write_golden(path: Path, tiles: GoldenTiles) -> None:
    np.savez_compressed(path, before=tiles.before, after=tiles.after, probability=tiles.probability)


def golden_of(bundle: Bundle) -> GoldenTiles:
    """The golden tiles of a bundle, from the bytes that were checked."""
    path = bundle.manifest.file("golden tiles").path
    return read_golden(bundle.name / path, bundle.read(path))


def read_golden(path: Path, data: bytes | None = None) -> GoldenTiles:
    """Read what :func:`write_golden` wrote; InputError where it is damaged or holds something else.

    ``data``: the file's bytes, where they were read before; ``path`` is then for messages.
    """
    source = path if data is None else io.BytesIO(data)
    try:
        tiles = GoldenTiles(*read_arrays(source, ("before", "after", "probability")))
    except READ_ERRORS as error:
        raise InputError(f"golden tiles {path} cannot be read: {error}") from error
    if not _fit_together(tiles):
        raise InputError(f"golden tiles {path} do not hold uint8 (G, T, T, 3) twice and float32 (G, T, T)")
    return tiles


def read_arrays(path: Path | BinaryIO, names: Iterable[str]) -> list[NDArray[Any]]:
    """The arrays of an archive by :func:`numpy.savez`, nothing of which is run.

    Raises READ_ERRORS where it is damaged, lacks one, holds more than it may, or is packed as NumPy never does it.
    """
    _check_archive(path)
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in names}
    if bad := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{', '.join(bad)} in it is no array")
    return list(arrays.values())


def _check_archive(path: Path | BinaryIO) -> None:
    if isinstance(path, Path) and is_no_file(path):
        raise ValueError("it is no file")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if size > _MOST_BYTES:
        raise ValueError(f"they declare {size} bytes, and {_MOST_BYTES} are the most")
    # The others' readers unfold what they get as a whole, whatever was declared.
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
        raise ValueError("they are compressed in another way than deflate")


def _fit_together(tiles: GoldenTiles) -> bool:
    dates = (tiles.before, tiles.after)
    shape = tiles.probability.shape
    return (
        len(shape) == 3 and shape[0] > 0 and tiles.probability.dtype == np.float32
        and all(date.shape == (*shape, 3) and date.dtype == np.uint8 for date in dates)
    )  # fmt: skip
