"""The network itself: plain PyTorch modules, no export quirks."""

from misgnet.network.model import MISGNet, build_misgnet

__all__ = ["MISGNet", "build_misgnet"]
