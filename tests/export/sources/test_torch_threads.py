"""Tests that PyTorch computes a tile per core, each in one thread, and that its settings are restored."""

from __future__ import annotations

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the compiler needs the [export] extra")

from misgnet_export.sources import torch_threads
from misgnet_export.sources.torch_threads import one_thread_per_call, tile_per_core


def test_tiles_are_computed_one_by_one_at_the_same_time_and_joined_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_threads, "streams_on_cpu", lambda: 2)
    both = threading.Barrier(2, timeout=20)  # a tile is computed only while another one is

    def sums(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        assert len(before) == len(after) == 1
        both.wait()
        return (before + after).sum((1, 2, 3)).astype(np.float32)

    before = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    np.testing.assert_array_equal(tile_per_core(sums)(before, before), [0, 2, 4, 6])


def test_error_of_a_tile_is_raised() -> None:
    def fail(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        tile_per_core(fail)(np.zeros((3, 1, 1, 3), np.uint8), np.zeros((3, 1, 1, 3), np.uint8))


def test_calls_use_one_thread_only_inside_the_block() -> None:
    found: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ValueError, match="broken"), one_thread_per_call():
            found.append(torch.get_num_threads())
            thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            raise ValueError("broken")
        found.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert found == [1, 1, 3]
