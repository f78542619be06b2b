"""The recipe of a run: every number that training depends on, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from misgnet.devices import Precision
from misgnet.training.augmentation import Augmentation
from misgnet.training.losses import LossWeights
from misgnet_runtime.errors import UsageError

Freeze = Literal["encoder", "norms"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. The defaults are the published recipe, and what it does not state.

    A run ends after ``epochs``, or after ``minutes`` or ``steps`` where these are given; the learning rate follows
    whichever it is. Lengths are in pixels, ``warmup_epochs`` in passes over the training tiles.
    """

    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    batch: int = 32  # pairs a step, over all processes together
    epochs: int = 150
    minutes: float | None = None
    steps: int | None = None
    warmup_epochs: float = 1.0
    decay_power: float = 0.9
    ema: float = 0.9999
    clip_norm: float = 1.0  # largest norm of the gradient; 0 leaves it as it is
    loss: LossWeights = field(default_factory=LossWeights)
    augmentation: Augmentation = field(default_factory=Augmentation)
    crop: int | None = None  # side of random crops in the first ``crop_share`` of the run
    crop_share: float = 0.6
    freeze: tuple[Freeze, ...] = ()
    distill: float = 0.0  # weight of the teacher's answer in the loss
    precision: Precision = "auto"
    seed: int = 0
    validate_every: int = 1  # epochs
    save_minutes: float = 10.0  # state for --resume within long epochs; it is always saved after one

    def __post_init__(self) -> None:
        """UsageError names a number that makes no sense."""
        positive = ("learning_rate", "batch", "epochs", "crop_share", "validate_every", "save_minutes")
        limits: list[tuple[str, bool, str]] = [(name, getattr(self, name) > 0, "above 0") for name in positive]
        limits += [(n, getattr(self, n) >= 0, "0 or more") for n in ("weight_decay", "warmup_epochs", "clip_norm")]
        limits += [
            ("minutes", self.minutes is None or self.minutes > 0, "above 0"),
            ("steps", self.steps is None or self.steps > 0, "above 0"),
            ("ema", 0 <= self.ema < 1, "from 0 to below 1"),
            ("crop", self.crop is None or (self.crop >= 32 and self.crop % 32 == 0), "a multiple of 32"),
            ("distill", self.distill >= 0, "0 or more"),
        ]
        for name, right, needed in limits:
            if not right:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be {needed}")
        if self.minutes is not None and self.steps is not None:
            raise UsageError("--minutes and --steps both end the run; give one of the two")


def rate_factor(recipe: Recipe, share: float, epochs_done: float) -> float:
    """Factor on the learning rate: linear warm-up, times polynomial decay over the whole run.

    ``share``: how much of the run is over, 0 to 1; ``epochs_done``: passes over the tiles so far. A run of a number
    of steps, which may be less than one pass, is warm after a tenth of them.
    """
    warm = min(1.0, epochs_done / recipe.warmup_epochs) if recipe.warmup_epochs else 1.0
    if recipe.steps is not None:
        warm = max(warm, min(1.0, 10 * share))
    return max(warm, 0.01) * max(0.0, 1 - share) ** recipe.decay_power
