"""Selects and opens an engine of a bundle, applies tuned settings, runs the self-test, and measures throughput."""
