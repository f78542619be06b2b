"""One row of the table: two rasters, what is made of them, and how. Cheap to import."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import msgspec

from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.scene.options import VECTOR_SUFFIXES, SceneOptions
from misgnet_runtime.raster.declared import declared_dates

_PIXELS = ("bands", "scale", "offset", "stretch")
_DATES = ("", "before_", "after_")
_FLAGS = ("align", "cog", "force", "restart", "no_tuned")
_COUNTS = ("overlap", "batch", "streams", "threads")
_NUMBERS = ("min_area", "simplify", "max_unreadable")
_ENDINGS = {"probability": ".probability.tif", "vector": ".gpkg", "quicklook": ".png", "output": ".tif"}
_SUFFIXES = {"vector": VECTOR_SUFFIXES, "quicklook": (".png",)}
# By these nothing in the outputs changes, or they are said anew of every run; whether what a finished scene lacks is
# still allowed is checked by itself.
_NOT_KEPT = ("force", "restart", "threads", "streams", "no_tuned", "max_unreadable")
OPTIONS = (
    "engine", *_ENDINGS, *_FLAGS, *_COUNTS, *_NUMBERS, *(date + name for date in _DATES for name in _PIXELS),
)  # fmt: skip
_YES = ("yes", "true", "1")
_NO = ("", "no", "false", "0")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True)
class Scene:
    """``before``, ``after``: absolute paths; ``words``: options of predict, by the names of their columns."""

    id: str
    before: Path
    after: Path
    words: Mapping[str, str]

    def outputs(self) -> dict[str, str]:
        """What is made, by option: paths below the output folder, the map last. UsageError for what cannot be one."""
        words = {"output": "yes", **self.words}
        named = ((option, _file_name(option, words.get(option, ""), self.id)) for option in _ENDINGS)
        return {option: name for option, name in named if name}

    def options(self) -> SceneOptions:
        """Without the names of files; raises UsageError."""
        words = self.words
        before, after = declared_dates(*((_texts(words, date)) for date in _DATES))
        counts = {name: _number(name, words.get(name), int) for name in _COUNTS}
        numbers = {name: _number(name, words.get(name), float) or 0.0 for name in _NUMBERS}
        options = SceneOptions(
            before, after, is_yes(words, "align"), cog=is_yes(words, "cog"), engine=words.get("engine") or "auto",
            tuned=not is_yes(words, "no_tuned"), **counts, **numbers,  # type: ignore[arg-type]
        )  # fmt: skip
        options.check_numbers()
        return options

    def key(self, bundle: str) -> str:
        """SHA-256 of all that the outputs depend on: ``bundle``'s digest, the options, and the state of both files."""
        words = sorted((name, word) for name, word in self.words.items() if word and name not in _NOT_KEPT)
        dates = [(str(path), _stamp(path)) for path in (self.before, self.after)]
        return hashlib.sha256(msgspec.json.encode((bundle, self.id, dates, words))).hexdigest()


def is_yes(words: Mapping[str, str], name: str) -> bool:
    """Whether a flag is set; UsageError where it is neither yes nor no."""
    word = words.get(name, "").lower()
    if word not in (*_YES, *_NO):
        raise UsageError(f"{name} is '{word}'; it is yes or no")
    return word in _YES


def _file_name(option: str, word: str, name: str) -> str | None:
    """``word``: yes for the name that the scene's gives, no for none, or a path below the output folder."""
    if word.lower() in _NO and option != "output":
        return None
    if word.lower() in (*_YES, *_NO):
        return name + _ENDINGS[option]
    path, suffixes = PurePosixPath(word), _SUFFIXES.get(option, (".tif", ".tiff"))
    if path.is_absolute() or any(part.startswith(".") for part in path.parts) or "\0" in word:
        raise UsageError(f"{option} is '{word}'; it is a path below the output folder, without '..' and hidden names")
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} is '{word}'; choose a name that ends in {' or '.join(suffixes)}")
    return str(path)


def _texts(words: Mapping[str, str], date: str) -> tuple[Any, ...]:
    return tuple(words.get(date + name) or None for name in _PIXELS)


def _number(name: str, word: str | None, kind: Callable[[str], Number]) -> Number | None:
    if not word:
        return None
    try:
        return kind(word)
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} is '{word}'; it is {whole}") from None


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size in bytes and time of the last write in ns; None where there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns
