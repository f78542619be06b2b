"""``misgnet-export``: a file a command."""
