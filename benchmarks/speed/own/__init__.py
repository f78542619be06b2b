"""Guests that run in this project's own environment: PyTorch, the bundle's engines, and matrix products."""
