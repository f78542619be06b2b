"""Tests how the kernels of plans are recorded and shown: terminal, page, and the command that reads a bundle."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from misgnet_export.cli.main import main
from misgnet_export.evidence import PlanRecord, decode_plan_record, plan_record
from misgnet_export.report.plans import Chart, charts, millions, plan_tables, rooflines
from misgnet_runtime.bundle import FileEntry
from misgnet_runtime.engines.tensorrt import Plan, PlanCompatibility, PlanLayers, PlanOptions
from misgnet_runtime.engines.tensorrt.layers import Kernel, Kind, Precision, ProfileLayers
from misgnet_runtime.errors import InputError
from support.bundles import edit, make_bundle
from support.commands import exit_code
from support.reports import Page, data_of, page_of, parity, report_of


def kernel(part: str, precision: Precision, moved: int | None, macs: int = 0, kind: Kind = "other") -> Kernel:
    return Kernel(f"{part}_kernel", part, kind, precision, 0, moved, 0, macs)


KERNELS = [
    kernel("decode1", "int8", 3_000_000, 500_000_000, "convolution"),
    kernel("decode1", "float32", 5_000_000),
    kernel("MGLNet0", "float32", 1_000_000, kind="move"),
]


def record(engine: str = "rtx-sm86-int8", layers: PlanLayers | None = None, part: str = "") -> PlanRecord:
    bound = PlanCompatibility(
        vendor="rtx", vendor_version="1.7.1", compute_capabilities=("sm86",), platform="linux-x86_64"
    )
    found = layers or PlanLayers([ProfileLayers(KERNELS, 7_000_000), ProfileLayers(KERNELS[:2], 28_000_000)])
    plan = Plan(
        data=b"", compatibility=bound, seconds=1, network_layers=1, quantize_layers=0, dequantize_layers=0,
        layers=found, profiles=(),
    )  # fmt: skip
    options = PlanOptions(vendor="rtx", profiles=((1, 1, 1), (1, 4, 16)))
    return plan_record(engine, part, "int8+float16", plan, options)


def shown(*plans: PlanRecord) -> str:
    console = Console(width=100, file=StringIO())
    for table in plan_tables(plans):
        console.print(table)
    return "\n".join(line.strip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def test_record_sums_up_each_profile() -> None:
    one, many = record().profiles
    assert (one.batches, one.context_bytes, one.streams, one.moves) == ((1, 1, 1), 7_000_000, 1, 1)
    assert (one.total.kernels, one.total.bytes_moved, one.total.macs) == (3, 9_000_000, 500_000_000)
    assert one.guidance.kernels == 1 and one.by_part["decode1"].bytes_moved == 8_000_000
    assert {name: share.kernels for name, share in one.by_precision.items()} == {"int8": 1, "float32": 2}
    assert "GeForce RTX 3060" in [found.gpu for found in one.rooflines]
    assert many.total.kernels == 2


def test_record_survives_the_file() -> None:
    found = record(part="encoder")
    assert found.title == "rtx-sm86-int8 encoder"
    assert decode_plan_record("plan_x.json", msgspec.json.encode(found)) == found
    with pytest.raises(InputError, match=r"plan_x.json cannot be read: .*build the bundle again"):
        decode_plan_record("plan_x.json", b'{"engine": 3}')


def test_tables_show_profiles_parts_and_rooflines() -> None:
    text = shown(record())
    assert [line.split()[1:] for line in text.splitlines() if line.startswith("rtx-sm86-int8 ")][:2] == [
        ["1", "3", "1", "1", "0", "1", "9.0", "7.0"],
        ["1", "to", "16", "2", "0", "0", "0", "1", "8.0", "28.0"],
    ]
    (parts, *_) = [line.split() for line in text.splitlines() if line.startswith("decode1")]
    assert parts == ["decode1", "2", "1", "0", "1", "0", "8.0", "500"]
    assert "GeForce RTX 3060" in text


def test_plan_with_unknown_kernels_is_listed_with_the_reason() -> None:
    text = shown(record(layers=PlanLayers(note="the log has [no] list")))
    assert "rtx-sm86-int8: unknown: the log has [no] list" in text
    assert "GeForce" not in text


def test_unknown_bytes_are_shown_as_unknown() -> None:
    unknown = PlanLayers([ProfileLayers([kernel("decode1", "int8", None)])] * 2)
    assert "unknown" in shown(record(layers=unknown))
    ((_, found),) = charts([record(layers=unknown)])
    assert [chart.title for chart in found] == ["Kernels"]


@pytest.mark.parametrize(("value", "text"), [(None, "unknown"), (0, "0.0"), (74_990_000, "75.0"), (291e6, "291")])
def test_millions(value: int | None, text: str) -> None:
    assert millions(value) == text


def test_bars_of_all_plans_have_one_scale() -> None:
    small = PlanLayers([ProfileLayers([kernel("decode1", "float16", 4_000_000)])] * 2)
    (title, (counts, moved)), (_, (_, other)) = charts([record(), record("rtx-sm86-fp16", small)])
    assert title == "rtx-sm86-int8, batch 1"
    assert [bar.name for bar in counts.bars] == ["MGLNet0", "decode1"]
    longest = moved.bars[1]
    assert [segment.precision for segment in longest.segments] == ["int8", "float32"]
    widths = [segment.width for segment in longest.segments]
    assert widths[1] == pytest.approx(widths[0] * 5 / 3, abs=0.2)
    assert longest.segments[1].x == pytest.approx(Chart.left + widths[0], abs=0.2)
    assert sum(widths) == pytest.approx(2 * sum(segment.width for segment in other.bars[0].segments), abs=0.3)
    assert longest.end + 50 < Chart.width and longest.value == "8.0"


def test_rooflines_of_plans_for_other_gpus_are_another_table() -> None:
    one = record().profiles[0]
    other = msgspec.structs.replace(one, rooflines=one.rooflines[:1])
    none = msgspec.structs.replace(one, rooflines=[])
    first, second = rooflines([record(), msgspec.structs.replace(record("x"), profiles=[other, none])])
    assert [title for title, _ in first.rows] == ["rtx-sm86-int8, batch 1", "rtx-sm86-int8, batch 1 to 16"]
    assert second.gpus == first.gpus[:1] and [title for title, _ in second.rows] == ["x, batch 1"]
    assert second.rows[0][1] == first.rows[0][1][:1] and second.rows[0][1][0].endswith(" %")


def test_page_shows_tables_and_bars_of_plans() -> None:
    data = data_of(report_of([parity([1, 2, 3, 4])]))
    page = Page(page_of(replace(data, plans=[record(), record("b", PlanLayers(note="the <log> is empty"))])))
    text = " ".join(page.texts)
    assert "Kernels of TensorRT plans" in text and "unknown: the <log> is empty" in text
    bars = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("class") == "parts"]
    assert [bar["aria-label"] for bar in bars] == [
        "Kernels of rtx-sm86-int8, batch 1, by part of the network",
        "MB read and written of rtx-sm86-int8, batch 1, by part of the network",
    ]
    assert "Kernels of TensorRT plans" not in page_of(data)


def bundle_with_plan(root: Path, data: bytes) -> Path:
    bundle = make_bundle(root)
    path = "evidence/plan_rtx-sm86-int8.json"
    (bundle / path).write_bytes(data)
    entry = FileEntry(path, hashlib.sha256(data).hexdigest(), len(data), "evidence")
    return edit(bundle, lambda manifest: manifest["files"].append(msgspec.to_builtins(entry)))


def test_inspect_prints_the_plans_of_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = bundle_with_plan(tmp_path / "bundle", msgspec.json.encode(record()))
    assert exit_code(main, "misgnet-export", "inspect", bundle, "--plan") == 0
    assert "Kernels of one inference" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("-o", "graph.png"), ("--why",)])
def test_inspect_refuses_options_of_graphs_with_plans(option: tuple[str, ...], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    assert exit_code(main, "misgnet-export", "inspect", bundle, "--plan", *option) == 2


def test_inspect_reports_missing_and_damaged_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, "misgnet-export", "inspect", make_bundle(tmp_path / "none"), "--plan") == 4
    assert "build it again with a target such as rtx-sm86" in capsys.readouterr().err
    assert exit_code(main, "misgnet-export", "inspect", bundle_with_plan(tmp_path / "bad", b"{"), "--plan") == 4
    assert "evidence/plan_rtx-sm86-int8.json cannot be read" in capsys.readouterr().err
