"""Tests that texts from files and manifests cannot control the terminal, hide characters or forge lines."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs
from rich.console import Console
from rich.table import Table

from misgnet_export.cli import main as cli
from misgnet_export.pipeline.progress import StageLog
from misgnet_export.report import parity_table, stage_table, throughput_table
from misgnet_export.report.precision import share_table
from misgnet_runtime.bundle.quantization import Quantization
from misgnet_runtime.inference.throughput import Timing
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.tables import print_table
from support.commands import exit_code
from support.reports import data_of, not_run, page_of, parity, report_of

ODD = "x\x1b[31m\x9b2J\u202e[bold]\nforged: line\u2028\u200b"


def shown(table: Table) -> str:
    console = Console(file=io.StringIO(), width=400, color_system=None, emoji=False)
    print_table(table, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def check_plain(text: str, escaped: str = "x\\x1b[31m\\x9b2J\\u202e[bold]\\nforged: line\\u2028\\u200b") -> None:
    assert escaped in text
    assert all(line.isprintable() for line in text.split("\n")), ascii(text)
    assert not any(line.strip().startswith("forged") for line in text.split("\n"))


def test_names_and_reasons_in_tables_are_escaped() -> None:
    engine = structs.replace(not_run(ODD), reason=ODD)
    check_plain(shown(parity_table(structs.replace(report_of([engine]), reference=ODD))))
    check_plain(shown(throughput_table([Timing(ODD, ODD, 1, 9, 1, 1, 1, 1.0)])))
    check_plain(shown(stage_table([(ODD, 1.0, ODD)])))
    check_plain(shown(share_table(Quantization(ODD, ODD, 1, 8, 1.0, "none"))), "x\\x1b[31m")


def test_figures_keep_their_spaces() -> None:
    text = shown(parity_table(report_of([parity([0, 1, 0, 0])])))
    assert "\\x" not in text and "%" in text


def test_stages_are_escaped() -> None:
    console = Console(file=io.StringIO(), width=400, color_system=None, emoji=False)
    with StageLog(console).stage(ODD) as stage:
        stage.show_status(ODD)
        stage.finding = ODD
    assert isinstance(console.file, io.StringIO)
    check_plain(console.file.getvalue())


def test_page_escapes_control_characters() -> None:
    data = data_of(report_of([parity([0, 1, 0, 0])]))
    page = page_of(replace(data, summary=[("Weights", ODD)], stages=[(ODD, 1.0, ODD)]))
    assert "x\\x1b[31m\\x9b2J\\u202e[bold]" in page
    assert all(line.replace("\t", "").replace("\xa0", "").isprintable() for line in page.split("\n"))


def test_paths_are_not_read_as_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from misgnet_export.integrations.triton import repository

    found = repository.Repository([repository.Model(ODD, ODD, "onnxruntime", ODD)], {ODD: ODD})
    monkeypatch.setattr(repository, "write_repository", lambda *_, **__: found)
    output = tmp_path / "a[" / "b]"  # Rich would read this as a closing tag without an opening one
    assert exit_code(cli.main, "misgnet-export", "triton", "b", "-o", output) == 0
    captured = capsys.readouterr()
    assert f"repository: {output}" in captured.out
    check_plain(captured.out)
    check_plain(captured.err)


def test_image_name_that_is_not_utf8_is_an_input_error(tmp_path: Path) -> None:
    from misgnet_runtime.errors import InputError

    for part in ("A", "B", "label"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "\udcff.png").touch()
    with pytest.raises(InputError, match="not UTF-8; rename") as caught:
        TileSet.open(tmp_path)
    str(caught.value).encode()
