"""Compiles a trained network into a verified bundle; ``build`` needs the [export] extra."""
