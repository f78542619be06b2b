"""Calibrates on change-detection tiles and makes explicit Q/DQ INT8 graphs."""
