"""Tests that a page says "yes" of a GPU target only if a record in benchmarks/results/gpu covers it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from gpu.kit import RESULTS
from gpu.machine import file_name
from gpu.record import decode
from gpu.table import markdown
from support.paths import ROOT

PAGES = (ROOT / "README.md", ROOT / "docs" / "explanation" / "verified-where.md")
GPU_TARGETS = ("cuda", "rtx-", "tensorrt", "torch-tensorrt", "jetson-")


def gpu_lines(text: str) -> list[tuple[list[str], str]]:
    """Returns the GPU targets and the last column, "verified on real hardware", of each row of a page's tables."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        targets = [name for name in re.findall(r"`([^`]+)`", cells[0]) if name.startswith(GPU_TARGETS)]
        if line.startswith("|") and targets:
            found.append((targets, cells[-1]))
    return found


def covered(target: str, engines: Iterable[str]) -> bool:
    """Returns whether an engine of ``target`` ran; ``rtx-smNN`` stands for all compute capabilities."""
    name = re.escape(target).replace("smNN", r"sm\d+(,sm\d+)*")
    return any(re.fullmatch(f"{name}(-int8|-fp16)?", engine) for engine in engines)


def without_evidence(text: str, engines: Iterable[str]) -> list[str]:
    """Returns the GPU targets of a page that are verified according to it, but not according to ``engines``."""
    ran = list(engines)
    return [
        target
        for targets, verified in gpu_lines(text)
        if verified.lower().startswith("yes")
        for target in targets
        if not covered(target, ran)
    ]


def records() -> list[Path]:
    return sorted(RESULTS.glob("*.json"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_yes_of_a_gpu_has_a_record(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {target for targets, _ in gpu_lines(text) for target in targets}
    assert {"cuda", "rtx-smNN", "tensorrt", "torch-tensorrt", "jetson-orin", "jetson-thor"} <= named
    ran = [name for path in records() for name in decode(path.read_bytes()).engines]
    assert without_evidence(text, ran) == []


def test_every_record_can_be_read_and_has_its_table() -> None:
    for path in records():
        record = decode(path.read_bytes())
        assert path.stem == file_name(record.machine.device) and record.machine.compute_capability
        assert path.with_suffix(".md").read_text(encoding="utf-8") == markdown(record)


PAGE = """
| `--target` | engine | verified |
|---|---|---|
| `cpu` | ONNX Runtime | yes: x86_64 |
| `rtx-smNN` | TensorRT for RTX | Yes: RTX 4090 |
| `tensorrt` | TensorRT | no |
| `jetson-orin`, `jetson-thor` | TensorRT | yes |
"""


@pytest.mark.parametrize(
    ("engines", "missing"),
    [
        ([], ["rtx-smNN", "jetson-orin", "jetson-thor"]),
        (["rtx-sm86,sm89-fp16", "jetson-orin-int8"], ["jetson-thor"]),
        (["rtx-sm86", "jetson-orin", "jetson-thor-fp16"], []),
        (["tensorrt-fp16"], ["rtx-smNN", "jetson-orin", "jetson-thor"]),
    ],
)
def test_a_yes_without_a_record_is_found(engines: list[str], missing: list[str]) -> None:
    assert without_evidence(PAGE, engines) == missing


def test_torch_tensorrt_is_not_tensorrt() -> None:
    assert not covered("tensorrt", ["torch-tensorrt"]) and covered("torch-tensorrt", ["torch-tensorrt"])
