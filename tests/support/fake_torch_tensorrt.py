"""Fakes the module ``torch_tensorrt`` of version 2.14 on top of the fake of TensorRT 11.1.

Its plan can be opened by the fake of TensorRT and computes the exported program itself. The arguments have the names
and checks of the real module, which rejects unknown arguments as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from support import fake_tensorrt

TYPES = {torch.uint8: "UINT8", torch.float32: "FLOAT"}


class UnsupportedOperatorException(RuntimeError):  # noqa: N818 - the name in the real module
    pass


class Input:
    """An input with a dynamic batch."""

    def __init__(
        self, *, min_shape: Sequence[int], opt_shape: Sequence[int], max_shape: Sequence[int], dtype: torch.dtype
    ) -> None:
        self.profile = [list(min_shape), list(opt_shape), list(max_shape)]
        self.dtype = dtype
        self.shape = [a if a == b else -1 for a, b in zip(min_shape, max_shape, strict=True)]


class Module(ModuleType):
    """The fake module. ``arguments``: those of the last conversion; ``unsupported``: operator without converter."""

    def __init__(self, tensorrt: Any, version: str = "2.14.0", *, rtx: bool = False, unsupported: str = "") -> None:
        super().__init__("torch_tensorrt")
        self.__version__ = version
        self.ENABLED_FEATURES = SimpleNamespace(tensorrt_rtx=rtx)
        self.Input = Input
        self.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=self._convert)
        self._tensorrt, self._unsupported = tensorrt, unsupported
        self.arguments: dict[str, Any] = {}
        self.program: Any = None

    def _convert(
        self, exported_program: torch.export.ExportedProgram, inputs: None = None, *,
        arg_inputs: Sequence[Input], device: torch.device, disable_tf32: bool = False, workspace_size: int = 0,
        require_full_compilation: bool = False, optimization_level: int | None = None, timing_cache_path: str = "",
        use_explicit_typing: bool = True,
        arg_input_binding_names: Any = None, output_binding_names: Any = None,
    ) -> bytes:  # fmt: skip
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "exported_program")}
        signature = exported_program.module_call_graph[0].signature
        names = _leaves(arg_input_binding_names, signature.in_spec.child(0))
        (out,) = _leaves(output_binding_names, signature.out_spec)
        if self._unsupported:
            try:
                cause = f"Conversion of function {self._unsupported} not currently supported!\n{exported_program}"
                raise UnsupportedOperatorException(cause)
            except UnsupportedOperatorException as error:
                whole = f"Conversion of module {exported_program} not currently fully supported or convertible!"
                raise UnsupportedOperatorException(whole) from error
        self.program = exported_program.module()
        (output,) = (node.meta["val"] for node in exported_program.graph.output_node().args[0])
        plan = {
            "version": self._tensorrt.__version__, "capturable": True,
            "inputs": {n: [TYPES[i.dtype], i.shape] for n, i in zip(names, arg_inputs, strict=True)},
            "outputs": {out: [TYPES[output.dtype], [-1, *map(int, output.shape[1:])]]},
            "profiles": [{name: i.profile for name, i in zip(names, arg_inputs, strict=True)}],
        }  # fmt: skip
        return json.dumps(plan).encode()

    def network(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Computes the plan; replaces :func:`fake_tensorrt._network`."""
        types = [entry.dtype for entry in self.arguments["arg_inputs"]]
        dates = [torch.from_numpy(np.array(arrays[n])).to(t) for n, t in zip(("before", "after"), types, strict=True)]
        with torch.no_grad():
            return {self.arguments["output_binding_names"]: self.program(*dates).numpy()}


def _leaves(names: Any, spec: Any) -> list[str]:
    leaves, found = pytree.tree_flatten(names)
    assert found == spec, f"the names have the structure {found}, the program has {spec}"
    return leaves


def install(monkeypatch: Any, driver: Any, **options: Any) -> Module:
    """Installs this module and the fake of TensorRT as importable modules."""
    tensorrt = fake_tensorrt.make_tensorrt("11.1.0", driver)
    module = Module(tensorrt, **options)
    for fake in (tensorrt, module):
        fake.__spec__ = ModuleSpec(fake.__name__, None)  # torch._dynamo looks for it
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr(fake_tensorrt, "_network", module.network)
    return module
