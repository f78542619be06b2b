"""Cuts downloads of published data sets into tiles for training and evaluation.

LEVIR-CD and SYSU-CD are folders of image pairs; WHU-CD is one scene of three rasters. The output is
DEST/{train,val,test}/{A,B,label}/NAME.png. DEST/prepare.jsonl records the sources of every tile, so that a repeated
call resumes an interrupted run, and changes nothing if all tiles exist. This package does not need PyTorch, and it
needs rasterio only for WHU-CD.
"""

from misgnet.datasets.preparation import Edges, PrepareOptions, PrepareReport, SplitReport, prepare
from misgnet.datasets.record import Dataset

__all__ = ["Dataset", "Edges", "PrepareOptions", "PrepareReport", "SplitReport", "prepare"]
