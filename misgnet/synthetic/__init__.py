"""Generates synthetic pairs of aerial tiles for building change detection from a seed.

A pair shows an imaginary neighbourhood at two dates, at about 0.5 m per pixel. Buildings appear and disappear between
the dates; the label marks their roofs. Light, season, shadows, cars, trees, fields, focus, sensor noise and the exact
direction of the camera also differ, but are not labelled as change. Demonstrations and tests use these pairs because
the real data sets may not be redistributed.
"""

from misgnet.synthetic.pairs import SyntheticPair, make_pair, pair_seed, write_split
from misgnet.synthetic.series import SyntheticSeries, make_series

__all__ = ["SyntheticPair", "SyntheticSeries", "make_pair", "make_series", "pair_seed", "write_split"]
