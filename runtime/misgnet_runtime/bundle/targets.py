"""Parses the names of build targets: ``cpu``, ``cuda``, ``rtx-sm86,sm89``, ``jetson-orin``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from misgnet_runtime.errors import UsageError

Kind = Literal[
    "cpu",
    "cpu-vnni",
    "cpu-arm",
    "cuda",
    "openvino",
    "openvino-bf16",
    "openvino-int8-bf16",
    "rtx",
    "rtx-int8",
    "rtx-fp16",
    "tensorrt",
    "tensorrt-int8",
    "tensorrt-fp16",
    "torch-tensorrt",
    "jetson-orin",
    "jetson-orin-int8",
    "jetson-orin-fp16",
    "jetson-thor",
    "jetson-thor-int8",
    "jetson-thor-fp16",
]
# Without a suffix, these kinds stand for two targets, one in INT8 and one in FP16.
_IN_BOTH_PRECISIONS: dict[Kind, tuple[Kind, Kind]] = {
    "rtx": ("rtx-int8", "rtx-fp16"),
    "tensorrt": ("tensorrt-int8", "tensorrt-fp16"),
    "jetson-orin": ("jetson-orin-int8", "jetson-orin-fp16"),
    "jetson-thor": ("jetson-thor-int8", "jetson-thor-fp16"),
}

ACCEPTED = (
    "cpu, cpu-vnni, cpu-arm, cuda, openvino[-bf16], openvino-int8-bf16, torch-tensorrt, and in INT8 and FP16 or in one "
    "of them by a suffix -int8 or -fp16: tensorrt, jetson-orin, jetson-thor, rtx-smNN[,smNN...] such as rtx-sm86,sm89"
)

_NAMED: dict[str, Kind] = {kind: kind for kind in get_args(Kind) if not kind.startswith("rtx")}
_RTX: dict[str, Kind] = {"": "rtx", "-int8": "rtx-int8", "-fp16": "rtx-fp16"}
_CAPABILITY = re.compile(r"sm([1-9][0-9]{1,2})")


@dataclass(frozen=True)
class Target:
    """One build target."""

    kind: Kind
    compute_capabilities: tuple[str, ...] = ()  # ascending ("sm86", "sm89"); only for RTX targets

    @property
    def name(self) -> str:
        """Returns the canonical name; :func:`parse_target` reads it back."""
        head, _, tail = self.kind.partition("-")
        return "-".join(filter(None, (head, ",".join(self.compute_capabilities), tail)))

    @property
    def variants(self) -> tuple[Target, ...]:
        """Returns the targets that are built: one in INT8 and one in FP16 if the name asks for both, else itself."""
        kinds = _IN_BOTH_PRECISIONS.get(self.kind, (self.kind,))
        return tuple(Target(kind, self.compute_capabilities) for kind in kinds)

    @property
    def slug(self) -> str:
        """Returns the name as a part of a file name: ``rtx-sm86-sm89-fp16``."""
        return self.name.replace(",", "-")


def parse_target(text: str) -> Target:
    """Returns the target named by ``text``, in any case of letters. Raises UsageError, which lists the names."""
    plain = text.strip().lower()
    if plain in _NAMED:
        return Target(_NAMED[plain])
    bare = plain.removesuffix("-fp16").removesuffix("-int8")
    head, _, tail = bare.partition("-")
    parts = [part.strip() for part in tail.split(",")]
    if head != "rtx" or plain[len(bare) :] not in _RTX or not all(_CAPABILITY.fullmatch(part) for part in parts):
        raise UsageError(f"unknown target '{text}'; choose from {ACCEPTED}")
    return Target(_RTX[plain[len(bare) :]], sorted_capabilities(parts))


def sorted_capabilities(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the distinct names in lower case, ascending by number ("sm89" before "sm120").

    Raises:
        UsageError: A name does not have the form ``smNN``.
    """
    numbers = set()
    for name in names:
        match = _CAPABILITY.fullmatch(name.lower())
        if match is None:
            raise UsageError(f"'{name}' is not a compute capability; write it as sm86 or sm120")
        numbers.add(int(match.group(1)))
    return tuple(f"sm{number}" for number in sorted(numbers))
