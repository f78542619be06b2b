"""Tests the phrase check that `dev.py lint` runs, and the dictionary that codespell reads."""

from __future__ import annotations

import subprocess
import sys

import pytest

import check_phrases
from support.paths import ROOT

WANTED = check_phrases.phrases("# a comment\n\ngoes on (from|with) -> resumes at\nwhat suits -> default: ...\n")


@pytest.mark.parametrize(
    "text",
    [
        "it goes on from row 4",
        "it goes on\n    from",
        "# it Goes on\n# from row 4",
        "> goes\n> on with",
        "# goes on\n    #   from",
    ],
)
def test_phrase_is_found_across_line_breaks_and_comment_marks(text: str) -> None:
    (found,) = check_phrases.find(text, WANTED)
    assert found.line == 1 and found.instead == "resumes at"


def test_line_of_phrase_is_counted_from_one() -> None:
    found = list(check_phrases.find("a\nb what suits\nwhat\nsuits", WANTED))
    assert [one.line for one in found] == [2, 3]


@pytest.mark.parametrize("text", ["it goes on", "goes on\n\nfrom here", "forgoes on from", "whatsuits"])
def test_other_text_is_accepted(text: str) -> None:
    wanted = check_phrases.phrases(r"\bgoes on from\b -> resumes at")
    assert not list(check_phrases.find(text, wanted))


def test_command_reports_file_line_and_replacement(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text("A run.\nIt is gone on with.\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "tools" / "check_phrases.py"), str(page)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 1 and found.stdout.startswith(f"{page}:2: 'gone on': write ")
    page.write_text("A run is resumed.\n", encoding="utf-8")
    assert subprocess.run(command, check=False).returncode == 0


def test_dictionary_has_a_replacement_for_each_word() -> None:
    lines = (ROOT / "tools" / "words.txt").read_text(encoding="utf-8").splitlines()
    words = [line.partition("->") for line in lines]
    assert all(word == word.lower() and arrow and instead for word, arrow, instead in words)
    assert len({word for word, _, _ in words}) == len(words)
