"""Implements ``misgnet-run bench``: measures the speed and energy of a bundle's engines on this machine."""
