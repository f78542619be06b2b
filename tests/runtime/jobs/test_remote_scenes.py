"""Tests scenes on servers: outputs equal those of local files, few bytes are fetched, and runs resume after faults."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

rasterio = pytest.importorskip("rasterio", reason="scenes need the [geo] extra")
pytest.importorskip("urllib3", reason="remote rasters need the [remote] extra")

from rasterio.shutil import copy
from rasterio.transform import from_origin

from misgnet_runtime.cli import main as cli
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import InputError, NetworkError, UnreadableError, UsageError
from misgnet_runtime.jobs.batch.options import BatchOptions
from misgnet_runtime.jobs.batch.run import run_batch
from misgnet_runtime.jobs.journal import finished_units
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import SceneReport, predict_scene_files
from misgnet_runtime.jobs.series.features import open_features
from misgnet_runtime.jobs.series.options import SeriesOptions
from misgnet_runtime.jobs.series.series import Listener, run_series
from misgnet_runtime.raster.reader import open_raster
from misgnet_runtime.raster.remote import RemoteOptions, locate
from misgnet_runtime.raster.remote import http as http_module
from misgnet_runtime.raster.remote.file import RemoteFile
from misgnet_runtime.raster.source import LocalFile, RasterFile
from misgnet_runtime.raster.tiling import Span
from support.batches import Recorder, write_table
from support.bundles import FLOAT, INTERFACE, SPLIT_FLOAT, FakeEngine, fake_detector, make_bundle
from support.commands import exit_code
from support.fake_split import FakeSplit
from support.file_server import FileServer, Request, file_server
from support.logs import Collected
from support.scenes import read, scene, write_raster

H, W = 1536, 256  # the windows that are inspected before the run cover half of it
BEFORE, AFTER = scene(H, W)
REMOTE = RemoteOptions(remote=True, remote_retries=1, remote_timeout=5)
OPTIONS = SceneOptions(remote=REMOTE, execution=ExecutionOptions(batch=2))
TILED: dict[str, Any] = {"tiled": True, "blockxsize": 64, "blockysize": 64}
KINDS: dict[str, dict[str, Any]] = {
    "tiled": {**TILED, "compress": "deflate"},
    "tiled planes": {**TILED, "compress": "deflate", "interleave": "band"},
    "strips": {"tiled": False, "blockysize": 8, "compress": "deflate"},
    "plain strips": {"tiled": False, "blockysize": 1, "compress": None},
    "big": {**TILED, "compress": "lzw", "BIGTIFF": "YES", "ENDIANNESS": "BIG"},
}


class Place:
    """A bundle, a server of two rasters and an output; the engine is a fake unless ``opener`` is given."""

    def __init__(self, root: Path, server: FileServer) -> None:
        self.root, self.server = root, server
        self.bundle = make_bundle(root / "bundle", engines=[FLOAT])
        self.files = root / "files"
        self.change = root / "out" / "change.tif"
        self.logged = Collected()

    def write(self, **options: Any) -> None:
        for name, pixels in (("before", BEFORE), ("after", AFTER)):
            write_raster(self.files / f"{name}.tif", pixels, **{**KINDS["tiled"], **options})

    def run(self, options: SceneOptions = OPTIONS, change: Path | None = None, *, local: bool = False) -> SceneReport:
        dates = (
            LocalFile(self.files / f"{name}.tif") if local else locate(self.server.url(f"{name}.tif"), options.remote)
            for name in ("before", "after")
        )
        opener = fake_detector(lambda: FakeEngine(INTERFACE))
        return predict_scene_files(
            self.bundle, *dates, change or self.change, options, log=self.logged.log, opener=opener
        )

    def local(self, options: SceneOptions = OPTIONS) -> NDArray[Any]:
        """Returns the change raster of the same files, read locally."""
        found = self.root / "local.tif"
        self.run(replace(options, force=True), found, local=True)
        return read(found)

    def size(self) -> int:
        return sum((self.files / f"{name}.tif").stat().st_size for name in ("before", "after"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(http_module, "_FIRST_WAIT", 0.01)
    (tmp_path / "files").mkdir()
    with file_server(tmp_path / "files") as server:
        yield Place(tmp_path, server)


# --- same outputs, few bytes


@pytest.mark.parametrize("kind", KINDS)
def test_map_equals_that_of_local_files_and_nothing_is_fetched_twice(place: Place, kind: str) -> None:
    place.write(**KINDS[kind])
    report = place.run()
    assert np.array_equal(read(place.change), place.local())
    assert place.server.sent <= 1.05 * place.size()
    assert (report.fetched_bytes, report.requests) == (place.server.sent, len(place.server.requests))
    # No sidecar file is ever asked for.
    assert {request.path for request in place.server.requests} == {"/before.tif", "/after.tif"}
    assert any("fetched" in line for line in report.lines(place.change))


def test_cog_with_mask_is_read_like_the_local_file(place: Place) -> None:
    mask = np.full((H, W), 255, np.uint8)
    mask[100:200, 50:200] = 0
    for name, pixels in (("before", BEFORE), ("after", AFTER)):
        write_raster(place.root / "plain.tif", pixels, mask=mask)
        copy(place.root / "plain.tif", place.files / f"{name}.tif", driver="COG", compress="deflate", blocksize=128)
    place.run()
    change = read(place.change)
    assert np.array_equal(change, place.local())
    assert (change[100:200, 50:200] == 255).all()
    assert place.server.sent <= 1.05 * place.size()  # without the overviews, which are at the end of a COG's order


def test_all_products_of_aligned_dates_equal_those_of_local_files(place: Place) -> None:
    place.write()
    moved = from_origin(399_985.7, 4_999_993.3, 0.5, 0.5)
    write_raster(place.files / "after.tif", AFTER, transform=moved, **KINDS["tiled planes"])
    made = {}
    for local in (False, True):
        folder = place.root / f"made-{local}"
        options = replace(
            OPTIONS, align=True, vector=folder / "c.geojson", probability=folder / "p.tif", quicklook=folder / "q.png",
        )  # fmt: skip
        place.run(options, folder / "c.tif", local=local)
        polygons = (folder / "c.geojson").read_bytes()
        look = np.asarray(Image.open(folder / "q.png")).tobytes()
        made[local] = [polygons, look, *(read(folder / name).tobytes() for name in ("c.tif", "p.tif"))]
    assert made[False] == made[True]
    assert place.server.sent <= 1.2 * place.size()  # the quick look is made of bytes that were kept


@pytest.mark.parametrize("kind", ["tiled", "tiled planes", "strips", "plain strips"])
def test_a_part_of_a_raster_fetches_its_blocks_only(place: Place, kind: str) -> None:
    place.write(**KINDS[kind])
    file = locate(place.server.url("before.tif"), REMOTE)
    local = LocalFile(place.files / "before.tif")
    windows = [(Span(top, top + 128), Span(100, 228)) for top in (100, 196, 292)]
    with open_raster(file, "before") as raster, open_raster(local, "before") as same:
        opened = place.server.sent
        ranges: set[tuple[int, int]] = set()
        for window in windows:
            found, wanted = (one.read((3, 1), *window) for one in (raster, same))
            assert np.array_equal(found[0], wanted[0])
            ranges |= set(raster.blocks.tiff.ranges((3, 1), *window))
    blocks = sum(stop - start for start, stop in ranges)
    assert opened <= 1.05 * (16384 + directories(place.files / "before.tif"))
    assert place.server.sent - opened <= 1.13 * blocks
    assert place.server.sent < 0.5 * local.local.stat().st_size
    assert same.blocks.tiff.ranges((1,), *windows[0]) == []  # positions of local blocks are not kept


def directories(path: Path) -> int:
    """Returns the bytes of a raster's file besides its pixels."""
    with rasterio.open(path) as dataset, open_raster(path, "before") as raster:
        del dataset
        return 32 * raster.blocks.count + 4096


def test_rows_of_tiles_share_requests(place: Place) -> None:
    place.write()
    place.run()
    strips = -(-W // 64) * -(-H // 64)
    assert len(place.server.requests) < strips


# --- faults


def test_file_replaced_halfway_fails_the_pair_and_another_identity_is_not_resumed(place: Place) -> None:
    place.write()
    swap_at(place, 0.6)
    with pytest.raises(InputError, match=r"after\.tif was changed while it was read.*--restart"):
        place.run()
    assert not place.change.exists()
    assert finished_units(place.change) > 0
    place.server.fault = lambda _: None
    with pytest.raises(UsageError, match=r"was started with the after raster etag \w+, and now it is etag \w+; "):
        place.run()
    place.run(replace(OPTIONS, restart=True))
    assert np.array_equal(read(place.change), place.local())


def swap_at(place: Place, share: float) -> None:
    """Replaces the later raster once a share of all bytes was sent."""

    def fault(_: Request) -> None:
        if place.server.sent > share * place.size():
            write_raster(place.files / "after.tif", AFTER[:, ::-1], **KINDS["tiled"])

    place.server.fault = fault


@pytest.mark.parametrize("fault", ["503", "truncated", "reset"])
def test_server_that_fails_halfway_is_resumed(place: Place, fault: Any) -> None:
    place.write()
    place.server.fault = lambda _: fault if place.server.sent > 0.6 * place.size() else None
    with pytest.raises(NetworkError, match=r"after\.tif cannot be fetched|before\.tif cannot be fetched"):
        place.run()
    done = finished_units(place.change)
    assert 0 < done < H
    place.server.fault = lambda _: None
    report = place.run()
    assert report.resumed == done
    assert np.array_equal(read(place.change), place.local())


@pytest.mark.parametrize("fault", ["503", "404", "no ranges"])
@pytest.mark.parametrize("align", [False, True])
def test_faults_inside_gdal_are_errors_and_never_missing_pixels(
    place: Place, monkeypatch: pytest.MonkeyPatch, fault: Any, align: bool
) -> None:
    monkeypatch.setattr(RemoteFile, "fetch", lambda *_: None)  # so that GDAL asks for all blocks itself
    place.write()
    if align:
        moved = from_origin(399_985.7, 4_999_993.3, 0.5, 0.5)
        write_raster(place.files / "after.tif", AFTER, transform=moved, **KINDS["tiled"])
    options = replace(OPTIONS, align=align, max_unreadable=100)
    place.server.fault = lambda _: fault if place.server.sent > 0.6 * place.size() else None
    with pytest.raises(InputError) as raised:
        place.run(options)
    assert not isinstance(raised.value, UnreadableError)
    assert ("cannot be fetched" in str(raised.value)) == isinstance(raised.value, NetworkError) == (fault == "503")
    place.server.fault = lambda _: None
    place.run(options)
    assert np.array_equal(read(place.change), place.local(options))


def test_interruption_inside_gdal_ends_the_call(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write()
    file = locate(place.server.url("before.tif"), REMOTE)
    with open_raster(file, "before") as raster:
        assert isinstance(file, RemoteFile)
        monkeypatch.setattr(RemoteFile, "fetch", lambda *_: None)
        monkeypatch.setattr(file._reader, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            raster.read((1,), Span(400, 500), Span(0, 100))


def interrupted(*_: object) -> bytes:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("fault", "message"),
    [("404", "does not exist"), ("no ranges", "does not support range requests"), ("403", "is denied")],
)
def test_faults_at_the_start_are_one_line_and_exit_code_4(
    place: Place, fault: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write()
    place.server.fault = lambda _: fault
    dates = [f"{place.server.url(name)}?signature=word" for name in ("before.tif", "after.tif")]
    assert exit_code(cli.main, "misgnet-run", "predict", place.bundle, *dates, "-o", place.change, "--remote") == 4
    shown = " ".join(capsys.readouterr().err.split())
    assert message in shown and "/before.tif" in shown and "word" not in shown


def test_truncated_file_on_a_server_is_reported_like_a_local_one(place: Place) -> None:
    place.write(**KINDS["plain strips"])
    path = place.files / "after.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UnreadableError, match=r"the after raster http://.*after\.tif has \d+ unreadable blocks"):
        place.run()


def test_no_text_is_opened_as_a_raster_of_another_format(place: Place) -> None:
    place.write()
    (place.files / "after.tif").write_text(f'<VRTDataset rasterXSize="{W}" rasterYSize="{H}"></VRTDataset>')
    with pytest.raises(InputError, match="cannot be opened as a GeoTIFF"):
        place.run()


def test_limit_ends_the_pair_with_what_to_do(place: Place) -> None:
    place.write()
    limit = replace(REMOTE, remote_limit=0.35 * place.size() / (1 << 30))
    with pytest.raises(InputError, match="raise --remote-limit"):
        place.run(replace(OPTIONS, remote=limit))
    assert place.run().resumed > 0


# --- commands


def test_predict_command_needs_remote_and_tags_the_identity(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write()
    dates = [place.server.url(name) for name in ("before.tif", "after.tif")]
    call = "misgnet-run", "predict", place.bundle, *dates, "-o", place.change
    assert exit_code(cli.main, *call) == 2
    assert "allow it with --remote" in " ".join(capsys.readouterr().err.split())
    assert not place.server.requests
    assert exit_code(cli.main, *call, "--remote") == 0
    with rasterio.open(place.change) as change:
        tags = change.tags()
    etags = {one.headers["if-match"].strip('"') for one in place.server.requests if "if-match" in one.headers}
    assert {tags["MISGNET_BEFORE_ETAG"], tags["MISGNET_AFTER_ETAG"]} == etags
    assert "MISGNET_BEFORE_SHA256" not in tags
    assert "fetched" in capsys.readouterr().out


def test_local_and_remote_dates_may_be_mixed_and_folders_are_local(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write()
    place.server.etags = False
    remote, local = place.server.url("after.tif"), place.files / "before.tif"
    assert (
        exit_code(cli.main, "misgnet-run", "predict", place.bundle, local, remote, "-o", place.change, "--remote") == 0
    )
    with rasterio.open(place.change) as change:
        tags = change.tags()
    assert len(tags["MISGNET_BEFORE_SHA256"]) == 64
    assert tags["MISGNET_AFTER_SIZE_AND_TIME"].startswith(f"{(place.files / 'after.tif').stat().st_size} bytes, ")
    folders = place.files, place.files, "-o", place.root / "masks"
    assert exit_code(cli.main, "misgnet-run", "predict", place.bundle, *folders, "--remote") == 2
    assert "leave --remote out" in " ".join(capsys.readouterr().err.split())
    assert (
        exit_code(cli.main, "misgnet-run", "watch", place.bundle, place.files, "-o", place.root / "w", "--remote") == 2
    )
    assert "not of watch; leave it out" in capsys.readouterr().err


def test_batch_reads_addresses_and_retries_network_errors(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write()
    urls = [f"{place.server.url(name)}?signature=word" for name in ("before.tif", "after.tif")]
    table = write_table(place.root / "t.csv", "id,before,after", f"far,{urls[0]},{urls[1]}",
                        f"near,{os.path.relpath(place.files / 'before.tif', place.root)},{urls[1]}")  # fmt: skip
    out = place.root / "batch"
    with pytest.raises(UsageError, match=r"3 rasters of the table are on servers.*allow it with --remote"):
        run_batch(place.bundle, table, out, BatchOptions(), Recorder().listener())
    failures = iter([True] * 2)
    place.server.fault = lambda _: "503" if next(failures, False) else None
    recorder = Recorder()
    options = BatchOptions(remote=replace(REMOTE, remote_retries=0))
    report = run_batch(place.bundle, table, out, options, recorder.listener())
    assert (report.done, report.failed) == (2, {})
    assert np.array_equal(read(out / "far.tif"), read(out / "near.tif"))
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["before"] == place.server.url("before.tif")
    assert int(rows[0]["attempts"]) + int(rows[1]["attempts"]) > 2
    sent = len(place.server.requests)
    assert run_batch(place.bundle, table, out, options, Recorder().listener()).earlier == 2
    assert len(place.server.requests) == sent


def test_a_row_cannot_allow_the_network(place: Place) -> None:
    table = write_table(place.root / "t.csv", "id,before,after,remote", "a,https://host/a.tif,https://host/b.tif,yes")
    with pytest.raises(InputError, match="column 'remote' is an option of the command only"):
        run_batch(place.bundle, table, place.root / "batch", BatchOptions(), Recorder().listener())


def test_series_of_addresses_equals_that_of_files_and_records_the_identity(place: Place) -> None:
    place.write()
    made = {}
    for local in (False, True):
        split, folder = FakeSplit(), place.root / f"series-{local}"
        bundle = make_bundle(place.root / f"split-{local}", engines=[SPLIT_FLOAT])
        dates: list[RasterFile] = [
            LocalFile(place.files / name) if local else locate(place.server.url(name), REMOTE)
            for name in ("before.tif", "after.tif")
        ]
        listener = Listener(place.logged.log, lambda *_: None)
        options = SeriesOptions(scene=OPTIONS)
        run_series(bundle, dates[0], dates[1:], folder, options=options, listener=listener, opener=split.opener())
        made[local] = read(folder / "after.tif")
        recorded = open_features(folder / "before.features").footer.settings["the raster"]
        assert recorded.startswith("etag ") != local
    assert np.array_equal(made[False], made[True])


# --- S3


@pytest.fixture
def bucket(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Starts moto's server; the function uploads the rasters to the bucket ``scenes``."""
    moto = pytest.importorskip("moto.server", reason="moto[server] is missing")
    botocore = pytest.importorskip("botocore.session", reason="botocore is missing")
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_S3_ENDPOINT", f"{host}:{port}")
    monkeypatch.setenv("AWS_HTTPS", "NO")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTING", "FALSE")
    client = botocore.Session().create_client("s3", "us-east-1", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="scenes")

    def upload() -> None:
        for path in place.files.iterdir():
            client.put_object(Bucket="scenes", Key=f"in/{path.name}", Body=path.read_bytes())

    yield upload
    server.stop()


def test_objects_of_s3_are_read_like_local_files(
    place: Place, bucket: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    place.write()
    bucket()
    vector = place.root / "out" / "c.geojson"
    dates = "s3://scenes/in/before.tif", "s3://scenes/in/after.tif"
    call = "misgnet-run", "predict", place.bundle, *dates, "-o", place.change, "--remote", "--vector", vector
    assert exit_code(cli.main, *call) == 0
    near = place.root / "near"
    local = [place.files / name for name in ("before.tif", "after.tif")]
    assert (
        exit_code(
            cli.main,
            "misgnet-run",
            "predict",
            place.bundle,
            *local,
            "-o",
            near / "c.tif",
            "--vector",
            near / "c.geojson",
        )
        == 0
    )
    assert np.array_equal(read(place.change), read(near / "c.tif"))
    assert (near / "c.geojson").read_bytes().replace(b"change", b"c") == vector.read_bytes().replace(b"change", b"c")
    missing = (
        "misgnet-run",
        "predict",
        place.bundle,
        dates[0],
        "s3://scenes/in/other.tif",
        "-o",
        near / "d.tif",
        "--remote",
    )
    capsys.readouterr()
    assert exit_code(cli.main, *missing) == 4
    shown = " ".join(capsys.readouterr().err.split())
    assert "s3://scenes/in/other.tif does not exist (HTTP 404, NoSuchKey)" in shown


def test_object_replaced_while_it_is_read_is_refused(place: Place, bucket: Callable[[], None]) -> None:
    place.write()
    bucket()
    file = locate("s3://scenes/in/after.tif", REMOTE)
    with open_raster(file, "after") as raster:
        raster.read((1, 2, 3), Span(0, 64), Span(0, 64))
        write_raster(place.files / "after.tif", AFTER[:, ::-1], **KINDS["tiled"])
        bucket()
        with pytest.raises(InputError, match="was changed while it was read"):
            raster.read((1, 2, 3), Span(300, 400), Span(0, 64))
