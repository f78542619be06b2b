"""Training from tiles: AdamW, warm-up and polynomial decay, EMA, bfloat16 autocast with float32 guidance."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from misgnet.augmentation import augment
from misgnet.checkpoint import load_checkpoint, save_checkpoint
from misgnet.evaluation import evaluate
from misgnet.losses import change_loss
from misgnet.network import MISGNet, build_misgnet
from misgnet.tensors import normalise, tile_tensors
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.tiles import TileSet, read_tile


@dataclass(frozen=True)
class TrainConfig:
    """The recipe. A run ends after ``epochs`` or ``minutes``, whichever is given; the schedule follows it."""

    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    batch: int = 16
    epochs: int = 150
    minutes: float | None = None
    warmup: float = 0.02  # share of the run
    decay_power: float = 0.9
    ema: float = 0.999
    clip_norm: float = 1.0
    crop: int | None = None  # side of random crops in the first ``crop_share`` of the run, in pixels
    crop_share: float = 0.6
    seed: int = 0
    bfloat16: bool = True
    validate_seconds: float = 300.0


@dataclass(frozen=True)
class StepReport:
    step: int
    share: float
    loss: float
    seconds: float
    pairs_per_second: float
    val_f1: float | None = None


def train(
    train_tiles: TileSet,
    val_tiles: TileSet,
    run: Path,
    config: TrainConfig,
    init: Path | None = None,
    report: Callable[[StepReport], None] = lambda _: None,
) -> float:
    """Train and return the best validation F1.

    Writes into the folder ``run``, each time the averaged weights are better than before:
    ``best.safetensors`` (float32) and ``best_fp16.safetensors``; and ``config.json``, ``log.jsonl``.

    Raises InputError for unreadable tiles or weights, MisgnetError where the loss is no longer finite.
    """
    return _Trainer(train_tiles, val_tiles, run, config, init, report).fit()


class _Trainer:
    def __init__(
        self,
        train_tiles: TileSet,
        val_tiles: TileSet,
        run: Path,
        config: TrainConfig,
        init: Path | None,
        report: Callable[[StepReport], None],
    ) -> None:
        torch.manual_seed(config.seed)
        self.tiles, self.val, self.run, self.config, self.report = train_tiles, val_tiles, run, config, report
        self.generator = torch.Generator().manual_seed(config.seed)
        self.network = build_misgnet()
        if init is None:
            initialise(self.network)
        else:
            self.network.load_state_dict(load_checkpoint(init))
        self.average = copy.deepcopy(self.network).eval()
        self.optimizer = torch.optim.AdamW(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=config.learning_rate, weight_decay=config.weight_decay,
        )  # fmt: skip
        self.best = -1.0
        self.started = time.monotonic()

    def fit(self) -> float:
        self.run.mkdir(parents=True, exist_ok=True)
        (self.run / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        last_validation = self.started
        for step, batch in enumerate(self._batches()):
            share = min(1.0, self._share(step))
            if share >= 1 and step > 0:  # one step at least, however short the time
                break
            began = time.monotonic()
            loss = self._step(step, share, batch)
            now = time.monotonic()
            score = None
            if now - last_validation > self.config.validate_seconds:
                score, last_validation = self._validate(), time.monotonic()
            self._log(StepReport(step, share, loss, now - self.started, len(batch[0]) / (now - began), score))
        self._log(StepReport(step, 1.0, loss, time.monotonic() - self.started, 0.0, self._validate()))
        return self.best

    def _share(self, step: int) -> float:
        """How much of the run is over, 0 to 1."""
        if self.config.minutes is not None:
            return (time.monotonic() - self.started) / (60 * self.config.minutes)
        return step / (self.config.epochs * max(1, len(self.tiles) // self.config.batch))

    def _step(self, step: int, share: float, batch: tuple[Tensor, Tensor, Tensor]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * _schedule(share, self.config)
        # Colour jitter grows over the first third: at full strength from the start the network does not learn.
        before, after, label = augment(*batch, self.generator, strength=min(1.0, 3 * share))
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.bfloat16):
            logits = self.network(normalise(before), normalise(after))
        loss = change_loss(logits, label)
        if not torch.isfinite(loss):
            raise MisgnetError(f"training diverged at step {step}: the loss is {loss.item()}; lower the learning rate")
        self.optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        _update_average(self.average, self.network, min(self.config.ema, (1 + step) / (10 + step)))
        return loss.item()

    def _validate(self) -> float:
        score = evaluate(self.average, self.val).f1 or 0.0
        if score > self.best:
            self.best = score
            metadata = {"val_f1": f"{score:.4f}"}
            save_checkpoint(self.average, self.run / "best.safetensors", metadata=metadata)
            save_checkpoint(self.average, self.run / "best_fp16.safetensors", half=True, metadata=metadata)
        return score

    def _log(self, entry: StepReport) -> None:
        with (self.run / "log.jsonl").open("a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
        self.report(entry)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Endless shuffled batches; the next one is read while the network works on this one."""
        with ThreadPoolExecutor(1) as reader:
            pending = None
            for step, indices in enumerate(self._index_batches()):
                following = reader.submit(self._read, indices, self._share(step))
                if pending is not None:
                    yield pending.result()
                pending = following

    def _index_batches(self) -> Iterator[list[int]]:
        random = np.random.default_rng(self.config.seed)
        batch = min(self.config.batch, len(self.tiles))
        while True:
            order = random.permutation(len(self.tiles)).tolist()
            for start in range(0, len(order) - batch + 1, batch):
                yield order[start : start + batch]

    def _read(self, indices: list[int], share: float) -> tuple[Tensor, Tensor, Tensor]:
        before, after, label = tile_tensors([read_tile(self.tiles[i]) for i in indices])
        size = self.config.crop
        if size is None or share > self.config.crop_share:
            return before, after, label
        top, left = np.random.default_rng(indices).integers(0, self.tiles.tile - size + 1, 2)
        window = (..., slice(top, top + size), slice(left, left + size))
        return before[window], after[window], label[window]


def initialise(network: MISGNet) -> None:
    """Start values for training from scratch: narrow normal linear layers, fan-out scaled convolutions.

    The encoder's are those of its paper; without them it learns slowly.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _schedule(share: float, config: TrainConfig) -> float:
    """Linear warm-up, then polynomial decay to zero; a factor on the learning rate."""
    if share < config.warmup:
        return max(share / config.warmup, 0.01)
    return float((1 - (share - config.warmup) / (1 - config.warmup)) ** config.decay_power)


@torch.no_grad()
def _update_average(average: MISGNet, network: MISGNet, decay: float) -> None:
    for mean, value in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)
