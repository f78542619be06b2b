"""Activation statistics: ranges, absolute maxima, and the selection of calibration tiles.

Calibrators can be imported without onnx.
"""
