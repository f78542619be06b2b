"""Publishes a bundle in other formats: for the QGIS plugin Deepness, STAC, Hugging Face, MLflow. Uploads nothing."""

from __future__ import annotations

from typing import Literal

Format = Literal["deepness", "stac-mlm", "huggingface", "mlflow"]
