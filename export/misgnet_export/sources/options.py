"""Options that describe the network of a build. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from misgnet_runtime.errors import UsageError
from misgnet_runtime.options import option, stated
from misgnet_runtime.parsers import numbers
from misgnet_runtime.pixels import MOST_BANDS, Samples

SourceKind = Literal["misgnet", "onnx", "pytorch"]
# How a network takes both dates: two inputs; one of (B, 2C, H, W); one of (B, 2, C, H, W).
ModelIo = Literal["pair", "stacked", "time"]
# ImageNet's mean and standard deviation; 0.5 for both; pixel / largest value; pixels as they are.
Preset = Literal["imagenet", "half", "unit", "none"]
OutputKind = Literal["logits2", "logit1", "probability1", "probability2", "classes"]

PANEL = "The network (an ONNX file or a PyTorch factory; a MISGNet checkpoint needs none of these)"
KEEP_FLOAT32 = "--keep-float32"  # the reason of nodes that match its patterns
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class ModelOutput:
    """What a network outputs for each pixel."""

    kind: OutputKind
    channels: int  # of its output; 1 may also be a missing axis

    def __str__(self) -> str:
        return f"classes:{self.channels}" if self.kind == "classes" else self.kind


_OUTPUTS = {
    one.kind: one
    for one in (
        ModelOutput("logits2", 2), ModelOutput("logit1", 1), ModelOutput("probability1", 1),
        ModelOutput("probability2", 2),
    )
}  # fmt: skip


def parse_output(text: str) -> ModelOutput:
    """Parses "logits2", "logit1", "probability1", "probability2" or "classes:N". Raises ValueError for other text."""
    if text in _OUTPUTS:
        return _OUTPUTS[text]
    name, _, count = text.partition(":")
    if name != "classes" or not count.isdecimal() or not 2 <= int(count) <= _MOST_CLASSES:
        raise ValueError(f"expected {', '.join(_OUTPUTS)} or classes:N, with N from 2 to {_MOST_CLASSES}")
    return ModelOutput("classes", int(count))


def _names(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    if not all(found):
        raise ValueError("expected names separated by commas")
    return found


def _classes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ValueError("expected numbers of classes, counted from 0, such as 1,2")
    return tuple(sorted(map(int, parts)))


_per_band = numbers(*range(1, MOST_BANDS + 1), like="0.485,0.456,0.406")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options of ``misgnet-export build`` that describe the network; None: not declared."""

    weights: Path | None = option(
        None,
        help="File of the weights that a factory's network loads: safetensors, or a pickle, which is read without "
        "running code in it (default: the network as the factory returns it).",
    )
    state_key: str | None = option(
        None, help="Key in --weights that holds the state dict, such as state_dict (default: found by itself)."
    )
    model_io: ModelIo | None = option(
        None,
        help="How the network takes both dates: pair (two inputs), stacked (B, 2C, H, W) or time (B, 2, C, H, W).",
    )
    model_inputs: tuple[str, ...] | None = option(
        None, help="Names of the inputs in an ONNX graph, BEFORE first, separated by commas (default: all inputs).",
        parse=_names, metavar="NAME[,NAME]",
    )  # fmt: skip
    model_output_name: str | None = option(
        None, help="Name of the output in an ONNX graph that has several.", metavar="NAME"
    )
    model_output: ModelOutput | None = option(
        None, help="What the network outputs: logits2, logit1, probability1, probability2 or classes:N.",
        parse=parse_output, metavar="KIND",
    )  # fmt: skip
    changed: tuple[int, ...] | None = option(
        None,
        help="Classes of classes:N that count as changed, from 0, such as 1,2.",
        parse=_classes,
        metavar="N[,N...]",
    )
    bands: int | None = option(
        None, help="Bands of each date (default: as found in the network).", minimum=1, maximum=MOST_BANDS
    )
    samples: Samples = option("uint8", help="Data type of the images.")
    normalization: Preset | None = option(
        None,
        help="Conversion of pixels to the network's input: imagenet, half (mean and standard deviation 0.5), unit "
        "(pixel / largest value) or none; or else --mean and --std.",
    )
    mean: tuple[float, ...] | None = option(
        None, help="Mean of each band after --scale; one number, or one per band.", parse=_per_band, metavar="X[,X...]"
    )
    std: tuple[float, ...] | None = option(
        None, help="Standard deviation of each band after --scale; one number, or one per band.", parse=_per_band,
        metavar="X[,X...]",
    )  # fmt: skip
    scale: float | None = option(
        None, help="Number that pixels are divided by first.", show_default="255 for uint8, 65535 for uint16"
    )
    multiple: int | None = option(
        None, help="Number that the tile size must be a multiple of.", minimum=1, show_default="32 for MISGNet, else 1"
    )
    resolution: float | None = option(
        None,
        help="Metres per pixel of the training data; `misgnet-run` warns if a raster's differs by more than a factor "
        "of 2 (default: no warning).",
    )
    keep_float32: tuple[str, ...] = option(
        (), help="Pattern of modules or nodes that must stay float32 where others become FP16, such as 'head.*'. May "
        "be repeated.",
    )  # fmt: skip

    def given(self) -> list[str]:
        """Returns the flags of the options that differ from their defaults."""
        return [
            one.flag
            for one, field in zip(stated(ModelOptions).values(), fields(self), strict=True)
            if getattr(self, field.name) != field.default
        ]


def kind_of(name: str) -> SourceKind:
    """Returns which kind of source ``name`` is, without reading it.

    A name that ends in ``.onnx`` is an ONNX file, ``something:identifier`` a factory, unless a file has that name, and
    anything else a checkpoint. Raises UsageError for an empty name.
    """
    if not name:
        raise UsageError("SOURCE is empty; give a checkpoint, an ONNX file, or a factory such as net.py:make")
    if name.lower().endswith(".onnx"):
        return "onnx"
    module, _, factory = name.rpartition(":")
    if module and (factory.isidentifier() or module.endswith(".py")) and not Path(name).is_file():
        return "pytorch"
    return "misgnet"
