"""Provides the start of a comparison: a bundle, its weights, and the straight export of these weights.

A bundle's own float graph is optimised for speed, so the other contenders must not start from it. The straight export
is the result of torch.export and onnxsim, of the network as it is. It has the bundle's inputs and outputs, so all
contenders do the same work.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import onnx

from benchmarks.contest.ours import build_bundle
from benchmarks.contest.peers import step
from misgnet import network
from misgnet.checkpoint import load_network
from misgnet_export.graph import deployed, export, simplify
from misgnet_export.graph.export import export_graph
from misgnet_export.graph.simplify import simplify_graph
from misgnet_runtime.bundle import Bundle, Interface, read_bundle
from misgnet_runtime.errors import UsageError
from misgnet_runtime.storage.atomic import replace_file
from misgnet_runtime.storage.files import file_sha256
from misgnet_runtime.storage.snapshot import Snapshot

_TOOLS = ("torch", "onnx", "onnxscript", "onnxsim")
Builder = Callable[[Path, list[str], Path], object]  # (weights, options, bundle to write)


def open_start(
    start: Path, weights: Path | None, build: list[str], work: Path, *, builder: Builder = build_bundle
) -> tuple[Bundle, Path]:
    """Returns a bundle and its weights.

    Args:
        start: A bundle, or a checkpoint from which a bundle is built.
        weights: The checkpoint of the bundle.
        build: Options of the build.
        work: Work folder; a bundle there that was built from the same weights and options is reused.
        builder: Builds a bundle.

    Raises:
        UsageError: ``start`` is a bundle, and ``weights`` are missing or are not the bundle's.
    """
    if not start.is_dir():
        if weights is not None:
            raise UsageError("--weights requires a BUNDLE; here, WEIGHTS is the checkpoint already")
        return _built(start, build, work / "bundle", builder), start
    if weights is None:
        raise UsageError("a BUNDLE does not contain the weights that peers start from; pass them as --weights")
    bundle = read_bundle(start)
    stated, found = bundle.manifest.source_weights_sha256, file_sha256(weights)
    if found != stated:
        raise UsageError(
            f"--weights {weights} has SHA-256 {found[:16]}..., but the bundle was built from {stated[:16]}...; pass "
            "that checkpoint"
        )
    return bundle, weights


def _built(weights: Path, options: list[str], root: Path, builder: Builder) -> Bundle:
    """Returns the bundle in ``root``; rebuilds it unless it was built from the same weights and options."""
    stamp = root.with_name("bundle.made")
    key = "\n".join([file_sha256(weights), *options])
    if not (root.is_dir() and stamp.is_file() and stamp.read_text() == key):
        stamp.unlink(missing_ok=True)
        builder(weights, [*options, "--force"], root)
        stamp.write_text(key)
    return read_bundle(root)


def straight_graph(weights: Path, interface: Interface, work: Path) -> Path:
    """Returns the straight export of ``weights`` in ``work``; exports it if it does not exist yet."""
    folder = work / "straight"
    folder.mkdir(exist_ok=True)
    snapshot = Snapshot([weights])  # the graph's file name depends on their digest
    graph = folder / f"{_key(weights, interface)}.onnx"
    if not graph.is_file():
        with step("exporting the weights to ONNX"), replace_file(graph) as temporary:
            exported = export_graph(load_network(weights), interface, stacked=False)
            onnx.save(simplify_graph(exported), temporary)
            snapshot.check()
    return graph


def _key(weights: Path, interface: Interface) -> str:
    """Returns the start of a SHA-256 of everything that the straight export depends on."""
    sources = [Path(inspect.getfile(module)) for module in (export, simplify, deployed)]
    sources += sorted(Path(inspect.getfile(network)).parent.glob("*.py"))
    parts = [file_sha256(weights), repr(interface), *(metadata.version(tool) for tool in _TOOLS)]
    parts += [file_sha256(source) for source in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
