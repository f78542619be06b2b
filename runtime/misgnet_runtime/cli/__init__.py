"""The command line of ``misgnet-run``: a file a command; ``app`` runs them, ``options`` makes their signatures."""
