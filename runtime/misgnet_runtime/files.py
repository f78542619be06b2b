"""What is at a path, asked of any path: Path's own questions raise errors where the system can have no such name."""

from __future__ import annotations

import os
from pathlib import Path


def is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113


def is_no_file(path: Path) -> bool:
    """Whether something else is there. A named pipe would be waited for without end."""
    return os.path.exists(path) and not is_file(path)  # noqa: PTH110
