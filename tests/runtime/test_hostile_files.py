"""Tests hostile files that were once accepted; each was found by fuzzing (tests/fuzz) or review, and is refused now."""

from __future__ import annotations

import io
import json
import os
import signal
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from misgnet_runtime.bundle.golden import read_golden
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing.release import moment
from misgnet_runtime.cli import main as cli
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.formatting import now
from misgnet_runtime.jobs.batch import record as batch_record
from misgnet_runtime.jobs.batch.table import Shard, read_table
from misgnet_runtime.jobs.folder_record import Header, open_record
from misgnet_runtime.jobs.journal import Band, Raw, open_journal, progress_folder
from misgnet_runtime.jobs.series.features import open_features
from misgnet_runtime.jobs.watch import journal as watch_journal
from misgnet_runtime.jobs.watch.journal import FileState
from misgnet_runtime.log import current, use
from misgnet_runtime.raster.images import image_size, read_image
from misgnet_runtime.storage import npz
from misgnet_runtime.storage.jsonl import encode_line
from support.bundles import edit, make_bundle
from support.commands import exit_code

ZEROS = "0" * 64


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Fails a test that does not end."""

    def late(*_: object) -> None:
        pytest.fail("the test did not end within 20 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow decides by the first bytes, not by the name, and runs Ghostscript on PostScript files."""
    path = tmp_path / "tile.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was run"))
    for read in (read_image, image_size):
        with pytest.raises(InputError, match="cannot be read"):
            read(path)


def test_golden_tiles_that_expand_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiles.npz"
    np.savez_compressed(path, before=np.zeros(1 << 20, np.uint8))
    monkeypatch.setattr(npz, "ARCHIVE_BYTES", 1 << 20)
    assert path.stat().st_size < 1 << 12
    with pytest.raises(InputError, match="declare 1048704 bytes; the limit is 1048576"):
        read_golden(path)


def test_golden_tiles_in_another_compression_are_refused(tmp_path: Path) -> None:
    """Decompressors of other methods expand all bytes that were read, regardless of the declared size."""
    out = io.BytesIO()
    np.save(out, np.zeros(8))
    path = tmp_path / "tiles.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("before.npy", out.getvalue())
    with pytest.raises(InputError, match="by another method than deflate"):
        read_golden(path)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_times_beyond_the_range_of_datetime_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a valid time in UTC"):
        moment(text)


def test_bundle_of_endless_files_is_refused(tmp_path: Path) -> None:
    """A sparse file costs nothing, but hashing it would take years."""
    root = make_bundle(tmp_path / "bundle")
    edit(root, lambda manifest: manifest["files"][0].update(size=1 << 60))
    with pytest.raises(InputError, match="is not a bundle: its manifest lists files of"):
        read_bundle(root)


def test_names_are_printed_without_markup(capsys: pytest.CaptureFixture[str]) -> None:
    use("text")
    current().info("[red]a:car:b.tif[/blue]")
    assert capsys.readouterr().err == "[red]a:car:b.tif[/blue]\n"


# Records


RAW = Raw("probability.raw", 4, 64, "the scene")


@pytest.mark.parametrize("stop", [5, 1 << 62, 0])
def test_journal_that_states_more_than_its_data_counts_as_empty(tmp_path: Path, stop: int) -> None:
    """The reader once allocated as many bytes as the journal stated."""
    output = tmp_path / "change.tif"
    folder = progress_folder(output)
    folder.mkdir()
    (folder / RAW.name).write_bytes(bytes(4 * 64))
    content = encode_line(RAW.header({})) + encode_line(Band(stop, 0))
    (folder / "journal.jsonl").write_bytes(content)
    with open_journal(output, RAW, {}, restart=False) as journal:
        assert journal.finished == 0


@pytest.mark.parametrize("name", ["../victim", "/etc/passwd", "..", ".", "", "a/b", "a\0"])
def test_watch_journal_that_names_files_outside_is_refused(tmp_path: Path, name: str) -> None:
    """The next watcher renames the files that a journal names; once it also renamed files outside the folder."""
    started = watch_journal.PairStarted(now(), "a", *(FileState("a", 1, 1, ZEROS) for _ in range(2)))
    complete = watch_journal.Complete(now(), "a", (name,), {})
    (tmp_path / "watch.jsonl").write_bytes(encode_line(started) + encode_line(complete))
    with pytest.raises(UsageError, match="line 2 is damaged"), watch_journal.open_journal(tmp_path):
        pass


def test_record_of_masks_that_names_files_outside_is_refused(tmp_path: Path) -> None:
    folder, victim = tmp_path / "out/.progress", tmp_path / "victim.png"
    folder.mkdir(parents=True)
    victim.write_bytes(b"stays")
    header = Header(1, {"the engine": "cpu"})
    line = {"masks": [{"name": "../../victim", "stamp": [1, 2, 3, 4], "pixels": 1, "changed": 0}]}
    (folder / "journal.jsonl").write_bytes(encode_line(header) + json.dumps(line).encode() + b"\n")
    outputs = {"a": "a.png"}
    with pytest.raises(UsageError, match="is damaged"), open_record(tmp_path / "out", header.settings, outputs, False):
        pass
    assert victim.read_bytes() == b"stays"


DONE: dict[str, Any] = {
    "type": "done", "time": "2026-01-01T00:00:00Z", "scene": "a", "key": ZEROS, "outputs": ["a.tif"], "attempts": 1,
    "worker": "here", "figures": {"changed_share": 0.5, "unread": [0, 0]},
}  # fmt: skip
DAMAGED: dict[str, dict[str, Any]] = {
    "a time without a zone": {"time": "2026-01-01T00:00:00"},
    "no outputs": {"outputs": []},
    "no figures": {"figures": {}},
    "figures of another kind": {"figures": {"changed_share": "much", "unread": [0, 0]}},
    "counts that no table holds": {"figures": {"changed_share": 0.5, "unread": [1 << 63, 0]}},
    "half a figure": {"figures": {"changed_share": 0.5, "unread": [0]}},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_record_of_a_batch_is_refused(tmp_path: Path, case: str) -> None:
    for name, more in (("batch.jsonl", DAMAGED[case]), ("batch-1-of-2.jsonl", {})):
        (tmp_path / name).write_text(json.dumps({**DONE, **more}) + "\n")
    with pytest.raises(UsageError, match="line 1 is damaged"), batch_record.open_record(tmp_path, Shard()):
        pass
    (tmp_path / "batch.jsonl").write_text(json.dumps(DONE) + "\n")
    with batch_record.open_record(tmp_path, Shard()) as record:
        assert record.ended["a"].time == datetime.fromisoformat("2026-01-01T00:00:00+00:00")


def test_table_with_zero_bytes_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "scenes.csv"
    table.write_bytes(b"id,before,after\na,b\0,c\n")
    with pytest.raises(InputError, match=r"null byte|not a CSV"):
        read_table(table, {}, tmp_path / "out")


def test_table_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "scenes.csv"
    with table.open("wb") as file:
        file.truncate(1 << 40)  # without a byte on the disk
    with pytest.raises(InputError, match="split it"):
        read_table(table, {}, tmp_path / "out")


# Reading a pipe waits until another process writes to it.


def _checkpoint(path: Path) -> object:
    pytest.importorskip("torch")
    from misgnet.checkpoint import load_checkpoint

    return load_checkpoint(path)


@pytest.mark.parametrize("read", [
    read_image, image_size, open_features, read_golden, _checkpoint, lambda path: read_table(path, {}, path.parent),
])  # fmt: skip
def test_pipe_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError):
        read(tmp_path / "pipe")


def test_pipe_among_the_records_of_other_shards_is_ignored(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "batch-1-of-2.jsonl")
    with batch_record.open_record(tmp_path, Shard(0, 2)) as record:
        assert not record.ended


def test_weights_that_share_storage_are_refused(tmp_path: Path) -> None:
    """With strides of zero, a single number is a tensor of any size."""
    torch = pytest.importorskip("torch")
    from misgnet.checkpoint import read_tensors

    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="declares 4398046511104 bytes of weights"):
        read_tensors(tmp_path / "weights.pt")


@pytest.mark.parametrize("command", ["info", "verify", "watch", "series", "predict", "batch"])
def test_too_long_name_is_an_input_error(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long, bundle = "x" * 5000, make_bundle(tmp_path / "bundle")
    words = {"watch": [bundle, long], "series": [bundle, f"{long}.tif", "b.tif"], "batch": [bundle, f"{long}.csv"]}
    found = words.get(command, [bundle, f"{long}.png", "b.png"] if command == "predict" else [long])
    out = [] if command in ("info", "verify") else ["-o", tmp_path / "out.png"]
    if command == "series":
        found = [long, "a.tif", "b.tif"]
    assert exit_code(cli.main, "misgnet-run", command, *found, *out) == 4
    error = capsys.readouterr().err
    assert "Traceback" not in error and "too long" in error


def test_image_that_does_not_fit_into_memory_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    monkeypatch.setattr(Image.Image, "convert", lambda *_, **__: bytearray(1 << 62))
    with pytest.raises(InputError, match="does not fit into the available memory"):
        read_image(path)
