"""Many pairs of scenes from one table: by workers on this machine or on a Ray cluster, each with its engine open once.

``table`` reads the scenes, ``record`` keeps what became of them, ``driver`` deals them out to the workers of a
``pool``, and ``results`` writes the table of all. Nothing here is imported by the rest of the package.
"""
