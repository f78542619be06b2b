"""Runs the ``misgnet`` commands: ``python -m misgnet``, or ``torchrun -m misgnet train`` for several processes."""

from misgnet.cli import main

if __name__ == "__main__":
    main()
