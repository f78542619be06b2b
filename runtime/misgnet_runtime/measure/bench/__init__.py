"""``misgnet-run bench``: how fast a bundle's engines are on this machine, at what energy, and in what state it was."""
