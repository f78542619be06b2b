"""Prepares the targets that read journals, records and tables."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from readers import Prepared

from misgnet_runtime.errors import InputError


def scene_journal(folder: Path) -> Prepared:
    from misgnet_runtime.jobs.journal import Raw, open_journal, progress_folder, was_published

    output, raw, settings = folder / "change.tif", Raw("probability.raw", 40, 64, "the scene"), {"--overlap": "16"}
    parts = [np.full((8, 16), n, np.float32) for n in range(4)]
    with open_journal(output, raw, settings, restart=False) as journal:
        journal.add(parts[:2], (("before", 0, 0, 32, 32),))
        journal.add(parts[2:], ())
        journal.publish()
    path = progress_folder(output) / "journal.jsonl"
    content = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        was_published(output)
        with open_journal(output, raw, settings, restart=False) as journal:
            assert journal.finished <= raw.count and isinstance(journal.unreadable, frozenset)

    return read, [content]


def folder_record(folder: Path) -> Prepared:
    from misgnet_runtime.jobs.folder_record import Written, open_record, progress_folder

    output, settings = folder / "out", {"the engine": "cpu"}
    outputs = {name: f"{name}.png" for name in "ab"}
    path = progress_folder(output) / "journal.jsonl"

    class Stop(Exception):  # noqa: N818 - like a kill, it leaves the record unfinished
        pass

    @contextmanager
    def interrupted() -> Any:
        try:
            with open_record(output, settings, outputs, force=False) as record:
                yield record
                raise Stop
        except Stop:
            pass

    with interrupted() as record:
        record.write([(Written(name, (1, 2, 3, 4), 64, 1), np.ones((8, 8), np.bool_), {}) for name in "ab"])
    content = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with interrupted():
            pass

    return read, [content]


def watch_journal(folder: Path) -> Prepared:
    from misgnet_runtime.formatting import now
    from misgnet_runtime.jobs.watch.journal import (
        Complete,
        Done,
        Ended,
        Failed,
        FileState,
        Kept,
        PairStarted,
        Read,
        Started,
        Unclean,
        open_journal,
    )
    from misgnet_runtime.storage.atomic import publish

    output = folder / "out"
    files = [FileState(name, 5, 6, "0" * 64) for name in ("a_before.tif", "a_after.tif")]
    start = PairStarted(now(), "a", *files)
    complete = Complete(now(), "a", ("a_change.tif",), {"changed_share": 0.5, "unread": [0, 0]})
    with open_journal(output) as journal:
        for entry in (
            Started(now(), 1, "0" * 64, "cpu", {}), start, complete, Done(now(), "a"), start, Failed(now(), "a", "no"),
            start, Kept(now(), "a", True), Ended(now(), "b", *files, outcome="done", done=1, incomplete=True), start,
            Read(now(), "a", "0" * 64, "1" * 64), Unclean(now(), "a", 1, 8), complete,
        ):  # fmt: skip
            journal.add(entry)
    content = (output / "watch.jsonl").read_bytes()
    (output / ".working").mkdir()

    def read(data: bytes) -> None:
        (output / "watch.jsonl").write_bytes(data)
        with open_journal(output) as journal:
            journal.failed()
            complete = [pair.complete for pair in journal.pairs.unfinished.values() if pair.complete is not None]
            for name in (name for entry in complete for name in entry.outputs):  # as the next watcher does
                if (output / ".working" / name).exists():
                    publish(output / ".working" / name, output / name)
            journal.compact({"a"})

    return read, [content]


def batch_record(folder: Path) -> Prepared:
    from misgnet_runtime.formatting import now
    from misgnet_runtime.jobs.batch.record import Done, Failed, Returned, SceneStarted, Started, open_record
    from misgnet_runtime.jobs.batch.results import write_results
    from misgnet_runtime.jobs.batch.row import Scene
    from misgnet_runtime.jobs.batch.table import Shard

    output, key = folder / "out", "0" * 64
    figures = {
        "changed_share": 0.5,
        "nodata_share": 0.0,
        "unread": [0, 0],
        "height": 5,
        "polygons": None,
        "engine": "cpu",
    }
    scenes = [Scene(name, Path("a"), Path("b"), {}) for name in "abc"]
    for shard, name in ((Shard(), "a"), (Shard(1, 2), "b")):
        with open_record(output, shard) as record:
            done = Done(
                time=now(), scene=name, key=key, outputs=(f"{name}.tif",), attempts=1, worker="here", figures=figures
            )
            for entry in (
                Started(now(), 1, key), SceneStarted(now(), name, key, (f"{name}.tif",)), Returned(now(), name),
                SceneStarted(now(), name, key, (f"{name}.tif",)), done,
                Failed(now(), "c", 3, "no"),
            ):  # fmt: skip
                record.add(entry)
    path = output / "batch.jsonl"
    content = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with open_record(output, Shard()) as record:
            write_results(output, Shard(), scenes, record)

    return read, [content]


def dataset_record(folder: Path) -> Prepared:
    from misgnet.datasets.record import SCHEMA, Done, Header, open_record

    header = Header(format=SCHEMA.format, dataset="levir", tile=32, splits={"train": 2})
    with open_record(folder, header, {}) as record:
        for name in ("train/a", "train/b"):
            record.add(Done(name, ("0" * 64,), (name,), "0" * 64, {"train": 1}))
    path = folder / "prepare.jsonl"
    content = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with open_record(folder, header, {}) as record:
            assert all(unit == done.unit for unit, done in record.done.items())

    return read, [content]


def table(folder: Path) -> Prepared:
    from misgnet_runtime.errors import UsageError
    from misgnet_runtime.jobs.batch.table import read_table
    from misgnet_runtime.storage.files import is_file

    path = folder / "scenes.csv"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for scene in read_table(path, {"engine": "cpu"}, folder / "out"):
            scene.key("0" * 64)
            is_file(scene.before)
            try:  # invalid options are reported when the scene is processed
                scene.options()
                for name in scene.outputs().values():
                    assert (folder / "out" / name).resolve().is_relative_to(folder / "out")
            except UsageError:
                pass

    header = "id,before,after,output,quicklook,vector,overlap,min_area,before_bands,scale,stretch,align"
    rows = ['s1,a.tif,b.tif,north/s1.tif,yes,s1.gpkg,16,2.5,"1,2,3",0.5,,yes', 's2,../a.tif,/b.tif,,,,,,,,"2,98",']
    return read, ["\n".join([header, *rows, ""]).encode(), b"\xef\xbb\xbfid,before,after\n\xc3\xa4,a,b\n"]


def stac_item(folder: Path) -> Prepared:
    from misgnet_runtime.raster.remote import RemoteOptions
    from misgnet_runtime.raster.stac.locate import locate_item
    from support.stac import item_json, single_band_assets

    path = folder / "item.json"
    together = {"data": {"href": "/a.tif", "nodata": "nan", "bands": [{"eo:common_name": "red", "raster:scale": 0.1}]}}

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for assets in (None, ("red", "green", "blue")):
            try:
                date = locate_item(str(path), assets, RemoteOptions())
            except InputError:
                continue
            assert all(found.is_relative_to("/") and "://" not in str(found) for found in date.paths)
            for file in date.files:
                file.stated.of(len(file.stated.bands) or 3, None, "a file")

    return read, [item_json(single_band_assets()), item_json(together)]
