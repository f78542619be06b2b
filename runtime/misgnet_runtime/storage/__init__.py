"""Files that are whole whenever they are read: all-or-nothing outputs, JSON lines, archives, private folders, locks."""
