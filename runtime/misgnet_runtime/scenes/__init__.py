"""Georeferenced scenes of any size: read, inferred and written row of tiles by row of tiles.

``windows`` (arithmetic) -> ``source`` (pixels of both dates) -> ``pipeline`` (reader, engine, writer) -> ``journal``
(what is finished, on disk) -> ``products`` (GeoTIFF, polygons, quick look). ``predict`` puts them together. rasterio,
pyogrio and shapely are imported where they are used: the extra ``[geo]`` installs them.
"""
