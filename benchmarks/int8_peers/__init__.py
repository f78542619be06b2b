"""Compares INT8 quantizers with this project's on the same weights and tiles; see ``__main__`` for usage."""
