"""Seeded pairs of synthetic aerial tiles for building change detection.

A pair shows one made-up neighbourhood at two dates, at about 0.5 m per pixel. Between the dates
buildings appear and vanish, and those roofs are the label. Light, season, shadows, cars, trees,
fields, focus, sensor noise and the exact pointing of the camera differ as well, and are not.
Demonstrations and tests use such pairs where no real data set may be shipped.
"""

from misgnet.synthetic.pairs import SyntheticPair, make_pair, pair_seed, write_split

__all__ = ["SyntheticPair", "make_pair", "pair_seed", "write_split"]
