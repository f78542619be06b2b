"""Exports the network with torch.export and converts it to ONNX: dynamic batch, fixed tile size.

LayerNorm and GELU stay single operators.
"""

from __future__ import annotations

import copy
import logging
from ast import literal_eval
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from torch import Tensor, nn

from misgnet.network import MISGNet
from misgnet_export.graph.deployed import Deployed
from misgnet_export.graph.half_network import HalfNetwork
from misgnet_export.graph.quiet import quiet
from misgnet_export.graph.stacked_guidance import with_stacked_guidance
from misgnet_runtime.bundle import Interface
from misgnet_runtime.errors import GateFailed

OPSET = 20  # the first with Gelu; LayerNormalization came with 17
_SINGLE_OPERATORS = {"LayerNormalization", "Gelu"}
# The exporter warns about missing torchvision and about its own deprecated calls; neither is useful to a user.
_quiet = partial(quiet, "torch.onnx", logging.WARNING)


def export_graph(network: MISGNet, interface: Interface, *, stacked: bool = True) -> onnx.ModelProto:
    """Returns the float ONNX graph of ``network`` with the inputs and outputs of ``interface``.

    Each node is named after its module and operator, so that reports and placement rules can refer to parts of the
    network.

    Args:
        network: The network; it stays unchanged.
        interface: Inputs and outputs of the graph.
        stacked: Whether the guidance of both dates becomes one stacked chain; False exports the network as it is.

    Raises:
        GateFailed: The exported graph lost an input or an operator.
    """
    program = export_program(network, interface, stacked=stacked)
    model = to_onnx(program, [entry.name for entry in interface.inputs()], interface.outputs()[0].name)
    _check(model, interface)
    return model


def to_onnx(program: torch.export.ExportedProgram, inputs: Sequence[str], output: str) -> onnx.ModelProto:
    """Converts a program to ONNX; its parameters have the names ``inputs``, and their first axis is the batch.

    Nodes are named after the modules of the program's attribute ``network``.

    Raises:
        GateFailed: PyTorch returned no graph.
    """
    with _quiet():
        converted = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=[output],
            dynamic_shapes={name: {0: "batch"} for name in inputs}, verbose=False, optimize=False,
        )  # fmt: skip
    if converted is None:
        raise GateFailed("torch.onnx.export returned nothing for this network")
    _fold(converted.model)
    model = converted.model_proto
    _name_nodes(model)
    return model


def _fold(model: onnx_ir.Model) -> None:
    """Folds constants and makes them initializers, without the exporter's own rewriting.

    That rewriting takes a third of the export time and drops ``x + 1e-9``; onnxsim does the useful part of it.
    """
    fold_constants(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    remove_unused_nodes(model)


def export_program(
    network: MISGNet, interface: Interface, device: str = "cpu", *, stacked: bool = True, half: bool = False
) -> torch.export.ExportedProgram:
    """Exports a copy of ``network`` as a program with the inputs of ``interface``, captured on ``device``.

    ``stacked`` is that of :func:`export_graph`; with ``half`` it computes in float16, except the guidance.
    """
    copied = with_stacked_guidance(network) if stacked else copy.deepcopy(network)
    deployed = Deployed(HalfNetwork(copied) if half else copied, interface).eval().requires_grad_(False).to(device)
    example = {
        entry.name: images.to(device) for entry, images in zip(interface.inputs(), deployed.example(), strict=True)
    }
    return program_of(deployed, example, torch.export.Dim("batch", min=1, max=interface.max_batch))


def program_of(module: nn.Module, example: Mapping[str, Tensor], batch: Any) -> torch.export.ExportedProgram:
    """Exports ``module``, given an example of each of its parameters by name.

    Args:
        module: The module, whose parameters are batches of images.
        example: Its arguments, with a batch of 2.
        batch: The sizes of the batch. If they are stated, PyTorch proves that it captured all of them; its
            ``Dim.DYNAMIC`` also captures networks for which it has no proof.
    """
    with _quiet():
        return torch.export.export(
            module, tuple(example.values()), dynamic_shapes={name: {0: batch} for name in example}, strict=False
        )


def _check(model: onnx.ModelProto, interface: Interface) -> None:
    onnx.checker.check_model(model)
    inputs = [value.name for value in model.graph.input]
    if inputs != [entry.name for entry in interface.inputs()]:
        raise GateFailed(f"the exported graph has the inputs {inputs}; both dates were merged into one input")
    missing = _SINGLE_OPERATORS - {node.op_type for node in model.graph.node}
    if missing:
        raise GateFailed(f"the exported graph has no {sorted(missing)}: they were decomposed into smaller operators")


def _name_nodes(model: onnx.ModelProto) -> None:
    """Names each node after its module; a node that the exporter added takes the module of its producer."""
    scope_of: dict[str, str] = {}
    for index, node in enumerate(model.graph.node):
        scope = _scope(node) or next((scope_of[x] for x in node.input if x in scope_of), "")
        scope_of.update(dict.fromkeys(node.output, scope))
        node.name = f"{scope}/{node.op_type}_{index}"
        del node.metadata_props[:]
        node.doc_string = ""


def _scope(node: onnx.NodeProto) -> str:
    """Returns the module of the node's weight, or else the innermost module: ``backbone.block1.0.attn.q``."""
    weights = [name for name in node.input if name.startswith("network.") and name.endswith(".weight")]
    if weights:
        return weights[0].removeprefix("network.").removesuffix(".weight")
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
    modules = [s for s in literal_eval(scopes)[:-1] if s.startswith("network.")]
    return modules[-1].removeprefix("network.") if modules else ""
