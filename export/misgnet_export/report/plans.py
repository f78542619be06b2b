"""Shows the kernels of TensorRT plans: tables for the terminal, and bars that the page draws as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from misgnet_export.evidence import PlanRecord, ProfileRecord
from misgnet_runtime.engines.tensorrt.layers import Kernel, Share
from misgnet_runtime.tables import cell, plain_table

PRECISIONS = {"int8": "INT8", "float16": "FP16", "float32": "FP32", "other": "other"}
# Columns of the table of plans: heading, and the value as text.
COLUMNS: dict[str, Callable[[ProfileRecord], str]] = {
    "Batch": lambda profile: batches(profile),  # noqa: PLW0108 - defined below
    "Kernels": lambda profile: str(profile.total.kernels),
    "Guidance": lambda profile: str(profile.guidance.kernels),
    "Only move": lambda profile: str(profile.moves),
    "INT8 to FP32": lambda profile: str(profile.int8_writes_float32),
    "Streams": lambda profile: str(profile.streams),
    "MB moved": lambda profile: millions(profile.total.bytes_moved),
    "Context MB": lambda profile: millions(profile.context_bytes),
}


@dataclass(frozen=True)
class Segment:
    """A segment of a bar; positions are pixels of the SVG."""

    x: float
    width: float
    precision: str


@dataclass(frozen=True)
class Bar:
    """A bar of one part of the network, of segments by precision."""

    name: str
    y: float
    segments: list[Segment]
    end: float  # px, where its value is written
    value: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Bars of all parts of the network; positions are pixels of the SVG."""

    title: str
    bars: list[Bar]
    left: int = 124
    width: int = 520

    @property
    def height(self) -> int:
        return 26 + 20 * len(self.bars)


def profiles(plans: Iterable[PlanRecord]) -> Iterator[tuple[PlanRecord, ProfileRecord]]:
    """Yields every optimization profile with its plan."""
    return ((plan, profile) for plan in plans for profile in plan.profiles)


def batches(profile: ProfileRecord) -> str:
    """Returns the batches of a profile: "4", or "1 to 16"."""
    smallest, _, largest = profile.batches
    return str(largest) if smallest == largest else f"{smallest} to {largest}"


def millions(value: int | None) -> str:
    """Returns a number in millions, with three digits or more; "unknown" for None."""
    if value is None:
        return "unknown"
    return f"{value / 1e6:,.0f}" if value >= 1e8 else f"{value / 1e6:.1f}"


def charts(plans: Iterable[PlanRecord]) -> list[tuple[str, list[Chart]]]:
    """Returns for the first profile of each plan its title, and the charts of kernels and of bytes, if they are known.

    Bars are comparable between plans: the charts of all plans have one scale.
    """
    shown = [(f"{plan.title}, batch {batches(plan.profiles[0])}", plan.profiles[0]) for plan in plans if plan.profiles]
    largest_count = max((share.kernels for _, one in shown for share in one.by_part.values()), default=1)
    largest_bytes = max((share.bytes_moved or 0 for _, one in shown for share in one.by_part.values()), default=0)
    found = []
    for title, profile in shown:
        counts = _chart("Kernels", profile, _one, str, largest_count)
        moved = _chart("MB read and written", profile, lambda kernel: kernel.moved or 0, millions, largest_bytes or 1)
        found.append((title, [counts] if profile.total.bytes_moved is None else [counts, moved]))
    return found


def _chart(
    title: str, profile: ProfileRecord, size: Callable[[Kernel], int], text: Callable[[int], str], largest: int
) -> Chart:
    """Returns a chart whose longest possible bar stands for ``largest``."""
    scale = (Chart.width - Chart.left - 60) / largest
    bars = []
    for index, part in enumerate(profile.by_part):
        segments, x, found = [], float(Chart.left), _by_precision(profile.kernels, part, size)
        for precision, value in found.items():
            segments.append(Segment(round(x, 1), round(scale * value, 1), precision))
            x += scale * value
        bars.append(Bar(part, 24 + 20 * index, segments, round(x + 5, 1), text(sum(found.values()))))
    return Chart(title=title, bars=bars)


def _one(_: Kernel) -> int:
    return 1


def _by_precision(kernels: Sequence[Kernel], part: str, size: Callable[[Kernel], int] = _one) -> dict[str, int]:
    """Returns the summed size of a part's kernels by precision; by default their number."""
    found = dict.fromkeys(PRECISIONS, 0)
    for kernel in kernels:
        if kernel.part == part:
            found[kernel.precision] += size(kernel)
    return {precision: value for precision, value in found.items() if value}


def plan_tables(plans: Sequence[PlanRecord]) -> list[Table]:
    """Returns the tables of ``inspect --plan``: all plans, the parts of each profile, and the rooflines."""
    parts = [_part_table(*found) for found in profiles(plans)]
    return [_plan_table(plans), *parts, *map(_roofline_table, rooflines(plans))]


def _plan_table(plans: Sequence[PlanRecord]) -> Table:
    table = plain_table("Kernels of one inference")
    table.add_column("Plan", overflow="fold", min_width=10)
    for name in COLUMNS:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for plan, profile in profiles(plans):
        table.add_row(cell(plan.title), *(value(profile) for value in COLUMNS.values()))
    notes = [f"{plan.title}: unknown: {plan.note}" for plan in plans if not plan.profiles]
    table.caption = cell("\n".join(notes)) if notes else None
    return table


def _part_table(plan: PlanRecord, profile: ProfileRecord) -> Table:
    table = plain_table(f"{plan.title} ({plan.precision}), batch {batches(profile)}")
    table.add_column("Part", no_wrap=True)
    for name in ("Kernels", *PRECISIONS.values(), "MB moved", "Million MACs"):
        table.add_column(name, justify="right", no_wrap=True)
    for part, share in profile.by_part.items():
        counts = _by_precision(profile.kernels, part)
        table.add_row(cell(part), *_share_cells(share, [counts.get(name, 0) for name in PRECISIONS]))
    found = [profile.by_precision[name].kernels if name in profile.by_precision else 0 for name in PRECISIONS]
    table.add_section()
    table.add_row("all", *_share_cells(profile.total, found))
    return table


def _share_cells(share: Share, by_precision: Sequence[int]) -> list[str]:
    return [str(share.kernels), *map(str, by_precision), millions(share.bytes_moved), millions(share.macs)]


@dataclass(frozen=True)
class Rooflines:
    """The rooflines of all plans for the same GPUs."""

    gpus: tuple[str, ...]
    rows: list[tuple[str, list[str]]]  # plan and batch; for each GPU the time and the share that is arithmetic


def rooflines(plans: Iterable[PlanRecord]) -> list[Rooflines]:
    """Returns a table of rooflines for each set of GPUs; profiles without rooflines are left out."""
    found: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}
    for plan, profile in profiles(plans):
        cells = [f"{one.milliseconds:.2f} ms, {100 * one.arithmetic_share:.0f} %" for one in profile.rooflines]
        row = f"{plan.title}, batch {batches(profile)}", cells
        found.setdefault(tuple(one.gpu for one in profile.rooflines), []).append(row)
    return [Rooflines(gpus, rows) for gpus, rows in found.items() if gpus]


def _roofline_table(found: Rooflines) -> Table:
    table = plain_table("Shortest time by data sheets (roofline), and the share of it that is arithmetic")
    table.add_column("Plan", overflow="fold", min_width=10)
    for gpu in found.gpus:
        table.add_column(gpu, justify="right", overflow="fold")
    for title, cells in found.rows:
        table.add_row(cell(title), *cells)
    return table
