"""Writes a page about a scene: one self-contained HTML file that loads nothing from elsewhere.

``content`` collects what the page says, ``pictures`` makes its pictures within the limit of its size, and ``page``
renders it.
"""
