"""Defines what a network is, so that images can be given to it and its output be read: a value without behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from misgnet_export.sources.options import ModelIo, ModelOutput, parse_output
from misgnet_runtime.bundle import Normalization
from misgnet_runtime.pixels import Samples

Layout = Literal["NCHW", "NHWC"]


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """How a bare network reads images and what it outputs, as found in it or declared by the user."""

    io: ModelIo = "pair"
    layout: Layout = "NCHW"  # of its images; of stacked dates, C stands for 2C; "time" puts the dates after the batch
    dtype: Literal["float32", "float16", "uint8", "uint16"] = "float32"  # of its inputs
    inputs: tuple[str, ...] = ("before", "after")  # in its graph; one name unless ``io`` is "pair"
    output_name: str = "logits"  # in its graph
    output: ModelOutput = field(default_factory=lambda: parse_output("logits2"))
    changed: tuple[int, ...] = ()  # classes that count as changed, for "classes"
    bands: int = 3  # C, of each date
    samples: Samples = "uint8"  # type of the raw images
    normalization: Normalization = field(default_factory=Normalization)  # of raw images
    multiple: int = 1  # of which the tile size must be a multiple


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a network shows by itself; None: it does not show it."""

    inputs: tuple[str, ...]  # names in its graph; of a factory's network, those of the parameters of ``forward``
    outputs: tuple[str, ...]  # names in its graph
    io: ModelIo | None = None
    layout: Layout | None = None
    dtype: Literal["float32", "float16", "uint8", "uint16"] | None = None
    bands: int | None = None
    channels: int | None = None  # of its output
    tile: int | None = None  # side of the only images that it accepts, in pixels
    batch: int | None = None  # the only batch that it accepts
