"""Leaves engines that miss the gate out of the bundle, if no ``--target`` asked for exactly them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from msgspec import structs

from misgnet_export.pipeline.compile import float_engine
from misgnet_export.pipeline.context import BuildContext
from misgnet_export.pipeline.result import FLOAT_ENGINE, Draft
from misgnet_runtime.accuracy.parity import EngineParity, ParityReport
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
    pairs = [{target.name for target in pair} for pair in context.request.pairs]
    parity = without_misses(draft.evidence.parity, optional, pairs)
    if not parity.left_out:
        return draft
    with context.log.stage("leave out engines") as stage:
        found = _without(draft, parity)
        for file in _files(draft) - _files(found):
            (context.root / file).unlink()
        lines = [describe_left_out(engine) for engine in parity.left_out]
        stage.finding = "; ".join(lines)
    for line in lines:
        current().warning(line)
    return found


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
    used = {entry.graph for entry in engines}
    kept = [graph for graph in draft.graphs if graph.file in used]
    dropped = [graph for graph in draft.graphs if graph.file not in used]
    old = draft.evidence.pictures.items()
    pictures = {f"{name} (left out)" if name in missed else name: found for name, found in old}
    evidence = replace(draft.evidence, parity=parity, pictures=pictures)
    return replace(draft, engines=engines, graphs=kept, dropped=dropped, evidence=evidence)


def _files(draft: Draft) -> set[str]:
    """Returns the paths of all engines, graphs and parts of graphs, relative to the bundle."""
    engines = {file for entry in draft.engines for file in entry.all_files()}
    parts = {file for graph in draft.graphs if graph.split for file in structs.astuple(graph.split)}
    return engines | {graph.file for graph in draft.graphs} | parts
