"""Runs ``misgnet-export`` in the networks' environment, as a user does."""

from misgnet_export.cli.main import main

if __name__ == "__main__":
    main()
