"""Calibration on change-detection tiles, and explicit Q/DQ INT8 graphs made from it."""
