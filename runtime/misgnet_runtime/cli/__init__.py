"""Command line of ``misgnet-run``: one module per command.

``app`` runs the commands, ``options`` builds their signatures from option classes.
"""
