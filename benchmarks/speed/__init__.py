"""This project beside its peers: speed and F1 from the same weights; ``__main__`` says how to run it."""
