"""Builds and evaluates bundles of change detection networks of others: ``python -m benchmarks.networks``."""
