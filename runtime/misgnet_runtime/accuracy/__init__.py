"""Compares an engine's accuracy with the float model's: metrics, the F1 gate, parity, evaluation tiles."""
