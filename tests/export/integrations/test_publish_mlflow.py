"""Tests ``misgnet-export publish --as mlflow``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from misgnet_export.cli.main import main
from misgnet_export.integrations.publish import mlflow as published
from support.bundles import expected, images, make_bundle
from support.commands import exit_code


def test_model_gives_the_probability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in published.QUIET.items():
        monkeypatch.setenv(name, value)
    pyfunc = pytest.importorskip("mlflow.pyfunc", reason="mlflow-skinny is not installed")
    bundle, model = make_bundle(tmp_path / "bundle"), tmp_path / "model"
    assert exit_code(main, "misgnet-export", "publish", bundle, "--as", "mlflow", "-o", model) == 0
    assert f"published: {model}" in capsys.readouterr().out
    assert str(tmp_path) not in (model / "MLmodel").read_text(encoding="utf-8")
    model = model.rename(tmp_path / "moved")  # nothing in it refers to where it was written
    before, after = images(100, 130)
    found = pyfunc.load_model(str(model)).predict({"before": before, "after": after})
    assert found.dtype == np.float32 and found.shape == (100, 130)
    np.testing.assert_allclose(found, expected(before, after), atol=0.01)


def test_missing_library_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for name in [name for name in sys.modules if name.startswith("mlflow.")]:
        monkeypatch.delitem(sys.modules, name)
    bundle = make_bundle(tmp_path / "bundle")
    assert exit_code(main, "misgnet-export", "publish", bundle, "--as", "mlflow", "-o", tmp_path / "model") == 5
    assert "pip install 'misgnet-export[mlflow]'" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
