"""Georeferenced scenes of any size: read, inferred and written row of tiles by row of tiles.

``windows`` (arithmetic) -> ``source`` (pixels of both dates) -> ``pipeline`` (reader, engine, writer) -> ``journal``
(what is finished, on disk) -> ``products`` (GeoTIFF, polygons, quick look). ``predict`` puts them together for a pair.
``encoding`` keeps a date's ``features`` on disk, ``comparison`` makes the map of two dates from them, and ``series``
puts these together for many dates. rasterio, pyogrio and shapely are imported where they are used: the extra ``[geo]``
installs them.
"""
