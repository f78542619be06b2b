"""Commands in this process: each in one of its own would cost a second."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest


def exit_code(main: Callable[[], object], *words: object) -> int:
    """That ``main`` ends with, where ``words`` are the command line, the program's name first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, words)))
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)
