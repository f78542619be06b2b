"""Writes a bundle as a folder for the Hugging Face Hub: model card, picture and the bundle itself. Uploads nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from misgnet_export.integrations.publish.bundle_copy import COPIED, copy_bundle
from misgnet_export.integrations.publish.model_card import model_card
from misgnet_runtime.bundle import Bundle
from misgnet_runtime.bundle.golden import golden_of
from misgnet_runtime.raster.overview import Overview
from misgnet_runtime.raster.quicklook import Labels, write_quicklook
from misgnet_runtime.raster.tiling import Span

CARD, PICTURE = "README.md", "change.png"


def write_huggingface(bundle: Bundle, folder: Path) -> list[str]:
    """Writes the model card, its picture and a copy of the bundle to ``folder``; returns lines about what was written.

    Raises:
        InputError: The accuracy of the engines cannot be read, or a file changed since the bundle was checked.
    """
    card = model_card(bundle, PICTURE)
    copy_bundle(bundle, folder)
    _draw(bundle, folder / PICTURE)
    (folder / CARD).write_text(card, encoding="utf-8")
    return [f"{CARD}: model card", f"{PICTURE}: a golden tile", COPIED]


def _draw(bundle: Bundle, path: Path) -> None:
    """Draws the golden tile whose change is nearest to half of it, as the float model finds it."""
    golden, tile = golden_of(bundle), Span(0, bundle.manifest.tile)
    changed = golden.probability > bundle.manifest.threshold
    shares = changed.mean((1, 2))
    index = int(np.argmin(np.abs(shares - 0.5)))
    overview = Overview(
        rows=tile, columns=tile, step=1, before=golden.before[index], after=golden.after[index],
        valid=np.ones_like(changed[index]), changed=changed[index],
    )  # fmt: skip
    labels = Labels(
        names=(f"golden tile {index + 1}",) * 2,
        dates=("", ""),
        change=f"{100 * shares[index]:.1f} % changed",
        steps=None,
    )
    write_quicklook(path, overview, labels)
