"""Measures whole paths from two GeoTIFFs to a mask: ``misgnet-run predict``, and a plain tiled loop of a user."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from benchmarks.contest.contenders import OPENVINO_OWN
from benchmarks.contest.guest import ContenderFailed, Guest, foreign_environment
from benchmarks.scene_pairs import make_label, make_scene
from benchmarks.speed.entrants import STRAIGHT, Context, Entrant, bundle_entrant, guest_entrant
from benchmarks.speed.predictions import open_for, start
from benchmarks.speed.race import Course, rate_for
from benchmarks.speed.report import Scene, ScenePath, SceneRound, Setting, Side
from misgnet_runtime.accuracy.metrics import Confusion
from misgnet_runtime.callables import Mask
from misgnet_runtime.children import environment, python_command
from misgnet_runtime.engines import batch_for_scenes, streams_for_scenes
from misgnet_runtime.errors import UsageError

LOOP = Path(__file__).parents[1] / "tiled_loop.py"
_PREDICT = "misgnet_runtime"
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ScenePair:
    """Two GeoTIFFs of ``pixels`` x ``pixels`` px, and their label."""

    pixels: int
    before: Path
    after: Path
    label: Mask


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that writes the mask of a pair of scenes, and prints its tiles and their seconds as JSON."""

    title: str
    side: Side
    # Returns the command that writes the given file.
    line: Callable[[Path], list[str]]
    # Environment variables.
    variables: Mapping[str, str] = field(repr=False)
    # Returns the engine that the command used, according to its result, and the settings at which it ran.
    engine: Callable[[Result], tuple[Entrant, Setting]]


def make_pair(evaluation: Path, pixels: int, folder: Path) -> ScenePair:
    """Writes the images of an evaluation folder as a pair of scenes to ``folder``, repeated to fill a square.

    Raises:
        UsageError: rasterio is missing.
        InputError: The images are not PNG files of one size.
    """
    if find_spec("rasterio") is None:
        raise UsageError(
            "the scene requires rasterio: pip install 'misgnet-export[geo]'; or leave it out: --skip scene"
        )
    label = make_label(evaluation / "label", pixels)
    before, after = (make_scene(folder / f"{date}.tif", evaluation / date, pixels) for date in ("A", "B"))
    return ScenePair(pixels=pixels, before=before, after=after, label=label)


def commands(context: Context, pair: ScenePair) -> list[Command]:
    """Returns the tiled loop with the straight export and a quarter of overlap, and predict with its defaults."""
    images = [str(pair.before), str(pair.after)]
    manifest, cache = context.bundle.manifest, pair.before.with_name("compiled")
    given = {
        "--threads": context.threads, "--overlap": manifest.tile // 4, "--threshold": manifest.threshold,
        "--cache": cache,
    }  # fmt: skip
    options = [word for name, value in given.items() for word in (name, str(value))]
    predict = ["--log", "json", "predict", "--threads", str(context.threads), "--force"]

    def loop(output: Path) -> list[str]:
        python = context.python_of(OPENVINO_OWN.environment)
        return [str(python), str(LOOP), str(context.straight), *images, str(output), *options]

    def loop_engine(_: Result) -> tuple[Entrant, Setting]:
        straight = guest_entrant(context, STRAIGHT, "straight export", OPENVINO_OWN, context.straight)
        return straight, Setting(max(2, context.threads), 1)  # more than one stream: OpenVINO's throughput hint

    def predict_engine(result: Result) -> tuple[Entrant, Setting]:
        entry = context.bundle.engine_entry(result["engine"])
        return bundle_entrant(context, entry), Setting(streams_for_scenes(entry), batch_for_scenes(entry))

    return [
        Command(
            title="plain tiled loop, straight export", side="peer", variables=foreign_environment(),
            line=loop, engine=loop_engine,
        ),
        Command(
            title="`misgnet-run predict`", side="ours", variables=environment(_PREDICT),
            line=lambda output: python_command(
                _PREDICT, *predict, "-o", str(output), "--", str(context.bundle.path.resolve()), *images
            ),
            engine=predict_engine,
        ),
    ]  # fmt: skip


def measure_scene(course: Course, pair: ScenePair, line: Sequence[Command]) -> Scene:
    """Runs all commands once, then in alternating rounds, each between two measurements of its engine alone.

    The first run fills caches and shows which engine a command uses. A command that fails does not stop the others.
    """
    with ExitStack() as running:
        lanes = {one.title: _Lane(course, pair, one, running) for one in line}
        paths = {one.title: ScenePath(one.title, one.side) for one in line}
        for number in range(1 + course.rounds):
            for one in line if number % 2 else line[::-1]:
                path = paths[one.title]
                if path.failed:
                    continue
                try:
                    paths[one.title] = lanes[one.title].opened(path) if number == 0 else lanes[one.title].ran(path)
                except ContenderFailed as error:
                    paths[one.title] = ScenePath(one.title, one.side, failed=str(error))
            print(f"scene: round {number} of {course.rounds}", file=sys.stderr, flush=True)
    return Scene(pair.pixels, list(paths.values()))


class _Lane:
    """Runs one command, and its engine alone in a guest that is paused meanwhile."""

    def __init__(self, course: Course, pair: ScenePair, command: Command, running: ExitStack) -> None:
        self._course, self._pair, self._command, self._running = course, pair, command, running
        self._guest: Guest | None = None
        self._setting = Setting(1, 1)

    def opened(self, path: ScenePath) -> ScenePath:
        """Runs the command, opens its engine in a guest, and returns the path with its F1 and its engine."""
        output, course = self._output, self._course
        _, result = run_command(self._command.line(output), self._command.variables, course)
        entrant, self._setting = self._command.engine(result)
        self._guest = self._running.enter_context(start(entrant, course.log, course.limit_s))
        precision = open_for(self._guest, entrant, course.threads, self._setting)["precision"]
        self._rate()
        return replace(path, engine=f"{result.get('engine', entrant.engine)}, {precision}", f1=self._f1(output))

    def ran(self, path: ScenePath) -> ScenePath:
        """Measures the engine alone, the command, and the engine again; returns the path with one more round."""
        before = self._rate()
        seconds, result = run_command(self._command.line(self._output), self._command.variables, self._course)
        found = SceneRound(seconds, result["seconds"], result["tiles"], (before + self._rate()) / 2)
        return replace(path, rounds=[*path.rounds, found])

    @property
    def _output(self) -> Path:
        return self._pair.before.with_name(f"{self._command.side}.tif")

    def _rate(self) -> float:
        assert self._guest
        rate = rate_for(self._course, self._guest, self._setting)
        self._guest.pause()
        return rate

    def _f1(self, output: Path) -> float | None:
        import rasterio

        with rasterio.open(output) as dataset:
            return Confusion.of(dataset.read(1) == 1, self._pair.label).f1


def run_command(line: Sequence[str], variables: Mapping[str, str], course: Course) -> tuple[float, Result]:
    """Runs a command; returns its seconds from start to exit, and the last JSON object with ``tiles`` that it printed.

    Raises:
        ContenderFailed: It failed, took too long, or printed no such object.
    """
    name = next(Path(word).stem for word in line if word.endswith((".py", _PREDICT)))
    start_time = time.perf_counter()
    with course.log.open("ab") as log:
        try:
            done = subprocess.run(
                line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=dict(variables),
                timeout=course.limit_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ContenderFailed(f"{name} did not end within {course.limit_s / 60:g} minutes") from None
    seconds = time.perf_counter() - start_time
    results = [found for text in done.stdout.splitlines() if "tiles" in (found := _object(text))]
    if done.returncode or not results:
        raise ContenderFailed(f"{name} failed with exit code {done.returncode}; see {course.log.name} (--keep)")
    return seconds, results[-1]


def _object(text: bytes) -> Result:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
