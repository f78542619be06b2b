"""Formats a record as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu.record import PARTS, NetworkRuns, Record
from misgnet_runtime.machine import machine_line

_TITLES = {"driver": "CUDA driver layer", "engines": "Engines of a bundle", "network": "Network in PyTorch"}


def markdown(record: Record) -> str:
    """Returns the record as a Markdown page."""
    machine = record.machine
    capability = f" ({machine.compute_capability})" if machine.compute_capability else ""
    drivers = [f"NVIDIA driver {machine.nvidia_driver}"] * bool(machine.nvidia_driver)
    drivers += [f"CUDA {machine.cuda_driver}"] * bool(machine.cuda_driver)
    memory = [f"{machine.memory_gib:g} GiB on the device"] * bool(capability)
    host = ", ".join([machine_line(machine.host), *memory, *drivers])
    facts = [
        f"# {machine.device}{capability}",
        f"{record.created}, commit {record.commit}, {record.seconds:.0f} s of at most {record.limit:.0f} s. "
        f"Written by `tests/gpu/run.sh`; do not edit.",
        f"{host}.",
        ", ".join(f"{name} {version}" for name, version in machine.versions.items()) + ".",
    ]
    return "\n\n".join([*facts, *_steps(record), *_tests(record), *_engines(record), *_network(record.network)]) + "\n"


def _steps(record: Record) -> list[str]:
    rows = [
        (_TITLES[step.part], step.name, step.outcome, f"{step.seconds:.1f}", step.reason)
        for part in PARTS
        for step in record.steps
        if step.part == part
    ]
    return ["## Steps", _table(("part", "step", "outcome", "s", "reason"), rows)]


def _tests(record: Record) -> list[str]:
    tests = record.driver_tests
    if tests is None:
        return []
    counts = f"{len(tests.passed)} passed, {len(tests.failed)} failed, {len(tests.skipped)} skipped."
    rows = [(name, "failed", reason) for name, reason in tests.failed.items()]
    rows += [(name, "skipped", reason) for name, reason in tests.skipped.items()]
    return ["## Tests on the GPU", counts, *([_table(("test", "outcome", "reason"), rows)] if rows else [])]


def _engines(record: Record) -> list[str]:
    if not record.timings:
        return []
    rows = [
        (one.engine, one.precision, one.batch, one.streams, f"{one.p50_ms:.2f}", f"{one.p99_ms:.2f}",
         f"{one.pairs_per_second:.1f}")
        for one in record.timings
    ]  # fmt: skip
    heads = ("engine", "precision", "batch", "streams", "p50 ms", "p99 ms", "pairs/s")
    return ["## Engines", _table(heads, rows)]


def _network(runs: NetworkRuns | None) -> list[str]:
    if runs is None or not runs.times:
        return []
    micro = {(one.form, one.mode, one.scope, one.batch): one.microseconds for one in runs.times}
    times = [
        (one.mode, one.batch, one.scope, f"{one.microseconds:.0f}", f"{found:.0f}", f"{one.microseconds / found:.2f}")
        for one in runs.times
        if one.form == "original" and (found := micro.get(("stacked", one.mode, one.scope, one.batch)))
    ]
    agreements = [
        (one.form, one.mode, one.batch, f"{100 * one.equal_pixels:.4f}", f"{one.largest_difference:.3f}")
        for one in runs.agreements
    ]
    return [
        "## Network in PyTorch",
        f"{runs.precision} with float32 guidance; tiles of {runs.tile} x {runs.tile} px; median µs per call.",
        _table(("mode", "batch", "part", "original µs", "stacked µs", "original / stacked"), times),
        "Agreement with the original network in float32:",
        _table(("guidance", "mode", "batch", "equal pixels, %", "largest difference of logits"), agreements),
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
