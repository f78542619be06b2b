"""The source for a network that the user's own PyTorch code makes.

What the network is, is found out by looking at its parameters and by running it on random images. A network with
``encode(image)`` and ``compare(features_a, features_b)`` is exported so that its graph can be split for series.
"""

from __future__ import annotations

import copy
import hashlib
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from misgnet_calibration.quantizer.known_modules import UNKNOWN
from misgnet_calibration.statistics.tile_selection import FeatureExtractor
from misgnet_export.graph.export import program_of, to_onnx
from misgnet_export.sources.declaration import Declaration
from misgnet_export.sources.deploy import check_output_form, deploy
from misgnet_export.sources.factory_code import first_line, network_of, own_code
from misgnet_export.sources.factory_weights import load_weights
from misgnet_export.sources.float_model import FloatModel, Source
from misgnet_export.sources.misgnet_checkpoint import statistics_of
from misgnet_export.sources.network_calls import (
    ONE_OUTPUT,
    DatesApart,
    Pair,
    Separate,
    Together,
    arranged,
    call,
    maps_of,
    outputs_of,
    random_dates,
)
from misgnet_export.sources.network_trials import TOLERANCE, Trials, check_output, inspect_network, trial_output
from misgnet_export.sources.onnx_session import Session
from misgnet_export.sources.options import KEEP_FLOAT32, ModelOptions
from misgnet_export.sources.reference import Images, network_inputs, probability
from misgnet_export.sources.resolve import resolve
from misgnet_export.sources.torch_threads import tile_per_core
from misgnet_runtime.bundle import Interface, ModelEntry
from misgnet_runtime.bundle.preprocessing import normalise
from misgnet_runtime.callables import Predict
from misgnet_runtime.engines import streams_on_cpu
from misgnet_runtime.errors import InputError, MisgnetError, UsageError

_PROVED = (1, 3)  # batches for which the graph must compute what the network does; it is exported with 2


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
        trial_output(self.trials, what, interface.tile)
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
    found = inspect_network(trials)
    what, words = resolve(found, options, name)
    separate, how = check_output(trials, what, found.tile or trials.first_side)
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
    images = arranged(what.io, *random_dates(what.bands, interface.tile, batch=2))
    try:
        example = dict(zip(names, images, strict=True))
        with DatesApart():
            program = program_of(module.eval(), example, torch.export.Dim.DYNAMIC)
        bare = to_onnx(program, names, ONE_OUTPUT)
    except Exception as error:  # the exporter passes on any exception of the network and of its own parts
        cause = " ".join(str(error).split())[:400]
        raise InputError(
            f"PyTorch cannot export {source.entry.name} to ONNX: {type(error).__name__}: {cause}; change the network "
            "so that torch.export accepts it, or export it in another way and give the ONNX file"
        ) from error
    _check_batches(bare, module, what, names, interface.tile)
    return deploy(bare, replace(what, inputs=names, output_name=ONE_OUTPUT), interface)


@torch.inference_mode()
def _check_batches(
    bare: onnx.ModelProto, module: nn.Module, what: Declaration, names: Sequence[str], tile: int
) -> None:
    """Raises InputError if the graph does not compute for a batch what the network computes for its single pairs.

    PyTorch has not proved it: see :func:`program_of`.
    """
    with Session(bare, names, ONE_OUTPUT) as session:
        for batch in _PROVED:
            images = arranged(what.io, *random_dates(what.bands, tile, batch))
            expected = torch.cat([module(*(date[i : i + 1] for date in images)) for i in range(batch)]).numpy()
            found = session.run([image.numpy() for image in images])
            if found.shape != expected.shape or not np.abs(found - expected).max() <= TOLERANCE * max(
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
                output = outputs_of(call(network, source.trials.names, images))[what.output_name]
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
    """Returns a copy of a network with the same tensors, for inference."""
    copied = copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})
    return copied.eval()  # copies of what torchvision's create_feature_extractor returns are in training mode
