"""Options of compilation on the device. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from misgnet_runtime.options import option


def _mebibytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("expected a whole number of MiB, 1 or more")
    return int(text) << 20


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """The engines to compile, and how. Each field is an option of ``misgnet-run compile``."""

    engines: tuple[str, ...] = option(
        (), name="engine", show_default="",
        help="Engine to compile; repeat for several (default: all engines marked for compilation on the device).",
    )  # fmt: skip
    workspace_bytes: int | None = option(
        None, name="workspace", metavar="MIB", parse=_mebibytes,
        help="Workspace limit of one operator in MiB (default: a quarter of the free memory).",
    )  # fmt: skip
    optimization_level: int | None = option(
        None, help="TensorRT's effort to find faster kernels, 0 to 5 (default: TensorRT's own).", minimum=0, maximum=5
    )
    min_f1_ratio: float | None = option(
        None, help="Smallest F1 of an engine as a share of the float model's (default: the bundle's limit)."
    )
    max_f1_drop: float | None = option(
        None, help="Allowed F1 drop in points, instead of --min-f1-ratio (default: the bundle's limit)."
    )
    choose: Literal["fastest", "fp16", "int8"] = option(
        "fastest",
        help="Engine that --engine auto takes afterwards: the fastest here, or of one precision (compiles no other).",
    )
    minutes: float = option(0.5, help="Minutes of measurement per engine, excluding opening and warm-up.")
    again: bool = option(False, help="Compile even if a plan with the same options exists.")
