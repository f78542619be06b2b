"""Finishes pairs: publishes results or records failures, and journals, counts and logs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.errors import StorageError
from misgnet_runtime.formatting import format_change, now, plural
from misgnet_runtime.jobs.watch import attempts
from misgnet_runtime.jobs.watch.journal import Complete, Done, Failed, Journal
from misgnet_runtime.jobs.watch.options import WatchOptions
from misgnet_runtime.jobs.watch.retry import message_of, one_line, refused_by_disk
from misgnet_runtime.log import EventLog
from misgnet_runtime.storage.atomic import publish, resumable_errors


@dataclass
class WatchReport:
    """Numbers of pairs that a watcher processed."""

    done: int = 0
    failed: int = 0
    # Pairs that were still due when the watcher stopped.
    pending: int = 0

    def line(self, output: Path) -> str:
        """Returns a one-line summary."""
        return (
            f"{output}: {plural(self.done, 'pair')} done, {plural(self.failed, 'pair')} failed, {self.pending} pending"
        )


@dataclass(frozen=True)
class Outcomes:
    """Finishes pairs of ``output`` and counts them in ``report``."""

    output: Path
    options: WatchOptions
    journal: Journal
    report: WatchReport
    log: EventLog

    def finish(self, complete: Complete) -> None:
        """Moves complete results to the output folder; skips those that were moved already."""
        folders = attempts.work_folder(self.output, complete.pair), self.output / attempts.WORKING
        with resumable_errors(self.output):
            for name in complete.outputs:
                for folder in folders:  # older versions used the second one
                    if (folder / name).exists():
                        publish(folder / name, self.output / name)
        self.journal.add(Done(now(), complete.pair))
        attempts.clear_pair(self.output, complete.pair)
        self.report.done += 1
        self.log.result([_line(complete)], pair=complete.pair, outputs=complete.outputs, **complete.figures)

    def finish_late(self, complete: Complete) -> None:
        """Finishes a pair that an earlier process completed; if the disk refuses, the pair's next turn retries it."""
        try:
            self.finish(complete)
        except StorageError as error:
            if not refused_by_disk(error):
                self.fail(complete.pair, message_of(error))
            elif self.options.once:
                raise
            else:
                self.warn(complete.pair, message_of(error))

    def fail(self, name: str, message: str) -> None:
        message = one_line(message)
        self.journal.add(Failed(now(), name, message))
        attempts.clear_pair(self.output, name)
        self.report.failed += 1
        self.warn(name, message)

    def count_crash(self, name: str, how: str = "a process crashed while processing this pair") -> None:
        """Journals a crash, and fails the pair after too many crashes without progress."""
        unfinished, most = self.journal.pairs.unfinished[name], self.options.max_attempts
        entry = attempts.count_crash(unfinished, self.output)
        self.journal.add(entry)
        attempts.forget_crash(self.output, name)
        reason = f"{how}; {plural(entry.attempts, 'attempt')} without progress (limit {most})"
        if entry.attempts >= most:
            self.fail(name, f"{reason}; the pair is skipped; retry it with --retry-failed")
        else:
            self.warn(name, f"{reason}; it will be retried")

    def warn(self, name: str, message: str) -> None:
        self.log.warning(f"{name}: {message}", pair=name)


def _line(complete: Complete) -> str:
    """Returns a one-line summary of a finished pair."""
    figures, outputs = complete.figures, ", ".join(reversed(complete.outputs))
    if "changed_share" not in figures:  # an earlier process computed them and crashed
        return f"{complete.pair}: {outputs}"
    return f"{complete.pair}: {format_change(figures['changed_share'], figures.get('valid_share', 1.0))}: {outputs}"
