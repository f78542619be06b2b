"""Networks that a build can start from. Each kind yields the same value, a ``FloatModel``; later stages see only that.

float_model         the value, and what every source offers
options             the options that describe a network
declaration         what a network is: as found in it, and as declared by the user
resolve             merges both, refuses contradictions and asks for what is missing
misgnet_checkpoint  weights of this project's network
onnx_file           a network in an ONNX file
onnx_reader         reads such a file within limits; onnx_scan counts its parts before it is parsed
onnx_batch          converts its operator set and makes a fixed batch dynamic; onnx_batch_axis follows the batch
onnx_session        runs a bare network in ONNX Runtime
pytorch_factory     a network that the user's own code makes
factory_code        runs that code
factory_weights     loads a state dict into the network
network_trials      finds out what such a network is by running it
network_calls       calls it with images of both dates
deploy              adds preprocessing and postprocessing to the graph of any other network
reference           the same in NumPy, for predictors that parity is measured against
torch_threads       runs PyTorch with a tile per core
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from misgnet_export.sources.options import ModelOptions, kind_of

if TYPE_CHECKING:
    from misgnet_export.sources.float_model import Source


def open_source(name: str, options: ModelOptions) -> Source:
    """Reads and inspects the network that a build starts from.

    Args:
        name: A checkpoint, an ONNX file, or a factory: ``FILE.py:factory`` or ``package.module:factory``.
        options: The user's declarations about it.

    Raises:
        InputError: The file is missing, damaged or refused.
        UsageError: The options contradict the network, or do not say what cannot be found out.
    """
    kind = kind_of(name)
    if kind == "onnx":
        from misgnet_export.sources.onnx_file import open_onnx

        return open_onnx(name, options)
    if kind == "pytorch":
        from misgnet_export.sources.pytorch_factory import open_factory

        return open_factory(name, options)
    from misgnet_export.sources.misgnet_checkpoint import open_checkpoint

    return open_checkpoint(name, options)
