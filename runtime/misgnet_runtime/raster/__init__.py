"""Reads images and rasters from untrusted files, tiles, scales, blends and writes them; contains no engines."""
