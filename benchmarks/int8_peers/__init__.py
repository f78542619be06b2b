"""INT8 by others beside this project's, on the same float graph and tiles; ``__main__`` says how to run it."""
