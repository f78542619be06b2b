"""What a run leaves in the folder of ``--keep``, and what a later one may take from it: the peers' graphs.

A peer's graph is taken again where nothing that it depends on has changed. Answers and speeds are always new.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from benchmarks.int8_peers.contenders import Contender
from benchmarks.int8_peers.environments import REQUIREMENTS
from benchmarks.int8_peers.guest import GUESTS, Answer
from misgnet_runtime.bundle import file_sha256
from misgnet_runtime.errors import UsageError
from misgnet_runtime.tiles import TileSet

_MARK = "int8_peers"  # an empty file: the folder is a run's own
_ANSWER = "answer.json"


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
    """The answer that came with the graph in ``folder``, where both are there and of the same ``key``."""
    try:
        found = json.loads((folder / _ANSWER).read_bytes())
    except (OSError, ValueError):  # none yet, or cut off while it was written
        return None
    answer: Answer | None = found["answer"] if found["key"] == key else None
    return answer


def write(folder: Path, key: str, answer: Answer) -> None:
    """Keep ``answer``; written last, it says that the graph beside it is whole."""
    (folder / _ANSWER).write_text(json.dumps({"key": key, "answer": answer}))
