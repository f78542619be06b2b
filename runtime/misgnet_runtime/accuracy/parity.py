"""Parity: an engine's masks against the float model's, on every tile of an evaluation set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec import field
from numpy.typing import NDArray

from misgnet_runtime.accuracy.gate import Interval, Verdict, bootstrap_drop, decide, f1_drop
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.bundle.manifest import GateRule
from misgnet_runtime.callables import Mask, Predict, Progress
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.raster.dataset import Tile, TileSet, stack
from misgnet_runtime.storage.schema import Struct

Status = Literal["run", "proxy", "not run"]

SHOWN_TILES = 6


@dataclass(frozen=True)
class Judged:
    """One tile's mask (its own pixels only, packed 8 a byte) and its counts against the label."""

    name: str
    source: str
    shape: tuple[int, int]
    packed: NDArray[np.uint8]
    confusion: Confusion

    @property
    def mask(self) -> Mask:
        size = self.shape[0] * self.shape[1]
        return np.unpackbits(self.packed, count=size).astype(bool).reshape(self.shape)


class TileParity(Struct, frozen=True):
    """One tile: counts of both sides as (tp, fp, fn, tn), and pixels whose masks differ."""

    name: str
    source: str
    reference: tuple[int, int, int, int]
    engine: tuple[int, int, int, int]
    differing: int
    pixels: int


class EngineParity(Struct, frozen=True):
    """What is known of one engine. ``status`` "proxy": its graph was run by another engine on this machine."""

    engine: str
    precision: str
    status: Status
    reason: str
    device: str = ""
    scores: dict[str, float | None] = field(default_factory=dict)
    f1_drop_points: float | None = None
    interval: Interval | None = None
    agreement: float | None = None
    verdict: Verdict | None = None
    worst_tiles: list[str] = field(default_factory=list)
    tiles: list[TileParity] = field(default_factory=list)


class ParityReport(Struct, frozen=True):
    """The evidence: the reference's scores and one entry an engine, on one evaluation set."""

    reference: str
    evaluation_set: str
    evaluation_sha256: str
    tiles: int
    sources: int
    pixels: int
    changed_share: float
    threshold: float
    max_f1_drop: float
    reference_scores: dict[str, float | None]
    engines: list[EngineParity]
    gate: GateRule = "point"
    note: str = "one confusion matrix over all pixels of the changed class; the interval resamples source images"

    @property
    def passed(self) -> bool:
        """Whether every engine that was run, itself or by proxy, passes; at least one must have been."""
        verdicts = [e.verdict for e in self.engines if e.verdict is not None]
        return bool(verdicts) and all(v.passed for v in verdicts)

    @property
    def failures(self) -> str:
        """Why the report did not pass: the engines that failed, each with its reason."""
        failed = [f"{e.engine}: {e.verdict.reason}" for e in self.engines if e.verdict and not e.verdict.passed]
        return "; ".join(failed) or "no engine was judged"


def judge(
    name: str, predict: Predict, tiles: TileSet, threshold: float,
    *, batch: int = 4, progress: Progress | None = None,
) -> list[Judged]:  # fmt: skip
    """Run ``predict`` on every tile. Raises GateFailed where it answers NaN or Inf."""
    judged: list[Judged] = []
    for part in tiles.batches(batch):
        for tile, probability in zip(part, predict(*stack(part)), strict=True):
            if not np.isfinite(probability).all():
                raise GateFailed(f"{name} answers NaN or Inf on tile {tile.ref.name}")
            judged.append(_judged(tile, probability > threshold))
        if progress:
            progress(len(judged), len(tiles))
    return judged


def judged_of(name: str, source: str, mask: Mask, label: Mask) -> Judged:
    """One tile's own pixels, bool (H, W), against their label."""
    return Judged(name, source, (mask.shape[0], mask.shape[1]), np.packbits(mask), Confusion.of(mask, label))


def compare(
    engine: str, precision: str, reference: list[Judged], found: list[Judged], max_f1_drop: float,
    *, device: str, status: Status = "run", reason: str = "", gate: GateRule = "point",
) -> EngineParity:  # fmt: skip
    """Judge ``found`` against ``reference``, tile by tile and in all; a pure function."""
    tiles = [_tile_parity(r, f) for r, f in zip(reference, found, strict=True)]
    before, after = (Confusion.total([j.confusion for j in side]) for side in (reference, found))
    interval = bootstrap_drop(by_source(reference), by_source(found))
    agreement = 1 - sum(t.differing for t in tiles) / max(1, before.pixels)
    worst = sorted((t for t in tiles if t.differing), key=lambda t: (-t.differing, t.name))
    return EngineParity(
        engine=engine, precision=precision, status=status, reason=reason, device=device,
        scores=after.scores(),
        f1_drop_points=f1_drop(before, after),
        interval=interval,
        agreement=agreement,
        verdict=decide(before, after, agreement, max_f1_drop, rule=gate, interval=interval),
        worst_tiles=[t.name for t in worst[:SHOWN_TILES]],
        tiles=tiles,
    )  # fmt: skip


def report(
    reference_name: str, reference: list[Judged], tiles: TileSet, engines: list[EngineParity],
    *, threshold: float, max_f1_drop: float, gate: GateRule = "point",
) -> ParityReport:  # fmt: skip
    """Put the engines' results together with what they were measured on."""
    total = Confusion.total([j.confusion for j in reference])
    return ParityReport(
        reference=reference_name, evaluation_set=str(tiles.root), evaluation_sha256=tiles.digest(), tiles=len(tiles),
        sources=len(tiles.sources), pixels=total.pixels, changed_share=total.changed / max(1, total.pixels),
        threshold=threshold, max_f1_drop=max_f1_drop, reference_scores=total.scores(), engines=engines, gate=gate,
    )  # fmt: skip


def by_source(judged: list[Judged]) -> list[Confusion]:
    """One confusion matrix a source image, in the order of their first tiles."""
    totals: dict[str, Confusion] = {}
    for item in judged:
        totals[item.source] = totals.get(item.source, Confusion()) + item.confusion
    return list(totals.values())


def _judged(tile: Tile, mask: Mask) -> Judged:
    rows, columns = tile.owned
    return judged_of(tile.ref.name, tile.ref.source.name, mask[rows, columns], tile.label[rows, columns])


def _tile_parity(reference: Judged, found: Judged) -> TileParity:
    differing = int(np.count_nonzero(reference.mask != found.mask))
    return TileParity(
        name=reference.name, source=reference.source, reference=_tuple(reference.confusion),
        engine=_tuple(found.confusion), differing=differing, pixels=reference.confusion.pixels,
    )  # fmt: skip


def _tuple(c: Confusion) -> tuple[int, int, int, int]:
    return c.tp, c.fp, c.fn, c.tn
