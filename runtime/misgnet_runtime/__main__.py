"""Runs ``misgnet-run`` as ``python -m misgnet_runtime``."""

from misgnet_runtime.cli.main import main

if __name__ == "__main__":
    main()
