"""Compares speed and F1 of this project and its peers from the same weights; see ``__main__`` for usage."""
