"""A folder that is watched: every pair of images that is completely written is processed once, in order.

Needs the [geo] extra for GeoTIFFs alone. Nothing here is imported by the rest of the package.
"""
