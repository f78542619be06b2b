"""Georeferenced scenes of any size: read, inferred and written row of tiles by row of tiles.

``inputs`` inspects both dates; ``infer`` runs ``strips`` of tiles through the ``pipeline`` (reader, engine, writer)
into the journal; ``run`` writes the outputs of a finished map, and ``predict`` puts these together for a pair of files.
rasterio, pyogrio and shapely are imported where they are used: the extra ``[geo]`` installs them.
"""
