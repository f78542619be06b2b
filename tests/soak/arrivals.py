"""Generates the pairs of the soak test, and the ways in which they arrive in the watched folder."""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from support.bundles import expected, images
from support.scenes import scene, write_raster

# Expected outcome. good: done exactly once; moved: done at most once and never failed; failed: journaled as failed;
# reported: mentioned in the watcher's log; nothing: ignored.
Fate = Literal["good", "moved", "failed", "reported", "nothing"]


@dataclass(kw_only=True)
class Pair:
    """A pair that arrives."""

    name: str
    fate: Fate
    seed: int
    suffix: str = ".png"
    # Text that the watcher's report must contain.
    word: str = ""
    # Whether all bytes have been written.
    whole: bool = False
    # Whether the result was removed after it was checked.
    taken: bool = False

    def mask(self) -> NDArray[np.bool_]:
        """Returns the expected mask, bool (H, W)."""
        before, after = _pixels(self)
        return expected(before, after) > 0.5


class Arrivals:
    """Writes pairs to ``root``/in from threads. ``pairs``: all of them, by name."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.folder, self._elsewhere, self._chance = root / "in", root / "elsewhere", chance
        self._elsewhere.mkdir()
        self._pool = ThreadPoolExecutor(12)
        self._futures: list[Future[None]] = []
        self.pairs: dict[str, Pair] = {}

    def add(self, kind: str) -> None:
        number, seed = len(self.pairs), self._chance.randrange(1 << 30)
        if kind == "crash":
            self._bring(Pair(name=f"crash-{number}", fate="failed", seed=seed), self._renamed)
        elif kind == "bad":
            self._chance.choice(_BAD)(self, number, seed)
        else:
            way = self._chance.choice([self._renamed, self._slow, self._torn, self._torn, self._moved, self._touched])
            self._good(number, seed, way)

    def finish(self) -> None:
        """Waits until all pairs have been written."""
        for future in self._futures:
            future.result()
        self._pool.shutdown()

    def _good(self, number: int, seed: int, way: Callable[[Pair], None]) -> None:
        name = self._chance.choice(["p{}", "p {} x", "line\nend-{}", "ü{}", "-o{}", "=1+{}"]).format(number)
        suffix = self._chance.choice([".png", ".png", ".png", ".tif"])
        self._bring(Pair(name=name, fate="good", seed=seed, suffix=suffix), way)

    def _bring(self, pair: Pair, way: Callable[[Pair], None]) -> None:
        self.pairs[pair.name] = pair
        self._futures.append(self._pool.submit(way, pair))

    # --- ways in which good pairs arrive

    def _renamed(self, pair: Pair) -> None:
        for date, data in _files(pair).items():
            self._put(self._path(pair, date), data)
        pair.whole = True

    def _slow(self, pair: Pair) -> None:
        """Writes each file in parts while it is open, with pauses longer than the settling time."""
        for date, data in _files(pair).items():
            with self._path(pair, date).open("wb", buffering=0) as file:
                for part in (data[:100], data[100 : len(data) // 2], data[len(data) // 2 :]):
                    file.write(part)
                    time.sleep(random.Random(pair.seed).uniform(0, 0.6))
        pair.whole = True

    def _torn(self, pair: Pair) -> None:
        """Writes each file in two parts, and closes it between them for longer than the settling time."""
        chance = random.Random(pair.seed)
        for date, data in _files(pair).items():
            cut = int(len(data) * chance.uniform(0.1, 0.9))
            self._path(pair, date).write_bytes(data[:cut])
            time.sleep(chance.uniform(0, 2))
            with self._path(pair, date).open("ab") as file:
                file.write(data[cut:])
        pair.whole = True

    def _moved(self, pair: Pair) -> None:
        """Writes both files under another name first, then renames them."""
        first = Pair(name=f"was-{pair.name}", fate="moved", seed=pair.seed, suffix=pair.suffix)
        self.pairs[first.name] = first
        self._renamed(first)
        time.sleep(random.Random(pair.seed).uniform(0, 1))
        for date in ("before", "after"):
            self._path(first, date).rename(self._path(pair, date))
        pair.whole = True

    def _touched(self, pair: Pair) -> None:
        """Writes the files, then changes their modification times."""
        self._renamed(pair)
        time.sleep(random.Random(pair.seed).uniform(0, 1.5))
        for date in ("before", "after"):
            with suppress(OSError):  # it was removed
                os.utime(self._path(pair, date))

    # --- bad pairs

    def _long(self, number: int, seed: int) -> None:
        name = f"{number}-".ljust(236, "n") if seed % 2 else f"{number}-" + "ü" * 115
        self._bring(Pair(name=name, fate="failed", seed=seed), self._renamed)

    def _damaged(self, number: int, seed: int) -> None:
        def bring(pair: Pair) -> None:
            before, after = _files(pair).values()
            kinds = after[: len(after) // 2], b"", b"no image", os.urandom(300), _png(images(8, 8)[0])
            self._put(self._path(pair, "before"), before)
            self._put(self._path(pair, "after"), kinds[pair.seed % len(kinds)])
            pair.whole = True

        self._bring(Pair(name=f"damaged-{number}", fate="failed", seed=seed, suffix=(".png", ".tif")[seed % 2]), bring)

    def _sparse(self, number: int, seed: int) -> None:
        def bring(pair: Pair) -> None:
            before, after = _files(pair).values()
            path = self._elsewhere / f"sparse-{number}"
            path.write_bytes(after if pair.seed % 3 else b"")
            os.truncate(path, 8 << 40)
            self._put(self._path(pair, "before"), before)
            path.rename(self._path(pair, "after"))
            pair.whole = True

        self._bring(Pair(name=f"sparse-{number}", fate="failed", seed=seed, suffix=(".png", ".tif")[seed % 2]), bring)

    def _link(self, number: int, seed: int) -> None:
        def bring(pair: Pair) -> None:
            for date, data in _files(pair).items():
                target = self._elsewhere / f"{pair.name}_{date}.png"
                target.write_bytes(data)
                kinds = target, Path("/dev/zero"), self._elsewhere, Path("none")
                self._path(pair, date).symlink_to(kinds[pair.seed % len(kinds)])
            pair.whole = True

        self._bring(Pair(name=f"link-{number}", fate="reported", seed=seed, word="links are not followed"), bring)

    def _not_utf_8(self, number: int, seed: int) -> None:
        self._bring(Pair(name=f"raw{number}\udcff", fate="reported", seed=seed, word="not UTF-8"), self._renamed)

    def _mixed(self, number: int, seed: int) -> None:
        def bring(pair: Pair) -> None:
            before, after = _files(pair).values()
            self._put(self.folder / f"{pair.name}_before.tif", before)
            self._put(self._path(pair, "after"), after)
            pair.whole = True

        self._bring(Pair(name=f"mixed-{number}", fate="reported", seed=seed, word="only one is a GeoTIFF"), bring)

    def _no_file(self, number: int, seed: int) -> None:
        def bring(pair: Pair) -> None:
            for date in ("before", "after"):
                (os.mkfifo if pair.seed % 2 else os.mkdir)(self._path(pair, date))
            pair.whole = True

        self._bring(Pair(name=f"pipe-{number}", fate="nothing", seed=seed), bring)

    def _path(self, pair: Pair, date: str) -> Path:
        return self.folder / f"{pair.name}_{date}{pair.suffix}"

    def _put(self, path: Path, data: bytes) -> None:
        """Writes a file atomically, by renaming it from a name that the watcher ignores."""
        part = self.folder / f".{hash(path.name)}.part"
        part.write_bytes(data)
        part.rename(path)


_BAD = [
    Arrivals._long, Arrivals._damaged, Arrivals._damaged, Arrivals._sparse, Arrivals._link, Arrivals._not_utf_8,
    Arrivals._mixed, Arrivals._no_file,
]  # fmt: skip


def _pixels(pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns both dates, uint8 (H, W, 3)."""
    if pair.suffix == ".png":
        return images(70, 60, seed=pair.seed)
    before, after = scene(90, 80, pair.seed)
    return np.moveaxis(before, 0, 2), np.moveaxis(after, 0, 2)


def _files(pair: Pair) -> dict[str, bytes]:
    encode: Callable[[NDArray[np.uint8]], bytes] = _png if pair.suffix == ".png" else _tif
    return dict(zip(("before", "after"), map(encode, _pixels(pair)), strict=True))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _tif(pixels: NDArray[Any]) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return write_raster(Path(folder, "a.tif"), np.moveaxis(pixels, 2, 0)).read_bytes()
