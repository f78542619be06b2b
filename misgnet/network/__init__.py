"""Defines the network as plain PyTorch modules; workarounds for the export are in :mod:`misgnet_export`."""

from misgnet.network.model import MISGNet, build_misgnet

__all__ = ["MISGNet", "build_misgnet"]
