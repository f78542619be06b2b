"""Repairs of an INT8 graph that keep every operator in INT8: smoothing, learned rounding, bias correction."""

from misgnet_calibration.algorithms.bias_correction import BiasCorrection, correct_bias
from misgnet_calibration.algorithms.improve import Attempt, Measured, Repaired, Score, is_better, repair
from misgnet_calibration.algorithms.rounding import Rounding, RoundingError, learn_rounding, rounded_levels
from misgnet_calibration.algorithms.smooth_quant import Choice, Smoothed, best_alpha, smooth, smoothing_factors

__all__ = [
    "Attempt",
    "BiasCorrection",
    "Choice",
    "Measured",
    "Repaired",
    "Rounding",
    "RoundingError",
    "Score",
    "Smoothed",
    "best_alpha",
    "correct_bias",
    "is_better",
    "learn_rounding",
    "repair",
    "rounded_levels",
    "smooth",
    "smoothing_factors",
]
