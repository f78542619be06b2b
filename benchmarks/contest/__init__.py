"""Shared code of the comparisons with other tools: environments, processes, input tiles, scores and rounds."""
