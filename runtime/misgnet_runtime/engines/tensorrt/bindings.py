"""The two vendor modules, ``tensorrt_rtx`` and ``tensorrt``: loading, versions, and what each can do.

What a module can do is asked of its enums and classes by name, never by stored integers: their values
moved between releases. What no attribute tells stands in :data:`RULES`.
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
    """What cannot be detected: behaviour that changes while the names stay. ``elsewhere``: another way to get it."""

    module: str
    title: str
    oldest: tuple[int, int]
    always_strongly_typed: tuple[int, int] | None  # from this version on, with or without the flag
    keeps_timing_cache: bool
    elsewhere: str = ""


RULES = {
    "rtx": VendorRules(
        module="tensorrt_rtx",
        title="TensorRT for RTX",
        oldest=(1, 2),
        always_strongly_typed=None,
        keeps_timing_cache=False,  # its calls do nothing since 1.2, and log CUDA errors where there is no driver
    ),
    "tensorrt": VendorRules(
        module="tensorrt",
        title="TensorRT",
        oldest=(10, 3),
        always_strongly_typed=(11, 0),
        keeps_timing_cache=True,
        elsewhere=" (on a Jetson it is JetPack's: make the environment by python3 -m venv --system-site-packages)",
    ),
}

# What comes and goes between releases, as (class, member):
#                     TensorRT 10.3   10.16    11.x              for RTX 1.2 to 1.7
# STRONGLY_TYPED      needed          needed   ignored or gone   needed
# PROGRESS            present         present  present           present
# OWN_GRAPHS          gone            gone     gone              present
STRONGLY_TYPED = ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
PROGRESS = ("IBuilderConfig", "progress_monitor")
OWN_GRAPHS = ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE")


def rules(vendor: str) -> VendorRules:
    """The rules of ``"rtx"`` or ``"tensorrt"``; UsageError for any other name."""
    if vendor not in RULES:
        raise UsageError(f"unknown vendor '{vendor}'; the vendors are {', '.join(RULES)}")
    return RULES[vendor]


def load_vendor(vendor: str) -> ModuleType:
    """Import ``tensorrt_rtx`` for ``"rtx"`` or ``tensorrt`` for ``"tensorrt"``.

    Raises UnavailableError where the module is missing, cannot load its libraries or is too old,
    and UsageError for another vendor.
    """
    rule = rules(vendor)
    try:
        module = importlib.import_module(rule.module)
    except (ImportError, OSError) as error:  # OSError: the wheel is there, one of its libraries is not
        raise UnavailableError(
            f"{rule.title} was asked for, but importing {rule.module} failed: {error}; "
            f"install it with: pip install 'misgnet-export[{vendor}]'{rule.elsewhere}"
        ) from error
    if parse_version(vendor_version(module)) < rule.oldest:
        wanted = ".".join(map(str, rule.oldest))
        raise UnavailableError(
            f"{rule.title} {wanted} or newer is needed, found {vendor_version(module)}; "
            f"update it with: pip install -U 'misgnet-export[{vendor}]'"
        )
    return module


def vendor_version(module: ModuleType) -> str:
    """The version of the loaded library, which a plan is bound to: JetPack's is no installed distribution, and pip's
    distributions have several names (tensorrt, tensorrt-cu12)."""
    return str(module.__version__)


def parse_version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``"10.16.0rc1"`` is (10, 16, 0)."""
    matches = (re.match(r"\d+", part) for part in text.split("."))
    return tuple(int(match.group()) for match in takewhile(lambda match: match is not None, matches) if match)


def same_version(one: str, other: str) -> bool:
    """Whether two versions agree in every number that both give: "10.3.0" and "10.3.0.30" do.

    Python packages leave out the build number that the libraries have.
    """
    return all(a == b for a, b in zip(parse_version(one), parse_version(other), strict=False))


def has(module: ModuleType, feature: tuple[str, str]) -> bool:
    """Whether the module has a feature, such as :data:`STRONGLY_TYPED`."""
    owner, member = feature
    return hasattr(getattr(module, owner, None), member)


def network_flags(module: ModuleType, vendor: str) -> int:
    """The creation flags that make a network strongly typed; UnavailableError where it cannot be."""
    if has(module, STRONGLY_TYPED):
        return 1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    always = rules(vendor).always_strongly_typed
    if always is not None and parse_version(vendor_version(module)) >= always:
        return 0
    raise UnavailableError(
        f"{rules(vendor).title} {vendor_version(module)} has no strongly typed networks, which plans need; "
        f"update it with: pip install -U 'misgnet-export[{vendor}]'"
    )


def known_capabilities(module: ModuleType) -> tuple[str, ...]:
    """The compute capabilities that the installed module can be told to compile for ("sm75", ...)."""
    members = getattr(getattr(module, "ComputeCapability", None), "__members__", {})
    numbers = sorted(int(name[2:]) for name in members if re.fullmatch(r"SM\d+", name))
    return tuple(f"sm{number}" for number in numbers)
