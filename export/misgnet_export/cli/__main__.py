"""Runs the command line as ``python -m misgnet_export.cli``."""

from misgnet_export.cli.main import main

if __name__ == "__main__":
    main()
