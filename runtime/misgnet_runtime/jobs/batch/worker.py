"""What does the scenes: one engine that stays open, and a folder of its own for each scene until all of it is whole."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.bundle.signing.policy import Trust
from misgnet_runtime.engines.options import DEFAULT_EXECUTION, ExecutionOptions
from misgnet_runtime.errors import EngineError, InputError, MisgnetError, StorageError
from misgnet_runtime.inference.selection import Opened, open_detector
from misgnet_runtime.jobs.batch.row import Scene
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_opened
from misgnet_runtime.log import EventLog, collector
from misgnet_runtime.raster.geotiff import load_rasterio
from misgnet_runtime.storage.atomic import publish, resumable_errors, write_file
from misgnet_runtime.storage.files import is_file
from misgnet_runtime.storage.lock import try_acquire

_WORK = ".batch"
_REPORT = "report.json"  # its being there says that all outputs are whole
_MAKER = "maker.json"
_PATIENCE = 30.0  # seconds for a worker that is being ended to let go of its scene


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all workers share."""

    bundle: Path
    digest: str
    output: Path
    engine: SceneOptions  # what the engine is opened for first
    execution: ExecutionOptions = DEFAULT_EXECUTION  # of scenes that state no other
    trust: Trust | None = None  # what the bundle must meet; each worker checks it before it opens anything


@dataclass(frozen=True)
class Task:
    scene: Scene
    key: str


@dataclass(frozen=True)
class Hello:
    """A worker that is ready: where it runs, and with what."""

    place: str
    engine: str


@dataclass(frozen=True)
class Outcome:
    """What became of a scene: its report's ``figures``, or a ``message``.

    ``again``: another attempt may succeed; ``sick``: what happened may have harmed the worker. ``warnings``: logged.
    """

    figures: dict[str, Any] | None = None
    message: str = ""
    again: bool = False
    sick: bool = False
    warnings: tuple[str, ...] = ()


class SceneWorker:
    """Opens the engine once, and again only for a scene that asks for another one."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._stack = ExitStack()
        self._wish: tuple[object, ...] = ()
        self._bundle: Bundle | None = None
        self._opened: Opened | None = None

    def start(self) -> Hello:
        """Open bundle and engine; raises UnavailableError or InputError where they do not open here."""
        load_rasterio("a scene")
        bundle = read_bundle(self._setup.bundle, self._setup.trust)
        if bundle.digest() != self._setup.digest:
            raise InputError(f"bundle {bundle.name} is another one on {socket.gethostname()} than where the run began")
        self._bundle = bundle
        _, entry, reason = self._open(bundle, self._setup.engine)
        return Hello(f"{socket.gethostname()}:{os.getpid()}", f"{entry.name} ({reason})")

    def run(self, task: Task) -> Outcome:
        """Do a scene; whatever is wrong with it is in the outcome."""
        log, records = collector()
        try:
            return Outcome(self._do(task, log), warnings=_warnings(records))
        except StorageError as error:
            return Outcome(message=str(error), again=True, warnings=_warnings(records))
        except EngineError as error:  # opened again, it may work
            self._close()
            return Outcome(message=str(error), again=True, sick=True, warnings=_warnings(records))
        except MisgnetError as error:
            return Outcome(message=str(error), warnings=_warnings(records))
        except Exception as error:  # what nobody foresaw may be this worker's fault, or a moment's
            self._close()
            return Outcome(
                message=f"{type(error).__name__}: {error}", again=True, sick=True, warnings=_warnings(records)
            )

    def _do(self, task: Task, log: EventLog) -> dict[str, Any]:
        assert self._bundle is not None
        options, outputs = task.scene.options(), task.scene.outputs()
        for date, path in (("before", task.scene.before), ("after", task.scene.after)):
            if not is_file(path):
                raise InputError(f"the {date} raster {path if path.name else '(an empty cell)'} is no file")
        opened = self._open(self._bundle, options)
        with _held(work_folder(self._setup.output, task.scene.id)) as folder:
            self._keep_own(folder, self._maker(task, opened, options))
            places = {option: folder / f"{option}{Path(name).suffix.lower()}" for option, name in outputs.items()}
            if not (folder / _REPORT).exists():
                self._predict(task.scene, opened, options, places, log)
            self._publish(places, outputs)
            found: dict[str, Any] = msgspec.json.decode((folder / _REPORT).read_bytes())
            return found

    def _predict(
        self, scene: Scene, opened: Opened, options: SceneOptions, places: dict[str, Path], log: EventLog
    ) -> None:
        assert self._bundle is not None
        products = {option: place for option, place in places.items() if option != "output"}
        report = predict_opened(
            self._bundle, lambda: nullcontext(opened), scene.before, scene.after, places["output"],
            options=replace(options, force=True, **products),  # type: ignore[arg-type]
            log=log,
        )  # fmt: skip
        write_file(places["output"].parent / _REPORT, msgspec.json.encode(asdict(report)))

    def _publish(self, places: dict[str, Path], outputs: dict[str, str]) -> None:
        """Give what is whole its names; a worker that was killed may have done so with some."""
        with resumable_errors(self._setup.output):
            for option, place in places.items():
                target = self._setup.output / outputs[option]
                target.parent.mkdir(parents=True, exist_ok=True)
                if place.exists():
                    publish(place, target)

    def _maker(self, task: Task, opened: Opened, options: SceneOptions) -> bytes:
        """What the parts of a scene must have been made by, for others to be added."""
        detector, entry, _ = opened
        batch = options.batch_of(entry, detector.interface, detector.batch)
        engine = f"{entry.name} on {detector.engine.device}, {detector.engine.streams} streams, batch {batch}"
        place = os.path.realpath(self._setup.output)
        maker = {"scene": task.key, "engine": engine, "folder": place, "max_unreadable": options.max_unreadable}
        return msgspec.json.encode(maker)

    def _keep_own(self, folder: Path, maker: bytes) -> None:
        """Leave what an ended worker began, where it was begun alike; else begin anew."""
        if not (folder / _MAKER).exists() or (folder / _MAKER).read_bytes() != maker:
            _clear(folder)
            (folder / _MAKER).write_bytes(maker)  # half of it is not equal either

    def _open(self, bundle: Bundle, options: SceneOptions) -> Opened:
        execution = options.execution.over(self._setup.execution)
        wish = (options.engine, execution, options.optimise_for)
        if self._opened is None or wish != self._wish:
            self._close()
            opening = open_detector(bundle, options.engine, execution, optimise_for=options.optimise_for)
            self._opened, self._wish = self._stack.enter_context(opening), wish
        return self._opened

    def _close(self) -> None:
        self._opened = None
        self._stack.close()


def _warnings(records: list[logging.LogRecord]) -> tuple[str, ...]:
    return tuple(record.getMessage() for record in records if record.levelno >= logging.WARNING)


def work_folder(output: Path, scene: str) -> Path:
    """Where a scene's parts lie until all are whole, and its report until the record has it."""
    return output / _WORK / scene


def discard_work(output: Path, scene: str) -> None:
    folder = work_folder(output, scene)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others are still at work there
        folder.parent.rmdir()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


@contextmanager
def _held(folder: Path) -> Iterator[Path]:
    """The folder of a scene, held by this process alone; StorageError where another one does not let go of it."""
    with resumable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("ab", buffering=0)
    end = time.monotonic() + _PATIENCE
    with handle:
        while not try_acquire(handle.fileno()):
            if time.monotonic() > end:
                raise StorageError(f"another process is at work in {folder}; end it, and run the same command again")
            time.sleep(0.2)
        yield folder
