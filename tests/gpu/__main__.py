"""Runs the kit; ``run.sh`` starts it."""

from __future__ import annotations

import signal
import sys

try:
    from gpu.kit import main
except ImportError as error:
    print(
        f"run.sh: {sys.executable} cannot import {error.name}; set PYTHON to a Python that has this project's "
        "dependencies, or fill tests/gpu/wheels with tests/gpu/carry.sh on a machine with a network",
        file=sys.stderr,
    )
    sys.exit(5)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl+C: running commands are ended, too
    sys.exit(main(sys.argv[1:]))
