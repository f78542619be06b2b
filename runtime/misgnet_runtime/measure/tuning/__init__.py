"""``misgnet-run tune``: how an engine uses this machine best, measured here and kept outside the bundle."""
