"""Quantization-aware fine-tuning: the network computes as a bundle's INT8 graph does, at the same places.

The bundle's manifest says for every INT8 operator what it counts in; its name begins with the module that it was
exported from. The scales of activations stay those of the bundle. Learning them (LSQ, Esser et al., ICLR 2020) would
be in vain: a checkpoint has no place for them, and the build that follows observes the activations anew. Weights
get their scale from what they are at each step, as that build will give it to them. Where the graph was smoothed,
the network's weights are, too: they stay so in the checkpoint.

Not imitated: a quantized bias, whose error of half a step of the INT32 sum is at most some hundredths of the output's
own steps; and what of the graph is float16, which the network's precision is chosen for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from misgnet.network import MISGNet
from misgnet.network.decoder import Decode
from misgnet.network.guidance import ConvNorm
from misgnet.training.fake_quantization import FakeQuantConv2d, FakeQuantLinear, fake_quantize
from misgnet.training.smoothing import smooth
from misgnet_runtime.bundle import Int8Numbers, Manifest, NodePlacement, Quantization, Steps, read_bundle
from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.storage.files import file_sha256
from misgnet_runtime.storage.schema import encode

DEFAULT_GRAPH = "cpu"
# What may have become an operator, and the axis of its output channels in ONNX. An MLP's linear layers are 1 x 1
# convolutions there.
_OPERATORS = {"MatMul": ((nn.Linear,), 1), "Conv": ((nn.Conv2d, nn.Linear), 0)}


def places_of(bundle: Path, graph: str | None = None) -> tuple[NodePlacement, ...]:
    """What a network has to imitate of one graph of ``bundle``: of ``graph``, the only one, or that for the CPU.

    These are its INT8 operators, and the norms that were smoothed for their sake.
    Raises InputError where the bundle is damaged, or of a version that kept no numbers of them, or has operators
    without weights in INT8; UsageError where it has no such graph.
    """
    quantization = _choose(bundle, read_bundle(bundle).manifest, graph)
    int8 = [entry for entry in quantization.placement if entry.precision == "int8"]
    if unweighted := [f"'{entry.node}'" for entry in int8 if entry.operands]:
        raise InputError(
            f"{quantization.graph} of bundle {bundle} has {len(unweighted)} operators without weights in INT8, as "
            f"{unweighted[0]}; only nn.Linear and nn.Conv2d have fake quantization: build it with --placement rules"
        )
    if not int8 or any(entry.int8 is None for entry in int8):
        lacking = next((f"'{entry.node}'" for entry in int8 if entry.int8 is None), "any operator")
        raise InputError(
            f"bundle {bundle} does not say what {lacking} of {quantization.graph} counts in; build it again with "
            "this version"
        )
    return tuple(entry for entry in quantization.placement if entry.int8 is not None or entry.divided_by)


def built_from_others(bundle: Path, weights: Path) -> str | None:
    """What to mind where ``weights`` is not the file that ``bundle`` was built from; None where it is or is missing."""
    if not weights.is_file() or read_bundle(bundle).manifest.source_weights_sha256 == file_sha256(weights):
        return None
    return (
        f"bundle {bundle} was built from another file than {weights}: its activation ranges are those of the weights "
        "in there; if these differ, build a bundle from this file first"
    )


def places_sha256(places: Iterable[NodePlacement]) -> str:
    """A digest of the places and their numbers: a run goes on only with those that it began with."""
    return hashlib.sha256(encode(list(places))).hexdigest()


def fake_quantized(network: MISGNet, places: Iterable[NodePlacement]) -> MISGNet:
    """``network`` itself, with fake quantization at ``places``; its state dict stays the published one.

    Its batch norms must be in evaluation mode when it runs: those behind INT8 convolutions are folded into them.
    Raises InputError that names an operator of which no layer of the network is found.
    """
    norms = batch_norm_behind(network)
    for entry in places:
        if entry.divided_by:
            smooth(network, module_of(entry), entry.divided_by)
        if entry.int8 is None:
            continue
        name, layer = module_of(entry), _layer(network, entry)
        norm = norms.get(layer)
        network.set_submodule(name, _quantized(layer, entry.int8, norm))
        if entry.int8.output is not None:
            last = network.get_submodule(name) if norm is None else norm
            last.register_forward_hook(partial(_quantize_output, entry.int8.output))
    return network


def module_of(entry: NodePlacement) -> str:
    """The name of the module that an operator was exported from: ``backbone.block1.0.attn.q``."""
    return entry.node.rpartition("/")[0]


def batch_norm_behind(network: nn.Module) -> dict[nn.Module, nn.BatchNorm2d]:
    """The batch norm that follows each convolution which has one: the export folds it in."""
    found: dict[nn.Module, nn.BatchNorm2d] = {}
    for module in network.modules():
        if isinstance(module, ConvNorm):
            found[module.conv] = module.bn
        elif isinstance(module, Decode):
            found[module.conv3] = module.bn3
    return found


def _choose(bundle: Path, manifest: Manifest, graph: str | None) -> Quantization:
    found = {q.recipe: q for q in manifest.quantization if q.quantized_nodes}
    wanted = graph or (DEFAULT_GRAPH if len(found) > 1 else next(iter(found), DEFAULT_GRAPH))
    if wanted not in found:
        known = ", ".join(found) or "none"
        raise UsageError(f"bundle {bundle} has no INT8 graph '{wanted}'; name one with --qat-graph: {known}")
    return found[wanted]


def _layer(network: MISGNet, entry: NodePlacement) -> nn.Module:
    """The layer that ``entry`` was exported from."""
    name = module_of(entry)
    where = f"INT8 operator '{entry.node}' of the bundle"
    try:
        layer = network.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"{where} is of no module of the network: there is no '{name}'") from error
    if isinstance(layer, FakeQuantLinear | FakeQuantConv2d):
        raise InputError(f"{where} is the second of the module '{name}', which has one place")
    kinds, axis = _OPERATORS.get(entry.operator, ((), 0))
    if not isinstance(layer, kinds) or entry.int8 is None or entry.int8.weight_axis != axis:
        raise InputError(
            f"{where} cannot be trained: '{name}' is a {type(layer).__name__}; only nn.Linear as MatMul or "
            "Conv and nn.Conv2d as Conv have fake quantization; build the bundle with other rules"
        )
    return layer


def _quantized(layer: nn.Module, numbers: Int8Numbers, norm: nn.BatchNorm2d | None) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return FakeQuantLinear(layer, numbers).train(layer.training)
    assert isinstance(layer, nn.Conv2d)
    return FakeQuantConv2d(layer, numbers, norm).train(layer.training)


def _quantize_output(steps: Steps, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    """Before a ReLU behind it, where the graph does so after it: as 0 is a level, the two are the same."""
    return fake_quantize(output, steps)
