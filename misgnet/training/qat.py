"""Implements quantization-aware fine-tuning: the network quantizes at the same sites as the INT8 graph of a bundle.

The bundle's manifest records the scales and zero points of every INT8 operator. The operator's name begins with the
name of the module that it was exported from. Activations keep the scales of the bundle. The scales are not learned
(as in LSQ, Esser et al., ICLR 2020), because a checkpoint cannot store them and the next build measures the
activations again. Weight scales are computed from the current weights at every step, as the next build will compute
them. If the graph was smoothed, the network's weights are smoothed in the same way and stay so in the checkpoint.

Two effects are not imitated: a quantized bias, because its error of half a step of the INT32 sum is at most a few
hundredths of a step of the output; and float16 parts of the graph, because ``Recipe.precision`` selects those.
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
from misgnet_runtime.formatting import plural
from misgnet_runtime.storage.files import file_sha256
from misgnet_runtime.storage.schema import encode

DEFAULT_GRAPH = "cpu"
# Layers that are exported as each ONNX operator, and the axis of the operator's output channels. Linear layers of an
# MLP are exported as 1 x 1 convolutions.
_OPERATORS = {"MatMul": ((nn.Linear,), 1), "Conv": ((nn.Conv2d, nn.Linear), 0)}


def quantizer_sites(bundle: Path, graph: str | None = None) -> tuple[NodePlacement, ...]:
    """Returns the INT8 operators of one graph of ``bundle``, and the LayerNorms that were smoothed for them.

    Args:
        bundle: Bundle folder.
        graph: Recipe name of the INT8 graph (default: the only one, or the one for the CPU).

    Raises:
        InputError: If the bundle is damaged, was built by a version that did not store the scales, or has INT8
            operators without weights.
        UsageError: If the bundle has no such graph.
    """
    quantization = _choose(bundle, read_bundle(bundle).manifest, graph)
    int8 = [entry for entry in quantization.placement if entry.precision == "int8"]
    if unweighted := [f"'{entry.node}'" for entry in int8 if entry.operands]:
        raise InputError(
            f"{quantization.graph} of bundle {bundle} has {plural(len(unweighted), 'INT8 operator')} without weights, "
            f"the first is {unweighted[0]}; fake quantization supports only nn.Linear and nn.Conv2d: build the bundle "
            "with --placement rules"
        )
    if not int8 or any(entry.int8 is None for entry in int8):
        lacking = next((f"'{entry.node}'" for entry in int8 if entry.int8 is None), "any operator")
        raise InputError(
            f"bundle {bundle} does not store the INT8 scale of {lacking} of {quantization.graph}; build it again with "
            "this version"
        )
    return tuple(entry for entry in quantization.placement if entry.int8 is not None or entry.divided_by)


def different_weights_warning(bundle: Path, weights: Path) -> str | None:
    """Returns a warning if ``bundle`` was not built from the file ``weights``, else None.

    Also returns None if the file is missing; the code that reads it reports that.
    """
    if not weights.is_file() or read_bundle(bundle).manifest.source_weights_sha256 == file_sha256(weights):
        return None
    return (
        f"bundle {bundle} was built from another file than {weights}, and its activation ranges belong to that file. "
        "If the weights in the two files differ, build a bundle from the new weights first"
    )


def sites_sha256(sites: Iterable[NodePlacement]) -> str:
    """Returns a digest of the quantizer sites and their scales; a run can only be resumed with the same ones."""
    return hashlib.sha256(encode(list(sites))).hexdigest()


def fake_quantized(network: MISGNet, sites: Iterable[NodePlacement]) -> MISGNet:
    """Adds fake quantization at ``sites`` to ``network`` and returns it; the keys of its state dict do not change.

    The batch norms must be in evaluation mode when the network runs, because those that follow INT8 convolutions are
    folded into them. Raises InputError, naming the operator, if no layer of the network matches it.
    """
    norms = batch_norm_behind(network)
    for entry in sites:
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
    """Returns the name of the module that an operator was exported from, such as ``backbone.block1.0.attn.q``."""
    return entry.node.rpartition("/")[0]


def batch_norm_behind(network: nn.Module) -> dict[nn.Module, nn.BatchNorm2d]:
    """Returns, by convolution, the batch norm that follows it; the export folds it into the convolution."""
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
        raise UsageError(f"bundle {bundle} has no INT8 graph '{wanted}'; choose one with --qat-graph: {known}")
    return found[wanted]


def _layer(network: MISGNet, entry: NodePlacement) -> nn.Module:
    """Returns the layer that ``entry`` was exported from."""
    name = module_of(entry)
    where = f"INT8 operator '{entry.node}' of the bundle"
    try:
        layer = network.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"{where} does not match a module of the network: there is no '{name}'") from error
    if isinstance(layer, FakeQuantLinear | FakeQuantConv2d):
        raise InputError(f"{where} is the second one of module '{name}', which has only one quantizer site")
    kinds, axis = _OPERATORS.get(entry.operator, ((), 0))
    if not isinstance(layer, kinds) or entry.int8 is None or entry.int8.weight_axis != axis:
        raise InputError(
            f"{where} cannot be trained: '{name}' is a {type(layer).__name__}; fake quantization supports only "
            "nn.Linear as MatMul or Conv, and nn.Conv2d as Conv; build the bundle with other rules"
        )
    return layer


def _quantized(layer: nn.Module, numbers: Int8Numbers, norm: nn.BatchNorm2d | None) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return FakeQuantLinear(layer, numbers).train(layer.training)
    assert isinstance(layer, nn.Conv2d)
    return FakeQuantConv2d(layer, numbers, norm).train(layer.training)


def _quantize_output(steps: Steps, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    """Quantizes the output of a layer, in a forward hook.

    If a ReLU follows, the graph quantizes after the ReLU and this hook before it. Both give the same result, because
    0 is a quantized value.
    """
    return fake_quantize(output, steps)
