"""An open engine of a bundle: which one is chosen and how it is run, its self-test, and the timing of its calls."""
