"""Watches a folder and processes each completely written pair of images once, in order.

Only GeoTIFFs need the [geo] extra. The rest of the package does not import this one.
"""
