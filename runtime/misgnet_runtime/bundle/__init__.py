"""Reads and checks bundles: folders of engines, described by ``manifest.json`` and optionally signed.

    reader         opens a bundle after comparing its files with the digests in its manifest
    manifest       the structure of the manifest
    quantization   the manifest's entries about quantized graphs
    fields         types of names and texts in the manifest
    checked        reads a bundle's files, with a check that they have not changed
    golden         golden tiles: inputs with expected outputs
    preprocessing  converts pixels to the network's input
    targets        parses the names of build targets
    signing        checks signatures, policies and accepted versions

Other packages import the names below from here. This import does not load NumPy; ``golden`` and ``preprocessing`` do.
"""

from misgnet_runtime.bundle.fields import MANIFEST, MAX_CONFIG, MAX_TEXT, SIGNATURE
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
    MeasuredOverlap,
    MeasuredTile,
    ModelEntry,
    Normalization,
    OutputForm,
    PlanProfile,
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
    "IMAGENET_MEAN", "IMAGENET_STD", "MANIFEST", "MAX_CONFIG", "MAX_TEXT", "SCHEMA_VERSION", "SIGNATURE", "Bundle",
    "Calibration", "EngineEntry", "EngineKind", "FileEntry", "GateRule", "InputForm", "Int8Numbers", "Interface",
    "Manifest", "MeasuredOverlap", "MeasuredTile", "ModelEntry", "NodePlacement", "Normalization", "OutputForm",
    "PlacementRule", "PlanProfile", "Preprocessing", "Quantization", "Release", "RepairEntry", "SplitEntry",
    "Steps", "TensorEntry", "decode_manifest", "describe_files", "head_inputs", "read_bundle", "read_unsigned",
]  # fmt: skip
