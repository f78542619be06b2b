"""Lists the networks of the benchmark: what each is, and how it is declared to ``misgnet-export build``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from misgnet_runtime.bundle import Normalization

GUESTS = Path(__file__).with_name("guests")
FACTORIES = GUESTS / "factories.py"
Way = Literal["onnx", "pytorch"]
Io = Literal["pair", "stacked", "time"]
WAYS: tuple[Way, ...] = ("onnx", "pytorch")

# What each preset of --normalization means for 8-bit images of three bands.
PRESETS = {
    "imagenet": Normalization(),
    "half": Normalization(1 / 255, (0.5,) * 3, (0.5,) * 3),
    "unit": Normalization(1 / 255, (0.0,) * 3, (1.0,) * 3),
}


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """How the network is exported to ONNX, as its users would."""

    exporter: Literal["dynamo", "torchscript"] = "dynamo"
    opset: int = 20
    # Whether the batch is dynamic; otherwise it is 1.
    dynamic: bool = True
    # Function of ``guests/factories.py`` if it is not that of the PyTorch way, and how it takes both dates.
    factory: str | None = None
    io: Io | None = None
    outputs: tuple[str, ...] = ("logits",)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network of another package, and its description for a build."""

    key: str
    title: str
    # Its name on PyPI; version and licence are read from its metadata.
    package: str
    # Function of ``guests/factories.py``.
    factory: str
    io: Io
    output: str
    # The output about change, if there are several.
    output_name: str | None = None
    changed: tuple[int, ...] = ()
    # A name in ``PRESETS``, or numbers of all bands.
    normalization: str | Normalization = "imagenet"
    # Bands of each date. 3: the 8-bit images; otherwise 16-bit bands that are mixed of them.
    bands: int = 3
    # Of which the tile size must be a multiple.
    multiple: int = 32
    onnx: OnnxFile = OnnxFile()
    # Whether it is trained on the tiles; otherwise its weights are random, and the threshold is the median probability.
    trained: bool = True

    def numbers(self) -> Normalization:
        return PRESETS[self.normalization] if isinstance(self.normalization, str) else self.normalization

    def factory_of(self, way: Way) -> str:
        return (self.onnx.factory if way == "onnx" else None) or self.factory

    def io_of(self, way: Way) -> Io:
        return (self.onnx.io if way == "onnx" else None) or self.io

    def declaration(self, way: Way) -> list[str]:
        """Returns the options of a build that describe the network."""
        words = ["--model-io", self.io_of(way), "--model-output", self.output, "--multiple", str(self.multiple)]
        if self.changed:
            words += ["--changed", ",".join(map(str, self.changed))]
        if self.output_name:
            words += ["--model-output-name", self.output_name]
        if isinstance(self.normalization, str):
            return [*words, "--normalization", self.normalization]
        # No graph for TensorRT reads 16-bit images, so the runtime normalises them.
        numbers = self.normalization
        words += ["--scale", f"{1 / numbers.scale:g}", "--mean", f"{numbers.mean[0]:g}", "--std", f"{numbers.std[0]:g}"]
        return [*words, "--bands", str(self.bands), "--samples", "uint16", "--input", "float32"]


NETWORKS = (
    Network(
        key="fcsiamconc", title="FCSiamConc, ResNet-18", package="torchgeo", factory="fc_siam_conc", io="time",
        output="logit1",
    ),
    Network(
        key="fcsiamdiff", title="FCSiamDiff, MobileNetV2", package="torchgeo", factory="fc_siam_diff", io="pair",
        output="logits2", normalization="half", onnx=OnnxFile(factory="bare_fc_siam_diff", io="time"),
    ),
    Network(
        key="changestar", title="ChangeStar (FarSeg), ResNet-18", package="torchgeo", factory="change_star", io="time",
        output="probability1", output_name="change_prob", onnx=OnnxFile(outputs=("bi_seg_logit", "change_prob")),
    ),
    Network(
        key="changevit", title="ChangeViT, ViT-Tiny/16", package="torchgeo", factory="change_vit", io="time",
        output="logit1", normalization="half", multiple=16, onnx=OnnxFile(dynamic=False),  # it fixes the batch
    ),
    Network(
        key="unet13", title="U-Net of 13 bands, ResNet-18", package="torchgeo", factory="unet_13_bands", io="stacked",
        output="logits2", normalization=Normalization(1 / 10000, (0.12,) * 13, (0.05,) * 13), bands=13,
    ),
    Network(
        key="unet", title="U-Net, EfficientNet-B0", package="segmentation-models-pytorch", factory="unet_stacked",
        io="stacked", output="classes:3", changed=(1, 2), onnx=OnnxFile(opset=18),
    ),
    Network(
        key="fpn", title="FPN, RegNetX-002", package="segmentation-models-pytorch", factory="fpn_stacked",
        io="stacked", output="probability2", normalization="unit",
        onnx=OnnxFile(exporter="torchscript", opset=13, outputs=("probabilities",)),
    ),
    Network(
        key="segformer", title="SegFormer, MiT-B0", package="segmentation-models-pytorch", factory="segformer_stacked",
        io="stacked", output="logits2", onnx=OnnxFile(exporter="torchscript", opset=11, dynamic=False),
    ),
    Network(
        key="btc", title="BTC, Swin-T", package="torchgeo", factory="btc", io="stacked", output="logit1",
        normalization="unit", trained=False,
    ),
)  # fmt: skip
