"""What a run leaves in the folder of ``--keep``, and what a later one may take from it: graphs, and answers.

They are taken again where nothing that they depend on has changed. Speeds are always new.
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
from benchmarks.contest.guest import GUESTS, Answer
from misgnet_runtime.errors import UsageError
from misgnet_runtime.raster.dataset import TileSet
from misgnet_runtime.storage.files import file_sha256

_MARK = "contest"  # an empty file: the folder is a run's own
_ANSWER = "answer.json"


@contextmanager
def work_folder(keep: Path | None) -> Iterator[Path]:
    """A folder for tiles, graphs and logs; one that is to be kept is new, or of an earlier run that goes on."""
    if keep is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    open_folder(keep)
    yield keep.resolve()


def open_folder(folder: Path) -> None:
    """Make ``folder``, or go on in that of an earlier run. Raises UsageError for a folder of something else."""
    if folder.exists() and not (folder / _MARK).is_file():
        raise UsageError(f"--keep {folder} exists and is not of an earlier run; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def emptied(folder: Path) -> Path:
    """``folder``, new and empty."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def key_of(float_graph: Path, calibration: TileSet, peer: Contender) -> str:
    """SHA-256 of all that a peer's graph depends on: graph, tiles, settings, its script and its environment's pins."""
    script, pins = GUESTS / peer.script, REQUIREMENTS / f"{peer.environment}.txt"
    parts = [file_sha256(float_graph), calibration.digest(), json.dumps(peer.settings, sort_keys=True)]
    parts += [file_sha256(script), file_sha256(pins)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read(folder: Path, key: str) -> Answer | None:
    """What a guest said of the file that it left in ``folder``, where both are there and of the same ``key``."""
    try:
        found = json.loads((folder / _ANSWER).read_bytes())
    except (OSError, ValueError):  # none yet, or cut off while it was written
        return None
    answer: Answer | None = found["answer"] if found["key"] == key else None
    return answer


def write(folder: Path, key: str, answer: Answer) -> None:
    """Keep ``answer``; written last, it says that the file beside it is whole."""
    (folder / _ANSWER).write_text(json.dumps({"key": key, "answer": answer}))
