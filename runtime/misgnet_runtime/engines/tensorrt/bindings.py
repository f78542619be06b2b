"""Loads the vendor modules ``tensorrt_rtx`` and ``tensorrt``, and detects their versions and features.

Features are detected by the names of enums and classes, never by integer values, which changed between releases.
Behaviour that no attribute shows is listed in :data:`RULES`.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from itertools import takewhile
from types import ModuleType

from misgnet_runtime.errors import UnavailableError, UsageError


@dataclass(frozen=True, kw_only=True)
class VendorRules:
    """Properties of a vendor module that cannot be detected from its names."""

    module: str
    title: str
    oldest: tuple[int, int]  # oldest supported version
    always_strongly_typed: tuple[int, int] | None  # from this version on, with or without the flag
    keeps_timing_cache: bool
    elsewhere: str = ""  # another way to install it


RULES = {
    "rtx": VendorRules(
        module="tensorrt_rtx",
        title="TensorRT for RTX",
        oldest=(1, 2),
        always_strongly_typed=None,
        keeps_timing_cache=False,  # since 1.2 its calls do nothing, and log CUDA errors if there is no driver
    ),
    "tensorrt": VendorRules(
        module="tensorrt",
        title="TensorRT",
        oldest=(10, 3),
        always_strongly_typed=(11, 0),
        keeps_timing_cache=True,
        elsewhere=" (on a Jetson, JetPack provides it: create the environment with python3 -m venv "
        "--system-site-packages)",
    ),
}

# Features that differ between releases, as (class, member):
#                     TensorRT 10.3   10.16    11.x              for RTX 1.2 to 1.7
# STRONGLY_TYPED      needed          needed   ignored or gone   needed
# PROGRESS            present         present  present           present
# OWN_GRAPHS          gone            gone     gone              present
# DETAILED            present         present  present           present
# TF32                present         present  present           present
STRONGLY_TYPED = ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
PROGRESS = ("IBuilderConfig", "progress_monitor")
OWN_GRAPHS = ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE")
TF32 = ("BuilderFlag", "TF32")
DETAILED = ("ProfilingVerbosity", "DETAILED")


def rules(vendor: str) -> VendorRules:
    """Returns the rules of ``"rtx"`` or ``"tensorrt"``; raises UsageError for any other name."""
    if vendor not in RULES:
        raise UsageError(f"unknown vendor '{vendor}'; the vendors are {', '.join(RULES)}")
    return RULES[vendor]


def load_vendor(vendor: str) -> ModuleType:
    """Imports ``tensorrt_rtx`` for ``"rtx"`` or ``tensorrt`` for ``"tensorrt"``.

    Raises:
        UnavailableError: The module is missing, cannot load its libraries or is too old.
        UsageError: Another vendor.
    """
    rule = rules(vendor)
    try:
        module = importlib.import_module(rule.module)
    except (ImportError, OSError) as error:  # OSError: the wheel is installed, one of its libraries is not
        problem = "is not installed" if isinstance(error, ModuleNotFoundError) else "cannot be loaded"
        raise UnavailableError(
            f"{rule.title} was requested, but importing {rule.module} failed: {error}; "
            f"install it with: pip install 'misgnet-export[{vendor}]'{rule.elsewhere}",
            short=f"{rule.title} {problem}",
        ) from error
    if parse_version(vendor_version(module)) < rule.oldest:
        wanted = ".".join(map(str, rule.oldest))
        raise UnavailableError(
            f"{rule.title} {wanted} or newer is required, found {vendor_version(module)}; "
            f"update it with: pip install -U 'misgnet-export[{vendor}]'",
            short=f"{rule.title} {vendor_version(module)} is too old",
        )
    return module


def vendor_version(module: ModuleType) -> str:
    """Returns the version of the loaded library, which a plan is bound to.

    Installed distributions are not consulted: JetPack has none, and pip's have several names (tensorrt, tensorrt-cu12).
    """
    return str(module.__version__)


def parse_version(text: str) -> tuple[int, ...]:
    """Returns the leading numbers of a version: (10, 16, 0) for ``"10.16.0rc1"``."""
    matches = (re.match(r"\d+", part) for part in text.split("."))
    return tuple(int(match.group()) for match in takewhile(lambda match: match is not None, matches) if match)


def same_version(one: str, other: str) -> bool:
    """Returns whether two versions agree in all numbers that both have: "10.3.0" and "10.3.0.30" do.

    Python packages omit the build number of the library.
    """
    return all(a == b for a, b in zip(parse_version(one), parse_version(other), strict=False))


def has(module: ModuleType, feature: tuple[str, str]) -> bool:
    """Returns whether the module has a feature, such as :data:`STRONGLY_TYPED`."""
    owner, member = feature
    return hasattr(getattr(module, owner, None), member)


def network_flags(module: ModuleType, vendor: str) -> int:
    """Returns the creation flags for a strongly typed network; raises UnavailableError if the module has none."""
    if has(module, STRONGLY_TYPED):
        return 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    always = rules(vendor).always_strongly_typed
    if always is not None and parse_version(vendor_version(module)) >= always:
        return 0
    raise UnavailableError(
        f"{rules(vendor).title} {vendor_version(module)} lacks strongly typed networks, which plans require; "
        f"update it with: pip install -U 'misgnet-export[{vendor}]'"
    )


def known_capabilities(module: ModuleType) -> tuple[str, ...]:
    """Returns the compute capabilities ("sm75", ...) that the installed module can compile for."""
    members = getattr(getattr(module, "ComputeCapability", None), "__members__", {})
    numbers = sorted(int(name[2:]) for name in members if re.fullmatch(r"SM\d+", name))
    return tuple(f"sm{number}" for number in numbers)
