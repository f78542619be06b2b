"""What was tried and taken, for a person; the tables fit 80 columns. Texts are never read as markup."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from misgnet_runtime.inference.tuned_settings import Trial, Tuning
from misgnet_runtime.measure.tune import TuneReport
from misgnet_runtime.measure.tuning.search import ROUNDS


def table(tuning: Tuning) -> Table:
    """All trials of one engine, in their order."""
    found = Table(
        title=Text(f"{tuning.place.engine}, {tuning.place.library}", style="bold"), title_justify="left",
        caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    found.add_column("For", no_wrap=True)
    found.add_column("Tried", overflow="fold")
    for name in ("Pairs/s", "Best so\nfar", "Gain,\n%", "Spread,\n%"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("Taken", overflow="fold")
    for trial in tuning.trials:
        found.add_row(trial.goal, Text(trial.setting.words()), *_figures(trial), Text(_taken(trial)))
    found.caption = Text(
        f"Medians of {ROUNDS} rounds in turn; gain: of the rounds' ratios; spread: between their quartiles. The last "
        "of a goal that was changed is beside the default.", style="dim",
    )  # fmt: skip
    return found


def lines(report: TuneReport) -> Iterator[str]:
    """What is used from now on, and what was not tuned and why."""
    for tuning, file in zip(report.tunings, report.files, strict=True):
        yield f"{tuning.place.engine}, for one pair: {tuning.latency.words()}"
        yield f"{tuning.place.engine}, for many: {tuning.throughput.words()}"
        yield f"{tuning.place.engine}, kept in {file}"
    yield from (f"{engine.engine}: not tuned: {engine.reason}" for engine in report.not_run)


def _figures(trial: Trial) -> tuple[str, str, str, str]:
    if trial.gain is None or trial.spread is None:
        return ("",) * 4
    return (
        f"{trial.pairs_per_second:.1f}", f"{trial.against_pairs_per_second:.1f}", f"{100 * trial.gain:+.1f}",
        f"{100 * trial.spread:.1f}",
    )  # fmt: skip


def _taken(trial: Trial) -> str:
    return trial.remark or ("yes" if trial.taken else "no")
