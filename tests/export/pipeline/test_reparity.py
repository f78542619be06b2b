"""Tests by which limit ``misgnet-export parity`` evaluates a bundle: its own, of either schema, or a requested one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from misgnet_export.cli import main as cli
from support.bundles import TILE, edit, expected, images, make_bundle, write_image
from support.commands import exit_code


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        before, after = images(TILE, TILE, seed=seed)
        label = np.where(expected(before, after) > 0.5, 255, 0).astype(np.uint8)
        for folder, pixels in (("A", before), ("B", after), ("label", label)):
            write_image(tmp_path / f"set/{folder}/{name}.png", pixels)
    return make_bundle(tmp_path / "bundle")


def run(bundle: Path, *words: object) -> tuple[int, tuple[float | None, float | None]]:
    """Returns the exit code and the limit of the report, as a drop and as a ratio."""
    out = bundle.parent / "parity.json"
    given = ["parity", bundle, "--eval", bundle.parent / "set", "--json", out, "--force", *words]
    code = exit_code(cli.main, "misgnet-export", *given)
    values = json.loads(out.read_bytes()) if out.exists() else {}
    return code, (values.get("max_f1_drop"), values.get("min_f1_ratio"))


def test_bundle_of_schema_1_keeps_its_points(bundle: Path) -> None:
    edit(bundle, lambda m: (m.update(schema_version=1, overlap=0, max_f1_drop=5), m.pop("min_f1_ratio", None)))
    assert run(bundle) == (0, (5, None))


def test_bundle_keeps_its_ratio(bundle: Path) -> None:
    edit(bundle, lambda m: m.update(max_f1_drop=None, min_f1_ratio=0.9))
    assert run(bundle) == (0, (None, 0.9))


def test_requested_limit_replaces_that_of_the_bundle(bundle: Path) -> None:
    assert run(bundle, "--min-f1-ratio", 0.5) == (0, (None, 0.5))
    assert run(bundle, "--max-f1-drop", -100) == (3, (-100, None))
    edit(bundle, lambda m: m.update(max_f1_drop=None, min_f1_ratio=0.9))
    assert run(bundle, "--max-f1-drop", 2) == (0, (2, None))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--min-f1-ratio", "0.9", "--max-f1-drop", "1"), "were both given"),
        (("--min-f1-ratio", "0"), "--min-f1-ratio is 0; it must be more than 0 and at most 1"),
    ],
)
def test_impossible_limits_are_refused(
    bundle: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(bundle, *words) == (2, (None, None))
    assert message in " ".join(capsys.readouterr().err.split())
