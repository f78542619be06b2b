"""Makes an INT8 graph more accurate: SmoothQuant, learned rounding, bias correction, and accuracy control."""

from misgnet_calibration.algorithms.bias_correction import BiasCorrection, correct_bias
from misgnet_calibration.algorithms.improve import Attempt, Measured, Repaired, Score, is_better, repair
from misgnet_calibration.algorithms.rounding import Rounding, RoundingError, learn_rounding, round_weights
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
    "round_weights",
    "smooth",
    "smoothing_factors",
]
