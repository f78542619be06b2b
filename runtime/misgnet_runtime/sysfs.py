"""The kernel's one-value files. What is missing, not permitted or off reads as None."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def read_text(path: Path) -> str | None:
    """Without the blanks around it, and without the NUL that ends a device tree's texts."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:  # a sensor that is off answers EAGAIN or ENODATA
        return None


def read_int(path: Path) -> int | None:
    """None too where the file holds no whole number."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None
