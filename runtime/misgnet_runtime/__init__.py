"""Runs MISGNet bundles: no torch, no onnx. The ground floor; it imports none of the other packages."""
