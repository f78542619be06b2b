"""Defines the entrants of the speed benchmark: how each is started and opened, and the settings that are tried."""

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
from misgnet_export.pipeline.targets import PRODUCTS
from misgnet_runtime.bundle import Bundle, EngineEntry
from misgnet_runtime.engines import is_on_cpu
from misgnet_runtime.machine import fits_processor
from misgnet_runtime.storage.files import file_sha256

ALONE = Setting(1, 1)
EAGER, COMPILED, STRAIGHT, OURS = "eager", "compiled", "straight", "ours"
_FLOAT_GRAPH = "float-graph"  # name of the entry of the float graph in OpenVINO
_LIBRARIES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_OWN_CHOICE = "its own precision"


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A graph or network in an engine, which becomes a row of the report."""

    key: str
    title: str
    engine: str
    side: Side
    # How its process is started, or why it cannot be.
    program: Program | ContenderFailed
    # Arguments with which its engine is opened.
    opening: dict[str, Any]
    # Settings tried for throughput.
    settings: tuple[Setting, ...]
    # Digests of everything that its predictions depend on.
    made_of: tuple[str, ...] = ()
    precision: str = ""
    # Remarks on its figures.
    notes: tuple[str, ...] = ()
    # Versions of the tools that made its graph.
    made_with: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Returns the SHA-256 of everything that its predictions depend on."""
        text = json.dumps([self.key, self.engine, self.precision, *self.made_of])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Context:
    """Inputs shared by all entrants."""

    bundle: Bundle
    weights: Path
    # The straight export.
    straight: Path
    # Returns the interpreter of an environment.
    python_of: Callable[[str], Path]
    threads: int
    # Work folder of the run.
    work: Path


def grid(threads: int, max_batch: int, *, streams: bool = True) -> tuple[Setting, ...]:
    """Returns the settings to try: one pair at a time, one stream per thread, and a batch of four."""
    many = [Setting(threads, 1)] if streams and threads > 1 else []
    return (ALONE, *many, *([Setting(1, 4)] if max_batch >= 4 else []))


def networks(context: Context) -> list[Entrant]:
    """Returns the network in PyTorch, in this environment. It runs one batch at a time, so no streams are tried."""
    interface = context.bundle.manifest.interface
    # Keep the results of torch.compile, which takes minutes.
    program = own("benchmarks.speed.own.network", TORCHINDUCTOR_CACHE_DIR=str(context.work / "inductor"))
    given = {"weights": context.weights.resolve(), "interface": msgspec.to_builtins(interface)}
    return [
        Entrant(
            key=key, title=title, engine="PyTorch", side="peer", program=program,
            opening={**given, "compiled": compiled}, settings=grid(context.threads, interface.max_batch, streams=False),
            made_of=(file_sha256(context.weights), repr(interface)),
        )
        for key, title, compiled in (
            (EAGER, "PyTorch, eager float32", False), (COMPILED, "PyTorch, torch.compile float32", True),
        )
    ]  # fmt: skip


def straight_exports(context: Context) -> list[Entrant]:
    """Returns the straight export in each engine at its defaults."""
    engines = (ONNX_RUNTIME, OPENVINO, OPENVINO_OWN)
    return [guest_entrant(context, STRAIGHT, "straight export", engine, context.straight) for engine in engines]


def quantized_peers(
    context: Context, peer: Contender, graph: Path | ContenderFailed, made_with: Mapping[str, str]
) -> list[Entrant]:  # fmt: skip
    """Returns a peer's quantized graph in each of its engines."""
    return [
        replace(guest_entrant(context, peer.key, peer.title, engine, graph), made_with=made_with)
        for engine in peer.engines
    ]


def guest_entrant(
    context: Context, key: str, title: str, engine: Engine, graph: Path | ContenderFailed
) -> Entrant:  # fmt: skip
    """Returns a graph that is run by a script in a contender's environment, or a failed entrant without one."""
    program: Program | ContenderFailed
    made_of: tuple[str, ...] = ()
    try:
        if isinstance(graph, ContenderFailed):
            raise graph
        program = foreign(context.python_of(engine.environment), engine.script)
        pins = file_sha256(REQUIREMENTS / f"{engine.environment}.txt")
        made_of = (*_digests(graph), pins, engine.script)
    except ContenderFailed as error:
        program = error
    where = engine.name.lower().replace(" ", "")
    opening = {"graph": graph, "precision": engine.precision}
    settings = grid(context.threads, context.bundle.manifest.interface.max_batch)
    name = f"{key} {where} {engine.precision or 'own'}"
    return Entrant(
        key=name, title=title, engine=engine.name, side="peer", program=program, opening=opening, settings=settings,
        made_of=made_of, precision=engine.precision or own_of(engine),
    )  # fmt: skip


def own_of(engine: Engine) -> str:
    """Returns the placeholder for a precision that the engine will choose."""
    return _OWN_CHOICE if engine is OPENVINO_OWN else ""


def chooses_precision(entrant: Entrant) -> bool:
    """Returns whether the engine chooses its own precision although one could be requested."""
    return entrant.precision == _OWN_CHOICE


def bundle_engines(context: Context) -> tuple[list[Entrant], list[Absent]]:
    """Returns this project's entrants: every CPU engine of the bundle, and its float graph in OpenVINO.

    The float graph is run in float32, and in BF16 if the processor has it.
    """
    manifest = context.bundle.manifest
    here = [entry for entry in manifest.engines if is_on_cpu(entry)]
    elsewhere = [entry for entry in manifest.engines if not is_on_cpu(entry)]
    reason = "this benchmark runs only CPU engines; use misgnet-run bench on its device"
    absent = [Absent(f"this project, `{entry.name}`", reason) for entry in elsewhere]
    graph = manifest.file("float graph").path
    precisions = ("float32", "bf16") if fits_processor(PRODUCTS["openvino-bf16"].needs) else ("float32",)
    found = {(entry.kind, entry.precision) for entry in here}
    floats = [
        EngineEntry(_FLOAT_GRAPH, "openvino", graph, graph, precision, "any")
        for precision in precisions
        if ("openvino", precision) not in found
    ]
    return [bundle_entrant(context, entry) for entry in (*here, *floats)], absent


def bundle_entrant(context: Context, entry: EngineEntry) -> Entrant:
    """Returns an engine of the bundle as an entrant."""
    manifest = context.bundle.manifest
    is_float_graph = entry.precision == "float32" or entry.name == _FLOAT_GRAPH
    title = "this project, float graph" if is_float_graph else f"this project, `{entry.name}`"
    opening = {
        "entry": msgspec.to_builtins(entry), "root": context.bundle.path.resolve(),
        "max_batch": manifest.interface.max_batch,
    }  # fmt: skip
    return Entrant(
        key=f"{OURS} {entry.name} {entry.kind} {entry.precision}", title=title, engine=_LIBRARIES[entry.kind],
        side="ours", program=own("benchmarks.speed.own.engine"), opening=opening,
        settings=grid(context.threads, manifest.interface.max_batch),
        made_of=_digests(context.bundle.path / entry.file), precision=entry.precision,
    )  # fmt: skip


def _digests(graph: Path) -> tuple[str, ...]:
    """Returns the digests of a graph and, for OpenVINO's format, of its weights."""
    files = [path for path in (graph, graph.with_suffix(".bin")) if path.is_file()]
    return tuple(file_sha256(path) for path in files)
