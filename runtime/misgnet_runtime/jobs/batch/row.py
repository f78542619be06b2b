"""Defines one row of a batch table: two rasters, the outputs and the options. Cheap to import."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import msgspec

from misgnet_runtime.errors import UsageError
from misgnet_runtime.jobs.scene.options import VECTOR_SUFFIXES, SceneOptions
from misgnet_runtime.options import group, make, option, stated
from misgnet_runtime.parsers import NO, YES

_ENDINGS = {
    "probability": ".probability.tif", "vector": ".gpkg", "quicklook": ".png", "report": ".html",
    "stac_item": ".json", "output": ".tif",
}  # fmt: skip


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
    report: bool = option(False, help="Also write ID.html.", suffixes=(".html",), changes_output=True)
    stac_item: bool = option(False, help="Also write ID.json.", suffixes=(".json",), changes_output=True)
    # A row may not allow a network: --remote is an option of the command only.
    scene: SceneOptions = group(SceneOptions, without=("remote",))


@dataclass(frozen=True, slots=True)
class Scene:
    """A pair of rasters to process."""

    id: str
    # Absolute paths, or addresses as text.
    before: Path | str
    after: Path | str
    # Options of predict by column name, as text.
    words: Mapping[str, str]
    # Cells of other columns by name, which are copied into the results.
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """The inputs that are local files."""
        area = self.words.get("aoi")
        files = [date for date in (self.before, self.after) if isinstance(date, Path)]
        return [*files, Path(area)] if area else files

    def outputs(self) -> dict[str, str]:
        """Returns the output paths by option, relative to the output folder, the change raster last.

        Raises:
            UsageError: A cell is not a valid output path.
        """
        words = {"output": "yes", **self.words}
        named = ((option, _file_name(option, words.get(option, ""), self.id)) for option in _ENDINGS)
        found = {option: name for option, name in named if name}
        rasters = [option for option in ("probability", "output") if option in found and is_yes(words, "style")]
        styles = {f"{option}_style": str(PurePosixPath(found[option]).with_suffix(".qml")) for option in rasters}
        return {**styles, **found}

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

        These are the digest of the ``bundle``, the options, and the path, size and modification time of both files and
        of the area; of a STAC Item also those of the files that it names; of what is on a server only the address,
        since nothing is requested for a scene that is finished.
        """
        known = stated(RowOptions)
        words = sorted((name, word) for name, word in self.words.items() if word and known[name].option.changes_output)
        area = self.words.get("aoi")
        inputs = [self.before, self.after, *([Path(area)] if area else [])]
        dates = [(str(path), _stamps(path)) for path in inputs]
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


def _stamps(date: Path | str) -> object:
    if isinstance(date, str):
        return None
    if date.suffix.lower() not in (".json", ".geojson"):
        return _stamp(date)
    from misgnet_runtime.raster.stac.locate import named_paths

    return [_stamp(date), *((str(path), _stamp(path)) for path in named_paths(date))]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Returns the size in bytes and the modification time in ns, or None if there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns
