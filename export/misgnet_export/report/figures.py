"""Formats numbers and computes the derived ones; shared by the HTML report, the terminal tables and JUnit XML."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from misgnet_runtime.accuracy.gate import Interval
from misgnet_runtime.accuracy.parity import EngineParity, ParityReport
from misgnet_runtime.formatting import truncated
from misgnet_runtime.inference.throughput import Timing

FEW_SOURCES = 10
LEFT_OUT = "left out"
MINUS = "\N{MINUS SIGN}"

_FLOAT_PRECISIONS = ("float", "float32", "fp32")
_FLOAT_NAME = re.compile(r"(?<![a-z])(float32|fp32|float)(?![0-9])")
_LOWERED_NAME = re.compile(r"[-_.]?(int8|float16)")


def number(value: float | None, digits: int = 4) -> str:
    """Returns ``value`` with ``digits`` decimals, or "n/a" if it is not defined."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """Formats like ``number`` but always with a sign; zero, also a rounded one, has no sign."""
    if value is None:
        return "n/a"
    text = f"{value:+.{digits}f}".replace("-", MINUS)
    return text if text.strip(f"+{MINUS}0.") else text[1:]


def percent(share: float | None, digits: int = 3) -> str:
    """Returns a share in per cent, truncated instead of rounded, so that only full agreement reads 100."""
    if share is None:
        return "n/a"
    return f"{truncated(100 * share, digits)}\N{NO-BREAK SPACE}%"


def ratio(value: float | None) -> str:
    """Returns an F1 ratio with 5 decimals, truncated instead of rounded, or "n/a" if it is not defined."""
    return "n/a" if value is None else truncated(value, 5)


def interval(found: Interval | None) -> str:
    """Returns both ends of a 95 % interval in points."""
    return "n/a" if found is None else f"{signed(found.low)} to {signed(found.high)}"


def ratio_interval(found: Interval | None) -> str:
    """Returns both ends of a 95 % interval of an F1 ratio."""
    return "n/a" if found is None else f"{ratio(found.low)} to {ratio(found.high)}"


def size(count: int) -> str:
    """Returns a number of bytes in the largest fitting binary unit."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.2f} MiB"


def verdict_word(engine: EngineParity) -> str:
    """Returns ``pass``, ``FAIL`` or, if there is no verdict, a dash."""
    if engine.verdict is None:
        return "–"  # noqa: RUF001
    return "pass" if engine.verdict.passed else "FAIL"


def speed_ratios(timings: list[Timing]) -> list[float | None]:
    """Returns pairs per second relative to the float engine at the same batch; None if that was not measured."""
    base: dict[int, float] = {}
    for timing in timings:
        if timing.precision.lower() in _FLOAT_PRECISIONS:
            base.setdefault(timing.batch, timing.pairs_per_second)
    return [t.pairs_per_second / base[t.batch] if base.get(t.batch) else None for t in timings]


def size_ratios(files: list[tuple[str, int]]) -> list[float | None]:
    """Returns the size of each INT8 or float16 file relative to its float file; None if there is no such file.

    The float file has the same type and folder, and its name contains "float" or equals the file's name without "int8"
    or "float16".
    """
    sizes = dict(files)
    floats = [sizes.get(_float_partner(path, list(sizes)) or "") for path, _ in files]
    return [count / whole if whole else None for (_, count), whole in zip(files, floats, strict=True)]


def few_sources(found: Interval | None) -> bool:
    """Returns whether an interval is rough because it is based on few source images."""
    return found is not None and found.sources < FEW_SOURCES


def name_of_left_out(engine: EngineParity) -> str:
    """Returns the name of an engine that was left out; the bundle may have another engine of its name."""
    return f"{engine.engine} ({engine.precision})"


def with_verdict(report: ParityReport) -> list[EngineParity]:
    """Returns the engines that have a verdict."""
    return [engine for engine in report.engines if engine.verdict is not None]


def _float_partner(path: str, others: list[str]) -> str | None:
    this = PurePosixPath(path)
    if not _LOWERED_NAME.search(this.name.lower()):
        return None
    plain = [other for other in map(PurePosixPath, others) if not _LOWERED_NAME.search(other.name.lower())]
    alike = [other for other in plain if (other.parent, other.suffix) == (this.parent, this.suffix)]
    bare = _LOWERED_NAME.sub("", this.name.lower())
    named = [other for other in alike if _FLOAT_NAME.search(other.name.lower())]
    found = named or [other for other in alike if other.name.lower() == bare]
    return str(found[0]) if len(found) == 1 else None
