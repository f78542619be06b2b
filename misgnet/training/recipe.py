"""Defines the recipe of a run: all hyperparameters of training in one frozen value."""

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
    """Hyperparameters of a run. The defaults are the published recipe; values that it does not state are our choice.

    The learning-rate schedule spans the whole run, whether ``epochs``, ``minutes`` or ``steps`` limits it.
    """

    learning_rate: float = 4e-4  # maximum of the schedule
    weight_decay: float = 1e-4  # of AdamW
    batch: int = 32  # tile pairs per step, summed over all processes
    epochs: int = 150  # length of the run, unless minutes or steps is set
    minutes: float | None = None  # length of the run
    steps: int | None = None  # length of the run; not together with minutes
    warmup_epochs: float = 1.0  # duration of the linear warm-up
    decay_power: float = 0.9  # power of the polynomial learning-rate decay
    ema: float = 0.9999  # decay of the averaged weights
    clip_norm: float = 1.0  # maximum norm of the gradient; 0 does not clip it
    loss: LossWeights = field(default_factory=LossWeights)
    augmentation: Augmentation = field(default_factory=Augmentation)
    crop: int | None = None  # side of random crops in pixels; None: no crops
    crop_share: float = 0.6  # share of the run, from its start, that uses crops
    freeze: tuple[Freeze, ...] = ()  # parts that are not trained
    distill: float = 0.0  # weight of the teacher's predictions in the loss
    precision: Precision = "auto"
    seed: int = 0  # of initial weights, tile order and augmentation
    validate_every: int = 1  # epochs between validations
    save_minutes: float = 10.0  # minutes between saves of the state within an epoch; it is also saved at the end of one

    def __post_init__(self) -> None:
        """Raises UsageError, naming the option, for an invalid value."""
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
            raise UsageError("--minutes and --steps both limit the run; use one of the two")


def rate_factor(recipe: Recipe, share: float, epochs_done: float) -> float:
    """Returns the factor on the learning rate: linear warm-up times polynomial decay over the whole run.

    If ``recipe.steps`` limits the run, the warm-up takes at most a tenth of the run, which may be shorter than one
    epoch.

    Args:
        recipe: Hyperparameters.
        share: Share of the run that is done, 0 to 1.
        epochs_done: Passes over the training tiles so far.
    """
    warm = min(1.0, epochs_done / recipe.warmup_epochs) if recipe.warmup_epochs else 1.0
    if recipe.steps is not None:
        warm = max(warm, min(1.0, 10 * share))
    return max(warm, 0.01) * max(0.0, 1 - share) ** recipe.decay_power
