"""Limits the work on a scene to an area: reads polygons from a file, and places them on the grid of a map.

``area_file`` reads GeoJSON (``geojson``) and GeoPackage (``geopackage``). ``placement`` converts the polygons to pixels
of a grid. ``region`` states which tiles and pixels they cover; pure geometry.
"""
