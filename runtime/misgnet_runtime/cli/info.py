"""Implements ``misgnet-run info``: prints a bundle's contents and which engines run here. Cheap to import."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from misgnet_runtime.cli.config import defaults_in_force
from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.formatting import not_here, printable, truncated
from misgnet_runtime.log import current, is_json, out_console
from misgnet_runtime.tables import plain_table, print_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from misgnet_runtime.bundle.manifest import Manifest
    from misgnet_runtime.bundle.quantization import Quantization
    from misgnet_runtime.bundle.reader import Bundle
    from misgnet_runtime.bundle.signing.verify import Signed
    from misgnet_runtime.inference.choice import Choice
    from misgnet_runtime.inference.engines_here import EngineHere, Selected
    from misgnet_runtime.inference.tuned import OptimiseFor, Tuning

_SOURCES = {"misgnet": "MISGNet checkpoint", "onnx": "ONNX file", "pytorch": "PyTorch factory"}
_FORMS = {"pair": "two inputs", "stacked": "stacked channels", "time": "a time axis"}


def info(bundle: BundlePath) -> None:
    """Show which engine runs on this machine, why the others do not, and a bundle's contents."""
    if is_json():
        figures = bundle_figures(bundle)
        current().result([f"bundle {bundle}: {_auto_line(figures['auto'])}"], **figures)
    else:
        print_info(bundle, out_console)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A bundle, and what was found out about it on this machine."""

    bundle: Bundle
    engines: list[EngineHere]  # fastest first
    tuning: Tuning | None
    choice: Choice | None
    auto: dict[OptimiseFor, Selected]  # by workload


def _read(path: Path) -> _Found:
    """Checks the digests, and opens each engine."""
    from misgnet_runtime.bundle.reader import read_bundle
    from misgnet_runtime.inference.choice import kept_choice
    from misgnet_runtime.inference.engines_here import engines_here, selected_here
    from misgnet_runtime.inference.tuned import kept

    bundle = read_bundle(path)
    tuning, choice = kept(bundle), kept_choice(bundle)
    engines = engines_here(bundle, tuning)
    auto = selected_here(bundle, engines, tuning, choice)
    return _Found(bundle=bundle, engines=engines, tuning=tuning, choice=choice, auto=auto)


def print_info(path: Path, console: Console) -> None:
    """Prints what auto selects here, which engines run here, and the engines, quantization and files of a bundle."""
    found = _read(path)
    choice = _choice_lines(found.choice) if found.choice else ()
    defaults = set_here.lines() if (set_here := defaults_in_force()) else ()
    for line in (*_summary(path, found), *_running(found), *choice, *defaults, ""):
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)
    for engine in found.engines:
        if engine.detail:
            current().debug(f"{engine.name}, for {engine.made_for}: {engine.detail}")
    print_table(_engines(found.engines), console)
    print_table(_precisions(found.bundle), console)
    print_table(_files(found.bundle), console)


def _summary(path: Path, found: _Found) -> Iterator[str]:
    from misgnet_runtime.accuracy.limit import limit_of

    m = found.bundle.manifest
    yield _auto_line(found.auto)
    if elsewhere := [(engine.name, engine.reason) for engine in found.engines if engine.reason]:
        yield not_here(elsewhere)
    yield f"bundle {path}, version {m.bundle_version}, created {m.created}, licence: {m.licence}"
    yield from model_lines(m)
    yield f"tile {m.tile} px, overlap {m.scene_overlap} px ({m.overlap_from})"
    yield f"threshold {m.threshold:g}, classes {', '.join(m.class_names)}, weights {m.source_weights_sha256[:16]}"
    yield f"gate: {limit_of(m).describe(m.gate)}"
    if not m.float_graph:
        yield "without the float graph, so `misgnet-export parity` cannot evaluate it again"
    if found.bundle.signed:
        yield found.bundle.signed.describe()


def _auto_line(auto: dict[OptimiseFor, Selected]) -> str:
    if not auto:
        return "auto selects no engine: none of this bundle runs on this machine"
    one, many = auto["latency"], auto["throughput"]
    if one == many:
        return f"auto selects {many.engine}: {many.reason}"
    return f"auto selects {one.engine} for one pair ({one.reason}), and {many.engine} for many pairs ({many.reason})"


def model_lines(m: Manifest) -> Iterator[str]:
    """Yields what the network is, and what images it reads."""
    if model := m.model:
        count = "" if model.parameters is None else f", {model.parameters:,} parameters"
        changed = f", changed: {', '.join(map(str, model.changed))}" if model.changed else ""
        yield (
            f"network {model.name} ({_SOURCES[model.source]}){count}; both dates as {_FORMS[model.io]}, "
            f"{model.layout}; output {model.output}{changed}"
        )
    trained = "" if m.resolution is None else f", trained on {m.resolution:g} m per pixel"
    bands = "" if m.interface.pixels.is_rgb8 else f" ({', '.join(m.preprocessing.bands)})"
    yield f"reads {m.interface.pixels}{bands}{trained}"


def bundle_figures(path: Path) -> dict[str, Any]:
    """Returns the fields of the result event: manifest, engines in ranked order, what was chosen and why."""
    found = _read(path)
    signed = found.bundle.signed
    return {
        "bundle": found.bundle.path, "auto": found.auto, "engines": found.engines, "choice": found.choice,
        "signed": signed and _signed(signed), "defaults": defaults_in_force(),
        "manifest": found.bundle.manifest,
    }  # fmt: skip


def _signed(signed: Signed) -> dict[str, Any]:
    issue = signed.issue
    return {
        "signer": signed.signer.description, "fingerprint": signed.signer.fingerprint, "product": issue.product,
        "version": issue.version.number, "time": issue.version.signed, "expires": issue.expires,
        "files": len(signed.digests),
    }  # fmt: skip


def _engines(engines: Sequence[EngineHere]) -> Table:
    table = plain_table("Engines, fastest first")
    for name in ("engine", "precision", "split"):
        table.add_column(name)
    for name in ("F1", "F1 ratio", "F1 drop,\npoints"):
        table.add_column(name, justify="right")
    for engine in engines:
        f1, drop = _number(engine.f1, 4), _number(engine.f1_drop_points, 3)
        ratio = "n/a" if engine.f1_ratio is None else truncated(engine.f1_ratio, 5)
        split = "yes" if engine.split else "no"
        table.add_row(escape(engine.name), escape(engine.precision), split, f1, ratio, drop)
    return table


def _running(found: _Found) -> Iterator[str]:
    """Yields one line per engine that runs here: its device, what it lacks, and its tuned settings."""
    tuning = found.tuning
    for engine in found.engines:
        if engine.runs:
            words = [f"{engine.name}, for {engine.made_for}: runs on {engine.device}", *engine.notes]
            if tuning and engine.tuned:
                words.append(f"tuned here for many pairs: {engine.tuned.describe()}")
                workloads = (("for one pair", tuning.latency), ("for many pairs", tuning.throughput))
                if fastest := " and ".join(workload for workload, name in workloads if name == engine.name):
                    words.append(f"measured fastest here {fastest}")
            yield "; ".join(words)


def _choice_lines(choice: Choice) -> Iterator[str]:
    """Yields what misgnet-run compile found out about each variant on this device, and what it chose."""
    yield f"measured by misgnet-run compile on {choice.scope.device}, {choice.created}:"
    yield from (f"  {variant.describe()}" for variant in choice.variants)
    yield from (f"  {line}" for line in choice.lines())


def _precisions(bundle: Bundle) -> Table:
    table = plain_table("MACs with weights, by precision")
    table.add_column("graph")
    for name in ("INT8, %", "FP16, %", "FP32, %", "INT8\nnodes"):
        table.add_column(name, justify="right")
    table.add_column("calibrator")
    for q in bundle.manifest.quantization:
        name = q.graph.removeprefix("graphs/").removesuffix(".onnx")
        table.add_row(escape(name), *_shares(q), str(q.quantized_nodes), escape(q.calibrator))
    return table


def _shares(q: Quantization) -> list[str]:
    """Returns the shares of MACs in INT8, FP16 and FP32, in percent."""
    if not q.placement:  # a bundle made by an earlier version
        return [f"{100 * q.int8_share_of_multiply_adds:.1f}", "n/a", "n/a"]
    return [f"{100 * share:.1f}" for share in q.shares().values()]


def _files(bundle: Bundle) -> Table:
    table = plain_table("Files")
    table.add_column("file")
    table.add_column("role")
    table.add_column("MB", justify="right")
    table.add_column("SHA-256")
    for entry in bundle.manifest.files:
        table.add_row(escape(entry.path), escape(entry.role), f"{entry.size / 1e6:.2f}", entry.sha256[:12])
    return table


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
