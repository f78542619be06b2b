"""Expands ``--target auto`` into the CPU engines that suit the machine that builds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from misgnet_export.pipeline.targets import product_of
from misgnet_runtime import machine
from misgnet_runtime.bundle.targets import Target, parse_target
from misgnet_runtime.engines.openvino import computes_bf16, load_openvino
from misgnet_runtime.errors import UnavailableError, UsageError

Auto = Literal["auto"]
AUTO: Auto = "auto"
RequestedTarget = Target | Auto

_ANYWHERE = Target("cpu")
_OPENVINO, _OPENVINO_BF16 = Target("openvino"), Target("openvino-int8-bf16")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The properties of a machine that decide what ``auto`` stands for."""

    architecture: str  # under Linux's name
    flags: frozenset[str]  # instruction sets under Linux's names
    openvino: Literal["missing", "without BF16", "with BF16"]  # whether it is usable, and computes in BF16 here


@dataclass(frozen=True)
class Choice:
    """The targets that ``auto`` stands for on a machine."""

    targets: tuple[Target, ...]
    reason: str


def parse_requested(text: str) -> RequestedTarget:
    """Returns "auto" or the target named by ``text``, in any case of letters.

    Raises:
        UsageError: There is no such target; the message lists the names.
    """
    if text.strip().lower() == AUTO:
        return AUTO
    try:
        return parse_target(text)
    except UsageError as error:
        raise UsageError(f"{error}; or auto") from None


def choose(host: Machine) -> Choice:
    """Returns ``cpu``, and on x86_64 with OpenVINO also the target of OpenVINO that suits the processor."""
    if host.architecture != "x86_64":
        return Choice((_ANYWHERE,), f"OpenVINO's engines are added only on x86_64; this is {host.architecture}")
    if host.openvino == "missing":
        return Choice((_ANYWHERE,), "without OpenVINO; to add it: pip install 'misgnet-export[openvino]'")
    needs = product_of(_OPENVINO_BF16).needs
    found = [flag for flag in needs if flag in host.flags]
    if not found:
        return Choice((_ANYWHERE, _OPENVINO), f"OpenVINO is installed; this processor has no {' or '.join(needs)}")
    if host.openvino == "without BF16":
        return Choice((_ANYWHERE, _OPENVINO), "OpenVINO is installed but does not compute in BF16 here")
    return Choice((_ANYWHERE, _OPENVINO_BF16), f"OpenVINO is installed; this processor has {' and '.join(found)}")


def choose_here() -> Choice:
    """Returns the targets that ``auto`` stands for on this machine."""
    return choose(_this_machine())


def expand(requested: Iterable[RequestedTarget], auto: Iterable[Target]) -> tuple[Target, ...]:
    """Returns the targets to build, each once: ``auto`` in place of "auto", both precisions of a GPU's target."""
    auto = tuple(auto)
    found = [target for one in requested for target in (auto if one == AUTO else one.variants)]
    return tuple(dict.fromkeys(found))


def _this_machine() -> Machine:
    architecture = machine.architecture()
    return Machine(
        architecture=architecture,
        flags=frozenset(machine.cpu_flags()),
        openvino=_openvino() if architecture == "x86_64" else "missing",
    )


def _openvino() -> Literal["missing", "without BF16", "with BF16"]:
    try:
        return "with BF16" if computes_bf16(load_openvino().Core()) else "without BF16"
    except (UnavailableError, RuntimeError):  # RuntimeError: it is installed without its CPU plugin
        return "missing"
