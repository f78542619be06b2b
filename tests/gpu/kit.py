"""Runs all parts within the time limit and writes the record. Every part runs in processes of its own."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from gpu.budget import Budget, run_command
from gpu.driver_tests import run_driver_tests
from gpu.engine_runs import EngineRuns
from gpu.machine import commit, describe_cpu, file_name, find_gpu
from gpu.record import PARTS, Machine, NetworkRuns, Outcome, PartName, Record, Step
from gpu.table import markdown
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.storage.atomic import replace_file
from misgnet_runtime.storage.schema import encode

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
WEIGHTS = CHECKOUT / "examples" / "misgnet_synthetic_fp16.safetensors"
RESULTS = CHECKOUT / "benchmarks" / "results" / "gpu"
LIMIT = 12 * 60.0
CPU_LIMIT = 100.0
CPU_PARTS: tuple[PartName, ...] = ("network",)
SOURCES = (".", "tests", "export", "calibration", "runtime")  # as pytest's pythonpath in pyproject.toml


def main(arguments: Sequence[str]) -> int:
    """Runs the kit; returns the exit code: 5 without a GPU, 1 if a step failed, else 0."""
    given = _parser().parse_args(arguments)
    if given.cpu and given.output is None:
        _parser().error("--cpu requires --output: its record is no evidence of a GPU")
    start = given.started or time.time()
    try:
        machine = describe_cpu() if given.cpu else find_gpu()
    except UnavailableError as error:
        print(f"run.sh: no NVIDIA GPU: {error}; --cpu tries the PyTorch part without one", file=sys.stderr)
        return 5
    limit = 60 * given.minutes if given.minutes else CPU_LIMIT if given.cpu else LIMIT
    budget = Budget(limit, CPU_PARTS if given.cpu else PARTS, start)
    with tempfile.TemporaryDirectory(prefix="misgnet-gpu-") as work:
        record = run_parts(machine, budget, given, Path(work))
    for path in write_record(record, given.output or RESULTS):
        print(path)
    return int(any(step.outcome == "failed" for step in record.steps))


def run_parts(machine: Machine, budget: Budget, given: argparse.Namespace, work: Path) -> Record:
    """Runs the parts of ``budget`` and returns what they found; ``work`` is a folder for temporary files."""
    paths = [str(CHECKOUT / source) for source in SOURCES]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MISGNET_CACHE": str(work / "cache")}
    steps: list[Step] = []
    tests = network = None
    engines = EngineRuns(
        bundle=given.bundle or HERE / "bundle", tiles=_tiles(given.eval), work=work, budget=budget,
        environment=environment,
    )  # fmt: skip
    for part in budget.parts:
        print(f"{part}: at most {budget.left(part):.0f} s", file=sys.stderr, flush=True)
        if part == "driver":
            step, tests = run_driver_tests(CHECKOUT, work, budget, environment)
            steps.append(step)
        elif part == "engines":
            engines.run()
            steps.extend(engines.steps)
        else:
            step, network = run_network(work, budget, environment, cpu=given.cpu)
            steps.extend([step, *(network.steps if network else ())])
    return Record(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"), commit=commit(CHECKOUT), limit=budget.limit,
        seconds=round(budget.used, 1), machine=machine, steps=steps, driver_tests=tests, engines=engines.engines,
        timings=engines.timings, network=network,
    )  # fmt: skip


def run_network(
    work: Path, budget: Budget, environment: dict[str, str], *, cpu: bool
) -> tuple[Step, NetworkRuns | None]:
    """Runs part 3; its results are those that it wrote before its time was up."""
    output, seconds = work / "network.json", budget.left("network")
    command = [sys.executable, "-m", "gpu.network_runs", str(WEIGHTS), str(output), "--seconds", f"{0.8 * seconds}"]
    done = run_command([*command, *["--cpu"] * cpu], seconds, work, environment)
    runs = msgspec.json.decode(output.read_bytes(), type=NetworkRuns) if output.is_file() else None
    outcome: Outcome = "passed"
    reason = ""
    if done.code is None:
        outcome, reason = "out of time", "killed in the middle of a step"
    elif done.code:
        missing = "No module named 'torch'" in done.last_line
        outcome, reason = ("not supported" if missing else "failed"), done.last_line
    return Step(part="network", name="PyTorch process", outcome=outcome, reason=reason, seconds=done.seconds), runs


def write_record(record: Record, folder: Path) -> list[Path]:
    """Writes the JSON file and the table; files of an earlier run on this device are replaced."""
    paths = [folder / f"{file_name(record.machine.device)}.{suffix}" for suffix in ("json", "md")]
    for path, data in zip(paths, (encode(record), markdown(record).encode()), strict=True):
        with replace_file(path) as temporary:
            temporary.write_bytes(data)
    return paths


def _tiles(given: Path | None) -> Path | None:
    """Returns the labelled tiles: those given, or those that carry.sh made, if there are any."""
    beside = HERE / "tiles"
    return given.resolve() if given else beside if beside.is_dir() else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.sh", description="Measure this project on the NVIDIA GPU of this machine; write JSON and a table."
    )
    parser.add_argument("--bundle", type=_resolved, help="bundle of part 2 (default: the one that carry.sh made)")
    parser.add_argument("--eval", type=Path, help="labelled tiles for parity (default: those that carry.sh made)")
    parser.add_argument("--output", type=_resolved, help="folder of the files (default: benchmarks/results/gpu)")
    parser.add_argument("--minutes", type=float, help=f"time limit (default: {LIMIT / 60:g}; with --cpu, 1.7)")
    parser.add_argument("--cpu", action="store_true", help="run only the PyTorch part, on the processor")
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    return parser


def _resolved(text: str) -> Path:
    return Path(text).resolve()
