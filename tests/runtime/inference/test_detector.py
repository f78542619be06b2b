"""Tests of ChangeDetector, of the selection of engines, and of open_bundle."""

from __future__ import annotations

import sys
import threading
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misgnet_runtime import ChangeMap, open_bundle
from misgnet_runtime.bundle.manifest import EngineEntry, InputForm, Interface, OutputForm
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.engines import Engine, TensorSpec
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.engines.tensorrt import PlanOptions, compile_plan
from misgnet_runtime.engines.tensorrt.engine import open_plan
from misgnet_runtime.errors import GateFailed, InputError, UnavailableError, UsageError
from misgnet_runtime.inference.detector import ChangeDetector, tile_per_stream
from misgnet_runtime.inference.selection import open_detector, ranked
from support import fake_tensorrt
from support.bundles import DATA, FLOAT, INT8, INTERFACE, RTX, TILE, FakeEngine, edit, expected, images, make_bundle
from support.fake_cuda import FakeDriver

FORMS: list[tuple[InputForm, OutputForm]] = list(product(("uint8", "float32"), get_args(OutputForm)))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


# Forms of graphs


@pytest.mark.parametrize(("input_form", "output_form"), FORMS)
def test_all_graph_forms_give_the_same_mask(input_form: InputForm, output_form: OutputForm) -> None:
    before, after = images(2, 8, 8)
    with ChangeDetector(
        FakeEngine(Interface(8, 2, input_form, output_form)), Interface(8, 2, input_form, output_form)
    ) as d:
        found = d.probability(before, after)
    assert (found.shape, found.dtype) == ((2, 8, 8), np.float32)
    np.testing.assert_array_equal(found > 0.5, expected(before, after) > 0.5)
    if output_form != "mask":
        np.testing.assert_allclose(found, expected(before, after), atol=1e-6)


def test_extreme_logits_become_probabilities() -> None:
    interface = Interface(2, 1, output="logits")
    engine = FakeEngine(interface)
    logits = np.array([[-1e4, 1e4], [0, -200]], np.float32)
    engine._output = lambda _: np.stack([-logits, logits])[None]  # type: ignore[method-assign]
    with np.errstate(over="raise"):
        found = ChangeDetector(engine, interface).probability(*images(1, 2, 2))
    np.testing.assert_array_equal(found[0], [[0, 1], [0.5, 0]])


def test_onnxruntime_output_matches_the_formula() -> None:
    before, after = images(3, TILE, TILE)
    with ChangeDetector(OnnxRuntimeEngine(DATA / "tiny_float.onnx", 4), INTERFACE) as detector:
        np.testing.assert_allclose(detector.probability(before, after), expected(before, after), atol=1e-6)


# Scenes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 5), st.data())
def test_scenes_of_any_size_match_the_formula(
    height: int, width: int, tile: int, batch: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, 3 * tile // 4))
    before, after = images(height, width, seed=height * width)
    engine = FakeEngine(Interface(tile, batch))
    found = ChangeDetector(engine, engine.interface).scene_probability(before, after, overlap=overlap, batch=batch)
    np.testing.assert_allclose(found, expected(before, after), atol=1e-6)
    rows, columns = (max(0, -(-(side - tile) // (tile - overlap))) + 1 for side in (height, width))
    assert engine.batches == rows * ([batch] * (columns // batch) + [columns % batch] * (columns % batch > 0))


def test_image_of_one_tile_is_the_engines_output() -> None:
    interface = Interface(8, 1)
    engine = FakeEngine(interface)
    output = np.random.default_rng(0).random((1, 8, 8), np.float32)
    engine._output = lambda _: output  # type: ignore[method-assign]
    found = ChangeDetector(engine, interface).scene_probability(*images(8, 5), overlap=2, batch=1)
    np.testing.assert_array_equal(found, output[0, :, :5])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8), "8 x 8 and 9 x 8 px"),
        (np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8), "uint8"),
        (np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 4), np.uint8), "uint8"),
        (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((0, 8, 3), np.uint8), np.zeros((0, 8, 3), np.uint8), "uint8"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint16), "'after' is uint16"),
    ],
)
@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_arrays_that_are_not_a_pair_are_refused(before: Any, after: Any, message: str, form: InputForm) -> None:
    engine = FakeEngine(Interface(8, 1, form))
    with pytest.raises(InputError, match=message):
        ChangeDetector(engine, engine.interface).scene_probability(before, after, overlap=0, batch=1)


def test_nan_fails_the_gate() -> None:
    engine = FakeEngine(INTERFACE, nan=True)
    with pytest.raises(GateFailed, match="NaN or Inf"):
        ChangeDetector(engine, INTERFACE).scene_probability(*images(10, 10), overlap=0, batch=1)


# The interface and the engine


@pytest.mark.parametrize("other", [Interface(8, 2, *form) for form in FORMS[1:]] + [Interface(16, 2), Interface(8, 3)])
def test_an_engine_that_does_not_match_its_interface_is_refused_and_closed(other: Interface) -> None:
    engine = FakeEngine(Interface(8, 2))
    with pytest.raises(InputError, match="does not match its interface"):
        ChangeDetector(engine, other)
    assert engine.closed


@pytest.mark.parametrize("change", ["name", "missing", "more outputs", "fixed batch"])
def test_tensors_that_differ_from_the_interface_are_refused(change: str) -> None:
    engine = FakeEngine(Interface(8, 2))
    if change == "name":
        engine.inputs = (TensorSpec("first", "uint8", (-1, 8, 8, 3)), engine.inputs[1])
    elif change == "missing":
        engine.inputs = engine.inputs[:1]
    elif change == "more outputs":
        engine.outputs += (TensorSpec("features", "float32", (-1, 8)),)
    else:
        engine.inputs = tuple(TensorSpec(s.name, s.dtype, (2, *s.shape[1:])) for s in engine.inputs)
    with pytest.raises(InputError, match="does not match its interface"):
        ChangeDetector(engine, engine.interface)


def test_tensors_may_come_in_another_order() -> None:
    engine = FakeEngine(Interface(8, 2))
    engine.inputs = engine.inputs[::-1]
    before, after = images(1, 8, 8)
    np.testing.assert_array_equal(
        ChangeDetector(engine, engine.interface).probability(before, after), expected(before, after)
    )


@pytest.mark.parametrize("other", [Interface(32, 4), Interface(TILE, 4, "float32"), Interface(TILE, 4, output="mask")])
def test_a_bundle_whose_graph_does_not_match_its_interface_is_refused(tmp_path: Path, other: Interface) -> None:
    root = make_bundle(tmp_path / "bundle", interface=other)
    with pytest.raises(InputError, match="does not match its interface"), open_bundle(root):
        pass


@pytest.mark.parametrize("other", [Interface(8, 8), Interface(4, 16), Interface(4, 8, "float32")])
def test_a_plan_that_does_not_match_its_interface_is_refused(other: Interface, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver("sm87")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.make_tensorrt("10.3.0", driver))

    def plan() -> Engine:
        options = PlanOptions(vendor="tensorrt", profiles=((1, 4, 8),))
        return open_plan(compile_plan(fake_tensorrt.model(), options, driver=driver).data, "tensorrt", driver)

    with pytest.raises(InputError, match="does not match its interface"):
        ChangeDetector(plan(), other)
    with ChangeDetector(plan(), Interface(4, 8)) as detector:
        before, after = images(9, 7)
        np.testing.assert_allclose(
            detector.scene_probability(before, after, overlap=0, batch=1), expected(before, after), atol=1e-6
        )


# Selection of an engine


def test_the_fastest_engine_that_runs_is_selected(tmp_path: Path) -> None:
    bundle = read_bundle(make_bundle(tmp_path / "bundle", engines=[FLOAT, RTX, INT8]))
    assert [e.name for e in ranked(bundle.manifest.engines, {})] == ["rtx-sm86", "cpu", "cpu-float32"]
    with open_detector(bundle) as (_, entry, reason):
        assert entry == INT8
        assert reason == "fastest that runs here"
    with open_detector(bundle, "cpu-float32") as (_, entry, reason):
        assert (entry, reason) == (FLOAT, "as requested")
    with pytest.raises(UsageError), open_detector(bundle, "gpu"):
        pass


def test_if_no_engine_runs_all_reasons_are_reported(tmp_path: Path) -> None:
    other = EngineEntry("rtx-sm89", "rtx", RTX.file, RTX.graph, "float16", "0.0.1", ["sm89"], "linux-x86_64")
    bundle = read_bundle(make_bundle(tmp_path / "bundle", engines=[RTX, other]))
    with pytest.raises(UnavailableError, match=r"no engine runs here: rtx-sm89, rtx-sm86: \w"), open_detector(bundle):
        pass


def test_auto_does_not_skip_a_damaged_engine(bundle: Path) -> None:
    """Engines that cannot run here are skipped; a damaged engine is an error."""
    for change in (lambda m: m["engines"][1].update(file="evidence/report.html"),):
        edit(bundle, change)
    with pytest.raises(InputError, match="onnxruntime cannot open"), open_bundle(bundle):
        pass


# open_bundle


def test_open_bundle_predicts(bundle: Path) -> None:
    before, after = images(100, 30)
    with open_bundle(f"{bundle}/", engine="cpu-float32") as opened:
        change = opened.predict(before, after)
        assert (opened.manifest.tile, opened.engine, opened.reason) == (TILE, FLOAT, "as requested")
    assert isinstance(change, ChangeMap)
    assert (change.probability.dtype, change.mask.dtype) == (np.float32, np.bool_)
    np.testing.assert_allclose(change.probability, expected(before, after), atol=1e-6)
    np.testing.assert_array_equal(change.mask, change.probability > 0.5)


def test_the_manifests_threshold_is_applied(bundle: Path) -> None:
    edit(bundle, lambda m: m.update(threshold=0.25))
    with open_bundle(bundle) as opened:
        change = opened.predict(*images(64, 64))
    np.testing.assert_array_equal(change.mask, change.probability > 0.25)


def test_threads_share_a_session(bundle: Path) -> None:
    pairs = [images(70, 70, seed=seed) for seed in range(6)]
    found: dict[int, Any] = {}
    with open_bundle(bundle, "cpu-float32") as opened:
        threads = [
            threading.Thread(target=lambda i=i: found.update({i: opened.predict(*pairs[i]).probability}))
            for i in range(len(pairs))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, pair in enumerate(pairs):
        np.testing.assert_allclose(found[index], expected(*pair), atol=1e-6)


def test_the_package_does_not_export_unknown_names() -> None:
    import misgnet_runtime

    assert not hasattr(misgnet_runtime, "open_bundel")
    with pytest.raises(ImportError):
        from misgnet_runtime import nothing  # type: ignore[attr-defined]  # noqa: F401


# Many tiles


@pytest.mark.parametrize(("streams", "largest", "batches"), [(2, 8, [1] * 5), (1, 8, [5]), (1, 2, [2, 2, 1])])
def test_any_number_of_tiles_is_predicted_in_order(streams: int, largest: int, batches: list[int]) -> None:
    before, after = images(5, 8, 8)
    whole, interface = Interface(8, 8, "uint8", "probability"), Interface(8, largest, "uint8", "probability")
    with ChangeDetector(FakeEngine(whole), whole) as detector:
        expected = detector.probability(before, after)
    engine = FakeEngine(interface, streams=streams)
    with ChangeDetector(engine, interface) as detector, tile_per_stream(detector) as predict:
        assert np.array_equal(predict(before, after), expected) and engine.batches == batches
