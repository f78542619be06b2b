"""The evidence kit: what this project does on a machine with an NVIDIA GPU, as one JSON file and one table."""
