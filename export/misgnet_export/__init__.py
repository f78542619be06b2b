"""Compiles a trained network into a verified bundle; needs the [export] extra for ``build``."""
