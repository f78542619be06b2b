"""Defines what a build starts from, whatever kind of network the user brings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import onnx

from misgnet.network import MISGNet
from misgnet_calibration.quantizer.known_modules import UNKNOWN, KnownModules
from misgnet_calibration.statistics.tile_selection import FeatureExtractor
from misgnet_export.sources.declaration import Declaration
from misgnet_runtime.bundle import Interface, ModelEntry
from misgnet_runtime.callables import Predict


@dataclass(frozen=True, kw_only=True)
class FloatModel:
    """A float network for one tile size. Every stage behind the sources sees only this."""

    interface: Interface  # of the graph and of every engine
    export: Callable[[], onnx.ModelProto]  # makes the deployed float32 graph, with the inputs and outputs of interface
    predict: Predict  # the reference that parity is measured against
    reference: str  # its name: "PyTorch float32"
    features: FeatureExtractor | None = None  # of its encoder, to select tiles by; None: it has no known encoder
    splits: bool = False  # whether its graph joins the dates once and encodes both, so that it can be split
    known: KnownModules = UNKNOWN  # what placement, float16 and accuracy control may conclude from names of modules
    network: MISGNet | None = None  # for Torch-TensorRT, which compiles a program; None: it cannot


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A network that was read and inspected."""

    entry: ModelEntry  # its description in the manifest
    sha256: str  # of the bytes that it was decoded from
    declaration: Declaration
    fixed_tile: int | None = None  # the only tile size that it supports; None: any multiple of declaration.multiple
    largest_batch: int | None = None  # None: any
    findings: tuple[str, ...] = ()  # what was found out or declared, in words, for the log and for --check

    @abstractmethod
    def float_model(self, interface: Interface) -> FloatModel:
        """Returns the network with the inputs and outputs of ``interface``."""
