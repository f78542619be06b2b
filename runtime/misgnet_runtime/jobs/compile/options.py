"""What is compiled, and how. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass

from misgnet_runtime.options import option


def _mebibytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("it is a whole number of MiB, 1 or more")
    return int(text) << 20


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """Which engines are compiled, and how. Each field is an option of ``misgnet-run compile``."""

    engines: tuple[str, ...] = option(
        (), name="engine", help="An engine, repeated for more.", show_default="all to be compiled on the device"
    )
    workspace_bytes: int | None = option(
        None, name="workspace", help="MiB that one operator may take.", metavar="MIB", parse=_mebibytes,
        show_default="a quarter of what is free",
    )  # fmt: skip
    optimization_level: int | None = option(
        None, help="How long TensorRT looks for faster kernels, 0 to 5.", minimum=0, maximum=5
    )
    again: bool = option(False, help="Compile again what was compiled with these options before.")
