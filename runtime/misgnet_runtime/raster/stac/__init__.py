"""Reads STAC Items (versions 1.0 and 1.1): the assets to compare, and what the item states about their pixels."""
