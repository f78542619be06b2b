"""Fuzzes all code that reads files from outside.

Run it in the root of the repository:

    python tests/fuzz --minutes 10                     # all targets, each in its own process
    python tests/fuzz checkpoint table --minutes 60    # only these targets
    python tests/fuzz checkpoint --engine atheris --minutes 60    # guided by coverage (pip install atheris)
    python tests/fuzz images --replay FILE             # read one kept file again

Files that break a promise are written to --keep (default: fuzz-found/), and the exit code is 1. After the bug is
fixed, move its file to tests/fuzz/found/TARGET/, where the tests read it again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), *(str(ROOT / part) for part in ("tests", "", "export", "calibration", "runtime"))]

from guard import Guard, memory

if "atheris" in sys.argv:  # before the readers are imported, because their branches guide the search
    import atheris

    with atheris.instrument_imports(include=["misgnet", "misgnet_runtime", "pickle", "zipfile", "csv"]):
        for module in ("misgnet.checkpoint", "misgnet_runtime.cli.info", "misgnet_runtime.jobs.folder", "targets"):
            importlib.import_module(module)

from hypothesis import HealthCheck, Phase, given, settings
from readers import Reader
from targets import TARGETS, Target


def main() -> int:
    options = _options()
    if len(options.targets) == 1:
        return fuzz(options.targets[0], options)
    seconds = 60 * options.minutes / len(options.targets)
    more = ["--examples", str(options.examples)] if options.examples else ["--minutes", f"{seconds / 60:.3f}"]
    command = [sys.executable, str(HERE), "--engine", options.engine, "--keep", str(options.keep), *more]
    codes = {name: subprocess.run([*command, name], check=False).returncode for name in options.targets}
    broken = [f"{name} ({code})" for name, code in codes.items() if code]
    failed = f"; failed (exit code): {', '.join(broken)}" if broken else ""
    print(f"{len(codes) - len(broken)} of {len(codes)} targets kept all promises{failed}")
    return 1 if broken else 0


def fuzz(name: str, options: argparse.Namespace) -> int:
    """Fuzzes one target in this process; prints each broken promise and keeps its file."""
    target, start = TARGETS[name], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="misgnet-fuzz-") as folder:
        for variable in ("MISGNET_STATE", "MISGNET_CACHE"):
            os.environ[variable] = str(Path(folder, variable.split("_")[1].lower()))
        read, seeds = target.prepare(Path(folder))
        guard = Guard(Path(folder))
        learnt = [guard.learn(partial(read, seed)) for seed in seeds]
        # The good files of "checkpoint" are not complete, because a whole checkpoint is too large for fuzzing.
        assert any(learnt) or name == "checkpoint", "no good file is read"
        runner = _Runner(name, target, guard, read, options.keep)
        for found in [*(options.replay or []), *sorted((HERE / "found" / name).glob("*"))]:
            runner.run(found.read_bytes())
        if options.replay is None:
            search = _by_atheris if options.engine == "atheris" else _by_hypothesis
            search(runner, seeds, options)
    return runner.summarize(time.monotonic() - start)


class _Runner:
    """Counts the results of files, and keeps files that break a promise."""

    def __init__(self, name: str, target: Target, guard: Guard, read: Reader, keep: Path) -> None:
        self.name, self.target, self._guard, self._read, self._keep = name, target, guard, read, keep
        self.results: Counter[str] = Counter()
        self.broken: set[str] = set()  # errors with their position in the code

    def run(self, data: bytes) -> None:
        """Reads one file; reports each error once per position in the code, and raises only KeyboardInterrupt."""
        try:
            with memory(self.target.megabytes << 20):
                self.results[self._guard.check(lambda: self._read(data), self.target.seconds)] += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.results["broken"] += 1
            self._report(error, data)

    def summarize(self, seconds: float) -> int:
        """Prints the number of files by result, and returns the exit code."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.results.most_common())
        print(f"{self.name}: {sum(self.results.values())} files in {seconds:.0f} s: {counts}", flush=True)
        return 1 if self.broken else 0

    def _report(self, error: BaseException, data: bytes) -> None:
        trace, position = error.__traceback__, ""
        while trace is not None:
            position = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            trace = trace.tb_next
        if (where := f"{type(error).__name__} at {position}") not in self.broken:
            self.broken.add(where)
            folder = self._keep / self.name
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / hashlib.sha256(data).hexdigest()[:16]
            path.write_bytes(data)
            print(f"{self.name}: {where}: {str(error)[:300]}; kept in {path}", flush=True)


def _by_hypothesis(runner: _Runner, seeds: list[bytes], options: argparse.Namespace) -> None:
    """Reads ``--examples`` files, or rounds of a thousand files until the time is over."""
    end = time.monotonic() + 60 * options.minutes
    count = options.examples or 1000

    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], derandomize=bool(options.examples),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(runner.target.files(seeds))
    def round_of_files(data: bytes) -> None:
        if options.examples or time.monotonic() < end:
            runner.run(data)

    round_of_files()
    while not options.examples and time.monotonic() < end:
        round_of_files()


def _by_atheris(runner: _Runner, seeds: list[bytes], options: argparse.Namespace) -> None:
    """Lets libFuzzer mutate whole files, starting from good ones; it ends the process."""
    import atheris

    corpus = Path(os.environ["MISGNET_STATE"]).parent / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    end, start = time.monotonic() + 60 * options.minutes, time.monotonic()

    def one(data: bytes) -> None:
        runner.run(data)
        if time.monotonic() > end:
            status = runner.summarize(time.monotonic() - start)
            shutil.rmtree(corpus.parent, ignore_errors=True)
            os._exit(status)

    atheris.Setup(["fuzz", str(corpus), "-rss_limit_mb=0", "-timeout=600", "-verbosity=0"], one)
    atheris.Fuzz()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python tests/fuzz", description=__doc__.splitlines()[0])
    parser.add_argument(
        "targets", nargs="*", default=list(TARGETS), metavar="TARGET", help=f"{', '.join(TARGETS)} (default: all)"
    )
    parser.add_argument("--minutes", type=float, default=10, help="time for all targets together (default: 10)")
    parser.add_argument("--examples", type=int, help="read this number of fixed files per target (default: --minutes)")
    parser.add_argument("--engine", choices=["hypothesis", "atheris"], default="hypothesis", help="default: hypothesis")
    parser.add_argument(
        "--replay", type=Path, nargs="*", help="read only these files and those in found/ (default: fuzz)"
    )
    keep_help = "folder for files that break a promise (default: fuzz-found)"
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), help=keep_help)
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}; choose from {', '.join(TARGETS)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
