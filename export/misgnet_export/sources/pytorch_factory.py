"""The source for a network that the user's own PyTorch code makes.

What the network is, is found out by looking at its parameters and by running it on random images. A network with
``encode(image)`` and ``compare(features_a, features_b)`` is exported so that its graph can be split for series.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from misgnet_calibration.quantizer.known_modules import UNKNOWN
from misgnet_calibration.statistics.tile_selection import FeatureExtractor
from misgnet_export.graph.export import program_of, to_onnx
from misgnet_export.sources.declaration import Declaration, Found
from misgnet_export.sources.deploy import check_output_form, deploy
from misgnet_export.sources.factory_code import first_line, network_of, own_code
from misgnet_export.sources.factory_weights import load_weights
from misgnet_export.sources.float_model import FloatModel, Source
from misgnet_export.sources.misgnet_checkpoint import statistics_of
from misgnet_export.sources.onnx_session import Session
from misgnet_export.sources.options import KEEP_FLOAT32, ModelIo, ModelOptions
from misgnet_export.sources.reference import Images, network_inputs, output_layout, probability
from misgnet_export.sources.resolve import resolve
from misgnet_export.sources.torch_threads import tile_per_core
from misgnet_runtime.bundle import Interface, ModelEntry
from misgnet_runtime.bundle.preprocessing import normalise
from misgnet_runtime.callables import Predict
from misgnet_runtime.engines import streams_on_cpu
from misgnet_runtime.errors import InputError, MisgnetError, UsageError
from misgnet_runtime.pixels import MOST_BANDS

_SIDES = (256, 512, 224, 384, 128, 64)  # px of the images that a network is tried with, until one fits
_FORMS: dict[int, tuple[ModelIo, ...]] = {1: ("stacked", "time"), 2: ("pair",)}  # by the number of inputs
_TOLERANCE = 1e-4  # between two ways to compute an output; relative above 1
_PROVED = (1, 3)  # batches for which the graph must compute what the network does; it is exported with 2
_ONE_OUTPUT = "output"  # name of the output of a network that has no names


@dataclass(frozen=True, kw_only=True)
class PyTorchFactory(Source):
    """A network that a factory made."""

    network: nn.Module  # float32, for inference, on the CPU
    separate: bool  # whether it encodes the dates separately
    trials: Trials
    keep_float32: tuple[str, ...] = ()

    def float_model(self, interface: Interface) -> FloatModel:
        what = self.declaration
        check_output_form(what, interface.output)
        _output(self.trials, what, interface.tile)
        return FloatModel(
            interface=interface, export=partial(_export, self, interface), predict=_predictor(self, interface.tile),
            reference="PyTorch float32", features=_features(self.network, what) if self.separate else None,
            splits=self.separate, known=UNKNOWN.keeping_float32(self.keep_float32, KEEP_FLOAT32),
        )  # fmt: skip


def open_factory(name: str, options: ModelOptions) -> PyTorchFactory:
    """Runs a factory, loads the weights, and finds out what the network is.

    Args:
        name: ``FILE.py:factory`` or ``package.module:factory``.
        options: The user's declarations about the network.

    Raises:
        InputError: The factory or its network fails, or the weights do not fit.
        UsageError: ``options`` contradict the network, or do not say what cannot be found out.
    """
    if options.state_key is not None and options.weights is None:
        raise UsageError("--state-key is the key of the state dict in --weights, which is missing; add --weights FILE")
    made, digest = network_of(name)
    network = _prepared(made, name)
    weights = None
    if options.weights is not None:
        with own_code(name):
            weights = load_weights(network, options.weights, options.state_key)
    total = hashlib.sha256(digest + (bytes.fromhex(weights) if weights else _state_digest(network)))
    trials = Trials(network, name, options)
    found = _inspect(trials)
    what, words = resolve(found, options, name)
    separate, how = _check(trials, what, found.tile or trials.first_side)
    count = sum(weight.numel() for weight in network.parameters())
    entry = ModelEntry(
        source="pytorch", name=_entry_name(name), io=what.io, layout=what.layout, output=str(what.output),
        changed=list(what.changed), parameters=count, resolution=options.resolution,
    )  # fmt: skip
    return PyTorchFactory(
        entry=entry, sha256=total.hexdigest(), declaration=what, fixed_tile=found.tile, network=network,
        separate=separate, trials=trials, keep_float32=options.keep_float32,
        findings=(f"{type(network).__name__} with {count:,} parameters", *words, how),
    )  # fmt: skip


def _prepared(made: nn.Module, name: str) -> nn.Module:
    """Returns a copy of a module for inference in float32 on the CPU. Raises InputError if it cannot be exported."""
    if isinstance(made, torch.jit.ScriptModule):
        raise InputError(
            f"{name} returned TorchScript, which PyTorch cannot export; return the module it was made from"
        )
    tensors = [*made.parameters(), *made.buffers()]
    if any(nn.parameter.is_lazy(tensor) or tensor.is_meta for tensor in tensors):
        raise InputError(f"{name} returned a network with tensors that have no values; run it once in the factory")
    with own_code(name):
        network = copy.deepcopy(made).cpu().float().eval().requires_grad_(False)
        if type(network).forward is nn.Module.forward and callable(getattr(network, "encode", None)):
            network.forward = MethodType(_compared, network)
        return network


def _compared(network: Any, before: Tensor, after: Tensor) -> Any:
    """The ``forward`` of a network that has only ``encode`` and ``compare``."""
    return network.compare(network.encode(before), network.encode(after))


def _state_digest(network: nn.Module) -> bytes:
    """Returns the SHA-256 of the names, types, shapes and values of all tensors."""
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            total.update(value.contiguous().numpy().tobytes())
    return total.digest()


def _entry_name(name: str) -> str:
    """Returns a factory's name without the folder of its file."""
    module, _, factory = name.rpartition(":")
    return f"{Path(module).name}:{factory}" if module.endswith(".py") else name


class Trials:
    """Runs a network on random images, to find out what it accepts and returns."""

    def __init__(self, network: nn.Module, name: str, options: ModelOptions) -> None:
        self.network, self.name, self.options = network, name, options
        parameters = _parameters(network)
        required = tuple(parameter for parameter, needed in parameters.items() if needed)
        self.shown = tuple(parameters) if options.model_inputs else required  # names that the user may choose from
        # The parameters that take images; none: they are given in their order.
        self.names = options.model_inputs or required
        multiple = options.multiple or 1
        self.first_side = -(-_SIDES[0] // multiple) * multiple

    def run(self, io: ModelIo, bands: int, side: int) -> dict[str, Tensor]:
        """Returns the tensors of the output by name. Raises InputError with the network's own exception."""
        images = _arranged(io, *random_dates(bands, side))
        shapes = " and ".join(str(tuple(image.shape)) for image in images)
        with own_code(f"{self.name}: the network on images {shapes}"), torch.inference_mode():
            return outputs_of(_call(self.network, self.names, images))

    def accepted(self, ios: Sequence[ModelIo], bands: Sequence[int], side: int) -> list[_Accepted]:
        """Returns which of the forms the network accepts."""
        found = []
        for io, count in product(ios, bands):
            with suppress(InputError):
                found.append(_Accepted(io, count, self.run(io, count, side)))
        return found


@dataclass(frozen=True)
class _Accepted:
    """A form of images that a network accepts, and what it returns for them."""

    io: ModelIo
    bands: int
    outputs: dict[str, Tensor]


def _inspect(trials: Trials) -> Found:
    """Returns what the network shows by its parameters and its first convolution, and by what it accepts."""
    options, count = trials.options, len(trials.names)
    ios = _FORMS.get(count, ("pair", "stacked", "time"))
    bands, accepted, side = _possible_bands(trials.network, options), [], trials.first_side
    sides = [side for side in _SIDES if side % (options.multiple or 1) == 0]
    for side in dict.fromkeys((trials.first_side, *sides)):
        if accepted := trials.accepted(ios, bands, side):
            break
    if len({one.io for one in accepted}) > 1:
        accepted = [one for one in accepted if one.io == options.model_io] or accepted
    if len({one.bands for one in accepted}) > 1:
        accepted = [one for one in accepted if one.bands == options.bands] or accepted
    if not accepted:
        return Found(inputs=trials.shown, outputs=(), layout="NCHW", dtype="float32")
    outputs = accepted[0].outputs
    return Found(
        inputs=trials.shown, outputs=tuple(outputs), io=_only({one.io for one in accepted}), layout="NCHW",
        dtype="float32", bands=_only({one.bands for one in accepted}), channels=_channels(outputs, options, side),
        tile=None if side == trials.first_side else side,
    )  # fmt: skip


def _parameters(network: nn.Module) -> dict[str, bool]:
    """Returns the parameters of ``forward`` that have names, and whether they are required."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(network.forward).parameters.values()
    return {one.name: one.default is one.empty for one in found if one.kind in kinds}


def _possible_bands(network: nn.Module, options: ModelOptions) -> list[int]:
    """Returns how many bands a date may have: the channels of the first convolution, half of them, or as declared."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)), None)
    channels = first.in_channels if first is not None else 0
    found = [channels, *([channels // 2] if channels % 2 == 0 else []), options.bands or 0]
    return [bands for bands in dict.fromkeys(found) if 1 <= bands <= MOST_BANDS]


def _only(values: set[Any]) -> Any:
    return next(iter(values)) if len(values) == 1 else None


def _channels(outputs: Mapping[str, Tensor], options: ModelOptions, side: int) -> int | None:
    """Returns the channels of the output that is chosen or alone."""
    chosen = [output for name, output in outputs.items() if options.model_output_name in (None, name)]
    if len(chosen) != 1 or chosen[0].ndim not in (3, 4):
        return None
    shape = chosen[0].shape
    if len(shape) == 3:
        return 1
    return shape[3] if shape[1:3] == (side, side) and shape[2:] != (side, side) else shape[1]


def _check(trials: Trials, what: Declaration, side: int) -> tuple[bool, str]:
    """Checks the output of the network; returns whether it encodes the dates separately, and that in words.

    Raises:
        InputError: The network does not accept images as declared, or its output has another form.
    """
    output, network = _output(trials, what, side), trials.network
    if not all(callable(getattr(network, method, None)) for method in ("encode", "compare")):
        return False, "without encode(image) and compare(features_a, features_b): no parts for series"
    try:
        with own_code(f"{type(network).__name__}.encode and compare"), torch.inference_mode():
            parts = Separate(network, what.output_name)
            found = parts(*random_dates(what.bands, side))
    except InputError as error:
        return False, f"{error}: no parts for series"
    if found.shape != output.shape:
        shapes = f"encode and compare return {list(found.shape)}, forward {list(output.shape)}"
        return False, f"{shapes}: no parts for series"
    difference = float((found - output).abs().max() / output.abs().max().clamp(min=1))
    if not difference <= _TOLERANCE:
        return False, f"encode and compare differ from forward by {difference:.2g}: no parts for series"
    return True, "encodes each date separately: --split makes parts for series"


def _output(trials: Trials, what: Declaration, side: int) -> Tensor:
    """Returns the checked output of the network for random images with ``side`` px."""
    outputs = trials.run(what.io, what.bands, side)
    if what.output_name not in outputs:
        raise UsageError(f"--model-output-name is '{what.output_name}', but the outputs are {', '.join(outputs)}")
    output = outputs[what.output_name]
    if not output.is_floating_point():
        raise InputError(f"{trials.name}: the network outputs {output.dtype}; it must output logits or probabilities")
    output_layout(tuple(output.shape), what, side)
    return output


def random_dates(bands: int, side: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Returns the same random images of two dates each time, float32 (B, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn((2, batch, bands, side, side), generator=generator)
    return before, after


def outputs_of(output: Any) -> dict[str, Tensor]:
    """Returns the tensors that a network outputs by name: by key of a dict, or by position in a list or tuple.

    Raises:
        InputError: There are none.
    """
    if isinstance(output, Tensor):
        return {_ONE_OUTPUT: output}
    items = (
        output.items() if isinstance(output, Mapping) else enumerate(output if isinstance(output, list | tuple) else ())
    )
    if found := {str(name): value for name, value in items if isinstance(value, Tensor)}:
        return found
    raise InputError(
        f"the network returned {type(output).__name__}; it must return a tensor, or a dict or list of tensors"
    )


def _call(network: nn.Module, names: Sequence[str], images: Sequence[Tensor]) -> Any:
    return network(**dict(zip(names, images, strict=True))) if names else network(*images)


def _arranged(io: ModelIo, before: Tensor, after: Tensor) -> tuple[Tensor, ...]:
    """Returns images (B, C, H, W) of both dates as a network takes them."""
    if io == "pair":
        return before, after
    return (torch.cat((before, after), 1) if io == "stacked" else torch.stack((before, after), 1),)


class Pair(nn.Module):
    """A network with an input for each date, and one output."""

    def __init__(self, network: nn.Module, names: Sequence[str], output: str) -> None:
        super().__init__()
        self.network, self.names, self.output = network, tuple(names), output

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return outputs_of(_call(self.network, self.names, (before, after)))[self.output]


class Together(Pair):
    """A network with one input for both dates, and one output."""

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        return outputs_of(_call(self.network, self.names, (images,)))[self.output]


class Separate(nn.Module):
    """A network that encodes both dates as one batch and compares them, so that its graph can be cut between."""

    network: Any

    def __init__(self, network: nn.Module, output: str) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        features = self.network.encode(torch.cat((before, after)))
        dates = [maps.reshape(2, -1, *maps.shape[1:]) for maps in maps_of(features)]
        first, second = ([both[date] for both in dates] for date in (0, 1))
        if isinstance(features, Tensor):
            return outputs_of(self.network.compare(first[0], second[0]))[self.output]
        kind = type(features)
        return outputs_of(self.network.compare(kind(first), kind(second)))[self.output]


def maps_of(features: Any) -> list[Tensor]:
    """Returns the maps (B, C, h, w) that ``encode`` returned. Raises InputError if it returned something else."""
    maps = [features] if isinstance(features, Tensor) else list(features) if type(features) in (list, tuple) else []
    if not maps or not all(isinstance(one, Tensor) and one.ndim == 4 for one in maps):
        raise InputError("encode must return a map (B, C, h, w), or a list or tuple of such maps")
    return maps


def _export(source: PyTorchFactory, interface: Interface) -> onnx.ModelProto:
    """Returns the deployed graph. Raises InputError if PyTorch cannot export the network."""
    what = source.declaration
    network = _sharing(source.network)
    if source.separate:
        what = replace(what, io="pair")
        module: nn.Module = Separate(network, what.output_name)
    else:
        module = (Pair if what.io == "pair" else Together)(network, source.trials.names, what.output_name)
    names = ("before", "after") if what.io == "pair" else ("images",)
    images = _arranged(what.io, *random_dates(what.bands, interface.tile, batch=2))
    try:
        example = dict(zip(names, images, strict=True))
        with _DatesApart():
            program = program_of(module.eval(), example, torch.export.Dim.DYNAMIC)
        bare = to_onnx(program, names, _ONE_OUTPUT)
    except Exception as error:  # the exporter passes on any exception of the network and of its own parts
        cause = " ".join(str(error).split())[:400]
        raise InputError(
            f"PyTorch cannot export {source.entry.name} to ONNX: {type(error).__name__}: {cause}; change the network "
            "so that torch.export accepts it, or export it in another way and give the ONNX file"
        ) from error
    _check_batches(bare, module, what, names, interface.tile)
    return deploy(bare, replace(what, inputs=names, output_name=_ONE_OUTPUT), interface)


class _DatesApart(TorchFunctionMode):
    """Writes ``chunk`` along the batch as a reshape: ONNX has no plain operator that divides an unknown size by two.

    Many networks encode both dates as one batch and take it apart in this way.
    """

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), more: dict[str, Any] | None = None
    ) -> Any:
        if function in (torch.chunk, Tensor.chunk):
            maps, count, axis = _chunk_arguments(*arguments, **(more or {}))
            if axis == 0 and maps.shape[0] % count == 0:
                apart = maps.reshape(count, -1, *maps.shape[1:])
                return tuple(apart[index] for index in range(count))
        return function(*arguments, **(more or {}))


def _chunk_arguments(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, int, int]:
    return input, chunks, dim


@torch.inference_mode()
def _check_batches(
    bare: onnx.ModelProto, module: nn.Module, what: Declaration, names: Sequence[str], tile: int
) -> None:
    """Raises InputError if the graph does not compute for a batch what the network computes for its single pairs.

    PyTorch has not proved it: see :func:`program_of`.
    """
    with Session(bare, names, _ONE_OUTPUT) as session:
        for batch in _PROVED:
            images = _arranged(what.io, *random_dates(what.bands, tile, batch))
            expected = torch.cat([module(*(date[i : i + 1] for date in images)) for i in range(batch)]).numpy()
            found = session.run([image.numpy() for image in images])
            if found.shape != expected.shape or not np.abs(found - expected).max() <= _TOLERANCE * max(
                1.0, float(np.abs(expected).max())
            ):
                raise InputError(
                    f"the graph that PyTorch exported gives another output than the network for a batch of {batch}; "
                    "make the output of each pair independent of the batch, or export the network in another way"
                )


def _predictor(source: PyTorchFactory, tile: int) -> Predict:
    """Returns the network as a function of raw tiles; computes a tile per core."""
    what, copies = source.declaration, _Copies(source.network)

    @torch.inference_mode()
    def predict(before: Images, after: Images) -> NDArray[np.float32]:
        images = [torch.from_numpy(image) for image in network_inputs(before, after, what)]
        try:
            with copies.one() as network:
                output = outputs_of(_call(network, source.trials.names, images))[what.output_name]
        except MisgnetError:
            raise
        except Exception as error:  # the network is the user's code
            raise InputError(f"{source.entry.name} failed on tiles of {tile} px: {first_line(error)}") from error
        return probability(output.numpy(), what, tile)

    return tile_per_core(predict)


def _features(network: nn.Module, what: Declaration) -> FeatureExtractor:
    """Returns a function from raw tiles of both dates to features float32 (B, F), as MISGNet's encoder has."""
    copies = _Copies(network)

    @torch.inference_mode()
    def features(before: Images, after: Images) -> NDArray[np.float32]:
        images = torch.from_numpy(normalise(np.concatenate((before, after)), what.normalization))
        with copies.one() as own:
            maps = maps_of(own.encode(images))
        return np.nan_to_num(statistics_of(maps))  # a map of one pixel has no deviation

    return tile_per_core(features)


class _Copies:
    """Copies of a network that share its tensors, one for each thread: ``forward`` may keep values in attributes."""

    def __init__(self, network: nn.Module) -> None:
        self._idle: queue.SimpleQueue[nn.Module] = queue.SimpleQueue()
        for _ in range(streams_on_cpu()):
            self._idle.put(_sharing(network))

    @contextmanager
    def one(self) -> Iterator[Any]:
        network = self._idle.get()
        try:
            yield network
        finally:
            self._idle.put(network)


def _sharing(network: nn.Module) -> nn.Module:
    """Returns a copy of a network with the same tensors."""
    return copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})
