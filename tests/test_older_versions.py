"""Tests that files of commit 060c2ba (data/older/make.py) are resumed, or refused in one line that names the format."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from misgnet.cli import main as misgnet
from misgnet_runtime.cli import main as misgnet_run
from misgnet_runtime.jobs.batch.record import open_record
from misgnet_runtime.jobs.batch.table import Shard
from misgnet_runtime.jobs.watch.journal import open_journal
from misgnet_runtime.machine import describe_machine, usable_cores
from support.commands import exit_code
from support.paths import DATA

OLDER = DATA / "older/made"
MODIFIED = 1_700_000_000  # as in make.py
ENGINE = ("--engine", "cpu-float32", "--batch", "1", "--no-tuned")
Run = Callable[..., str]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Returns a copy of all older files; input files get their original modification times."""
    root = tmp_path / "made"
    shutil.copytree(OLDER, root)
    for path in (*root.glob("folder/[AB]/*"), *root.glob("watch/in/*")):
        os.utime(path, (MODIFIED, MODIFIED))
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Returns a function that runs misgnet-run or ``main``, which must succeed, and returns its output."""

    def ran(*words: object, main: Callable[[], object] = misgnet_run.main) -> str:
        capsys.readouterr()
        code = exit_code(main, "program", *words)
        out, err = capsys.readouterr()
        assert code == 0, err
        return out + err

    return ran


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def state(*paths: Path) -> list[tuple[bytes, int]]:
    return [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]


def test_older_bundle_is_verified_and_predicts_the_same(made: Path, tmp_path: Path, run: Run) -> None:
    output = run("verify", made / "bundle")
    assert "8 files match their digests" in output and output.count("golden tiles") == 2
    info = run("info", made / "bundle")
    assert "cpu-float32" in info and "overlap 16 px (a quarter of a tile)" in info
    pair = [made / "watch/in" / f"a_{date}.png" for date in ("before", "after")]
    run("predict", made / "bundle", *pair, "-o", tmp_path / "mask.png", "--engine", "cpu-float32")
    mask = pixels(tmp_path / "mask.png")
    assert (mask == pixels(made / "watch/out/a_change.png")).all() and 0 < mask.mean() < 255


@pytest.mark.parametrize("overlap", [("--overlap", "16"), ()])
def test_scene_is_resumed(made: Path, tmp_path: Path, run: Run, overlap: tuple[str, ...]) -> None:
    """The default of the older bundle is still a quarter of its tiles, here 16 px."""
    words = ("predict", made / "bundle", made / "scene/before.tif", made / "scene/after.tif", *ENGINE)
    words = (*words, *overlap, "--streams", "1", "-o")
    raw = made / "scene/.change.tif.progress/probability.raw"
    assert 0 < raw.stat().st_size < 192 * 64 * 4, "the run was killed before it finished"
    assert "row 96" in run(*words, made / "scene/change.tif")
    assert "row " not in run(*words, tmp_path / "whole.tif")
    assert (made / "scene/change.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert not raw.parent.exists()


def test_folder_is_resumed(made: Path, tmp_path: Path, run: Run) -> None:
    folder = made / "folder"
    words = ("predict", made / "bundle", folder / "A", folder / "B", *ENGINE, "-o")
    before = state(folder / "masks/a.png", folder / "masks/b.png")
    assert "3 pairs (2 from an interrupted run)" in run(*words, folder / "masks")
    assert state(folder / "masks/a.png", folder / "masks/b.png") == before
    run(*words, tmp_path / "whole")
    for name in "abc":
        assert (pixels(folder / f"masks/{name}.png") == pixels(tmp_path / f"whole/{name}.png")).all()
    assert sorted(os.listdir(folder / "masks")) == ["a.png", "b.png", "c.png"]  # noqa: PTH208


def test_watcher_is_resumed(made: Path, run: Run) -> None:
    """Two pairs are finished, the results of a third are only renamed, and a fourth is new."""
    folder, out = made / "watch/in", made / "watch/out"
    whole = (out / ".working/c_change.png").read_bytes()
    before = state(out / "a_change.png", out / "b_change.png")
    for date in ("before", "after"):
        shutil.copy(folder / f"a_{date}.png", folder / f"d_{date}.png")
    words = (*ENGINE, "--overlap", "16", "--streams", "1", "--once", "--settle", "0")
    assert "3 pairs processed earlier" in run("watch", made / "bundle", folder, "-o", out, *words)
    assert state(out / "a_change.png", out / "b_change.png") == before
    assert (out / "c_change.png").read_bytes() == whole and not (out / ".working").exists()
    assert (pixels(out / "d_change.png") == pixels(out / "a_change.png")).all()
    lines = list(map(msgspec.json.decode, (out / "watch.jsonl").read_bytes().splitlines()))
    assert [line["pair"] for line in lines if line["type"] == "done"] == ["a", "b", "c", "d"]
    assert [line["pair"] for line in lines if line["type"] == "begun"] == ["a", "b", "c", "d"]
    with open_journal(out) as journal:
        assert {name: end.done for name, end in journal.pairs.ended.items()} == dict.fromkeys("abcd", 1)


def test_batch_record_is_read(made: Path) -> None:
    with open_record(made / "batch", Shard()) as record:
        assert {name: type(end).__name__ for name, end in record.ended.items()} == {"a": "Done", "b": "Failed"}
        assert record.attempts["c"] == 1 and record.own == {"a.tif", "b.tif", "c.tif"} and record.bundle == "0" * 64


def test_prepared_data_set_is_resumed(made: Path, tmp_path: Path, run: Run) -> None:
    tiles = sorted((made / "dataset/tiles/train").rglob("*.png"))
    before, words = state(*tiles), ("prepare", "levir", made / "dataset/source", "--tile", "64", "-o")
    run(*words, made / "dataset/tiles", main=misgnet)
    assert state(*tiles) == before and len(tiles) == 6
    run(*words, tmp_path / "whole", main=misgnet)
    for path in (tmp_path / "whole").rglob("*.png"):
        assert (pixels(path) == pixels(made / "dataset/tiles" / path.relative_to(tmp_path / "whole"))).all()


def test_checkpoint_is_loaded(made: Path, tmp_path: Path) -> None:
    """The weights are zeros: only the header was kept."""
    pytest.importorskip("torch")
    from misgnet.checkpoint import load_checkpoint

    head = gzip.decompress((made / "checkpoint.safetensors.head.gz").read_bytes())
    ends = [entry["data_offsets"][1] for name, entry in json.loads(head[8:]).items() if name != "__metadata__"]
    with (tmp_path / "best.safetensors").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + max(ends))
    assert len(load_checkpoint(tmp_path / "best.safetensors")) == len(ends) == 408


def test_tuning_is_refused_in_one_line(made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's name depends on the machine, so the test computes it for this machine."""
    machine = describe_machine()
    place = {
        "bundle_sha256": hashlib.sha256((made / "bundle/manifest.json").read_bytes()).hexdigest(),
        "engine": "cpu-float32",
        "processor": ", ".join(str(machine[key]) for key in ("processor", "model") if key in machine),
        "cores": usable_cores(),
        "gpu": "",
        "library": "",
    }
    folder = tmp_path / "cache/tuning"
    for path in (folder.parent, folder):
        path.mkdir(mode=0o700)
    kept = folder / f"{hashlib.sha256(msgspec.json.encode(place)).hexdigest()[:32]}.json"
    shutil.copy(made / "tuning.json", kept)
    kept.chmod(0o600)
    monkeypatch.setenv("MISGNET_CACHE", str(folder.parent))
    pair = [made / "scene" / f"{date}.tif" for date in ("before", "after")]
    output = run("predict", made / "bundle", *pair, "-o", tmp_path / "change.tif")
    warnings = [line for line in output.splitlines() if line.startswith("warning: the tuning")]
    (warning,) = warnings
    assert f"{kept} is not used: it has format 1; this version reads format 2; run misgnet-run tune " in warning
    assert (tmp_path / "change.tif").exists()
