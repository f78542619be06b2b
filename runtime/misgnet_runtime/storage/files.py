"""What is at a path. Path's own questions raise errors for names that the system cannot have; these take any path."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113


def is_no_file(path: Path) -> bool:
    """Whether something else is there. A named pipe would be waited for without end."""
    return os.path.exists(path) and not is_file(path)  # noqa: PTH110


def file_sha256(*paths: Path) -> str:
    """SHA-256 of the bytes of ``paths``, one after the other. Raises OSError."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                total.update(part)
    return total.hexdigest()
