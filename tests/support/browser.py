"""Runs pages in headless Chromium: a script clicks and types, and the test reads what it found."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-dev-shm-usage",
]  # fmt: skip


def chromium() -> str:
    """Returns the browser's program; skips the test if there is none."""
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed")


def run(page: Path, *flags: str) -> str:
    """Opens a page in a new profile and returns what the browser prints."""
    profile = page.with_name(f".profile-{page.stem}")
    command = [chromium(), *_FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def outcome(page: Path, script: str, *, width: int = 1280, height: int = 900) -> Any:
    """Returns the value of the last ``return`` of a script that runs in a copy of the page, in a frame of this size.

    If the page's policy allows only its own script, the copy's policy also gets the digest of this one.
    """
    body = (
        f"(async () => {{ const pause = () => new Promise((done) => setTimeout(done, 60));\n"
        f"try {{ parent.found(await (async () => {{ await pause(); {script} }})()); }}\n"
        f"catch (error) {{ parent.found({{ error: String(error) }}); }} }})();"
    )
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    text = page.read_text("utf-8")
    allowed = text.replace("script-src &#x27;", f"script-src &#x27;sha256-{digest}&#x27; &#x27;", 1)
    assert allowed != text or "Content-Security-Policy" not in text
    copy = page.with_name("copy.html")
    copy.write_text(allowed.replace("</body>", f"<script>{body}</script></body>"), "utf-8")
    frame = page.with_name("frame.html")
    frame.write_text(
        "<!doctype html><body><pre id='outcome'></pre><script>function found(value) {"
        "document.getElementById('outcome').textContent = JSON.stringify(value); }</script>"
        f"<iframe src='copy.html' style='width:{width}px;height:{height}px;border:0'></iframe></body>", "utf-8",
    )  # fmt: skip
    printed = run(
        frame, "--allow-file-access-from-files", "--virtual-time-budget=20000", "--dump-dom",
        f"--window-size={width + 20},{height + 60}",
    )  # fmt: skip
    match = re.search(r"<pre id=\"outcome\">(.+?)</pre>", printed, re.DOTALL)
    assert match, printed[-2000:]
    return json.loads(html.unescape(match[1]))
