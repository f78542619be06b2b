"""Publishes a bundle in formats of other tools: the QGIS plugin Deepness, STAC, Hugging Face. Uploads nothing."""

from __future__ import annotations

from typing import Literal

Format = Literal["deepness", "stac-mlm", "huggingface"]
