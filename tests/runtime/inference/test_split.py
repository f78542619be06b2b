"""Tests of split engines: encoder and head together give the output of the whole engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from misgnet_runtime.bundle.checked import CheckedFiles
from misgnet_runtime.bundle.manifest import EngineEntry, Normalization, head_inputs
from misgnet_runtime.bundle.preprocessing import normalise
from misgnet_runtime.bundle.reader import Bundle, read_bundle
from misgnet_runtime.engines.base import Arrays, Engine, TensorSpec
from misgnet_runtime.engines.onnxruntime import OnnxRuntimeEngine
from misgnet_runtime.errors import InputError, UnavailableError, UsageError
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.inference.split_detector import SplitDetector, choose_split, open_split
from support.bundles import (
    DATA,
    FEATURES,
    FLOAT,
    INT8,
    INTERFACE,
    RTX,
    SPLIT_FLOAT,
    SPLIT_INT8,
    TILE,
    edit,
    expected,
    images,
    spec,
)
from support.bundles import make_bundle as whole_bundle


def make_bundle(root: Path, *engines: EngineEntry) -> Bundle:
    return read_bundle(whole_bundle(root / "bundle", engines=engines or (SPLIT_FLOAT, SPLIT_INT8)))


@pytest.mark.parametrize("engine", ("cpu-float32", "cpu"))
@pytest.mark.parametrize("batch", (1, 3))
def test_encoder_and_head_match_the_whole_engine(tmp_path: Path, engine: str, batch: int) -> None:
    bundle, (before, after) = make_bundle(tmp_path), images(batch, TILE, TILE)
    with choose_split(bundle, engine) as (parts, entry, _), open_detector(bundle, engine) as (whole, _, _):
        found = parts.compare(parts.encode(before), parts.encode(after))
        np.testing.assert_array_equal(found, whole.probability(before, after))
    assert (entry.name, found.dtype) == (engine, np.float32)


def test_features_of_a_date_can_be_compared_with_several_dates(tmp_path: Path) -> None:
    first, second = images(2, TILE, TILE)
    with open_split(make_bundle(tmp_path), SPLIT_FLOAT) as parts:
        reference, other = parts.encode(first), parts.encode(second)
        assert not parts.compare(reference, reference).any()
        np.testing.assert_allclose(parts.compare(reference, other), expected(first, second), atol=1e-6)


def test_features_have_the_manifests_types_shapes_and_order(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    pixels, _ = images(2, TILE, TILE)
    with open_split(bundle, SPLIT_INT8) as parts:
        found = parts.encode(pixels)
    assert parts.features == bundle.manifest.features == FEATURES
    assert [(f.dtype.name, f.shape[1:]) for f in found] == [(e.dtype, tuple(e.shape[1:])) for e in FEATURES]
    np.testing.assert_array_equal(found[1][:, 0], pixels[..., 2])


class FloatEncoder(Engine):
    """Takes normalised images and returns their channels."""

    device = "a fake"
    max_batch = INTERFACE.max_batch
    inputs = (TensorSpec("image", "float32", (-1, 3, TILE, TILE)),)
    outputs = tuple(map(spec, FEATURES))

    def _infer(self, context: None, arrays: Arrays, batch: int) -> Arrays:
        return {"feature1": arrays["image"][:, :2], "feature2": arrays["image"][:, 2:]}

    def _release(self) -> None: ...


def test_float32_images_are_normalised_before_the_encoder() -> None:
    pixels, _ = images(2, TILE, TILE)
    interface = replace(INTERFACE, input="float32")
    with SplitDetector(FloatEncoder(), watched("float_head"), interface, FEATURES) as parts:
        np.testing.assert_array_equal(np.concatenate(parts.encode(pixels), 1), normalise(pixels, Normalization()))


def test_the_heads_inputs_start_with_the_features_of_before() -> None:
    names = [entry.name for entry in head_inputs(FEATURES)]
    assert names == ["before_feature1", "before_feature2", "after_feature1", "after_feature2"]


# Selection of an engine


def test_the_fastest_split_engine_is_selected(tmp_path: Path) -> None:
    with choose_split(make_bundle(tmp_path, FLOAT, SPLIT_FLOAT_TWIN, INT8)) as (_, entry, reason):
        assert (entry.name, reason) == ("twin", "fastest that runs here")


SPLIT_FLOAT_TWIN = replace(SPLIT_FLOAT, name="twin")


def test_an_engine_that_does_not_run_here_is_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = replace(SPLIT_INT8, name="other", needs=["no such processor"])
    bundle = make_bundle(tmp_path, SPLIT_FLOAT, other)
    caplog.set_level("INFO")
    with choose_split(bundle) as (_, entry, reason):
        assert (entry.name, reason) == ("cpu-float32", "fastest that runs here")
    assert caplog.messages == ["not on this machine: other (needs no such processor)"]
    with pytest.raises(UnavailableError, match="no such processor"), choose_split(bundle, "other"):
        pass


@pytest.mark.parametrize("engine", ("auto", "cpu", "cpu-float32"))
def test_the_error_for_a_bundle_that_is_not_split_names_the_option(tmp_path: Path, engine: str) -> None:
    with pytest.raises(UsageError, match="--split"), choose_split(make_bundle(tmp_path, FLOAT, INT8), engine):
        pass


def test_the_error_for_an_engine_that_is_not_split_names_split_engines(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"engine cpu of .* is not split; choose one of cpu-float32$"),
        choose_split(make_bundle(tmp_path, SPLIT_FLOAT, INT8), "cpu"),
    ):
        pass


def test_the_error_for_an_unknown_engine_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cpu-float32"), choose_split(make_bundle(tmp_path), "gpu"):
        pass


# Parts that do not match


class Watched(OnnxRuntimeEngine):
    """Counts how often it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


def watched(part: str) -> Watched:
    return Watched(DATA / f"tiny_{part}.onnx", INTERFACE.max_batch)


def test_both_parts_are_closed_with_the_detector() -> None:
    encoder, head = watched("encoder"), watched("float_head")
    with SplitDetector(encoder, head, INTERFACE, FEATURES):
        assert not encoder.closed and not head.closed
    assert encoder.closed and head.closed


@pytest.mark.parametrize(
    ("parts", "word"),
    ((("float_head", "float_head"), "encoder"), (("encoder", "encoder"), "head"), (("float", "float_head"), "encoder")),
)
def test_a_part_that_does_not_match_is_named_and_both_are_closed(parts: tuple[str, str], word: str) -> None:
    encoder, head = map(watched, parts)
    with pytest.raises(InputError, match=f"the {word} does not match its interface.*build the bundle again"):
        SplitDetector(encoder, head, INTERFACE, FEATURES)
    assert encoder.closed and head.closed


def test_a_part_with_a_smaller_batch_than_the_interface_is_refused() -> None:
    small = OnnxRuntimeEngine(DATA / "tiny_float_head.onnx", 2)
    with pytest.raises(InputError, match=r"the head .* batches up to 2"):
        SplitDetector(watched("encoder"), small, INTERFACE, FEATURES)


def test_features_of_another_size_count_or_type_are_refused(tmp_path: Path) -> None:
    with open_split(make_bundle(tmp_path), SPLIT_FLOAT) as parts:
        features = parts.encode(images(2, TILE, TILE)[0])
        with pytest.raises(InputError, match="after_feature2"):
            parts.compare(features, [features[0], features[1][:1]])
        with pytest.raises(InputError, match="float16"):
            parts.compare([f.astype(np.float16) for f in features], features)
        with pytest.raises(ValueError, match="argument"):
            parts.compare(features, features[:1])


def test_the_encoder_is_closed_if_the_head_cannot_be_opened(tmp_path: Path) -> None:
    opened: list[Watched] = []

    def open_file(entry: EngineEntry, files: CheckedFiles, *_: object, **__: object) -> Watched:
        if "head" in entry.file:
            raise InputError("a broken head")
        opened.append(Watched(files.root / entry.file, INTERFACE.max_batch))
        return opened[-1]

    with pytest.raises(InputError, match="a broken head"):
        open_split(make_bundle(tmp_path), SPLIT_FLOAT, open_file=open_file)
    assert [engine.closed for engine in opened] == [1]


# The manifest


def test_a_split_engine_without_features_is_refused(tmp_path: Path) -> None:
    root = make_bundle(tmp_path).path
    edit(root, lambda m: m.update(features=[]))
    with pytest.raises(InputError, match="has split engines, but no features"):
        read_bundle(root)


def test_features_without_a_split_engine_are_refused(tmp_path: Path) -> None:
    root = make_bundle(tmp_path).path
    edit(root, lambda m: [engine.update(split=None) for engine in m["engines"]])
    with pytest.raises(InputError, match="has features, but no split engine"):
        read_bundle(root)


@pytest.mark.parametrize("part", ("encoder", "head", "encoder_graph", "head_graph"))
def test_a_part_missing_from_the_manifests_files_is_refused(tmp_path: Path, part: str) -> None:
    root = make_bundle(tmp_path, SPLIT_FLOAT, INT8, RTX).path
    edit(root, lambda m: m["engines"][0]["split"].update({part: "graphs/elsewhere.onnx"}))
    with pytest.raises(InputError, match=r"graphs/elsewhere\.onnx"):
        read_bundle(root)


def test_a_bundle_of_an_earlier_version_is_not_split(tmp_path: Path) -> None:
    root = make_bundle(tmp_path, FLOAT, INT8).path
    edit(root, lambda m: [m.pop("features"), *(engine.pop("split") for engine in m["engines"])])
    manifest = read_bundle(root).manifest
    assert manifest.features == [] and manifest.engines[0].split is None
