"""Publishes a bundle in formats of other tools: the QGIS plugin Deepness, STAC, Hugging Face. Uploads nothing."""
