"""Whether an engine is as good as the float model: metrics, the F1 gate, parity, evaluation tiles."""
