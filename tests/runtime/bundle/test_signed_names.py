"""Tests names of signed files: names with characters that are invisible or easily mistaken are refused."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="needs cryptography: pip install 'misgnet-export[verify]'")

from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.bundle.signing.policy import Trust
from misgnet_runtime.errors import InputError
from support.bundles import make_bundle
from support.signatures import digests_of, make_key, prepare, sign_folder, write_public

KEY = make_key()

# One or two characters of each kind; comments give Unicode's name of the kind and its category.
INVISIBLE = [
    "\u2028", "\u2029",  # line and paragraph separators (Zl, Zp)
    "\ufe0f", "\U000e0101",  # variation selectors (Mn, ignorable)
    "\u3164", "\uffa0", "\u115f", "\u1160",  # Hangul fillers (Lo, ignorable)
    "\u034f", "\u17b4", "\u180b",  # combining grapheme joiner, Khmer inherent vowel, Mongolian selector (Mn, ignorable)
    "\u00a0", "\u2003", "\u3000", "\u202f",  # spaces other than the space (Zs)
    "\x00", "\n", "\x7f", "\x85",  # control characters (Cc)
    "\u200b", "\u202e", "\u2066", "\u00ad", "\U000e0041",  # format characters (Cf)
    "\u2065", "\ufff0",  # unassigned, ignorable (Cn)
    "\ue000",  # private use (Co): its appearance depends on the font
    "\ufdd0",  # noncharacter (Cn)
    "\u2800", "\U0001d159",  # a Braille cell without dots, a note head without a head (So)
]  # fmt: skip
VISIBLE = [
    "a b.onnx",
    "caf\u00e9.onnx",
    "\u65e5\u672c/\ud55c\uad6d.onnx",
    "\u0441\u043d\u0438\u043c\u043e\u043a.onnx",
    "a-\U0001f600.txt",
]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISGNET_STATE", str(tmp_path / "state"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return prepare(make_bundle(tmp_path / "bundle"))


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(write_public(tmp_path / "key.pub", KEY))


def refused(bundle: Path, trust: Trust, name: str) -> str:
    """Returns why a signed bundle is refused if its statement also names ``name``."""
    sign_folder(bundle, KEY, digests=[*digests_of(bundle).items(), (name, "0" * 64)])
    with pytest.raises(InputError) as error:
        read_bundle(bundle, trust)
    return str(error.value)


@pytest.mark.parametrize("pattern", ["{}", "graphs/a{}.onnx", "a/{}b/c", "c{}"])
@pytest.mark.parametrize("character", INVISIBLE, ids=ascii)
def test_names_with_invisible_characters_are_refused(bundle: Path, trust: Trust, character: str, pattern: str) -> None:
    assert "which is not a plain relative path" in refused(bundle, trust, pattern.format(character))


def test_message_shows_the_invisible_character(bundle: Path, trust: Trust) -> None:
    reason = refused(bundle, trust, "a\u3164b")
    assert r"names 'a\u3164b', which" in reason and "it holds an invisible character, U+3164" in reason


@pytest.mark.parametrize("name", [" a", "a ", "graphs /a", "graphs/ a.onnx", "a" * 1025, "e\u0301", "x/" * 600 + "x"])
def test_names_that_are_easily_misread_are_refused(bundle: Path, trust: Trust, name: str) -> None:
    assert "which is not a plain relative path" in refused(bundle, trust, name)


@pytest.mark.parametrize("twin", ["graphs/\uff46loat.onnx", "GRAPHS/float.onnx", "graphs/\ufb02oat.onnx"])
def test_names_that_some_systems_do_not_distinguish_are_refused(bundle: Path, trust: Trust, twin: str) -> None:
    """They differ by full-width letters, capitals or ligatures."""
    assert "names a file twice" in refused(bundle, trust, twin)


@pytest.mark.parametrize("name", VISIBLE)
def test_names_in_other_scripts_are_accepted(bundle: Path, trust: Trust, name: str) -> None:
    """The name is accepted: the error is only that the file is missing."""
    assert unicodedata.is_normalized("NFC", name)
    assert f"it lacks {name!r}, which was signed" in refused(bundle, trust, name)


def test_all_ignorable_characters_are_refused() -> None:
    """Finds ignorable characters by their Unicode names and categories, independent of the table in the source."""
    from misgnet_runtime.bundle.signing.names import text_problem

    words = ("VARIATION SELECTOR", "FILLER", "INVISIBLE", "ZERO WIDTH", "JOINER", "WORD JOINER", "LANGUAGE TAG")
    named = [c for c in map(chr, range(0x110000)) if any(w in unicodedata.name(c, "") for w in words)]
    named = [c for c in named if "CONJOINER" not in unicodedata.name(c)]  # joins letters visibly
    named = [c for c in named if unicodedata.category(c)[0] in "CZ" or unicodedata.category(c) in ("Mn", "Lo")]
    missed = [ascii(c) for c in named if text_problem(f"a{c}b") is None]
    assert len(named) > 260 and not missed, missed
