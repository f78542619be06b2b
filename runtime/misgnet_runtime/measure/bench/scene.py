"""``misgnet-run predict`` on a pair of GeoTIFFs, in a process of its own: how fast, and how much memory it took.

python -m misgnet_runtime.measure.bench.scene    (a task as JSON on its input; the figures as JSON on its output)
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.children import environment, python_command
from misgnet_runtime.cli.app import run_app
from misgnet_runtime.engines.options import ExecutionOptions
from misgnet_runtime.errors import GateFailed, InputError, MisgnetError, UnavailableError, UsageError
from misgnet_runtime.log import collector
from misgnet_runtime.storage.schema import Count, Struct

_KINDS = {kind.exit_code: kind for kind in (UsageError, GateFailed, InputError, UnavailableError)}


class SceneTask(Struct, frozen=True):
    """A pair of 8-bit RGB GeoTIFFs on one grid, the change raster to write, and how.

    ``bundle_sha256``: of the manifest of the bundle that is measured. ``key``: by which it must be signed, None where
    nothing is required; ``allow_older``: as :class:`Trust`.
    """

    bundle: str
    before: str
    after: str
    output: str
    engine: str
    batch: int
    streams: int
    threads: int | None
    key: str | None = None
    allow_older: bool = False
    bundle_sha256: str | None = None


class SceneRun(Struct, frozen=True):
    """Tiles computed, seconds from the first one read to the last row written, and the most memory in use."""

    tiles: Count
    seconds: float
    peak_bytes: Count


def run_scene(task: SceneTask) -> SceneRun:
    """Raises what ``predict`` raises, with its words."""
    command = python_command("misgnet_runtime.measure.bench.scene")
    ended = subprocess.run(
        command, input=msgspec.json.encode(task), capture_output=True, env=environment(), check=False
    )
    if ended.returncode:
        last = (ended.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        kind = _KINDS.get(ended.returncode, MisgnetError)
        raise kind(f"predict on {task.before} and {task.after}: {last.removeprefix('error: ')}")
    return msgspec.json.decode(ended.stdout, type=SceneRun)


def check_scene(before: Path, after: Path) -> None:
    """Before anything slow: raises as ``predict`` does where the pair cannot be read, or not without declarations."""
    from misgnet_runtime.raster.declared import Declared
    from misgnet_runtime.raster.reader import open_pair
    from misgnet_runtime.raster.statistics import find_scaling

    with open_pair(before, after, align=False) as pair:
        for source in (pair.before, pair.after):
            find_scaling(source, Declared())


def main() -> None:
    from misgnet_runtime.bundle.signing.policy import use_allow_older, use_key
    from misgnet_runtime.jobs.scene.options import SceneOptions
    from misgnet_runtime.jobs.scene.predict import predict_scene_files

    task = msgspec.json.decode(sys.stdin.buffer.read(), type=SceneTask)
    use_key(None if task.key is None else Path(task.key))
    use_allow_older(task.allow_older)
    execution = ExecutionOptions(batch=task.batch, streams=task.streams, threads=task.threads)
    options = SceneOptions(engine=task.engine, execution=execution, tuned=False)
    bundle = read_bundle(Path(task.bundle))
    if task.bundle_sha256 not in (None, bundle.digest()):
        raise InputError(f"bundle {bundle.name} has changed since the bundle was checked; run the command again")
    paths = Path(task.before), Path(task.after), Path(task.output)
    report = predict_scene_files(bundle, *paths, options, log=collector()[0])
    sys.stdout.buffer.write(msgspec.json.encode(SceneRun(report.tiles, report.seconds, _peak_bytes())))


def _peak_bytes() -> int:
    """Of this program alone: ``ru_maxrss`` would count the parent too, whose memory a child begins with."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


if __name__ == "__main__":
    run_app(main)
