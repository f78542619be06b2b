"""One pair to its results, in a folder of their own: by the engine that is open for all pairs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from misgnet_runtime.bundle import Bundle
from misgnet_runtime.choice import Opened
from misgnet_runtime.images import read_pair
from misgnet_runtime.log import EventLog
from misgnet_runtime.predict import predict_images
from misgnet_runtime.scenes.predict import predict_opened
from misgnet_runtime.session import BundleSession
from misgnet_runtime.watch.options import WatchOptions
from misgnet_runtime.watch.pairing import FilePair


@dataclass(frozen=True)
class Processor:
    """The open engine, and how it is used."""

    bundle: Bundle
    opened: Opened
    options: WatchOptions
    log: EventLog

    @property
    def engine(self) -> str:
        """Its name, what it runs on, how many batches at once, and tiles in them."""
        detector, entry, _ = self.opened
        batch = self.options.scene.batch_of(entry, detector.interface, detector.batch)
        return f"{entry.name} on {detector.engine.device}, {detector.engine.streams} streams, batch {batch}"

    def process(self, pair: FilePair, folder: Path) -> dict[str, Any]:
        """Write the results of ``pair`` to ``folder``, the map or mask last: where it is, all are. Its figures.

        What a killed run left in ``folder`` is gone on with. Raises MisgnetError of many kinds.
        """
        result = folder / self.options.outputs(pair)[-1]
        if result.exists():
            return {}
        return self._scene(pair, result) if pair.kind == "scene" else self._image(pair, result)

    def _image(self, pair: FilePair, result: Path) -> dict[str, Any]:
        detector, entry, reason = self.opened
        session = BundleSession(self.bundle.manifest, entry, reason, detector)
        return asdict(predict_images(session, *read_pair(pair.before.path, pair.after.path), result))

    def _scene(self, pair: FilePair, result: Path) -> dict[str, Any]:
        options = self.options.scene_options(pair.name, result.parent)
        paths = pair.before.path, pair.after.path, result
        with self.log.progress("rows of tiles") as progress:
            return asdict(
                predict_opened(
                    self.bundle, lambda: nullcontext(self.opened), *paths, options,
                    log=self.log.bind(pair=pair.name), progress=progress,
                )
            )  # fmt: skip
