"""What the benchmarks against others share: environments and processes, tiles handed over, scores, rounds in turn."""
