"""``python -m misgnet.cli``."""

from misgnet.cli import main

if __name__ == "__main__":
    main()
