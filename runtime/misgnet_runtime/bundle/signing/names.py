"""Checks the names of signed files: a name must mean the same on every system, and must show all its characters."""

from __future__ import annotations

import re
import unicodedata

from misgnet_runtime.bundle.fields import SIGNATURE
from misgnet_runtime.limits import SIGNED_NAME

# Default_Ignorable_Code_Point of DerivedCoreProperties.txt (Unicode 14 to 16), which Python does not provide: invisible
# by rule. The last line lists characters that are invisible by definition: Braille's blank cell, music's null note
# head, and joiners and fillers of single scripts.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\u2800\U0001d159\u2d7f\U0001107f\U00011a47\U00011a99\U00016fe4]"
)


def text_problem(text: str) -> str | None:
    """Returns why characters of ``text`` could make it look like another text; None if they could not."""
    if not text.isprintable():  # categories C* and Z*, except the space
        bad = next(char for char in text if not char.isprintable())
        return f"it holds a control, separator or unassigned character, U+{ord(bad):04X}"
    if found := _INVISIBLE.search(text):
        return f"it holds an invisible character, U+{ord(found[0]):04X}"
    if text != text.strip(" "):
        return "it starts or ends with a space"
    if not unicodedata.is_normalized("NFC", text):
        return "it is not in Unicode's composed form (NFC)"
    return None


def path_problem(name: str) -> str | None:
    """Returns why ``name`` is not a relative POSIX path that means the same on every system; None if it is one."""
    if len(name) > SIGNED_NAME:
        return f"it has more than {SIGNED_NAME} characters"
    if name == SIGNATURE:
        return "it is the signature's own name"
    if "\\" in name or ":" in name:
        return "it holds a backslash or a colon"
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "it has a part that is empty, '.' or '..'"
    return next(filter(None, map(text_problem, parts)), None)


def folded(name: str) -> str:
    """Returns equal texts for names that some file systems do not distinguish (case, compatible characters)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
