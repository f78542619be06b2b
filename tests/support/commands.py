"""Runs commands in this process; a subprocess would take a second each."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest


def exit_code(main: Callable[[], object], *words: object) -> int:
    """Runs ``main`` with ``words`` as the command line, the program's name first, and returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, words)))
        patch.setattr(sys.modules["__main__"], "__package__", None)  # else help names the program "python -m pytest"
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)
