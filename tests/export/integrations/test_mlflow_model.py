"""Tests the example that saves a bundle as an MLflow model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.bundles import expected, images, make_bundle
from support.paths import ROOT

# By default, MLflow sends statistics about its use to a server.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def test_saved_model_gives_the_probability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    pyfunc = pytest.importorskip("mlflow.pyfunc", reason="mlflow-skinny is not installed")
    bundle = make_bundle(tmp_path / "bundle")
    command = [sys.executable, ROOT / "examples/mlflow_model.py", bundle, tmp_path / "model"]
    paths = os.pathsep.join([str(ROOT / "runtime"), *sys.path])
    subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, **QUIET, "PYTHONPATH": paths})
    before, after = images(100, 130)
    found = pyfunc.load_model(str(tmp_path / "model")).predict({"before": before, "after": after})
    assert found.dtype == np.float32 and found.shape == (100, 130)
    np.testing.assert_allclose(found, expected(before, after), atol=0.01)
