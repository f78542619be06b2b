"""Leaves engines out of a bundle: those that miss the gate, if no ``--target`` asked for them, and the float graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from misgnet_export.pipeline.compile import float_engine
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.result import FLOAT_ENGINE, Draft
from misgnet_runtime.accuracy.parity import EngineParity, ParityReport
from misgnet_runtime.bundle import EngineEntry
from misgnet_runtime.log import current

# The engine that every bundle of ``--target auto`` has; it opens the float graph if its INT8 graph is left out.
_ALWAYS = "cpu"


def leave_out_misses(context: BuildContext, draft: Draft) -> Draft:
    """Returns the draft without the engines that miss the gate, and removes their files; warns about each engine.

    An engine is left out if ``--target auto`` chose it and no ``--target`` names it, or if a ``--target`` asked for
    both precisions of a GPU and the other one passes. If any other engine misses, the draft is returned unchanged and
    its parity report fails.
    """
    optional = {target.name for target in context.request.only_by_auto}
    if not context.request.float_graph:
        optional.discard(_ALWAYS)  # nothing could take its place
    pairs = [{target.name for target in pair} for pair in context.request.pairs]
    parity = without_misses(draft.evidence.parity, optional, pairs)
    if not parity.left_out:
        return draft
    with context.log.stage("leave out engines") as stage:
        found = _without(draft, parity)
        _remove(context.root, draft, found)
        lines = [describe_left_out(engine) for engine in parity.left_out]
        stage.finding = "; ".join(lines)
    for line in lines:
        current().warning(line)
    return found


def leave_out_float_graph(context: BuildContext, draft: Draft) -> Draft:
    """Returns the draft without the float graph and its engine if the request leaves them out; removes the files.

    The parity report keeps their results; the pictures, in which the float graph's masks are the float model's, go.
    """
    if context.request.float_graph:
        return draft
    with context.log.stage("leave out the float graph") as stage:
        found = _with_engines(draft, [entry for entry in draft.engines if entry.name != FLOAT_ENGINE])
        stage.finding = f"{_remove(context.root, draft, found) / 1e6:.1f} MB"
    pictures = {name: shown for name, shown in draft.evidence.pictures.items() if name != FLOAT_ENGINE}
    return replace(found, evidence=replace(found.evidence, pictures=pictures))


def without_misses(
    parity: ParityReport, optional: Collection[str], pairs: Iterable[Collection[str]] = ()
) -> ParityReport:
    """Returns the report with the engines that miss the gate in ``left_out``; ``cpu`` gets the float graph's result.

    Args:
        parity: The results of all engines, the float graph's among them.
        optional: Names of the engines that may be left out. If another engine misses, ``parity`` is returned unchanged.
        pairs: Names of engines that may be left out if another one of the pair passes.
    """
    passed = {engine.engine for engine in parity.engines if engine.verdict is not None and engine.verdict.passed}
    optional = {*optional, *(name for pair in pairs if passed.intersection(pair) for name in pair)}
    missed = [engine for engine in parity.engines if engine.verdict is not None and not engine.verdict.passed]
    if any(engine.engine not in optional for engine in missed):
        return parity
    kept = [_instead(engine, parity) if engine in missed else engine for engine in parity.engines]
    return structs.replace(parity, engines=[engine for engine in kept if engine is not None], left_out=missed)


def describe_left_out(engine: EngineParity) -> str:
    """Returns which engine was left out, why, and what it is replaced by."""
    assert engine.verdict is not None
    instead = f"; {_ALWAYS} opens the float graph instead" if engine.engine == _ALWAYS else ""
    return f"{engine.engine} in {engine.precision} is left out of the bundle: {engine.verdict.reason}{instead}"


def _instead(engine: EngineParity, parity: ParityReport) -> EngineParity | None:
    """Returns the result of the engine that replaces ``engine``: the same graph in the same library as the float's."""
    if engine.engine != _ALWAYS:
        return None
    (reference,) = (found for found in parity.engines if found.engine == FLOAT_ENGINE)
    return structs.replace(reference, engine=_ALWAYS)


def _without(draft: Draft, parity: ParityReport) -> Draft:
    missed = {engine.engine for engine in parity.left_out}
    instead = {_ALWAYS: float_engine(_ALWAYS, draft.graphs)} if _ALWAYS in missed else {}
    engines = [
        instead.get(entry.name, entry) for entry in draft.engines if entry.name not in missed or entry.name in instead
    ]
    old = draft.evidence.pictures.items()
    pictures = {f"{name} (left out)" if name in missed else name: found for name, found in old}
    evidence = replace(draft.evidence, parity=parity, pictures=pictures)
    return replace(_with_engines(draft, engines), evidence=evidence)


def _with_engines(draft: Draft, engines: list[EngineEntry]) -> Draft:
    """Returns the draft with only ``engines`` and the graphs that they were made from."""
    used = {entry.graph for entry in engines}
    kept = [graph for graph in draft.graphs if graph.file in used]
    dropped = [graph for graph in draft.graphs if graph.file not in used]
    return replace(draft, engines=engines, graphs=kept, dropped=[*draft.dropped, *dropped])


def _remove(root: Path, draft: Draft, kept: Draft) -> int:
    """Removes the files of ``draft`` that ``kept`` lacks; returns their bytes."""
    files = [root / file for file in _files(draft) - _files(kept)]
    size = sum(file.stat().st_size for file in files)
    for file in files:
        file.unlink()
    return size


def _files(draft: Draft) -> set[str]:
    """Returns the paths of all engines, graphs and parts of graphs, relative to the bundle."""
    engines = {file for entry in draft.engines for file in entry.all_files()}
    parts = {file for graph in draft.graphs if graph.split for file in structs.astuple(graph.split)}
    return engines | {graph.file for graph in draft.graphs} | parts
