"""Plans that this machine compiled for itself, from a bundle's graphs: proven here, kept outside the bundle."""
