"""Runs the PyTorch network on tiles and images: predictions, scores and pictures."""

from misgnet.evaluation.tiles import (
    EvaluatedTile,
    evaluate,
    evaluate_tiles,
    evaluate_with_worst,
    predict_pair,
    predict_probability,
    predict_tiles,
)

__all__ = [
    "EvaluatedTile", "evaluate", "evaluate_tiles", "evaluate_with_worst", "predict_pair", "predict_probability",
    "predict_tiles",
]  # fmt: skip
