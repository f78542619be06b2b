"""The ``misgnet-export`` command line, one module per command."""
