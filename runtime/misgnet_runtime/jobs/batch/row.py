"""Defines one row of a batch table: two rasters, the outputs and the options. Cheap to import."""

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
    """The columns of a batch table besides id, before and after.

    A cell of an output column is yes, no, or a path below the output folder.
    """

    output: str = option("yes", help="File name of the change raster.", suffixes=(".tif", ".tiff"), changes_output=True)
    probability: bool = option(
        False, help="Also write ID.probability.tif.", suffixes=(".tif", ".tiff"), changes_output=True
    )
    vector: bool = option(False, help="Also write ID.gpkg.", suffixes=VECTOR_SUFFIXES, changes_output=True)
    quicklook: bool = option(False, help="Also write ID.png.", suffixes=(".png",), changes_output=True)
    scene: SceneOptions = group(SceneOptions)


@dataclass(frozen=True, slots=True)
class Scene:
    """A pair of rasters to process."""

    id: str
    # Absolute paths.
    before: Path
    after: Path
    # Options of predict by column name, as text.
    words: Mapping[str, str]

    @property
    def files(self) -> tuple[Path, ...]:
        """Returns the paths of all inputs."""
        area = self.words.get("aoi")
        return (self.before, self.after, Path(area)) if area else (self.before, self.after)

    def outputs(self) -> dict[str, str]:
        """Returns the output paths by option, relative to the output folder, the change raster last.

        Raises:
            UsageError: A cell is not a valid output path.
        """
        words = {"output": "yes", **self.words}
        named = ((option, _file_name(option, words.get(option, ""), self.id)) for option in _ENDINGS)
        return {option: name for option, name in named if name}

    def options(self) -> SceneOptions:
        """Returns the options of predict without file names, set to resume an interrupted run.

        Raises:
            UsageError: An option has an invalid value.
        """
        words = {name: word for name, word in self.words.items() if word and name not in _ENDINGS}
        options = replace(make(RowOptions, words).scene, force=False, restart=False)
        options.check_values()
        return options

    def key(self, bundle: str) -> str:
        """Returns the SHA-256 of everything that the outputs depend on.

        These are the digest of the ``bundle``, the options, and the path, size and modification time of the files.
        """
        known = stated(RowOptions)
        words = sorted((name, word) for name, word in self.words.items() if word and known[name].option.changes_output)
        dates = [(str(path), _stamp(path)) for path in self.files]
        return hashlib.sha256(msgspec.json.encode((bundle, self.id, dates, words))).hexdigest()


def is_yes(words: Mapping[str, str], name: str) -> bool:
    """Returns whether a flag is set; raises UsageError unless its text is yes or no."""
    return bool(stated(RowOptions)[name].parse(words.get(name, "")))


def _file_name(option: str, word: str, name: str) -> str | None:
    """Returns the output path for a cell: ``word`` is yes (named after the scene), no (None), or a relative path."""
    if word.lower() in NO and option != "output":
        return None
    if word.lower() in (*YES, *NO):
        return name + _ENDINGS[option]
    path, suffixes = (
        PurePosixPath(word),
        stated(SceneOptions)["probability" if option == "output" else option].option.suffixes,
    )
    if path.is_absolute() or any(part.startswith(".") for part in path.parts) or "\0" in word:
        raise UsageError(f"{option} is '{word}'; expected a path below the output folder, without '..' or hidden names")
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} is '{word}'; choose a name that ends in {' or '.join(suffixes)}")
    return str(path)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Returns the size in bytes and the modification time in ns, or None if there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns
