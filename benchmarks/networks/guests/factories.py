"""Makes the networks through the public constructors of their packages, which only the benchmark's environment has.

``misgnet-export build FILE.py:NAME`` calls these functions. No weights are downloaded: they come from ``train.py``.
"""

from __future__ import annotations

import segmentation_models_pytorch as smp
from torch import Tensor, nn
from torchgeo import models

TILE = 128  # of the vision transformer, whose tile size is fixed


class Siamese(nn.Module):
    """FCSiamDiff in the two steps that let a series encode each date once: ``encode`` and ``compare``."""

    def __init__(self, network: models.FCSiamDiff) -> None:
        super().__init__()
        self.network = network

    def encode(self, image: Tensor) -> list[Tensor]:
        return list(self.network.encoder(image))[1:]

    def compare(self, before: list[Tensor], after: list[Tensor]) -> Tensor:
        height, width = after[0].shape[-2:]
        image = after[0].new_empty(1, 1, 2 * height, 2 * width)  # the decoder reads only its shape
        features = [image, *(second - first for first, second in zip(before, after, strict=True))]
        logits: Tensor = self.network.segmentation_head(self.network.decoder(features))
        return logits

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.compare(self.encode(before), self.encode(after))


def fc_siam_conc() -> nn.Module:
    return models.FCSiamConc(
        "resnet18", encoder_depth=4, encoder_weights=None, decoder_channels=(128, 64, 32, 16), classes=1
    )


def fc_siam_diff() -> nn.Module:
    return Siamese(bare_fc_siam_diff())


def bare_fc_siam_diff() -> models.FCSiamDiff:
    return models.FCSiamDiff("mobilenet_v2", encoder_weights=None, classes=2)


def change_star() -> nn.Module:
    return models.ChangeStarFarSeg("resnet18", classes=1, backbone_pretrained=False)


def change_vit() -> nn.Module:
    return models.ChangeViT("vit_tiny_patch16_224", img_size=TILE, num_classes=1)


def unet_13_bands() -> nn.Module:
    return models.unet(
        None, 2, encoder_name="resnet18", encoder_depth=3, encoder_weights=None, decoder_channels=(64, 32, 16),
        in_channels=26,
    )  # fmt: skip


def unet_stacked() -> nn.Module:
    return smp.Unet(
        "efficientnet-b0", encoder_weights=None, decoder_channels=(128, 64, 32, 16, 8), in_channels=6, classes=3
    )


def fpn_stacked() -> nn.Module:
    return smp.FPN(
        "tu-regnetx_002", encoder_weights=None, decoder_pyramid_channels=64, decoder_segmentation_channels=32,
        in_channels=6, classes=2, activation="softmax2d",
    )  # fmt: skip


def segformer_stacked() -> nn.Module:
    return smp.Segformer("mit_b0", encoder_weights=None, decoder_segmentation_channels=64, in_channels=6, classes=2)


def btc() -> nn.Module:
    return models.BTC("swin_tiny", backbone_pretrained=False)
