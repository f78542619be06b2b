"""Stores files: atomic outputs, JSON lines, archives, private folders and locks."""
