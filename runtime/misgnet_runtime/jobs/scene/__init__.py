"""Processes georeferenced scenes of any size, one row of tiles at a time.

``inputs`` inspects both dates. ``infer`` runs ``strips`` of tiles through the ``pipeline`` (reader, engine, writer)
into the journal. ``run`` writes the outputs of a finished map. ``predict`` combines these steps for a pair of files.
rasterio, pyogrio and shapely are imported only where they are used; the extra ``[geo]`` installs them.
"""
