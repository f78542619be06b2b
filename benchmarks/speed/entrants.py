"""Who takes part: what each is started with, opened with, and at which settings it may show its throughput."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contest.contenders import ONNX_RUNTIME, OPENVINO, OPENVINO_OWN, Contender, Engine
from benchmarks.contest.environments import REQUIREMENTS
from benchmarks.contest.guest import ContenderFailed, Program, foreign, own
from benchmarks.speed.report import Absent, Setting, Side
from misgnet_runtime.bundle import Bundle, EngineEntry
from misgnet_runtime.engines import is_on_cpu
from misgnet_runtime.storage.files import file_sha256

ALONE = Setting(1, 1)
EAGER, COMPILED, STRAIGHT, OURS, OUR_FLOAT = "eager", "compiled", "straight", "ours", "ours float"
_LIBRARIES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_OWN_CHOICE = "its own precision"


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One row to come. ``program``: how its process is started, or why it cannot be.

    ``opening``: what its engine is opened with; ``made_of``: digests of all that its answers depend on; ``notes``:
    what its figures must be read with; ``made_with``: versions of what made its graph.
    """

    key: str
    title: str
    engine: str
    side: Side
    program: Program | ContenderFailed
    opening: dict[str, Any]
    settings: tuple[Setting, ...]
    made_of: tuple[str, ...] = ()
    precision: str = ""
    notes: tuple[str, ...] = ()
    made_with: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """SHA-256 of what its answers depend on."""
        told = json.dumps([self.key, self.engine, self.precision, *self.made_of])
        return hashlib.sha256(told.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What all start from. ``python_of``: the interpreter of an environment by name; ``work``: the run's folder."""

    bundle: Bundle
    weights: Path
    straight: Path
    python_of: Callable[[str], Path]
    threads: int
    work: Path


def grid(threads: int, max_batch: int, *, streams: bool = True) -> tuple[Setting, ...]:
    """The settings that are tried: one pair at a time, one a core, and a batch of four."""
    many = [Setting(threads, 1)] if streams and threads > 1 else []
    return (ALONE, *many, *([Setting(1, 4)] if max_batch >= 4 else []))


def networks(ground: Ground) -> list[Entrant]:
    """PyTorch with this interpreter. A process runs one batch at a time, so more pairs at once are a batch."""
    interface = ground.bundle.manifest.interface
    # What torch.compile has compiled is kept as all else that takes minutes.
    program = own("benchmarks.speed.own.network", TORCHINDUCTOR_CACHE_DIR=str(ground.work / "inductor"))
    given = {"weights": ground.weights.resolve(), "interface": msgspec.to_builtins(interface)}
    return [
        Entrant(
            key=key, title=title, engine="PyTorch", side="peer", program=program,
            opening={**given, "compiled": compiled}, settings=grid(ground.threads, interface.max_batch, streams=False),
            made_of=(file_sha256(ground.weights), repr(interface)),
        )
        for key, title, compiled in (
            (EAGER, "PyTorch, eager float32", False), (COMPILED, "PyTorch, torch.compile float32", True),
        )
    ]  # fmt: skip


def straight_exports(ground: Ground) -> list[Entrant]:
    """The straight export in the engines as they come."""
    engines = (ONNX_RUNTIME, OPENVINO, OPENVINO_OWN)
    return [guest_entrant(ground, STRAIGHT, "straight export", engine, ground.straight) for engine in engines]


def quantized_peers(
    ground: Ground, peer: Contender, graph: Path | ContenderFailed, made_with: Mapping[str, str]
) -> list[Entrant]:  # fmt: skip
    """What a peer made of the straight export, in the engines that are meant to run it."""
    return [
        replace(guest_entrant(ground, peer.key, peer.title, engine, graph), made_with=made_with)
        for engine in peer.engines
    ]


def guest_entrant(
    ground: Ground, key: str, title: str, engine: Engine, graph: Path | ContenderFailed
) -> Entrant:  # fmt: skip
    """A graph that a script of a contender's environment runs; without a graph an entrant that has failed."""
    program: Program | ContenderFailed
    made_of: tuple[str, ...] = ()
    try:
        if isinstance(graph, ContenderFailed):
            raise graph
        program = foreign(ground.python_of(engine.environment), engine.script)
        pins = file_sha256(REQUIREMENTS / f"{engine.environment}.txt")
        made_of = (*_digests(graph), pins, engine.script)
    except ContenderFailed as error:
        program = error
    where = engine.name.lower().replace(" ", "")
    opening = {"graph": graph, "precision": engine.precision}
    settings = grid(ground.threads, ground.bundle.manifest.interface.max_batch)
    name = f"{key} {where} {engine.precision or 'own'}"
    return Entrant(
        key=name, title=title, engine=engine.name, side="peer", program=program, opening=opening, settings=settings,
        made_of=made_of, precision=engine.precision or own_of(engine),
    )  # fmt: skip


def own_of(engine: Engine) -> str:
    """What stands for the precision that an engine has not said yet."""
    return _OWN_CHOICE if engine is OPENVINO_OWN else ""


def chooses_itself(entrant: Entrant) -> bool:
    """Whether the engine was not told a precision though it can be."""
    return entrant.precision == _OWN_CHOICE


def bundle_engines(ground: Ground) -> tuple[list[Entrant], list[Absent]]:
    """This project's: every engine of the bundle that is for a CPU, and its float graph in OpenVINO, too."""
    manifest = ground.bundle.manifest
    here = [entry for entry in manifest.engines if is_on_cpu(entry)]
    elsewhere = [entry for entry in manifest.engines if not is_on_cpu(entry)]
    reason = "this benchmark runs engines for a CPU; misgnet-run bench times it on its device"
    absent = [Absent(f"this project, `{entry.name}`", reason) for entry in elsewhere]
    graph = manifest.file("float graph").path
    in_openvino = EngineEntry("float graph", "openvino", graph, graph, "float32", "any")
    return [_engine_entrant(ground, entry) for entry in (*here, in_openvino)], absent


def _engine_entrant(ground: Ground, entry: EngineEntry) -> Entrant:
    manifest = ground.bundle.manifest
    is_float = entry.precision == "float32"
    library = _LIBRARIES[entry.kind]
    title = "this project, float graph" if is_float else f"this project, `{entry.name}`"
    opening = {
        "entry": msgspec.to_builtins(entry), "root": ground.bundle.path.resolve(),
        "max_batch": manifest.interface.max_batch,
    }  # fmt: skip
    return Entrant(
        key=f"{OUR_FLOAT if is_float else OURS} {entry.name} {entry.kind}", title=title, engine=library, side="ours",
        program=own("benchmarks.speed.own.engine"), opening=opening,
        settings=grid(ground.threads, manifest.interface.max_batch), made_of=_digests(ground.bundle.path / entry.file),
        precision=entry.precision,
    )  # fmt: skip


def _digests(graph: Path) -> tuple[str, ...]:
    """Of a graph and, where OpenVINO keeps them apart, its weights."""
    files = [path for path in (graph, graph.with_suffix(".bin")) if path.is_file()]
    return tuple(file_sha256(path) for path in files)
