"""The source for a network in an ONNX file, as any framework exports it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from misgnet_calibration.onnx_graph import Graph
from misgnet_calibration.quantizer.known_modules import UNKNOWN
from misgnet_export.graph.cut import find_cut
from misgnet_export.graph.export import OPSET
from misgnet_export.sources.declaration import Declaration, Found, Layout
from misgnet_export.sources.deploy import check_output_form, deploy
from misgnet_export.sources.float_model import FloatModel, Source
from misgnet_export.sources.onnx_batch import random_inputs, to_opset, with_any_batch
from misgnet_export.sources.onnx_reader import read_model
from misgnet_export.sources.onnx_session import Session
from misgnet_export.sources.options import KEEP_FLOAT32, ModelIo, ModelOptions
from misgnet_export.sources.reference import Images, network_inputs, probability
from misgnet_export.sources.resolve import resolve
from misgnet_runtime.bundle import Interface, ModelEntry
from misgnet_runtime.engines import streams_on_cpu
from misgnet_runtime.errors import GateFailed, InputError, UsageError
from misgnet_runtime.formatting import plural, printable
from misgnet_runtime.log import current
from misgnet_runtime.pixels import MOST_BANDS

_DTYPES: dict[int, Literal["float32", "uint8", "uint16"]] = {
    TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8", TensorProto.UINT16: "uint16",
}  # fmt: skip
_SMALLEST_SIDE = 2 * MOST_BANDS  # of an image: an axis with fewer elements is that of the channels
_LARGEST_SIDE = 1 << 14  # of a tile, as in the manifest
_PROOF_TILE = 256  # px, for a network that accepts any size; the default of a build


@dataclass(frozen=True, kw_only=True)
class OnnxFile(Source):
    """A network that was read from an ONNX file."""

    model: onnx.ModelProto  # as in the file
    bare: onnx.ModelProto  # in this project's opset, and for any batch if that gives the same output
    keep_float32: tuple[str, ...] = ()

    def float_model(self, interface: Interface) -> FloatModel:
        what = self.declaration
        check_output_form(what, interface.output)
        deployed = deploy(self.bare, what, interface)
        return FloatModel(
            interface=interface, export=lambda: deployed, predict=_Predictor(self.model, what, interface.tile),
            reference="ONNX Runtime float32", splits=_splits(deployed, interface),
            known=UNKNOWN.keeping_float32(self.keep_float32, KEEP_FLOAT32),
        )  # fmt: skip


def open_onnx(name: str, options: ModelOptions) -> OnnxFile:
    """Reads an ONNX file and finds out what its network is.

    Raises:
        InputError: The file is missing, damaged or refused, or ONNX Runtime does not run it.
        UsageError: ``options`` contradict the network, or do not say what cannot be found out.
    """
    if options.weights is not None or options.state_key is not None:
        raise UsageError(f"--weights and --state-key are for a PyTorch factory, but {name} is an ONNX file")
    read = read_model(Path(name))
    found = inspect(read.model, options, name)
    what, words = resolve(found, options, name)
    bare = to_opset(read.model, read.opset, name)
    bare, largest, how = _for_any_batch(bare, what, found)
    if largest == 1:
        current().warning(
            f"{name} accepts only a batch of 1, and its graph cannot be changed to accept more; the largest batch of "
            "the bundle is 1: export it with a dynamic batch"
        )
    count = sum(int(np.prod(item.dims)) for item in bare.graph.initializer if item.data_type == TensorProto.FLOAT)
    converted = "" if read.opset == OPSET else f", converted to {OPSET}"
    nodes = plural(len(read.model.graph.node), "node")
    entry = ModelEntry(
        source="onnx", name=Path(name).name, io=what.io, layout=what.layout, output=str(what.output),
        changed=list(what.changed), parameters=count, resolution=options.resolution,
    )  # fmt: skip
    return OnnxFile(
        entry=entry, sha256=read.sha256, declaration=what, fixed_tile=found.tile, largest_batch=largest,
        findings=(f"ONNX file of opset {read.opset}{converted}, {nodes}, {count:,} parameters", *words, *how),
        model=read.model, bare=bare, keep_float32=options.keep_float32,
    )  # fmt: skip


def inspect(model: onnx.ModelProto, options: ModelOptions, name: str) -> Found:
    """Returns what the graph of a file shows by itself.

    Raises:
        InputError: No image can have the form of its inputs.
    """
    graph = model.graph
    stored = {item.name for item in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    outputs = tuple(value.name for value in graph.output)
    chosen = [value for value in inputs if options.model_inputs is None or value.name in options.model_inputs]
    names = tuple(value.name for value in inputs)
    if not inputs or not outputs:
        raise InputError(f"{name} has no inputs or no outputs")
    if not chosen or len(chosen) > 2:
        return Found(inputs=names, outputs=outputs)
    if len(chosen) < len(inputs):
        others = ", ".join(f"'{_shown(one.name)}'" for one in inputs if one not in chosen)
        raise InputError(f"{name} has inputs that --model-inputs does not name: {others}; export it without them")
    shapes = [_image(value, name) for value in chosen]
    if len(shapes) == 2 and shapes[0] != shapes[1]:
        raise InputError(f"{name}: its inputs differ in type or size, so they cannot be the images of two dates")
    io: ModelIo | None = "pair" if len(shapes) == 2 else shapes[0].io
    bands, channels = _bands(shapes[0], len(shapes), name), _channels(model, options, shapes[0])
    return replace(shapes[0], inputs=names, outputs=outputs, io=io, bands=bands, channels=channels)


def _image(value: onnx.ValueInfoProto, name: str) -> Found:
    """Returns what one input shows; bands are its channels, and ``io`` is that of a single input."""
    kind, what = value.type.tensor_type, f"{name}: input '{_shown(value.name)}'"
    if kind.elem_type not in _DTYPES:
        known = kind.elem_type in TensorProto.DataType.values()
        found = TensorProto.DataType.Name(kind.elem_type).lower() if known else kind.elem_type
        raise InputError(f"{what} is {found}; images are float (float32), uint8 or uint16")
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in kind.shape.dim]  # 0: any
    if len(dims) not in (4, 5) or (len(dims) == 5 and dims[1] not in (0, 2)):
        raise InputError(
            f"{what} has the shape ({_sizes(dims)}); expected images (B, C, H, W) or (B, H, W, C), or both dates after "
            "the batch"
        )
    if dims[0] not in (0, 1):
        raise InputError(f"{what} has a fixed batch of {dims[0]}; export it with a batch of 1, or a dynamic one")
    io: ModelIo = "time" if len(dims) == 5 else "stacked"
    image = dims[-3:]
    layout = _layout(image)
    channels, *sides = image if layout == "NCHW" else (image[2], *image[:2])
    fixed = {side for side in sides if side}
    if len(fixed) > 1 or (fixed and not 1 <= min(fixed) <= _LARGEST_SIDE):
        raise InputError(f"{what} has images of {sides[1]} x {sides[0]} px; tiles are square, up to {_LARGEST_SIDE} px")
    return Found(
        inputs=(), outputs=(), io=io, layout=layout, dtype=_DTYPES[kind.elem_type],
        bands=channels or None, tile=next(iter(fixed), None), batch=dims[0] or None,
    )  # fmt: skip


def _layout(image: Sequence[int]) -> Layout:
    """Returns the order of the axes of an image with three sizes, 0 for any: that of the channels is small."""
    last = 0 < image[2] <= _SMALLEST_SIDE
    first = 0 < image[0] <= _SMALLEST_SIDE
    return "NHWC" if last and not first else "NCHW"


def _bands(image: Found, inputs: int, name: str) -> int | None:
    """Returns the bands of each date."""
    if inputs == 2 and image.io == "time":
        raise InputError(f"{name} has two inputs with both dates in each; expected one such input")
    if inputs == 2 or image.io == "time" or image.bands is None:
        return image.bands
    if image.bands % 2:
        raise InputError(
            f"{name} has one input of {plural(image.bands, 'channel')}, which cannot hold two dates of equal bands"
        )
    return image.bands // 2


def _channels(model: onnx.ModelProto, options: ModelOptions, image: Found) -> int | None:
    """Returns the channels of the output that is chosen or alone, as far as the file states them."""
    named = [one for one in model.graph.output if options.model_output_name in (None, one.name)]
    if len(named) != 1:
        return None
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in named[0].type.tensor_type.shape.dim]
    if len(dims) == 3:
        return 1
    if len(dims) != 4:
        return None
    sides = (image.tile or 0,) * 2
    first, last = tuple(dims[2:]) == sides, tuple(dims[1:3]) == sides
    if last and (image.layout == "NHWC" or not first):
        return dims[3] or None
    return dims[1] or None if first else None


def _for_any_batch(
    bare: onnx.ModelProto, what: Declaration, found: Found
) -> tuple[onnx.ModelProto, int | None, tuple[str, ...]]:
    """Returns the graph for any batch if it can be had, the largest batch, and what was found, in words."""
    tile = found.tile or -(-_PROOF_TILE // what.multiple) * what.multiple
    images = random_inputs(_input_shape(what, tile), what.dtype, len(what.inputs))
    try:
        changed = with_any_batch(bare, what.inputs, what.output_name, images)
    except InputError:
        if found.tile is not None:
            raise
        return bare, found.batch, (f"batches were not tried: it does not run on tiles of {tile} px",)
    if changed is None:
        return bare, 1, ("it accepts only a batch of 1",)
    made = "" if changed is bare else "its batch of 1 was made dynamic; "
    return changed, None, (f"{made}batches give the same output as single pairs",)


def _input_shape(what: Declaration, tile: int) -> tuple[int, ...]:
    """Returns the shape of one of the network's inputs, without the batch."""
    zeros = np.zeros((1, tile, tile, what.bands), what.samples)
    return network_inputs(zeros, zeros, what)[0].shape[1:]


def _splits(deployed: onnx.ModelProto, interface: Interface) -> bool:
    try:
        find_cut(Graph(deployed), interface)
    except GateFailed:
        return False
    return True


class _Predictor:
    """The reference: the file as it came, one pair at a time, as many at once as there are cores for."""

    def __init__(self, model: onnx.ModelProto, what: Declaration, tile: int) -> None:
        self._model, self._what, self._tile = model, what, tile
        self._streams = streams_on_cpu()

    @cached_property
    def _session(self) -> Session:
        return Session(self._model, self._what.inputs, self._what.output_name, streams=self._streams)

    def __call__(self, before: Images, after: Images) -> NDArray[np.float32]:
        session = self._session
        with ThreadPoolExecutor(self._streams) as pool:
            pairs = [(before[i : i + 1], after[i : i + 1]) for i in range(len(before))]
            return np.concatenate(list(pool.map(partial(self._pair, session), pairs)))

    def _pair(self, session: Session, pair: tuple[Any, Any]) -> NDArray[np.float32]:
        return probability(session.run(network_inputs(*pair, self._what)), self._what, self._tile)


def _sizes(dims: Sequence[int]) -> str:
    return ", ".join(str(size) if size else "any" for size in dims)


def _shown(text: str) -> str:
    return printable(text if len(text) <= 60 else f"{text[:60]}...")
