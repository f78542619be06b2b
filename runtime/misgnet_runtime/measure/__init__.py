"""Measuring on the device: the benchmark, tuning, and the machine's own sensors."""
