"""Tests the record of every operator's precision: the manifest's entries, their shares, the tables and the picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

pytest.importorskip("onnx", reason="the compiler needs the [export] extra")

from misgnet_calibration.onnx_graph.graph import Graph
from misgnet_calibration.quantizer.known_modules import MISGNET
from misgnet_calibration.quantizer.placement import activations, quantizer_sites
from misgnet_calibration.quantizer.quantize import quantize
from misgnet_calibration.quantizer.recipes import CPU, TENSORRT
from misgnet_calibration.statistics.observers import Range
from misgnet_export.pipeline.quantization_record import placement_entries
from misgnet_export.report.precision import block_of, block_table, blocks, draw_precision, rule_table, share_table
from misgnet_runtime.bundle.quantization import NodePlacement, PlacementRule, Quantization
from support.bundles import edit, make_bundle
from support.graphs import two_branch
from support.paths import ROOT

PLACEMENT = [
    NodePlacement("backbone.block1.0.attn.q/MatMul_1", "MatMul", "int8", "linear layer", 600),
    NodePlacement("backbone.block1.0.norm1/LayerNormalization_2", "LayerNormalization", "float16", "normalisation", 0),
    NodePlacement("MGLNet0.mutualnet0/MatMul_3", "MatMul", "float32", "few positions", 300),
    NodePlacement("decode1/Conv_4", "Conv", "int8", "convolution", 100),
]
RULES = [PlacementRule(name, f"why {name}", "a source") for name in ("linear layer", "normalisation", "few positions")]
QUANTIZATION = Quantization(
    "graphs/int8.onnx", "cpu", 2, 7, 0.7, "max", rules=RULES, placement=PLACEMENT
)  # fmt: skip


def shown(table: object) -> str:
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize("recipe", [CPU, TENSORRT], ids=lambda recipe: recipe.name)
def test_every_operator_has_a_precision_and_a_listed_rule(recipe) -> None:
    model = two_branch()
    graph = Graph(model)
    ranges = {name: Range(-4.0, 4.0) for name in activations(quantizer_sites(graph, recipe))}
    quantized = quantize(model, recipe, ranges, {"encoder_gelu": 600.0}, float32_scopes=MISGNET.float32_scopes)
    rules, entries = placement_entries(graph, recipe, quantized)
    assert [entry.node for entry in entries] == [node.name for node in graph.nodes]
    assert {entry.rule for entry in entries} == {rule.name for rule in rules}
    by_name = {entry.node.rpartition("/")[2]: entry for entry in entries}
    assert by_name["MatMul_encoder_product"].precision == "int8"
    assert by_name["Gelu_encoder_gelu"].precision == "float32"
    assert by_name["Sub_guide_difference"].precision == "float32"
    assert by_name["Add_decoder_sum"].precision == ("float16" if recipe is TENSORRT else "float32")
    if recipe is TENSORRT:
        assert by_name["Gelu_encoder_gelu"].rule == "float32: activations up to 600"
    found = Quantization("g", recipe.name, 0, 8, 0.0, "x", placement=entries).shares()["int8"]
    assert found == pytest.approx(quantized.int8_share)


def test_operator_kept_float_against_its_rule_is_reverted() -> None:
    model = two_branch()
    graph = Graph(model)
    ranges = {name: Range(-4.0, 4.0) for name in activations(quantizer_sites(graph, CPU))}
    quantized = quantize(model, CPU, ranges, {}, keep_float=["decode/MatMul_decoder_one"])
    rules, entries = placement_entries(graph, CPU, quantized)
    (reverted,) = [entry for entry in entries if entry.rule == "reverted"]
    assert (reverted.node, reverted.precision) == ("decode/MatMul_decoder_one", "float32")
    assert "reverted" in {rule.name for rule in rules}


def test_shares_and_blocks_add_up() -> None:
    assert QUANTIZATION.shares() == {"int8": 0.7, "float16": 0.0, "float32": 0.3}
    found = blocks(PLACEMENT)
    assert [block.name for block in found] == ["backbone.block1.0", "MGLNet0", "decode1"]
    assert found[0].operators == {"int8": 1, "float16": 1, "float32": 0} and found[0].total == 600
    assert block_of("/Cast_3") == block_of("Cast") == "graph"
    assert block_of("backbone.patch_embed2.proj/Conv_1") == "backbone.patch_embed2"


def test_tables_show_shares_and_reasons() -> None:
    assert "70.00 %" in shown(share_table(QUANTIZATION)) and "30.00 %" in shown(share_table(QUANTIZATION))
    text = shown(block_table(QUANTIZATION))
    assert "60.0 %" in text and "1 INT8, 1 FP16" in text
    assert "why normalisation" in shown(rule_table(QUANTIZATION))


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_picture_uses_the_colours_of_the_precisions(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    path = tmp_path / f"graph.{suffix}"
    draw_precision([QUANTIZATION, QUANTIZATION], path)
    if suffix == "svg":
        text = path.read_text()
        assert text.count("#1b7f6b") >= 4 and "#e0b83a" in text and "#c2410c" in text
        return
    with Image.open(path) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(0x1B, 0x7F, 0x6B), (0xE0, 0xB8, 0x3A), (0xC2, 0x41, 0x0C)} <= colours


def inspect(*arguments: object) -> subprocess.CompletedProcess[str]:
    paths = [ROOT / name for name in ("export", "calibration", "runtime")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "COLUMNS": "160"}
    command = [sys.executable, "-m", "misgnet_export", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_inspect_command_reads_a_bundle(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    empty = inspect(bundle)
    assert empty.returncode == 4 and "build it again" in empty.stderr
    entries = [{"node": e.node, "operator": e.operator, "precision": e.precision, "rule": e.rule,
                "multiply_adds": e.multiply_adds} for e in PLACEMENT]  # fmt: skip
    edit(bundle, lambda m: m["quantization"][0].update(placement=entries))
    done = inspect(bundle, "-o", tmp_path / "graph.png")
    assert done.returncode == 0, done.stderr
    assert "reads 8-bit RGB" in done.stdout and "70.00 %" in done.stdout and (tmp_path / "graph.png").exists()
    assert inspect(bundle, "-o", tmp_path / "graph.png").returncode == 2
    assert inspect(bundle, "-o", tmp_path / "graph.gif").returncode == 2
