"""Tests that compiled OpenVINO graphs are kept in a private folder, and used only if nobody could have changed them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from misgnet_runtime import log
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.engines import ExecutionOptions, open_engine_file
from misgnet_runtime.engines import openvino as engine_module
from misgnet_runtime.engines import openvino_cache as cache
from misgnet_runtime.engines.openvino import OpenVinoEngine
from misgnet_runtime.engines.openvino_cache import CompiledKey
from support.bundles import DATA, FLOAT, images, make_bundle

pytest.importorskip("openvino", reason="OpenVINO is not installed")

GRAPH = (DATA / "tiny_float.onnx").read_bytes()


@pytest.fixture(autouse=True)
def text_log() -> None:
    log.use("text")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the cache's folder, which does not exist yet."""
    monkeypatch.setenv("MISGNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Returns the graphs that are compiled, in order."""
    found: list[bytes] = []
    real = engine_module._compile

    def compile_graph(openvino: Any, core: Any, graph: Any, options: Any) -> Any:
        found.append(graph)
        return real(openvino, core, graph, options)

    monkeypatch.setattr(engine_module, "_compile", compile_graph)
    return found


def predict(streams: int = 1) -> Any:
    """Opens the graph and returns a prediction."""
    before, after = images(3, 64, 64, seed=1)
    with OpenVinoEngine(GRAPH, 4, ExecutionOptions(streams=streams), cached=True) as engine:
        assert engine.inputs[0].shape == (-1, 64, 64, 3) and engine.outputs[0].shape == (-1, 64, 64)
        return engine.infer({"before": before, "after": after})["probability"]


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_the_second_run_compiles_nothing_and_predicts_the_same_bits(folder: Path, compiled: list[bytes]) -> None:
    first = predict()
    assert (folder.stat().st_mode & 0o777, len(compiled)) == (0o700, 1)
    np.testing.assert_array_equal(predict(), first)
    assert len(compiled) == 1 and len(list(folder.iterdir())) == 1


def test_a_kept_graph_is_opened_with_the_table_of_types_filled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that fill it at once, by their first calls, would wait for each other forever."""
    import openvino

    predict()
    used: list[object] = []
    to_dtype = openvino.Type.to_dtype
    monkeypatch.setattr(openvino.Type, "to_dtype", lambda self: used.append(self) or to_dtype(self))
    with OpenVinoEngine(GRAPH, 4, cached=True):
        assert used


def test_other_options_are_compiled_anew(folder: Path, compiled: list[bytes]) -> None:
    first = predict()
    np.testing.assert_array_equal(predict(streams=2), first)
    assert len(compiled) == len(list(folder.iterdir())) == 2


def test_the_key_depends_on_graph_version_options_and_processor() -> None:
    key = CompiledKey.of(GRAPH, "2026.4.1", {"NUM_STREAMS": 1})
    assert key == CompiledKey.of(GRAPH, "2026.4.1", {"NUM_STREAMS": 1})
    others = [
        CompiledKey.of(GRAPH + b"\0", "2026.4.1", {"NUM_STREAMS": 1}),
        CompiledKey.of(GRAPH, "2026.4.2", {"NUM_STREAMS": 1}),
        CompiledKey.of(GRAPH, "2026.4.1", {"NUM_STREAMS": 2}),
        replace(key, processor="another"),
        replace(key, flags=[]),
        replace(key, format=key.format + 1),
    ]
    assert len({key.name, *(other.name for other in others)}) == 7


def flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def use_for_another_graph(path: Path) -> None:
    """Stores the compiled graph of another one, intact, under the name of this one."""
    key = CompiledKey.of(GRAPH, "another version", {})
    cache.keep(key, cache.CompiledGraph((), (), b"contents"))
    path.with_name(key.name).replace(path)


def let_others_write(path: Path) -> None:
    path.parent.chmod(0o777)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (flip_last_byte, "its contents do not match its digest"),
        (lambda path: os.truncate(path, 100), "its contents do not match its digest"),
        (use_for_another_graph, "holds another graph"),
        (let_others_write, "is open to other users (mode 0777)"),
        (replace_by_link, "it is a link"),
    ],
)
def test_an_entry_that_may_have_been_changed_is_reported_and_never_imported(
    folder: Path,
    compiled: list[bytes],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    problem: str,
) -> None:
    import openvino

    first = predict()
    change(only_file(folder))
    monkeypatch.setattr(openvino.Core, "import_model", lambda *_: pytest.fail("it was imported"))
    np.testing.assert_array_equal(predict(), first)
    assert len(compiled) == 2
    warned = capsys.readouterr().err
    assert "warning: the compiled graph in the cache is not used: " in warned and problem in warned
    assert "the graph is compiled again" in warned


def test_a_damaged_entry_is_replaced(folder: Path, compiled: list[bytes]) -> None:
    predict()
    flip_last_byte(only_file(folder))
    predict()
    predict()
    assert len(compiled) == 2


def test_an_entry_that_openvino_rejects_is_replaced(
    folder: Path, compiled: list[bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    first = predict()

    def reject(*_: object) -> None:
        raise RuntimeError("not this\nversion")

    with monkeypatch.context() as patch:
        patch.setattr(openvino.Core, "import_model", reject)
        np.testing.assert_array_equal(predict(), first)
    assert "OpenVINO cannot import a compiled graph, which is replaced: not this; version" in capsys.readouterr().err
    predict()
    assert len(compiled) == 2


def test_an_unwritable_cache_is_reported_and_the_engine_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], compiled: list[bytes]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("MISGNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "write_bytes", full)
    predict()
    noted = capsys.readouterr().err
    assert noted.startswith("the compiled graph is not kept for the next run: ") and "No space left" in noted


def test_without_a_cache_folder_nothing_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], compiled: list[bytes]
) -> None:
    for name, value in (("MISGNET_CACHE", ""), ("XDG_CACHE_HOME", ""), ("HOME", "relative")):
        monkeypatch.setenv(name, value)
    predict()
    assert len(compiled) == 1 and capsys.readouterr().err == ""


def test_the_oldest_graphs_and_leftovers_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [CompiledKey.of(GRAPH, str(number), {}) for number in range(3)]
    graph = cache.CompiledGraph((), (), bytes(10_000))
    cache.keep(keys[0], graph)
    size = only_file(folder).stat().st_size
    monkeypatch.setattr(cache, "COMPILED_GRAPHS_BYTES", 2 * size + 100)
    (folder / ".left-by-a-killed-process").write_bytes(b"part")
    os.utime(folder / keys[0].name, (1, 1))
    for key in keys[1:]:
        cache.keep(key, graph)
    assert [cache.kept(key) == graph for key in keys] == [False, True, True]
    assert sorted(path.name for path in folder.iterdir()) == sorted(key.name for key in keys[1:])


def test_only_graphs_of_a_finished_bundle_are_kept(folder: Path, tmp_path: Path) -> None:
    entry = replace(FLOAT, name="asked", kind="openvino")
    bundle = read_bundle(make_bundle(tmp_path / "bundle", engines=[FLOAT, entry]))
    open_engine_file(entry, bundle.path, 4).close()
    assert not folder.exists(), "a build discards most graphs that it opens"
    open_engine_file(entry, bundle.files, 4).close()
    assert only_file(folder).suffix == ".compiled"
