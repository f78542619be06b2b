"""Implements ``misgnet-run info``: prints a bundle's contents and which engines run here. Cheap to import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.markup import escape
from rich.table import Column, Table

from misgnet_runtime.cli.config import defaults_in_force
from misgnet_runtime.cli.options import BundlePath
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.formatting import printable, truncated
from misgnet_runtime.log import current, is_json, out_console

if TYPE_CHECKING:
    from rich.console import Console

    from misgnet_runtime.bundle.manifest import EngineEntry, Manifest
    from misgnet_runtime.bundle.quantization import Quantization
    from misgnet_runtime.bundle.reader import Bundle
    from misgnet_runtime.inference.choice import Choice
    from misgnet_runtime.inference.tuned import OptimiseFor, Tuning

_NOT_RUN = "does not run: "
_SOURCES = {"misgnet": "MISGNet checkpoint", "onnx": "ONNX file", "pytorch": "PyTorch factory"}
_FORMS = {"pair": "two inputs", "stacked": "stacked channels", "time": "a time axis"}


def info(bundle: BundlePath) -> None:
    """Show a bundle's contents, which of its engines run on this machine, and why the others do not."""
    if is_json():
        current().result([f"bundle {bundle}"], **bundle_figures(bundle))
    else:
        print_info(bundle, out_console)


class _Selected(msgspec.Struct, frozen=True):
    """The engine that auto selects."""

    engine: str
    reason: str


def print_info(path: Path, console: Console) -> None:
    """Checks the digests, then prints engines, quantization, files and whether each engine opens here."""
    from misgnet_runtime.accuracy.limit import limit_of
    from misgnet_runtime.bundle.reader import read_bundle
    from misgnet_runtime.inference.choice import kept_choice
    from misgnet_runtime.inference.selection import ranked_here
    from misgnet_runtime.inference.tuned import kept

    bundle = read_bundle(path)
    m = bundle.manifest
    for line in (
        f"bundle {path}, version {m.bundle_version}, created {m.created}, licence: {m.licence}",
        *model_lines(m),
        f"tile {m.tile} px, overlap {m.scene_overlap} px ({m.overlap_from})",
        f"threshold {m.threshold:g}, classes {', '.join(m.class_names)}, weights {m.source_weights_sha256[:16]}",
        f"gate: {limit_of(m).describe(m.gate)}",
    ):
        console.print(printable(line), soft_wrap=True, markup=False)
    if bundle.signed:
        console.print(printable(bundle.signed.describe()), soft_wrap=True, markup=False)
    entries = ranked_here(bundle)
    console.print(_engines(bundle, entries))
    tuning, choice = kept(bundle), kept_choice(bundle)
    here = _here(bundle, entries, tuning)
    for entry in entries:
        line = f"{entry.name}, for {_made_for(entry)}: {here[entry.name]}"
        console.print(printable(line), soft_wrap=True, markup=False)
    for line in _choice_lines(choice) if choice else ():
        console.print(printable(line), soft_wrap=True, markup=False)
    if auto := _auto(bundle, here, tuning, choice):
        console.print(printable(_auto_line(auto)), soft_wrap=True, markup=False)
    console.print(_precisions(bundle))
    console.print(_files(bundle))
    for line in defaults.lines() if (defaults := defaults_in_force()) else ():
        console.print(printable(line), soft_wrap=True, markup=False)


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


def bundle_figures(path: Path) -> dict[str, object]:
    """Returns the fields of the result event: manifest, what opens here in ranked order, what was chosen and why."""
    from misgnet_runtime.bundle.reader import read_bundle
    from misgnet_runtime.inference.choice import kept_choice
    from misgnet_runtime.inference.selection import ranked_here
    from misgnet_runtime.inference.tuned import kept

    bundle = read_bundle(path)
    tuning, choice = kept(bundle), kept_choice(bundle)
    here = _here(bundle, ranked_here(bundle), tuning)
    signed = bundle.signed.describe() if bundle.signed else None
    auto = _auto(bundle, here, tuning, choice)
    return {
        "bundle": path, "manifest": bundle.manifest, "here": here, "choice": choice, "auto": auto, "signed": signed,
        "defaults": defaults_in_force(),
    }  # fmt: skip


def _engines(bundle: Bundle, entries: list[EngineEntry]) -> Table:
    from misgnet_runtime.bundle.results import EngineResult, engine_results

    columns = (_whole("engine"), "precision", "split", "F1", "ratio", "drop, points")
    table = Table(*columns, title="Engines, fastest first")
    results = engine_results(bundle)
    for entry in entries:
        result = results.get(entry.name, EngineResult(entry.name))
        f1, drop = _number(result.f1, 4), _number(result.f1_drop_points, 3)
        ratio = "n/a" if result.f1_ratio is None else truncated(result.f1_ratio, 5)
        split = "yes" if entry.split else "no"
        table.add_row(escape(entry.name), escape(entry.precision), split, f1, ratio, drop)
    return table


def _made_for(entry: EngineEntry) -> str:
    """Returns the GPUs and the platform of a plan, or the CPU features that the engine needs."""
    if entry.kind == "onnxruntime-cuda":
        return "any GPU that CUDA and onnxruntime-gpu support"
    gpus = ", ".join(entry.compute_capabilities)
    if entry.on_device:
        return f"{gpus or 'any GPU that TensorRT supports'}{'' if entry.platform == 'any' else f' on {entry.platform}'}"
    return f"{gpus} on {entry.platform}" if gpus else " or ".join(entry.needs) or "any processor"


def _here(bundle: Bundle, entries: list[EngineEntry], tuning: Tuning | None) -> dict[str, str]:
    """Returns, by engine, whether it opens on this machine, and its tuned settings."""
    from misgnet_runtime.engines.options import ExecutionOptions
    from misgnet_runtime.inference.selection import open_detector

    found = {}
    for entry in entries:
        try:
            with open_detector(bundle, entry.name, ExecutionOptions(streams=1)) as (detector, _, _):
                words = f"runs on {detector.engine.device}", *detector.engine.notes, *_tuned(tuning, entry)
                found[entry.name] = "; ".join(words)
        except UnavailableError as error:
            found[entry.name] = f"{_NOT_RUN}{error}"
    return found


def _choice_lines(choice: Choice) -> Iterator[str]:
    """Yields what misgnet-run compile found out about each variant on this device, and what it chose."""
    yield f"measured by misgnet-run compile on {choice.scope.device}, {choice.created}:"
    yield from (f"  {variant.describe()}" for variant in choice.variants)
    yield from (f"  {line}" for line in choice.lines())


def _auto(bundle: Bundle, here: dict[str, str], tuning: Tuning | None, choice: Choice | None) -> dict[str, _Selected]:
    """Returns the engine that auto selects by workload: latency and throughput; empty if no engine runs here."""
    from misgnet_runtime.inference.selection import automatic
    from misgnet_runtime.inference.tuned import Tuned

    found: dict[str, _Selected] = {}
    workloads: tuple[OptimiseFor, ...] = ("latency", "throughput")
    for workload in workloads:
        for entry, reason in automatic(bundle, Tuned(workload, tuning), choice):
            if not here[entry.name].startswith(_NOT_RUN):
                found[workload] = _Selected(entry.name, reason)
                break
    return found


def _auto_line(auto: dict[str, _Selected]) -> str:
    one, many = auto["latency"], auto["throughput"]
    if one == many:
        return f"--engine auto selects {many.engine} ({many.reason})"
    return (
        f"--engine auto selects {one.engine} for one pair ({one.reason}), and {many.engine} for many pairs "
        f"({many.reason})"
    )


def _tuned(tuning: Tuning | None, entry: EngineEntry) -> Iterator[str]:
    setting = tuning and tuning.setting(entry.name, "throughput")
    if tuning and setting:
        yield f"tuned here for many pairs: {setting.describe()}"
        workloads = (("for one pair", tuning.latency), ("for many pairs", tuning.throughput))
        if fastest := " and ".join(workload for workload, engine in workloads if engine == entry.name):
            yield f"measured fastest here {fastest}"


def _precisions(bundle: Bundle) -> Table:
    columns = ("INT8, %", "FP16, %", "FP32, %", "INT8 nodes", _whole("calibrator"))
    table = Table(_whole("graph"), *columns, title="MACs with weights, by precision")
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
    table = Table(_whole("file"), "role", "MB", "SHA-256", title="Files")
    for entry in bundle.manifest.files:
        table.add_row(escape(entry.path), escape(entry.role), f"{entry.size / 1e6:.2f}", entry.sha256[:12])
    return table


def _whole(name: str) -> Column:
    """Returns a column whose entries are never truncated."""
    return Column(name, no_wrap=True)


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
