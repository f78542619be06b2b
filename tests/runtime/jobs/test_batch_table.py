"""Tests of the batch table: valid tables, tables that are refused, and cells that fail only their own scene."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rasterio", reason="scenes need the [geo] extra")

from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.jobs.batch.results import write_results
from misgnet_runtime.jobs.batch.row import Scene
from misgnet_runtime.jobs.batch.table import Shard, read_table
from misgnet_runtime.jobs.batch.worker import Task
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.raster.declared import Declared
from support.batches import KEY, FakePool, Recorder, drive, opened, write_table


def test_a_table_names_scenes_and_options(tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "in/scenes.csv", "id, before,After,min-area,align,stretch",
        "north,a.tif,/abs/b.tif,9,yes,", "süd 2,../c.tif,d.tif,,,",
    )  # fmt: skip
    north, south = read_table(table, {"min_area": "4", "overlap": "8"}, tmp_path / "out")
    assert north.before == tmp_path / "in/a.tif" and north.after == Path("/abs/b.tif")
    assert north.options() == SceneOptions(min_area=9, overlap=8, align=True)
    assert south.options() == SceneOptions(min_area=4, overlap=8)
    assert (south.id, south.before.resolve(), south.outputs()) == ("süd 2", tmp_path / "c.tif", {"output": "süd 2.tif"})


def test_every_option_of_predict_can_be_a_column() -> None:
    words = {
        "engine": "cpu", "output": "maps/x.tif", "probability": "yes", "vector": "x.geojson", "quicklook": "no",
        "align": "true", "cog": "1", "no_tuned": "yes", "overlap": "0", "batch": "2", "streams": "1", "threads": "1",
        "min_area": "1.5", "simplify": "2", "bands": "3,2,1", "scale": "0.5", "before_offset": "1",
        "after_stretch": "2,98",
    }  # fmt: skip
    scene = Scene("x", Path("a"), Path("b"), words)
    options = scene.options()
    assert (options.engine, options.align, options.cog, options.tuned) == ("cpu", True, True, False)
    assert (options.overlap, options.execution) == (0, ExecutionOptions(batch=2, streams=1, threads=1))
    assert (options.min_area, options.simplify) == (1.5, 2.0)
    assert options.dates[0] == Declared(bands=(3, 2, 1), scale=(0.5,), offset=(1,))
    assert options.dates[1] == Declared(bands=(3, 2, 1), stretch=(2, 98))
    assert scene.outputs() == {"probability": "x.probability.tif", "vector": "x.geojson", "output": "maps/x.tif"}


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("id,before", ["a,b"], r"missing required column 'after' \(found, separated by a comma: id, before\)"),
        ("id;before", ["a;b"], r"missing required column 'after' \(found, separated by a semicolon: id, before\)"),
        (
            "id|before|after",
            ["a|b|c"],
            r"\(found only id\|before\|after; separate cells by commas, semicolons or tabs\)",
        ),
        (
            "id,before,after,min_aera",
            ["a,b,c,d"],
            "unknown column 'min_aera', which is similar to 'min_area'; rename it",
        ),
        ("id,before,after,remote", ["a,b,c,d"], "column 'remote' is an option of the command only"),
        ("id,before,after,x\x07", ["a,b,c,d"], r"the column name 'x\\x07' has control characters"),
        ("id,before,after,", ["a,b,c,d"], "row 2: 'd' is in a column without a name"),
        ("id,before,after,Region,Region", ["a,b,c,d,e"], "duplicate column 'Region'"),
        ("id,before,after,cog,cog", ["a,b,c,,"], "duplicate column"),
        ("id,before,after", [], "no scenes"),
        ("id,before,after", ["a,b,c", "a,d,e"], "rows 2 and 3 both have the id 'a'"),
        ("id,before,after", ["../a,b,c"], "the id is '../a'"),
        ("id,before,after", [".a,b,c"], "the id is '.a'"),
        ("id,before,after", [",b,c"], "the id is ''"),
        ("id,before,after", [f"{'a' * 201},b,c"], "at most 200 bytes"),
        ("id,before,after", ["a,b,c,d"], "4 cells for 3 columns"),
        ("id,before,after,output", ["a,b,c,x.tif", "b,b,c,x.tif"], "'a' and 'b' would both write x.tif"),
        ("id,before,after,probability", ["a,b,c,yes", "a.probability,b,c,"], "would both write a.probability.tif"),
    ],
)
def test_an_invalid_table_is_refused(tmp_path: Path, header: str, rows: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_table(write_table(tmp_path / "scenes.csv", header, *rows), {}, tmp_path / "out")


def test_an_unreadable_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_table(tmp_path / "none.csv", {}, tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"id,before,after\n\xff\xfe,b,c\n")
    with pytest.raises(InputError, match=r"is not a CSV file in UTF-8.* iconv -f WINDOWS-1252 -t UTF-8 .*bytes.csv > "):
        read_table(tmp_path / "bytes.csv", {}, tmp_path)
    (tmp_path / "utf16.csv").write_text("id;before;after\na;b;c\n", encoding="utf-16")
    with pytest.raises(InputError, match="iconv -f UTF-16 -t UTF-8"):
        read_table(tmp_path / "utf16.csv", {}, tmp_path)
    (tmp_path / "book.csv").write_bytes(b"PK\3\4\xff\xff")
    with pytest.raises(InputError, match="a workbook or an archive; save it as 'CSV UTF-8'"):
        read_table(tmp_path / "book.csv", {}, tmp_path)
    table = write_table(tmp_path / "t.csv", "id,before,after,output", "a,a.tif,b.tif,a.tif")
    with pytest.raises(UsageError, match="is also an input"):
        read_table(table, {}, tmp_path)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_header_shows_the_separator_and_other_columns_are_kept(tmp_path: Path, separator: str, mark: str) -> None:
    rows = (
        ("ID", "Before", "Region", "After", "min-area", "Status", ""),
        ("north", "a, 1.tif", "=Süd", "b;1.tif", "4.5", "old"),
        ("south", "a.tif", "", "b.tif", "", "", ""),
    )
    text = "".join(separator.join(f'"{cell}"' if cell else "" for cell in row) + "\r\n" for row in rows)
    table = tmp_path / "scenes.csv"
    table.write_bytes((mark + text).encode())
    north, south = scenes = read_table(table, {}, tmp_path / "out")
    assert (north.before, north.after) == (tmp_path / "a, 1.tif", tmp_path / "b;1.tif")
    assert north.options() == SceneOptions(min_area=4.5)
    assert north.kept == {"Region": "=Süd", "Status": "old"} and south.kept == {"Region": "", "Status": ""}
    assert north.key(KEY) == replace(north, kept={}).key(KEY), "another region does not make a finished scene due again"
    with opened(tmp_path / "out") as record:
        path, *_ = write_results(tmp_path / "out", Shard(), scenes, record)
    header, first, second = csv.reader(path.open(newline="", encoding="utf-8"))
    assert header[-3:] == ["after", "Region", "table_Status"] and header[1] == "status"
    assert (first[1], first[-2:], second[-2:]) == ("waiting", ["'=Süd", "old"], ["", ""])


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("output", "../x.tif", "below the output folder"),
        ("output", "/x.tif", "below the output folder"),
        ("output", ".batch/x.tif", "hidden names"),
        ("vector", "x.shp", "ends in .gpkg or .geojson or .fgb"),
        ("overlap", "many", "a whole number"),
        ("min_area", "nan", "0 or more"),
        ("min_area", "4,5", "expected a number, with a decimal point: 4.5"),
        ("align", "perhaps", "yes or no"),
        ("bands", "1,x", "--bands is '1,x'"),
    ],
)
def test_an_invalid_cell_fails_only_its_own_scene(tmp_path: Path, column: str, cell: str, message: str) -> None:
    table = write_table(tmp_path / "t.csv", f"id,before,after,{column}", f'a,a.tif,b.tif,"{cell}"', "b,c.tif,d.tif,")
    scenes = read_table(table, {}, tmp_path / "out")
    pool, recorder = FakePool(1), Recorder()
    with opened(tmp_path / "out") as record:
        drive([Task(one, KEY) for one in scenes], tmp_path / "out", pool, record, recorder)
    assert pool.given == ["b"]
    assert message in recorder.failed["a"]


def test_shards_together_contain_every_scene_once() -> None:
    scenes = [Scene(f"{i}", Path("a"), Path("b"), {}) for i in range(10)]
    parts = [Shard.parse(f"{i}/3").of(scenes) for i in range(3)]
    assert sorted(one.id for part in parts for one in part) == sorted(one.id for one in scenes)
    assert Shard.parse(None).of(scenes) == scenes and Shard.parse("2/3").suffix == "-2-of-3"
    for text in ("3/3", "1", "-1/3", "a/b", "1/0", ""):
        with pytest.raises(UsageError, match="counted from 0"):
            Shard.parse(text)


def test_the_key_changes_with_everything_that_outputs_depend_on(tmp_path: Path) -> None:
    before, after = (tmp_path / name for name in ("a.tif", "b.tif"))
    before.write_bytes(b"1")
    base = Scene("x", before, after, {"overlap": "8"})
    keys = [base.key(KEY), base.key("1" * 64), replace(base, words={"overlap": "9"}).key(KEY)]
    after.write_bytes(b"2")
    keys.append(base.key(KEY))
    assert len(set(keys)) == 4
    free = replace(base, words={"overlap": "8", "threads": "3", "force": "yes", "cog": ""})
    assert free.key(KEY) == base.key(KEY)
