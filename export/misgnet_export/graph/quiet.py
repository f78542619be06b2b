"""Suppresses log messages and warnings of libraries that are not useful to a user of this project."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(library: str, above: int) -> Iterator[None]:
    """Suppresses warnings, and messages of the logger ``library`` up to and including the level ``above``."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(above + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
