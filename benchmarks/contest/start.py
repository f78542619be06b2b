"""Where a comparison starts: a bundle, the weights that it was built from, and the straight export of these.

A bundle's own float graph is rewritten for speed, so others must not start from it. Straight is what torch.export and
onnxsim make of the weights. It takes the bundle's inputs and gives its outputs, so that everybody does the same work.
"""

from __future__ import annotations

import hashlib
import inspect
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


def open_start(start: Path, weights: Path | None, build: list[str], work: Path) -> tuple[Bundle, Path]:
    """The bundle at ``start`` and its ``weights``; where ``start`` is a checkpoint, a bundle that is built of it.

    ``build``: options of that build. One in ``work`` that was built of the same weights is taken again. Raises
    UsageError where a bundle comes without weights, or with others' weights.
    """
    if not start.is_dir():
        if weights is not None:
            raise UsageError("--weights is for a BUNDLE; here WEIGHTS is the checkpoint already")
        return _built(start, build, work / "bundle"), start
    if weights is None:
        raise UsageError("a BUNDLE holds no weights, and peers start from these; name its checkpoint as --weights")
    bundle = read_bundle(start)
    stated, found = bundle.manifest.source_weights_sha256, file_sha256(weights)
    if found != stated:
        raise UsageError(
            f"--weights {weights} has SHA-256 {found[:16]}..., the bundle was built from {stated[:16]}...; name those"
        )
    return bundle, weights


def _built(weights: Path, options: list[str], root: Path) -> Bundle:
    """The bundle in ``root`` where the same weights and options made it, or a new one."""
    told = root.with_name("bundle.made")
    key = "\n".join([file_sha256(weights), *options])
    if not (root.is_dir() and told.is_file() and told.read_text() == key):
        told.unlink(missing_ok=True)
        build_bundle(weights, [*options, "--force"], root)
        told.write_text(key)
    return read_bundle(root)


def straight_graph(weights: Path, interface: Interface, work: Path) -> Path:
    """The straight export of ``weights`` in ``work``, made where it is not there yet."""
    folder = work / "straight"
    folder.mkdir(exist_ok=True)
    snapshot = Snapshot([weights])  # the graph's name is made of their digest
    graph = folder / f"{_key(weights, interface)}.onnx"
    if not graph.is_file():
        with step("exporting the weights to ONNX"), replace_file(graph) as temporary:
            onnx.save(simplify_graph(export_graph(load_network(weights), interface)), temporary)
            snapshot.check()
    return graph


def _key(weights: Path, interface: Interface) -> str:
    """The start of a SHA-256 of all that the straight export depends on."""
    sources = [Path(inspect.getfile(module)) for module in (export, simplify, deployed)]
    sources += sorted(Path(inspect.getfile(network)).parent.glob("*.py"))
    parts = [file_sha256(weights), repr(interface), *(metadata.version(tool) for tool in _TOOLS)]
    parts += [file_sha256(source) for source in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
