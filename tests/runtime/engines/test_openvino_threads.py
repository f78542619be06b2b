"""OpenVINO's first use of its table of types must not happen in several threads at once, which can deadlock."""

from __future__ import annotations

import pytest

openvino = pytest.importorskip("openvino")

from misgnet_runtime.engines.openvino import OpenVinoEngine
from support import bundles


def test_the_table_of_types_is_filled_when_an_engine_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []
    to_dtype = openvino.Type.to_dtype
    monkeypatch.setattr(openvino.Type, "to_dtype", lambda self: used.append(self) or to_dtype(self))
    engine = OpenVinoEngine(bundles.DATA / "tiny_float.onnx", 1)
    engine.close()
    assert used
