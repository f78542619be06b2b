"""Processes one pair into its work folder, with an engine that stays open for all pairs."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from misgnet_runtime.bundle.golden import golden_of
from misgnet_runtime.bundle.reader import Bundle
from misgnet_runtime.errors import MisgnetError, UnavailableError
from misgnet_runtime.inference.selection import Opened
from misgnet_runtime.inference.self_test import golden_agreement
from misgnet_runtime.jobs.image import predict_images, read_images
from misgnet_runtime.jobs.scene.predict import predict_opened
from misgnet_runtime.jobs.scene.stac_item import load_pystac
from misgnet_runtime.jobs.watch.options import WatchOptions
from misgnet_runtime.jobs.watch.pairing import FilePair, Kind
from misgnet_runtime.jobs.watch.preflight import check_files, check_names, check_permitted, file_digest
from misgnet_runtime.log import EventLog
from misgnet_runtime.raster.changes import check_libraries
from misgnet_runtime.raster.geotiff import load_rasterio

Open = Callable[[str], AbstractContextManager[Opened]]  # opens the named engine


class Processor(Protocol):
    """Processes pairs, in this process or in a child process."""

    # The engine's name, device, number of streams and batch size.
    engine: str
    # The engine's name, and why it was chosen.
    title: str

    def digests(self, pair: FilePair, folder: Path) -> tuple[str, str]:
        """Checks that ``pair`` can be processed in ``folder``, and returns the SHA-256 of both files.

        Raises:
            InputError: The pair cannot be processed.
        """

    def process(self, pair: FilePair, folder: Path) -> dict[str, Any]:
        """Writes the results of ``pair`` to ``folder`` and returns the fields of its report.

        The change raster or mask is written last, so if it exists, all results do. Resumes an interrupted run from the
        files in ``folder``.

        Raises:
            MisgnetError: Any subclass.
        """

    def recover(self) -> None:
        """Reopens the engine and checks it with the golden tiles.

        Raises:
            UnavailableError: The engine does not open or fails the golden tiles.
        """

    def close(self) -> None: ...


class LocalProcessor:
    """Processes pairs in this process."""

    def __init__(self, bundle: Bundle, opening: Open, output: Path, options: WatchOptions, log: EventLog) -> None:
        self._bundle, self._opening, self._output = bundle, opening, output
        self._options, self._log = options, log
        self._pixels = bundle.manifest.interface.pixels
        self._stack = ExitStack()
        self._opened = self._stack.enter_context(opening(options.scene.engine))
        self.engine, self.title = self._described()

    def digests(self, pair: FilePair, folder: Path) -> tuple[str, str]:
        names = self._options.outputs(pair)
        check_names(self._output, names)
        check_permitted(pair)
        check_files(pair, folder / names[-1], self._options.scene.max_unreadable, self._pixels)
        before, after = map(file_digest, pair.files)
        return before, after

    def process(self, pair: FilePair, folder: Path) -> dict[str, Any]:
        result = folder / self._options.outputs(pair)[-1]
        if result.exists():
            return {}
        return self._scene(pair, result) if pair.kind == "scene" else self._image(pair, result)

    def recover(self) -> None:
        entry = self._opened[1]
        self._stack.close()
        try:
            self._opened = self._stack.enter_context(self._opening(entry.name))
        except (MisgnetError, MemoryError) as error:
            raise UnavailableError(f"engine {entry.name} cannot be reopened: {error}") from error
        self.check()

    def check(self) -> None:
        """Raises UnavailableError if the open engine fails the golden tiles."""
        detector, entry, _ = self._opened
        try:
            golden = golden_of(self._bundle)
            golden_agreement(self._bundle, entry, detector.probability, golden)
        except (MisgnetError, MemoryError) as error:
            raise UnavailableError(f"engine {entry.name} was reopened and fails its golden tiles: {error}") from error

    def close(self) -> None:
        self._stack.close()

    def _described(self) -> tuple[str, str]:
        detector, entry, reason = self._opened
        batch = self._options.scene.batch_of(entry, detector.interface, detector.batch)
        device = f"{entry.name} on {detector.engine.device}"
        # The journal stores the first text, and later versions compare it: it must not change.
        return f"{device}, {detector.engine.streams} streams, batch {batch}", f"{entry.name} ({reason})"

    def _image(self, pair: FilePair, result: Path) -> dict[str, Any]:
        log, options = self._log.bind(pair=pair.name), replace(self._options.scene, force=True)
        images = read_images(pair.before.path, pair.after.path, self._pixels, log)
        return asdict(predict_images(self._bundle, self._opened, images, result, options))

    def _scene(self, pair: FilePair, result: Path) -> dict[str, Any]:
        options = self._options.scene_options(pair.name, result.parent)
        paths = pair.before.path, pair.after.path, result
        places = {option: self._output / path.name for option, path in options.outputs(result).items()}
        with self._log.progress("rows of tiles") as progress:
            return asdict(
                predict_opened(
                    self._bundle, lambda: nullcontext(self._opened), *paths, options=options,
                    log=self._log.bind(pair=pair.name), progress=progress, name=pair.name, places=places,
                )
            )  # fmt: skip


def missing_library(kind: Kind, options: WatchOptions) -> str | None:
    """Returns why pairs of a kind cannot be processed on this machine; None if they can."""
    try:
        if kind == "scene":
            load_rasterio("a scene")
            check_libraries(vector=options.vector is not None, report=options.report)
            if options.stac_item:
                load_pystac()
    except UnavailableError as error:
        return str(error)
    return None


def folder_names(folder: Path) -> set[str]:
    """Returns the names in a folder; an empty set if the folder does not exist."""
    try:
        return set(os.listdir(folder))  # noqa: PTH208 - only names are needed
    except OSError:
        return set()
