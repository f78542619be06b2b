"""Part 2: compiles, verifies and times the GPU engines of a bundle on this machine, with the project's own commands."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gpu.budget import Budget, run_command
from gpu.record import Outcome, Step
from misgnet_runtime.bundle import EngineEntry, Manifest, read_bundle
from misgnet_runtime.errors import MisgnetError
from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.measure.bench.report import BenchReport

GPU_KINDS = ("rtx", "tensorrt", "onnxruntime-cuda")
BATCHES = (1, 4)
BENCH_TIMES = ("--seconds", "3", "--warm-up", "3")
# By exit code, see misgnet_runtime.errors: a GPU or library that is missing is no failure.
_OUTCOMES: Mapping[int | None, Outcome] = {0: "passed", 5: "not supported", None: "out of time"}


@dataclass(kw_only=True)
class EngineRuns:
    """Runs the commands on one bundle and collects what they report.

    Args:
        bundle: Folder of the bundle.
        tiles: Labelled tiles for ``parity``; None: not evaluated.
        work: Folder for reports and for the plans that are compiled.
        budget: The time limit.
        environment: Environment of the commands.
    """

    bundle: Path
    tiles: Path | None
    work: Path
    budget: Budget
    environment: Mapping[str, str]
    steps: list[Step] = field(default_factory=list)
    engines: dict[str, str] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)

    def run(self) -> None:
        """Compiles the engines marked for it, verifies all, times those that passed, and evaluates F1."""
        if not self.bundle.is_dir():
            self._note("read the bundle", "not run", f"{self.bundle} does not exist; give --bundle or run carry.sh")
            return
        try:
            manifest = read_bundle(self.bundle).manifest
        except MisgnetError as error:
            self._note("read the bundle", "failed", str(error))
            return
        found = gpu_engines(manifest)
        if not found:
            self._note("read the bundle", "not supported", "the bundle has no engine for a GPU")
            return
        for entries in by_kind(found):
            if self._compile([entry.name for entry in entries if entry.on_device]) != "not supported":
                self._verify(entries)
        if self.engines:
            self._bench()
            self._parity()

    def _compile(self, names: list[str]) -> Outcome:
        """Compiles engines of one library together, since ``compile`` chooses among those that it is given."""
        if not names:
            return "passed"
        return self._command(f"compile {', '.join(names)}", "misgnet_runtime", "compile", *_options(names))

    def _verify(self, entries: list[EngineEntry]) -> None:
        for entry in entries:
            step = f"verify {entry.name}"
            if self._command(step, "misgnet_runtime", "verify", "--engine", entry.name) == "passed":
                self.engines[entry.name] = entry.precision

    def _bench(self) -> None:
        report = self.work / "bench.json"
        batches = [word for batch in BATCHES for word in ("--batch", str(batch))]
        options = [*_options(self.engines), *batches, "--streams", "1", *BENCH_TIMES, "--json", str(report)]
        if self._command("bench", "misgnet_runtime", "bench", *options, "--force") == "passed":
            self.timings = msgspec.json.decode(report.read_bytes(), type=BenchReport).timings

    def _parity(self) -> None:
        if self.tiles is None:
            self._note("parity", "not run", "no folder of labelled tiles was given")
            return
        self._command("parity", "misgnet_export", "parity", "--eval", str(self.tiles))

    def _command(self, name: str, package: str, command: str, *options: str) -> Outcome:
        """Runs a command of the project on the bundle."""
        seconds = self.budget.left("engines")
        if seconds <= 0:
            self._note(name, "out of time", "earlier steps took the time of this part")
            return "out of time"
        line = [sys.executable, "-m", package, command, str(self.bundle), *options]
        done = run_command(line, seconds, self.work, self.environment)
        outcome = _OUTCOMES.get(done.code, "failed")
        reason = "" if outcome == "passed" else done.last_line.removeprefix("error: ")
        self.steps.append(Step(part="engines", name=name, outcome=outcome, reason=reason, seconds=done.seconds))
        return outcome

    def _note(self, name: str, outcome: Outcome, reason: str) -> None:
        self.steps.append(Step(part="engines", name=name, outcome=outcome, reason=reason))


def gpu_engines(manifest: Manifest) -> list[EngineEntry]:
    return [entry for entry in manifest.engines if entry.kind in GPU_KINDS]


def by_kind(entries: Iterable[EngineEntry]) -> list[list[EngineEntry]]:
    """Groups engines by the library that opens them."""
    groups: dict[str, list[EngineEntry]] = {}
    for entry in entries:
        groups.setdefault(entry.kind, []).append(entry)
    return list(groups.values())


def _options(names: Iterable[str]) -> list[str]:
    return [word for name in names for word in ("--engine", name)]
