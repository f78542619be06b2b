"""What a library tells of itself, and no user of this one can use."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(library: str, above: int) -> Iterator[None]:
    """No warnings, and of the logger of ``library`` only what is graver than the level ``above``."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(above + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
