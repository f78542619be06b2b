"""Runs ``misgnet-export`` as ``python -m misgnet_export``."""

from misgnet_export.cli.main import main

if __name__ == "__main__":
    main()
