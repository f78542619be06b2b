"""Stores graphs and predictions in the folder of ``--keep`` for later runs.

A later run reuses them if nothing that they depend on has changed. Speeds are always measured again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.contest.contenders import Contender
from benchmarks.contest.environments import REQUIREMENTS
from benchmarks.contest.guest import GUESTS, Reply
from misgnet_runtime.errors import UsageError
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.files import file_sha256

_MARK = "contest"  # an empty file that marks the folder of a run
_ANSWER = "answer.json"


@contextmanager
def work_folder(keep: Path | None) -> Iterator[Path]:
    """Yields a folder for tiles, graphs and logs: ``keep``, which may be of an earlier run, or a temporary one."""
    if keep is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    open_folder(keep)
    yield keep.resolve()


def open_folder(folder: Path) -> None:
    """Creates ``folder``, or reuses that of an earlier run; raises UsageError for any other folder."""
    if folder.exists() and not (folder / _MARK).is_file():
        raise UsageError(f"--keep {folder} exists but was not made by an earlier run; choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def emptied(folder: Path) -> Path:
    """Creates ``folder`` as an empty folder and returns it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def key_of(float_graph: Path, calibration: TileSet, peer: Contender) -> str:
    """Returns the SHA-256 of everything that a peer's graph depends on: graph, tiles, settings, script and pins."""
    script, pins = GUESTS / peer.script, REQUIREMENTS / f"{peer.environment}.txt"
    parts = [file_sha256(float_graph), calibration.digest(), json.dumps(peer.settings, sort_keys=True)]
    parts += [file_sha256(script), file_sha256(pins)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read(folder: Path, key: str) -> Reply | None:
    """Returns a guest's reply that was stored in ``folder`` with the same ``key``; None if there is none."""
    try:
        found = json.loads((folder / _ANSWER).read_bytes())
    except (OSError, ValueError):  # missing, or truncated
        return None
    reply: Reply | None = found["answer"] if found["key"] == key else None
    return reply


def write(folder: Path, key: str, reply: Reply) -> None:
    """Stores ``reply``. It is written last, so its presence shows that the file beside it is complete."""
    (folder / _ANSWER).write_text(json.dumps({"key": key, "answer": reply}))
