"""One row of the table: two rasters, what is made of them, and how. Cheap to import."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import msgspec

from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.scene.options import VECTOR_SUFFIXES, SceneOptions
from misgnet_runtime.options import group, make, option, stated
from misgnet_runtime.parsers import NO, YES

_ENDINGS = {"probability": ".probability.tif", "vector": ".gpkg", "quicklook": ".png", "output": ".tif"}


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """The columns of a table beside a scene's name and dates.

    A cell of an output is yes, no, or a path below the folder of all outputs.
    """

    output: str = option("yes", help="The name of ID.tif.", suffixes=(".tif", ".tiff"), changes_output=True)
    probability: bool = option(False, help="Also ID.probability.tif.", suffixes=(".tif", ".tiff"), changes_output=True)
    vector: bool = option(False, help="Also ID.gpkg.", suffixes=VECTOR_SUFFIXES, changes_output=True)
    quicklook: bool = option(False, help="Also ID.png.", suffixes=(".png",), changes_output=True)
    scene: SceneOptions = group(SceneOptions)


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
        """Without the names of files, and to be resumed where it can be; raises UsageError."""
        words = {name: word for name, word in self.words.items() if word and name not in _ENDINGS}
        options = replace(make(RowOptions, words).scene, force=False, restart=False)
        options.check_values()
        return options

    def key(self, bundle: str) -> str:
        """SHA-256 of all that the outputs depend on: ``bundle``'s digest, the options, and the state of both files."""
        known = stated(RowOptions)
        words = sorted((name, word) for name, word in self.words.items() if word and known[name].option.changes_output)
        dates = [(str(path), _stamp(path)) for path in (self.before, self.after)]
        return hashlib.sha256(msgspec.json.encode((bundle, self.id, dates, words))).hexdigest()


def is_yes(words: Mapping[str, str], name: str) -> bool:
    """Whether a flag is set; UsageError where it is neither yes nor no."""
    return bool(stated(RowOptions)[name].parse(words.get(name, "")))


def _file_name(option: str, word: str, name: str) -> str | None:
    """``word``: yes for the name that the scene's gives, no for none, or a path below the output folder."""
    if word.lower() in NO and option != "output":
        return None
    if word.lower() in (*YES, *NO):
        return name + _ENDINGS[option]
    path, suffixes = (
        PurePosixPath(word),
        stated(SceneOptions)["probability" if option == "output" else option].option.suffixes,
    )
    if path.is_absolute() or any(part.startswith(".") for part in path.parts) or "\0" in word:
        raise UsageError(f"{option} is '{word}'; it is a path below the output folder, without '..' and hidden names")
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} is '{word}'; choose a name that ends in {' or '.join(suffixes)}")
    return str(path)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size in bytes and time of the last write in ns; None where there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns
