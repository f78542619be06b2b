"""Implements the training loop: steps, validation, and saving the state so that an interrupted run can resume."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from misgnet.checkpoint import load_checkpoint, load_network, save_checkpoint
from misgnet.devices import autocast, choose_precision
from misgnet.evaluation import evaluate
from misgnet.network import MISGNet, build_misgnet
from misgnet.tensors import normalise
from misgnet.training.augmentation import Pair
from misgnet.training.average import AveragedNetwork
from misgnet.training.batches import BatchReader, SourceCache, epoch_batches
from misgnet.training.folder import Start
from misgnet.training.log import EpochReport, Report, RunLog, StepReport, draw_curves
from misgnet.training.losses import change_loss, distillation_loss
from misgnet.training.qat import fake_quantized
from misgnet.training.ranks import Ranks
from misgnet.training.recipe import Freeze, Recipe, rate_factor
from misgnet.training.start import freeze, initialise, load_encoder, set_training, to_channels_last, trainable
from misgnet.training.state import STATE_FILE, Counters, load_state, save_state
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.errors import GateFailed, InputError
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.dataset import TileSet


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Device, processes and callbacks of a run; they do not influence the trained weights."""

    device: torch.device
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen
    cache_bytes: int = 4 << 30  # memory for decoded images
    workers: int = 2  # threads that read and augment tiles
    listen: Callable[[Report], None] = lambda _: None  # called with every report
    stopped: Callable[[], bool] = lambda: False  # called after every step; if true, the run saves its state and stops


class Trainer:
    """Runs one training with the tiles ``train`` and ``val`` in the folder ``run``."""

    def __init__(
        self, train: TileSet, val: TileSet, run: Path, recipe: Recipe, start: Start, *, at: Surroundings
    ) -> None:
        _make_deterministic(at.device, recipe.seed)
        self.tiles, self.val, self.run, self.at = train, val, run, at
        self.recipe = replace(recipe, precision=choose_precision(recipe.precision, at.device))
        self.fine_tuning = start.init is not None
        self.frozen = _frozen(start, recipe)
        self.network = _build(start, self.frozen).to(at.device)
        self.average = AveragedNetwork(self.network, recipe.ema)
        self.teacher = _teacher(start, at.device)
        self.model = at.ranks.wrap(self.network, at.device)
        # Not fused=True: PyTorch 2.13 then confuses elements if the memory layout of a gradient or loaded moment
        # differs from that of its channels-last weight.
        self.optimizer = torch.optim.AdamW(
            trainable(self.network).values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True
        )
        self.scaler = torch.amp.GradScaler(at.device.type, enabled=self.recipe.precision == "fp16")
        self.counters = Counters()
        self.epoch_steps = len(epoch_batches(recipe.seed, 0, len(train), recipe.batch))
        self._started = self._saved = time.monotonic()
        self._losses: list[float] = []

    def resume(self) -> None:
        """Loads the saved state of the run; raises InputError if it is missing or does not fit."""
        parts = self.network, self.average.network, self.optimizer, self.scaler
        self.counters = load_state(self.run / STATE_FILE, *parts)

    def fit(self) -> Counters:
        """Trains to the end or until stopped, and returns the progress.

        Raises InputError, naming the file, if something cannot be read or written; GateFailed if training diverged.
        """
        if self.counters.finished:
            return self.counters
        self._started = self._saved = time.monotonic() - self.counters.seconds
        log = RunLog(self.run, self.counters.step, self.at.listen) if self.at.ranks.first else None
        self.log = log
        try:
            with BatchReader(self.tiles, self.recipe, SourceCache(self.at.cache_bytes), self.at.workers) as reader:
                return self._fit(reader)
        except InputError as error:
            raise InputError(
                f"{error}; fix this and rerun the command with --resume; {self._saved_epochs()}"
            ) from error
        finally:
            if log:
                log.close()

    def _fit(self, reader: BatchReader) -> Counters:
        if self.fine_tuning and self.counters.step == 0:
            self._validate()  # makes the initial weights the best ones, in case that training only makes them worse
        while True:
            end = self._epoch(reader)
            due = self.counters.epoch_step == 0 and self.counters.epoch % self.recipe.validate_every == 0
            finished = end == "finished"
            if finished or due:
                self._validate()
            if finished:
                self._write(lambda: save_checkpoint(self.average.network, self.run / "last.safetensors"))
            self.counters = replace(self.counters, finished=finished)
            self._save()
            if end:
                return self.counters

    def _saved_epochs(self) -> str:
        count = self.counters.epoch
        return f"{self.run} holds {plural(count, 'finished epoch')}"

    def _epoch(self, reader: BatchReader) -> str:
        """Runs the rest of an epoch; returns "finished" or "stopped" if the run has ended, else an empty string."""
        counters, recipe = self.counters, self.recipe
        batches = epoch_batches(recipe.seed, counters.epoch, len(self.tiles), recipe.batch)[counters.epoch_step :]
        parts = [self.at.ranks.part(batch) for batch in batches]
        share, before = self._share(counters.step), time.monotonic()
        for batch in reader.epoch(counters.epoch, parts, lambda n: self._share(counters.step + n)):
            report = self._step(batch, share)
            now, before = time.monotonic() - before, time.monotonic()
            pairs = min(recipe.batch, len(self.tiles)) / now
            self._count()
            self._report(replace(report, pairs_per_second=pairs, seconds=self.counters.seconds))
            share, stopped = self.at.ranks.broadcast_from_first(
                [self._share(self.counters.step), float(self.at.stopped())], self.at.device
            )
            if stopped or share >= 1:
                return "stopped" if stopped and share < 1 else "finished"
            self._save_if_due()
        return ""

    def _step(self, batch: Pair, share: float) -> StepReport:
        step, recipe = self.counters.step, self.recipe
        rate = recipe.learning_rate * rate_factor(recipe, share, step / self.epoch_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        set_training(self.network, self.frozen)
        loss = self._loss(batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(trainable(self.network).values(), recipe.clip_norm or math.inf)
        self._check_finite(loss, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.network, step)
        return StepReport(
            step=step, epoch=self.counters.epoch, share=share, loss=loss.item(), learning_rate=rate,
            gradient_norm=norm.item(), pairs_per_second=0.0, seconds=0.0,
        )  # fmt: skip

    def _loss(self, batch: Pair) -> Tensor:
        before, after, label = (x.to(self.at.device, non_blocking=True) for x in batch)
        images = [normalise(x).contiguous(memory_format=torch.channels_last) for x in (before, after)]
        with autocast(self.recipe.precision, self.at.device):
            logits = self.model(*images)
        loss = change_loss(logits, label, self.recipe.loss, self.at.ranks.sum)
        if self.teacher is None:
            return loss
        with torch.no_grad(), autocast(self.recipe.precision, self.at.device):
            target = self.teacher(*images)
        learned = self.at.ranks.sum(distillation_loss(logits, target)) / self.at.ranks.size
        return loss + self.recipe.distill * learned

    def _check_finite(self, loss: Tensor, norm: Tensor) -> None:
        """Raises GateFailed if training diverged; with float16, the scaler handles infinite gradients itself."""
        scaled = self.scaler.is_enabled()
        if not (torch.isfinite(loss) and (scaled or torch.isfinite(norm))):
            raise GateFailed(
                f"training diverged at step {self.counters.step}: loss {loss.item()}, gradient norm {norm.item()}; "
                f"lower --learning-rate or --clip-norm and start over; {self._saved_epochs()}"
            )

    def _validate(self) -> None:
        self.at.ranks.broadcast_statistics(self.average.network)
        indices = self.at.ranks.part(range(len(self.val)))
        mine = evaluate(self.average.network, self.val.subset(indices)) if indices else Confusion()
        counts = torch.tensor([mine.tp, mine.fp, mine.fn, mine.tn], device=self.at.device)
        scores = Confusion(*(int(n) for n in self.at.ranks.sum(counts)))
        f1 = scores.f1 or 0.0
        best = f1 > self.counters.best_f1
        if best:
            self.counters = replace(self.counters, best_f1=f1)
            self._write(lambda: self._save_best(f1))
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        self._losses.clear()
        counters = replace(self.counters, seconds=time.monotonic() - self._started)
        self._report(
            EpochReport(
                step=counters.step, epoch=counters.epoch, seconds=counters.seconds, train_loss=loss, f1=scores.f1,
                precision=scores.precision, recall=scores.recall, iou=scores.iou, best=best,
            )
        )  # fmt: skip
        self._write(self._draw)

    def _save_best(self, f1: float) -> None:
        metadata = {"val_f1": f"{f1:.4f}"}
        save_checkpoint(self.average.network, self.run / "best.safetensors", metadata=metadata)
        save_checkpoint(self.average.network, self.run / "best_fp16.safetensors", half=True, metadata=metadata)

    def _draw(self) -> None:
        try:
            draw_curves(self.run)
        except ImportError:
            return  # without matplotlib there are no curves; the log holds the same numbers

    def _save(self) -> None:
        self.counters = replace(self.counters, seconds=time.monotonic() - self._started)
        parts = self.network, self.average.network, self.optimizer
        self._write(lambda: save_state(self.run / STATE_FILE, self.counters, *parts, scaler=self.scaler))
        self._saved = time.monotonic()

    def _save_if_due(self) -> None:
        """Saves the state every ``save_minutes`` within an epoch; at its end, the validation comes first."""
        if self.counters.epoch_step and time.monotonic() - self._saved > 60 * self.recipe.save_minutes:
            self._save()

    def _write(self, action: Callable[[], None]) -> None:
        if self.at.ranks.first:
            action()

    def _report(self, report: Report) -> None:
        if isinstance(report, StepReport):
            self._losses.append(report.loss)
        if self.log is not None:
            self.log.step(report) if isinstance(report, StepReport) else self.log.epoch(report)

    def _count(self) -> None:
        done = self.counters.epoch_step + 1
        epoch, epoch_step = (self.counters.epoch + 1, 0) if done == self.epoch_steps else (self.counters.epoch, done)
        seconds = time.monotonic() - self._started
        step = self.counters.step + 1
        self.counters = replace(self.counters, step=step, epoch=epoch, epoch_step=epoch_step, seconds=seconds)

    def _share(self, step: int) -> float:
        """Returns the share of the run (0 to 1) that is done before ``step``, or by time if ``minutes`` is set."""
        if self.recipe.minutes is not None:
            return min(1.0, (time.monotonic() - self._started) / (60 * self.recipe.minutes))
        return min(1.0, step / (self.recipe.steps or self.recipe.epochs * self.epoch_steps))


def _frozen(start: Start, recipe: Recipe) -> tuple[Freeze, ...]:
    """Returns the parts to freeze; with fake quantization also the batch norms, which are folded into weights."""
    return tuple({*recipe.freeze, "norms"}) if start.qat else recipe.freeze


def _build(start: Start, frozen: Sequence[Freeze]) -> MISGNet:
    network = build_misgnet()
    if start.init:
        network.load_state_dict(load_checkpoint(start.init))
    else:
        initialise(network)
    if start.encoder:
        load_encoder(network, start.encoder)
    fake_quantized(network, start.quantizer_sites())
    freeze(network, frozen)
    set_training(network, frozen)
    return to_channels_last(network)


def _teacher(start: Start, device: torch.device) -> MISGNet | None:
    return to_channels_last(load_network(start.teacher)).requires_grad_(False).to(device) if start.teacher else None


def _make_deterministic(device: torch.device, seed: int) -> None:
    torch.manual_seed(seed)
    if device.type == "cuda":  # CPU kernels are deterministic for a given number of threads
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
