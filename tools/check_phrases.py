#!/usr/bin/env python3
"""Reports phrases of tools/phrases.txt in tracked text files, with what to write instead; exit code 1 if there are any.

Line breaks, comment marks and Markdown's quote marks inside a phrase are ignored. Single words are codespell's
(tools/words.txt).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PHRASES = ROOT / "tools" / "phrases.txt"
SUFFIXES = {".py", ".md", ".toml", ".txt", ".sh", ".yaml", ".yml", ".j2", ".c", ""}
NOT_PROSE = (
    "tools/phrases.txt",
    "tools/words.txt",
    "tests/test_words.py",
    "tests/data/",
    "tests/fuzz/found/",
    "LICENSE",
)
BREAK = r"(?:[ \t]*\n[ \t]*(?:#+|>|\*|//)?[ \t]*|[ \t]+)"  # a space, or the end of a line and a mark of a comment


class Phrase(NamedTuple):
    pattern: re.Pattern[str]
    instead: str


class Found(NamedTuple):
    line: int
    text: str
    instead: str


def phrases(text: str) -> list[Phrase]:
    """Parses lines of ``PATTERN -> INSTEAD``; ``#`` starts a comment line."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    pairs = [line.split(" -> ", 1) for line in lines]
    return [Phrase(re.compile(pattern.replace(" ", BREAK), re.IGNORECASE), instead) for pattern, instead in pairs]


def find(text: str, wanted: list[Phrase]) -> Iterator[Found]:
    """Yields each occurrence of a phrase in ``text``, with its 1-based line."""
    for phrase in wanted:
        for match in phrase.pattern.finditer(text):
            shown = " ".join(match.group().split())
            yield Found(text.count("\n", 0, match.start()) + 1, shown, phrase.instead)


def tracked() -> list[Path]:
    """Returns the text files that git tracks, without data and this check's own list."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    names = [name.decode() for name in listed.split(b"\0") if name]
    chosen = [name for name in names if Path(name).suffix in SUFFIXES and not name.startswith(NOT_PROSE)]
    return [ROOT / name for name in chosen if (ROOT / name).is_file()]


def main(arguments: list[str]) -> int:
    wanted = phrases(PHRASES.read_text(encoding="utf-8"))
    count = 0
    for path in [Path(name) for name in arguments] or tracked():
        for found in sorted(find(path.read_text(encoding="utf-8"), wanted)):
            print(f"{path}:{found.line}: '{found.text}': write {found.instead}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
