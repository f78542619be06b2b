"""From the published data sets' own downloads to tiles that training and evaluation read.

LEVIR-CD and SYSU-CD come as folders of image pairs, WHU-CD as one scene of three rasters. Each becomes
DEST/{train,val,test}/{A,B,label}/NAME.png, and DEST/prepare.jsonl says what was made from what: the same
call again goes on where a run ended, and changes nothing where all is there. No torch; rasterio for WHU-CD only.
"""

from misgnet.datasets.preparation import Edges, PrepareOptions, PrepareReport, SplitReport, prepare
from misgnet.datasets.record import Dataset

__all__ = ["Dataset", "Edges", "PrepareOptions", "PrepareReport", "SplitReport", "prepare"]
