"""Images and rasters: read with suspicion, cut into tiles, scaled to 8-bit RGB, blended, and written; no engines."""
