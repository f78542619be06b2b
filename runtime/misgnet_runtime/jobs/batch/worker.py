"""Processes scenes with an engine that stays open.

Each scene has its own work folder until all of its outputs are complete.
"""

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
from misgnet_runtime.errors import EngineError, InputError, MisgnetError, NetworkError, StorageError
from misgnet_runtime.inference.selection import DetectorOpener, Opened, open_detector
from misgnet_runtime.jobs.batch.row import Scene
from misgnet_runtime.jobs.scene.options import SceneOptions
from misgnet_runtime.jobs.scene.predict import predict_opened
from misgnet_runtime.log import EventLog, collector
from misgnet_runtime.options import stated
from misgnet_runtime.raster.geotiff import load_rasterio
from misgnet_runtime.raster.remote import NO_REMOTE, RemoteOptions
from misgnet_runtime.storage.atomic import publish, resumable_errors, write_file
from misgnet_runtime.storage.files import is_file
from misgnet_runtime.storage.lock import try_acquire

_WORK = ".batch"
_REPORT = "report.json"  # exists once all outputs are complete
_MAKER = "maker.json"
_LOCK_SECONDS = 30.0  # for a worker that is being killed to release its scene


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings shared by all workers."""

    bundle: Path
    # Digest of the bundle's manifest.
    digest: str
    output: Path
    # Options with which the engine is opened first.
    engine: SceneOptions
    # Execution options of scenes that state no others.
    execution: ExecutionOptions = DEFAULT_EXECUTION
    # Signature policy; each worker checks the bundle against it before opening anything.
    trust: Trust | None = None
    # Whether scenes may use a network.
    remote: RemoteOptions = NO_REMOTE


@dataclass(frozen=True)
class Task:
    """A scene to process."""

    scene: Scene
    # See :meth:`Scene.key`.
    key: str


@dataclass(frozen=True)
class Hello:
    """Sent by a worker that is ready."""

    # Host name and process id.
    worker: str
    # The engine's name, and why it was chosen.
    engine: str


@dataclass(frozen=True)
class Outcome:
    """Outcome of an attempt of a scene."""

    # Fields of the scene's report; None if the attempt failed.
    figures: dict[str, Any] | None = None
    # Why the attempt failed.
    message: str = ""
    # Whether another attempt may succeed.
    retry: bool = False
    # Whether the failure may have damaged the worker.
    restart_worker: bool = False
    # Warnings that were logged.
    warnings: tuple[str, ...] = ()


class SceneWorker:
    """Opens the engine once, and again only for a scene that requires another engine. ``opener`` opens it."""

    def __init__(self, setup: Setup, *, opener: DetectorOpener = open_detector) -> None:
        self._setup, self._opener = setup, opener
        self._stack = ExitStack()
        self._opened_for: tuple[object, ...] = ()
        self._bundle: Bundle | None = None
        self._opened: Opened | None = None

    def start(self) -> Hello:
        """Opens the bundle and its engine; raises UnavailableError or InputError if that fails."""
        load_rasterio("a scene")
        bundle = read_bundle(self._setup.bundle, self._setup.trust)
        if bundle.digest() != self._setup.digest:
            raise InputError(
                f"bundle {bundle.name} on {socket.gethostname()} differs from the bundle with which the run was started"
            )
        self._bundle = bundle
        _, entry, reason = self._open(bundle, self._setup.engine)
        return Hello(f"{socket.gethostname()}:{os.getpid()}", f"{entry.name} ({reason})")

    def run(self, task: Task) -> Outcome:
        """Processes a scene; errors are returned in the outcome, not raised."""
        log, records = collector()
        try:
            return Outcome(self._do(task, log), warnings=_warnings(records))
        except (StorageError, NetworkError) as error:
            return Outcome(message=str(error), retry=True, warnings=_warnings(records))
        except EngineError as error:  # the engine may work after it is reopened
            self._close()
            return Outcome(message=str(error), retry=True, restart_worker=True, warnings=_warnings(records))
        except MisgnetError as error:
            return Outcome(message=str(error), warnings=_warnings(records))
        except Exception as error:  # an unexpected error may be temporary, or caused by this worker's state
            self._close()
            return Outcome(
                message=f"{type(error).__name__}: {error}", retry=True, restart_worker=True, warnings=_warnings(records)
            )

    def _do(self, task: Task, log: EventLog) -> dict[str, Any]:
        assert self._bundle is not None
        options, outputs = task.scene.options(), task.scene.outputs()
        for date, path in (("before", task.scene.before), ("after", task.scene.after)):
            if isinstance(path, Path) and not is_file(path):
                raise InputError(
                    f"the {date} raster {path if path.name else '(empty cell)'} does not exist or is not a regular file"
                )
        opened = self._open(self._bundle, options)
        with _held(work_folder(self._setup.output, task.scene.id)) as folder:
            self._keep_own(folder, self._maker(task, opened, options))
            paths = {option: _work_path(folder, option, name) for option, name in outputs.items()}
            if not (folder / _REPORT).exists():
                self._predict(task.scene, opened, options, paths, log)
            self._publish(paths, outputs)
            found: dict[str, Any] = msgspec.json.decode((folder / _REPORT).read_bytes())
            return found

    def _predict(
        self, scene: Scene, opened: Opened, options: SceneOptions, paths: dict[str, Path], log: EventLog
    ) -> None:
        assert self._bundle is not None
        products = {option: path for option, path in paths.items() if option in stated(SceneOptions)}
        report = predict_opened(
            self._bundle, lambda: nullcontext(opened), scene.before, scene.after, paths["output"],
            options=replace(options, force=True, remote=self._setup.remote, **products),  # type: ignore[arg-type]
            log=log, name=scene.id,
            places={option: self._setup.output / name for option, name in scene.outputs().items()},
        )  # fmt: skip
        write_file(paths["output"].parent / _REPORT, msgspec.json.encode(asdict(report)))

    def _publish(self, paths: dict[str, Path], outputs: dict[str, str]) -> None:
        """Moves complete files to their output paths; a killed worker may have moved some of them already."""
        with resumable_errors(self._setup.output):
            for option, path in paths.items():
                target = self._setup.output / outputs[option]
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    publish(path, target)

    def _maker(self, task: Task, opened: Opened, options: SceneOptions) -> bytes:
        """Returns the conditions under which an interrupted attempt can be resumed, as JSON."""
        detector, entry, _ = opened
        batch = options.batch_of(entry, detector.interface, detector.batch)
        # Stored on disk and compared by later versions: the text must not change.
        engine = f"{entry.name} on {detector.engine.device}, {detector.engine.streams} streams, batch {batch}"
        output = os.path.realpath(self._setup.output)
        maker = {"scene": task.key, "engine": engine, "folder": output, "max_unreadable": options.max_unreadable}
        return msgspec.json.encode(maker)

    def _keep_own(self, folder: Path, maker: bytes) -> None:
        """Keeps the files of an interrupted attempt if it ran under the same conditions; otherwise removes them."""
        if not (folder / _MAKER).exists() or (folder / _MAKER).read_bytes() != maker:
            _clear(folder)
            (folder / _MAKER).write_bytes(maker)  # not atomic: a partial file compares as different

    def _open(self, bundle: Bundle, options: SceneOptions) -> Opened:
        execution = options.execution.over(self._setup.execution)
        requested = (options.engine, execution, options.optimise_for)
        if self._opened is None or requested != self._opened_for:
            self._close()
            opening = self._opener(bundle, options.engine, execution, optimise_for=options.optimise_for)
            self._opened, self._opened_for = self._stack.enter_context(opening), requested
        return self._opened

    def _close(self) -> None:
        self._opened = None
        self._stack.close()


def _work_path(folder: Path, option: str, name: str) -> Path:
    """Returns where an output is written before it gets its ``name``; a style lies beside its raster."""
    return folder / f"{option.removesuffix('_style')}{Path(name).suffix.lower()}"


def _warnings(records: list[logging.LogRecord]) -> tuple[str, ...]:
    return tuple(record.getMessage() for record in records if record.levelno >= logging.WARNING)


def work_folder(output: Path, scene: str) -> Path:
    """Returns the folder of a scene's outputs until all are complete, and of its report until it is recorded."""
    return output / _WORK / scene


def discard_work(output: Path, scene: str) -> None:
    folder = work_folder(output, scene)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # other scenes still have folders there
        folder.parent.rmdir()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


@contextmanager
def _held(folder: Path) -> Iterator[Path]:
    """Yields the work folder of a scene, locked by this process; raises StorageError if another process keeps it."""
    with resumable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("ab", buffering=0)
    end = time.monotonic() + _LOCK_SECONDS
    with handle:
        while not try_acquire(handle.fileno()):
            if time.monotonic() > end:
                raise StorageError(f"another process is using {folder}; stop it, then rerun the command")
            time.sleep(0.2)
        yield folder
