"""What a STAC Item states about the pixels of a file. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass

from misgnet_runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class StatedBand:
    """What an item states about one band; None: nothing."""

    colour: str | None = None  # common name of the eo extension: "red", "nir"
    dtype: str | None = None
    nodata: float | None = None
    scale: float | None = None  # factor of stored values
    offset: float | None = None  # added to the scaled values
    unit: str | None = None  # of the scaled values


@dataclass(frozen=True)
class Stated:
    """What an item states about one file."""

    where: str  # item and asset, for messages
    bands: tuple[StatedBand, ...]  # in the file's order; empty: they are not listed
    common: StatedBand  # of each band, if they are not listed

    def of(self, count: int, alpha: int | None, file: str) -> tuple[StatedBand, ...]:
        """Returns what is stated about each of ``count`` bands of ``file``, whose alpha band (from 1) may be unlisted.

        Raises InputError if the item lists another number of bands.
        """
        if not self.bands:
            return (self.common,) * count
        if len(self.bands) == count - 1 and alpha == count:
            return (*self.bands, StatedBand())
        if len(self.bands) != count:
            raise InputError(f"{self.where} lists {len(self.bands)} bands, but {file} has {count}; correct the item")
        return self.bands
