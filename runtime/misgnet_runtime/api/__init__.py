"""Public Python API: opens a bundle and predicts the change between two images or two scenes.

Example:
    >>> with open_bundle("bundle") as bundle:
    ...     change = bundle.predict("before.png", "after.png")
    ...     scene = bundle.predict_scene("before.tif", "after.tif")
"""

from misgnet_runtime.api.images import ChangeMap, Date
from misgnet_runtime.api.result import SceneResult
from misgnet_runtime.api.session import BundleSession, open_bundle

__all__ = ["BundleSession", "ChangeMap", "Date", "SceneResult", "open_bundle"]
