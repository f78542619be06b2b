"""Compares an engine's masks with the float model's on every tile of an evaluation set (parity)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec import field
from numpy.typing import NDArray

from misgnet_runtime.accuracy.gate import Interval, Verdict, bootstrap, decide, f1_drop, f1_ratio
from misgnet_runtime.accuracy.limit import F1Limit
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.bundle.manifest import GateRule
from misgnet_runtime.callables import Mask, Predict, Progress
from misgnet_runtime.errors import GateFailed
from misgnet_runtime.raster.dataset import Tile, TileSet, stack
from misgnet_runtime.storage.schema import Struct

Status = Literal["run", "proxy", "not run"]

SHOWN_TILES = 6


@dataclass(frozen=True)
class EvaluatedTile:
    """One tile's predicted mask and its counts against the label; only pixels that the tile owns count."""

    name: str
    source: str  # name of the image that the tile was cut from
    shape: tuple[int, int]  # (H, W) of the owned pixels
    packed: NDArray[np.uint8]  # the mask, 8 pixels per byte
    confusion: Confusion

    @property
    def mask(self) -> Mask:
        size = self.shape[0] * self.shape[1]
        return np.unpackbits(self.packed, count=size).astype(bool).reshape(self.shape)


class TileParity(Struct, frozen=True):
    """One tile's counts for the reference and the engine."""

    # Name of the tile.
    name: str
    # Name of the image that the tile was cut from.
    source: str
    # (tp, fp, fn, tn) of the float model.
    reference: tuple[int, int, int, int]
    # (tp, fp, fn, tn) of the engine.
    engine: tuple[int, int, int, int]
    # Pixels whose masks differ.
    differing: int
    # Pixels that the tile owns; only these are counted.
    pixels: int


class EngineParity(Struct, frozen=True):
    """The result of one engine."""

    # Name of the engine in the bundle.
    engine: str
    # Precision of the engine, for example "int8".
    precision: str
    # "run", "not run", or "proxy": another engine on this machine ran its graph.
    status: Status
    # Why the engine was not run itself; empty if it was.
    reason: str
    # The device that ran the engine or its proxy.
    device: str = ""
    # Metrics of the changed class, as fractions; null if undefined.
    scores: dict[str, float | None] = field(default_factory=dict)
    # F1 of the float model minus F1 of the engine, in points; null if the labels hold no change.
    f1_drop_points: float | None = None
    # 95 % bootstrap interval of the drop; null for fewer than two source images.
    interval: Interval | None = None
    # Share of pixels with equal masks, 0 to 1.
    agreement: float | None = None
    # The gate's decision; null if the engine was not run.
    verdict: Verdict | None = None
    # F1 of the engine as a share of the float model's; null if the labels hold no change or the float model's F1 is 0.
    f1_ratio: float | None = None
    # 95 % bootstrap interval of the ratio, from the same resamples; null if either is undefined.
    ratio_interval: Interval | None = None
    # Names of the tiles with the most differing pixels, the worst first.
    worst_tiles: list[str] = field(default_factory=list)
    # The result of each tile.
    tiles: list[TileParity] = field(default_factory=list)


class ParityReport(Struct, frozen=True):
    """The reference's scores and one entry per engine, on one evaluation set."""

    # Name of the model that engines are compared with.
    reference: str
    # Folder of the evaluation set.
    evaluation_set: str
    # Digest of the evaluation set.
    evaluation_sha256: str
    # Number of tiles.
    tiles: int
    # Number of source images.
    sources: int
    # Number of evaluated pixels.
    pixels: int
    # Share of the pixels that are changed in the labels, 0 to 1.
    changed_share: float
    # Pixels with a higher probability of change count as changed.
    threshold: float
    # The allowed F1 drop, in points; null if ``min_f1_ratio`` is given.
    max_f1_drop: float | None
    # Metrics of the reference, as fractions; null if undefined.
    reference_scores: dict[str, float | None]
    # One entry per engine.
    engines: list[EngineParity]
    # The smallest allowed F1 as a share of the reference's, 0 to 1; null if ``max_f1_drop`` is given.
    min_f1_ratio: float | None = None
    # The value that must stay within the limit; see the manifest.
    gate: GateRule = "point"
    # Whether the evaluation set has labels; without, F1 was not measured, and the agreement decided.
    labelled: bool = True
    # Engines that ``--target auto`` chose and that the build left out because they failed; not in the bundle.
    left_out: list[EngineParity] = field(default_factory=list)
    # How the metrics and the interval are computed.
    note: str = "one confusion matrix over all pixels of the changed class; the interval resamples source images"

    @property
    def limit(self) -> F1Limit:
        """Returns the limit of the gate."""
        return F1Limit(max_f1_drop=self.max_f1_drop, min_f1_ratio=self.min_f1_ratio)

    @property
    def passed(self) -> bool:
        """Returns whether every engine that was run, itself or by proxy, passes, and at least one was run."""
        verdicts = [e.verdict for e in self.engines if e.verdict is not None]
        return bool(verdicts) and all(v.passed for v in verdicts)

    @property
    def failures(self) -> str:
        """Returns why the report did not pass: the engines that failed, each with its reason."""
        failed = [f"{e.engine}: {e.verdict.reason}" for e in self.engines if e.verdict and not e.verdict.passed]
        return "; ".join(failed) or "no engine was evaluated"


def evaluate_tiles(
    name: str, predict: Predict, tiles: TileSet, threshold: float,
    *, batch: int = 4, progress: Progress | None = None,
) -> list[EvaluatedTile]:  # fmt: skip
    """Runs ``predict`` on every tile and compares the masks with the labels.

    Raises:
        GateFailed: The output contains NaN or Inf.
    """
    evaluated: list[EvaluatedTile] = []
    for part in tiles.batches(batch):
        for tile, probability in zip(part, predict(*stack(part)), strict=True):
            if not np.isfinite(probability).all():
                raise GateFailed(f"the output of {name} contains NaN or Inf on tile {tile.ref.name}")
            evaluated.append(_evaluated(tile, probability > threshold))
        if progress:
            progress(len(evaluated), len(tiles))
    return evaluated


def evaluated_tile(name: str, source: str, mask: Mask, label: Mask) -> EvaluatedTile:
    """Compares the pixels that a tile owns, bool (H, W), with their label."""
    return EvaluatedTile(name, source, (mask.shape[0], mask.shape[1]), np.packbits(mask), Confusion.of(mask, label))


def compare(
    engine: str, precision: str, reference: list[EvaluatedTile], found: list[EvaluatedTile], limit: F1Limit,
    *, device: str, status: Status = "run", reason: str = "", gate: GateRule = "point", labelled: bool = True,
) -> EngineParity:  # fmt: skip
    """Evaluates ``found`` against ``reference``, per tile and in total; a pure function.

    Without labels, scores of the changed class are not stated, and the agreement decides.
    """
    tiles = [_tile_parity(r, f) for r, f in zip(reference, found, strict=True)]
    before, after = (Confusion.total([j.confusion for j in side]) for side in (reference, found))
    intervals = bootstrap(by_source(reference), by_source(found))
    agreement = 1 - sum(t.differing for t in tiles) / max(1, before.pixels)
    worst = sorted((t for t in tiles if t.differing), key=lambda t: (-t.differing, t.name))
    return EngineParity(
        engine=engine, precision=precision, status=status, reason=reason, device=device,
        scores=after.scores() if labelled else {},
        f1_drop_points=f1_drop(before, after),
        f1_ratio=f1_ratio(before, after),
        interval=intervals.drop if intervals else None,
        ratio_interval=intervals.ratio if intervals else None,
        agreement=agreement,
        verdict=decide(before, after, agreement, limit, rule=gate, intervals=intervals, labelled=labelled),
        worst_tiles=[t.name for t in worst[:SHOWN_TILES]],
        tiles=tiles,
    )  # fmt: skip


def report(
    reference_name: str, reference: list[EvaluatedTile], tiles: TileSet, engines: list[EngineParity],
    *, threshold: float, limit: F1Limit, gate: GateRule = "point",
) -> ParityReport:  # fmt: skip
    """Builds the report from the engines' results and a description of the evaluation set."""
    total = Confusion.total([j.confusion for j in reference])
    return ParityReport(
        reference=reference_name, evaluation_set=str(tiles.root), evaluation_sha256=tiles.digest(), tiles=len(tiles),
        sources=len(tiles.sources), pixels=total.pixels, changed_share=total.changed / max(1, total.pixels),
        threshold=threshold, max_f1_drop=limit.max_f1_drop, min_f1_ratio=limit.min_f1_ratio,
        reference_scores=total.scores() if tiles.labelled else {}, engines=engines, gate=gate, labelled=tiles.labelled,
    )  # fmt: skip


def by_source(evaluated: list[EvaluatedTile]) -> list[Confusion]:
    """Returns one confusion matrix per source image, in the order of their first tiles."""
    totals: dict[str, Confusion] = {}
    for item in evaluated:
        totals[item.source] = totals.get(item.source, Confusion()) + item.confusion
    return list(totals.values())


def _evaluated(tile: Tile, mask: Mask) -> EvaluatedTile:
    rows, columns = tile.owned
    return evaluated_tile(tile.ref.name, tile.ref.source.name, mask[rows, columns], tile.label[rows, columns])


def _tile_parity(reference: EvaluatedTile, found: EvaluatedTile) -> TileParity:
    differing = int(np.count_nonzero(reference.mask != found.mask))
    return TileParity(
        name=reference.name, source=reference.source, reference=_tuple(reference.confusion),
        engine=_tuple(found.confusion), differing=differing, pixels=reference.confusion.pixels,
    )  # fmt: skip


def _tuple(c: Confusion) -> tuple[int, int, int, int]:
    return c.tp, c.fp, c.fn, c.tn
