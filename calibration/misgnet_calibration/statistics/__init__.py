"""What tiles say of activations: ranges, absolute maxima, and the tiles to ask. Calibrators load without onnx."""
