"""Runs ``misgnet-run predict`` on a pair of GeoTIFFs in a child process, and measures its speed and peak memory."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from misgnet_runtime.bundle import MANIFEST
from misgnet_runtime.bundle.signing.policy import Trust
from misgnet_runtime.children import environment, python_command
from misgnet_runtime.engines.options import DEFAULT_EXECUTION, ExecutionOptions
from misgnet_runtime.errors import GateFailed, InputError, MisgnetError, UnavailableError, UsageError
from misgnet_runtime.pixels import PixelFormat
from misgnet_runtime.storage.files import file_sha256

_KINDS = {kind.exit_code: kind for kind in (UsageError, GateFailed, InputError, UnavailableError)}
_PERIOD = 0.05  # seconds between two readings of the memory


@dataclass(frozen=True, kw_only=True)
class SceneTask:
    """A pair of GeoTIFFs on one grid whose values need no scaling, and how it is processed."""

    bundle: Path
    before: Path
    after: Path
    # Change raster to write.
    output: Path
    engine: str
    execution: ExecutionOptions = DEFAULT_EXECUTION
    # Signature policy (default: no signature is required).
    trust: Trust | None = None
    # Expected digest of the manifest (default: not checked).
    bundle_sha256: str | None = None

    def command(self) -> list[str]:
        shared = ["--log", "json"]
        if self.trust and self.trust.key:
            shared += ["--require-signature", str(self.trust.key)]
        if self.trust and self.trust.allow_older:
            shared += ["--allow-older"]
        options = ["--engine", self.engine, "-o", str(self.output), "--no-tuned"]
        for name in ("threads", "streams", "batch"):
            if (number := getattr(self.execution, name)) is not None:
                options += [f"--{name}", str(number)]
        paths = map(str, (self.bundle, self.before, self.after))
        return python_command("misgnet_runtime", *shared, "predict", *options, "--", *paths)


def _environment() -> dict[str, str]:
    """Returns the environment of the child, without defaults of options: the task states all of them."""
    return environment(MISGNET_CONFIG="")


@dataclass(frozen=True)
class SceneRun:
    """Result of a scene run."""

    # Number of computed tiles.
    tiles: int
    # From the first tile read to the last row written.
    seconds: float
    # Peak memory of the process; 0 if unknown.
    peak_bytes: int


def run_scene(task: SceneTask) -> SceneRun:
    """Runs a scene. Raises the errors of ``predict``, and InputError if the bundle has changed since it was checked."""
    _check_bundle(task)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as messages:
        code, peak = _run(task.command(), output, messages)
        if code:
            message = next((event["message"] for event in _events(messages, "error")), "no message")
            raise _KINDS.get(code, MisgnetError)(f"predict on {task.before} and {task.after}: {message}")
        (report,) = _events(output, "result")
    _check_bundle(task)
    return SceneRun(report["tiles"], report["seconds"], peak)


def check_scene(before: Path, after: Path, pixels: PixelFormat) -> None:
    """Raises the errors of ``predict`` for an unreadable pair or a missing scale, before the slow measurements."""
    from misgnet_runtime.raster.declared import Declared
    from misgnet_runtime.raster.reader import open_pair
    from misgnet_runtime.raster.statistics import find_scaling

    with open_pair(before, after, align=False, pixels=pixels) as pair:
        for source in (pair.before, pair.after):
            find_scaling(source, Declared())


def _check_bundle(task: SceneTask) -> None:
    if task.bundle_sha256 not in (None, file_sha256(task.bundle / MANIFEST)):
        raise InputError(f"bundle {task.bundle} has changed since the bundle was checked; rerun the command")


def _run(command: list[str], output: IO[bytes], messages: IO[bytes]) -> tuple[int, int]:
    """Runs a command; returns its exit code and its peak memory in bytes."""
    peak = 0
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=messages, env=_environment()) as run:
        while run.poll() is None:
            peak = max(peak, _peak_bytes(run.pid))
            with suppress(subprocess.TimeoutExpired):
                run.wait(_PERIOD)
    return run.returncode, peak


def _events(file: IO[bytes], kind: str) -> Iterator[dict[str, Any]]:
    """Yields the JSON events of one kind that the command printed; skips lines printed by libraries."""
    file.seek(0)
    for line in file:
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == kind:
                yield event


def _peak_bytes(process: int) -> int:
    """Returns the peak memory of a process. ``ru_maxrss`` would include the parent's memory at the fork."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:  # the process has exited, or this is not Linux
        return 0
    return 1024 * int(found[1]) if found else 0
