"""Batch jobs: processes a table of scene pairs with workers on this machine or on a Ray cluster.

Each worker opens its engine once. ``table`` reads the scenes, ``record`` stores the outcome of each scene, ``driver``
assigns scenes to the workers of a ``pool``, and ``results`` writes the results table. The rest of the package does not
import this one.
"""
