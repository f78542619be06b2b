"""torch.export, then ONNX: LayerNorm and GELU as single operators, the batch dynamic, the tile fixed."""

from __future__ import annotations

import logging
from ast import literal_eval
from functools import partial

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from onnxscript.optimizer import fold_constants, remove_unused_nodes

from misgnet.network import MISGNet
from misgnet_export.graph.deployed import Deployed
from misgnet_export.graph.quiet import quiet
from misgnet_runtime.bundle import Interface
from misgnet_runtime.errors import GateFailed

OPSET = 20  # the first with Gelu; LayerNormalization came with 17
_SINGLE_OPERATORS = {"LayerNormalization", "Gelu"}
# The exporter warns of torchvision's absence and of its own deprecated calls; neither helps a user.
_quiet = partial(quiet, "torch.onnx", logging.WARNING)


def export_graph(network: MISGNet, interface: Interface) -> onnx.ModelProto:
    """The float ONNX graph of ``network`` with ``interface``'s inputs and outputs.

    Node names are the module's dotted name and the operator, so that reports and placement rules can speak
    of parts of the network. Raises GateFailed where the exported graph lost an input or an operator.
    """
    program = export_program(network, interface)
    names = [entry.name for entry in interface.inputs()]
    with _quiet():
        converted = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=names,
            output_names=[interface.outputs()[0].name], dynamic_shapes={name: {0: "batch"} for name in names},
            verbose=False, optimize=False,
        )  # fmt: skip
    if converted is None:
        raise GateFailed("torch.onnx.export returned nothing for this network")
    _fold(converted.model)
    model = converted.model_proto
    _name_nodes(model)
    _check(model, interface)
    return model


def _fold(model: onnx_ir.Model) -> None:
    """Constants folded and made initializers, without the exporter's rewriting.

    That takes a third of the export's time, onnxsim does what is left of it, and it drops ``x + 1e-9``.
    """
    fold_constants(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    remove_unused_nodes(model)


def export_program(network: MISGNet, interface: Interface, device: str = "cpu") -> torch.export.ExportedProgram:
    """``network`` as a program of ``interface``'s inputs; it is moved to ``device``, where the program is captured."""
    deployed = Deployed(network, interface).eval().to(device)
    batch = torch.export.Dim("batch", min=1, max=interface.max_batch)
    before, after = (images.to(device) for images in deployed.example())
    with _quiet():
        return torch.export.export(
            deployed, (before, after), dynamic_shapes={e.name: {0: batch} for e in interface.inputs()}, strict=False
        )


def _check(model: onnx.ModelProto, interface: Interface) -> None:
    onnx.checker.check_model(model)
    inputs = [value.name for value in model.graph.input]
    if inputs != [entry.name for entry in interface.inputs()]:
        raise GateFailed(f"the exported graph has the inputs {inputs}; the two dates became one")
    missing = _SINGLE_OPERATORS - {node.op_type for node in model.graph.node}
    if missing:
        raise GateFailed(f"the exported graph has no {sorted(missing)}: they were taken apart into smaller operators")


def _name_nodes(model: onnx.ModelProto) -> None:
    """Name each node after the module that it comes from; a node of the exporter's own takes its producer's."""
    scope_of: dict[str, str] = {}
    for index, node in enumerate(model.graph.node):
        scope = _scope(node) or next((scope_of[x] for x in node.input if x in scope_of), "")
        scope_of.update(dict.fromkeys(node.output, scope))
        node.name = f"{scope}/{node.op_type}_{index}"
        del node.metadata_props[:]
        node.doc_string = ""


def _scope(node: onnx.NodeProto) -> str:
    """The innermost module, that of the node's weight where it has one: ``backbone.block1.0.attn.q``."""
    weights = [name for name in node.input if name.startswith("network.") and name.endswith(".weight")]
    if weights:
        return weights[0].removeprefix("network.").removesuffix(".weight")
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
    modules = [s for s in literal_eval(scopes)[:-1] if s.startswith("network.")]
    return modules[-1].removeprefix("network.") if modules else ""
