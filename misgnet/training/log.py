"""Logs a run as JSON lines, to TensorBoard if it is installed, and draws its curves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from misgnet_runtime.errors import InputError
from misgnet_runtime.storage.atomic import replace_file, write_file

LOG_FILE = "log.jsonl"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Figures of one training step."""

    step: int
    epoch: int
    share: float  # share of the run that is done, 0 to 1
    loss: float
    learning_rate: float
    gradient_norm: float
    pairs_per_second: float  # includes waiting for data
    seconds: float  # since the start of the run


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """Scores of the averaged weights on the validation tiles; scores are 0 to 1 and for the changed class."""

    step: int  # steps done
    epoch: int  # epochs done
    seconds: float  # since the start of the run
    train_loss: float | None  # mean since the previous validation; None before the first step
    f1: float | None
    precision: float | None
    recall: float | None
    iou: float | None
    best: bool  # whether this F1 is the highest so far


Report = StepReport | EpochReport


class RunLog:
    """Writes the reports of a run to its log and passes them to ``listen``.

    ``start`` is the next step. Later entries of an existing log are removed, because these steps are run again.
    """

    def __init__(self, run: Path, start: int, listen: Callable[[Report], None]) -> None:
        self.path = run / LOG_FILE
        self.listen = listen
        _cut(self.path, start)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._board = _board(run / "tensorboard", start)

    def step(self, report: StepReport) -> None:
        self._write(report)
        if self._board:
            for name in ("loss", "learning_rate", "gradient_norm", "pairs_per_second"):
                self._board.add_scalar(f"train/{name}", getattr(report, name), report.step)

    def epoch(self, report: EpochReport) -> None:
        self._write(report)
        if self._board:
            for name in ("f1", "precision", "recall", "iou"):
                if (value := getattr(report, name)) is not None:
                    self._board.add_scalar(f"val/{name}", value, report.step)
            self._board.flush()

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()

    def _write(self, report: Report) -> None:
        kind = "step" if isinstance(report, StepReport) else "validation"
        try:
            self._file.write(json.dumps({"kind": kind, **asdict(report)}) + "\n")
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written: {error.strerror}; free some disk space, then use --resume"
            ) from error
        self.listen(report)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads the entries of a log up to the first incomplete line, which a killed process may have left."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except (json.JSONDecodeError, RecursionError):
            break
    return entries


def draw_curves(run: Path) -> None:
    """Writes curves.png and curves.svg of a run: loss by step and F1 by validation; requires matplotlib."""
    from matplotlib.figure import Figure

    entries = read_log(run / LOG_FILE)
    steps = [entry for entry in entries if entry["kind"] == "step"]
    scores = [entry for entry in entries if entry["kind"] == "validation" and entry["f1"] is not None]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.add_subplot(xlabel="step", ylabel="loss, training")
    axis.plot([e["step"] for e in steps], [e["loss"] for e in steps], color="0.75", linewidth=0.7)
    axis.plot([e["step"] for e in steps], _smoothed([e["loss"] for e in steps]), color="C1", label="loss (smoothed)")
    axis.set_ylim(bottom=0)
    other = axis.twinx()
    other.set_ylabel("F1, validation")
    other.plot([e["step"] for e in scores], [e["f1"] for e in scores], "o-", color="C0", markersize=3, label="F1")
    other.set_ylim(0, 1)
    figure.legend(loc="outside upper center", ncols=2)
    for suffix in ("png", "svg"):
        with replace_file(run / f"curves.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, dpi=120)


def _smoothed(values: list[float], decay: float = 0.95) -> list[float]:
    """Returns the bias-corrected exponential moving average (Kingma and Ba, "Adam", ICLR 2015, section 3)."""
    mean, found = 0.0, []
    for n, value in enumerate(values, 1):
        mean = decay * mean + (1 - decay) * value
        found.append(mean / (1 - decay**n))
    return found


def _cut(path: Path, start: int) -> None:
    """Removes the entries of an existing log from step ``start`` on; these steps are run again."""
    if path.exists():
        kept = [entry for entry in read_log(path) if _before(entry, start)]
        write_file(path, "".join(json.dumps(entry) + "\n" for entry in kept).encode())


def _before(entry: dict[str, Any], start: int) -> bool:
    return entry["step"] < start + (entry["kind"] == "validation")  # a validation covers the steps before its number


def _board(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=start)
