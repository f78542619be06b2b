"""A bundle: a folder of engines that ``manifest.json`` describes, and that may be signed.

    reader         opens a bundle whose files have the digests that its manifest states
    manifest       the manifest; quantization: of its quantized graphs; fields: types of names and texts in it
    checked        the files as they were checked, whatever happens to the folder later
    golden         tiles with expected outputs
    preprocessing  from pixels to the network's input
    targets        the names of what a bundle is built for
    signing        signatures, policies, and the versions that a device accepted

Other packages import from here what is listed below. It loads no NumPy, which ``golden`` and ``preprocessing`` need.
"""

from misgnet_runtime.bundle.fields import MANIFEST, MAX_TEXT, SIGNATURE
from misgnet_runtime.bundle.manifest import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SCHEMA_VERSION,
    EngineEntry,
    EngineKind,
    FileEntry,
    GateRule,
    InputForm,
    Interface,
    Manifest,
    OutputForm,
    Preprocessing,
    Release,
    SplitEntry,
    TensorEntry,
    decode_manifest,
    head_inputs,
)
from misgnet_runtime.bundle.quantization import (
    Calibration,
    Int8Numbers,
    NodePlacement,
    PlacementRule,
    Quantization,
    RepairEntry,
    Steps,
)
from misgnet_runtime.bundle.reader import Bundle, describe_files, read_bundle, read_unsigned

__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "MANIFEST", "MAX_TEXT", "SCHEMA_VERSION", "SIGNATURE", "Bundle", "Calibration",
    "EngineEntry", "EngineKind", "FileEntry", "GateRule", "InputForm", "Int8Numbers", "Interface", "Manifest",
    "NodePlacement", "OutputForm", "PlacementRule", "Preprocessing", "Quantization", "Release", "RepairEntry",
    "SplitEntry", "Steps", "TensorEntry", "decode_manifest", "describe_files", "head_inputs", "read_bundle",
    "read_unsigned",
]  # fmt: skip
