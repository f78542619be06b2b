"""What a user declares of a raster's pixels: bands, and how stored values become brightness. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass, field

from misgnet_runtime.errors import UsageError


@dataclass(frozen=True)
class Declared:
    """What is said of one date's raster; None where nothing is.

    ``bands``: which are red, green and blue, from 1. A stored value times ``scale`` plus ``offset`` is 0 for black and
    1 for white, one number or three; or ``stretch``: the percentiles of each band that become black and white.
    ``shared``: which of them are said of both dates at once.
    """

    bands: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None
    stretch: tuple[float, ...] | None = None
    shared: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @classmethod
    def parse(
        cls, prefix: str, bands: str | None, scale: str | None, offset: str | None, stretch: str | None
    ) -> Declared:
        """From the words of ``--bands``, ``--scale``, ``--offset`` and ``--stretch``; ``prefix``: "before-", say.

        Raises UsageError for what is no number, too few or too many of them, or both a scale and a stretch.
        """
        found = cls(
            _numbers(f"--{prefix}bands", bands, (3,), "3,2,1"),
            _numbers(f"--{prefix}scale", scale, (1, 3), "0.0001"),
            _numbers(f"--{prefix}offset", offset, (1, 3), "-0.1"),
            _numbers(f"--{prefix}stretch", stretch, (2,), "2,98"),
        )
        if found.stretch and (found.scale or found.offset):
            raise UsageError(f"--{prefix}stretch finds scale and offset by itself; leave it out, or leave them out")
        if found.bands and not all(band >= 1 and band == int(band) for band in found.bands):
            raise UsageError(f"--{prefix}bands is '{bands}'; bands are counted from 1")
        if found.stretch and not 0 <= found.stretch[0] < found.stretch[1] <= 100:
            raise UsageError(f"--{prefix}stretch is '{stretch}'; it is two percentiles, the lower one first: 2,98")
        return found

    def over(self, common: Declared) -> Declared:
        """What is said of this date alone, and else of both: a scaling takes the place of a stretch, and back."""
        scaled = self.scale or self.offset
        return Declared(
            self.bands or common.bands,
            self.scale or (None if self.stretch else common.scale),
            self.offset or (None if self.stretch else common.offset),
            self.stretch or (None if scaled else common.stretch),
            frozenset(name for name in ("bands", "scale", "offset") if getattr(self, name) is None),
        )


_Words = tuple[str | None, str | None, str | None, str | None]


def declared_dates(both: _Words, before: _Words, after: _Words) -> tuple[Declared, Declared]:
    """What is said of each date, from bands, scale, offset and stretch; raises as :meth:`Declared.parse`."""
    common = Declared.parse("", *both)
    return Declared.parse("before-", *before).over(common), Declared.parse("after-", *after).over(common)


def _numbers(option: str, text: str | None, counts: tuple[int, ...], example: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if len(found) not in counts or not all(abs(number) < 1e30 for number in found):  # NaN fails too
        wanted = " or ".join(map(str, counts))
        raise UsageError(f"{option} is '{text}'; it takes {wanted} number{'s' * (counts != (1,))}, like {example}")
    return found
