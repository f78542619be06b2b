"""Checks the results of the soak test: what must hold for a watcher after any arrivals."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arrivals import Arrivals, Pair
from PIL import Image
from supervisor import Supervisor
from watcher import SHORT

from misgnet_runtime.formatting import plural
from support.scenes import read

MOST_MEMORY = 600  # MiB
MOST_GROWTH = 100  # MiB, for a process that has run for a while


@dataclass
class Known:
    """State of a pair in the journal: how often it was done, and its last error message."""

    done: int = 0
    failed: str | None = None


class Oracle:
    """Compares the journal, the log and the outputs of a watcher with the arrivals."""

    def __init__(self, root: Path, arrivals: Arrivals, watcher: Supervisor) -> None:
        self._out, self._arrivals, self._watcher = root / "out", arrivals, watcher
        self._found: list[str] = []
        self._longest = 0
        self._taken = 0

    def take(self, chance: random.Random) -> None:
        """Acts as a consumer of masks: checks a finished one and removes it together with its inputs."""
        known = self._journal()
        done = [pair for pair in self._pairs("good") if pair.whole and known.get(pair.name, Known()).done]
        if done:
            pair = chance.choice(done)
            self._check_good(pair, known)
            pair.taken = True
            self._taken += 1
            inputs = [f"{pair.name}_{date}{pair.suffix}" for date in ("before", "after")]
            for path in [*(self._arrivals.folder / name for name in inputs), self._mask_of(pair)]:
                with suppress(OSError):
                    path.unlink()

    def is_settled(self) -> bool:
        """Returns whether all expected results and reports exist."""
        messages = self._messages()
        return not self.waiting() and all(self._is_reported(pair, messages) for pair in self._pairs("reported"))

    def waiting(self) -> list[str]:
        """Returns the names of pairs that do not have their expected outcome yet."""
        known = self._journal()
        good = [pair.name for pair in self._pairs("good") if not known.get(pair.name, Known()).done]
        return good + [pair.name for pair in self._pairs("failed") if known.get(pair.name, Known()).failed is None]

    def problems(self) -> list[str]:
        """Checks everything; returns a line for each problem."""
        known, messages = self._journal(), self._messages()
        for pair in self._pairs("failed"):
            if not known.get(pair.name, Known()).failed:
                self._found.append(f"{pair.name[:60]!r} is bad, but has not failed in the journal")
        for pair in self._pairs("good"):
            self._check_good(pair, known)
        for pair in self._pairs("moved"):
            state = known.get(pair.name, Known())
            if state.done > 1 or state.failed:
                self._found.append(f"{pair.name!r} was renamed, but its state is {state}")
        self._found += [
            f"{pair.name!r} is not reported"
            for pair in self._pairs("reported")
            if not self._is_reported(pair, messages)
        ]
        self._check_events()
        self._check_process()
        return self._found

    def figures(self) -> str:
        fates = Counter(pair.fate for pair in self._arrivals.pairs.values())
        known = self._journal()
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self._watcher.ends.items()))
        return (
            f"{plural(len(self._arrivals.pairs), 'arrival')} "
            f"({', '.join(f'{count} {fate}' for fate, count in fates.items())}), {self._taken} removed; the watcher "
            f"exited {plural(sum(self._watcher.ends.values()), 'time')} ({ends}); peak memory "
            f"{max((size for _, size in self._watcher.memory), default=0)} MiB; longest journal "
            f"{plural(self._longest, 'line')}, {plural(len(known), 'pair')} in it at the end"
        )

    def _pairs(self, fate: str) -> list[Pair]:
        return [pair for pair in list(self._arrivals.pairs.values()) if pair.fate == fate and not pair.taken]

    def _mask_of(self, pair: Pair) -> Path:
        return self._out / f"{pair.name}_change{pair.suffix}"

    def _check_good(self, pair: Pair, known: dict[str, Known]) -> None:
        state = known.get(pair.name, Known())
        if state.done != 1 or state.failed is not None:
            times = plural(state.done, "time")
            self._found.append(f"{pair.name!r} is good, but was done {times}; failed: {state.failed}")
        elif not self._is_right(pair):
            self._found.append(f"the mask of {pair.name!r} is wrong")

    def _is_right(self, pair: Pair) -> bool:
        try:
            if pair.suffix == ".tif":
                found = read(self._mask_of(pair)) == 1
            else:
                with Image.open(self._mask_of(pair)) as image:
                    found = np.asarray(image) == 255
        except Exception:  # missing or not a mask
            return False
        return np.array_equal(found, pair.mask())

    def _is_reported(self, pair: Pair, messages: list[str]) -> bool:
        shown = ascii(f"{pair.name}_after")[1:-1]
        return any(shown in message and pair.word in message for message in messages)

    def _journal(self) -> dict[str, Known]:
        """Reads the journal; returns the state of each pair, and records the journal's length."""
        known: dict[str, Known] = {}
        lines = self._lines(self._out / "watch.jsonl")
        self._longest = max(self._longest, len(lines))
        for entry in lines:
            state = known.setdefault(entry.get("pair", ""), Known())
            if entry["type"] == "done":
                state.done, state.failed = state.done + 1, None
            elif entry["type"] == "failed":
                state.failed = entry["message"]
            elif entry["type"] == "ended":
                state.done = entry["done"]
                state.failed = entry["message"] if entry["outcome"] == "failed" else None
        known.pop("", None)
        return known

    def _lines(self, path: Path) -> list[dict[str, Any]]:
        """Returns the JSON values of a file; an incomplete last line is ignored."""
        content = path.read_bytes() if path.exists() else b""
        found = []
        for line in content.split(b"\n")[:-1]:
            with suppress(ValueError):  # the log of a process that was killed while it wrote a line
                found.append(json.loads(line))
        return found

    def _messages(self) -> list[str]:
        return [entry["message"] for entry in self._lines(self._watcher.log) if isinstance(entry, dict)]

    def _check_events(self) -> None:
        """Checks that no result was logged twice, and that the log has no traceback."""
        results = [entry for entry in self._lines(self._watcher.events) if entry.get("event") == "result"]
        times = Counter(entry["pair"] for entry in results if "pair" in entry)
        self._found += [f"{name!r} was reported {count} times" for name, count in times.items() if count > 1]
        text = self._watcher.log.read_text(errors="replace")
        if "Traceback" in text:
            self._found.append(f"a traceback: {text[text.index('Traceback') :][:1500]}")

    def _check_process(self) -> None:
        if not self._watcher.alive:
            self._found.append("the watcher is not alive")
        elif (end := self._watcher.end()) != "code 0":
            self._found.append(f"stopped with SIGTERM, the watcher exited with {end}")
        if odd := {end for end in self._watcher.ends if end not in ("code 0", "SIGKILL", "crash")}:
            self._found.append(f"the watcher exited with {', '.join(sorted(odd))}")
        sizes = [size for age, size in self._watcher.memory if age > 20]
        if sizes and (max(sizes) > MOST_MEMORY or max(sizes) - min(sizes) > MOST_GROWTH):
            self._found.append(f"the watcher's memory was between {min(sizes)} and {max(sizes)} MiB")
        most = SHORT + 4 * sum(not pair.taken for pair in self._arrivals.pairs.values())
        if len(self._lines(self._out / "watch.jsonl")) > most:
            self._found.append(f"the journal has more than {most} lines")
