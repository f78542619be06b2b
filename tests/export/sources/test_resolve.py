"""Tests how what a network shows and what the user declares are merged, and what is refused or asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from misgnet_export.sources.declaration import Declaration, Found
from misgnet_export.sources.options import ModelOptions, parse_output
from misgnet_export.sources.resolve import resolve
from misgnet_runtime.bundle import IMAGENET_MEAN, IMAGENET_STD, Normalization
from misgnet_runtime.errors import UsageError
from misgnet_runtime.options import make

STACKED = Found(
    inputs=("images",), outputs=("logits",), io="stacked", layout="NCHW", dtype="float32", bands=3, channels=2,
    tile=512, batch=1,
)  # fmt: skip
PAIR = Found(inputs=("a", "b"), outputs=("y",), io="pair", layout="NCHW", dtype="float32", bands=3, channels=2)
NOTHING = Found(inputs=(), outputs=())
ENOUGH = {"model_output": "logits2", "normalization": "imagenet"}


def options(**given: Any) -> ModelOptions:
    return make(ModelOptions, given)


def resolved(found: Found, **given: Any) -> Declaration:
    return resolve(found, options(**given), "net.onnx")[0]


def refusal(found: Found, **given: Any) -> str:
    with pytest.raises(UsageError) as caught:
        resolve(found, options(**given), "net.onnx")
    return str(caught.value)


def normalization(found: Found = PAIR, **given: Any) -> Normalization:
    return resolved(found, model_output="logits2", **given).normalization


def test_network_of_open_cd_needs_two_declarations_and_is_described() -> None:
    what, findings = resolve(STACKED, options(model_io="stacked", **ENOUGH), "net.onnx")
    assert what == Declaration(io="stacked", inputs=("images",), output_name="logits")
    assert findings == (
        "input 'images': float32 (1, 6, 512, 512), NCHW, 3 bands of each date, stacked",
        "output 'logits': 2 channels",
        "declared: logits of two classes, ImageNet normalization of pixel / 255",
    )


def test_all_that_is_missing_is_asked_for_in_one_message() -> None:
    assert refusal(STACKED) == (
        "net.onnx: 2 things cannot be found out; add --model-output logits2 (or probability2, classes:2; the output "
        "has 2 channels) --normalization imagenet (or half, unit, none, or --mean and --std)"
    )
    assert refusal(NOTHING) == (
        "net.onnx: 4 things cannot be found out; add --model-io pair (or stacked, time) --bands 3 (or another number "
        "of bands of each date) --model-output logits2 (or logit1, probability1, probability2, classes:N) "
        "--normalization imagenet (or half, unit, none, or --mean and --std)"
    )
    assert refusal(PAIR, model_output="logits2").startswith(
        "net.onnx: 1 thing cannot be found out; add --normalization"
    )


@pytest.mark.parametrize(
    ("found", "given", "asked"),
    [
        (replace(PAIR, io=None, inputs=("x",)), {}, "--model-io stacked (or time)"),
        (replace(PAIR, bands=None), {}, "--bands 3 (or another number of bands of each date)"),
        (replace(PAIR, bands=None), {"mean": "0.5", "std": "0.5"}, "--bands 3 (or"),
        (replace(PAIR, inputs=("a", "b", "c")), {}, "--model-inputs a,b (BEFORE first; the inputs are a, b, c)"),
        (replace(STACKED, inputs=("a", "b", "c")), {}, "--model-inputs a (BEFORE first; the inputs are a, b, c)"),
        (replace(PAIR, outputs=("y", "z")), {}, "--model-output-name y (or another; the outputs are y, z)"),
        (PAIR, {"model_output": "classes:2"}, "--changed 1 (the classes from 0 to 1 that count as changed, separated"),
        (PAIR, {"mean": "0"}, "--std 0.229,0.224,0.225 (one number, or one per band; --mean was given)"),
        (PAIR, {"std": "1"}, "--mean 0.485,0.456,0.406 (one number, or one per band; --std was given)"),
        (PAIR, {"scale": 10000.0}, "--normalization imagenet"),
        (replace(PAIR, channels=1), {}, "--model-output logit1 (or probability1; the output has 1 channel)"),
        (
            replace(PAIR, channels=5),
            {},
            "--model-output classes:5 (the output has 5 channels) --changed 1 (the classes",
        ),
        (replace(PAIR, channels=None), {}, "--model-output logits2 (or logit1, probability1, probability2, classes:N)"),
    ],
)
def test_what_cannot_be_found_is_asked_for(found: Found, given: dict[str, Any], asked: str) -> None:
    assert f" {asked}" in refusal(found, **given)


@pytest.mark.parametrize(
    ("found", "given", "message"),
    [
        (
            replace(STACKED, bands=4), {"bands": 3},
            "--bands is 3, but the network's input has 8 channels, 4 of each date; leave --bands out",
        ),
        (PAIR, {"bands": 4}, "--bands is 4, but the network's input has 3 channels"),
        (replace(PAIR, bands=17), {}, "the network reads 17 bands of each date; 1 to 16 are supported"),
        (STACKED, {"model_io": "time"}, "--model-io is time, but the network has 1 input of the form of stacked"),
        (replace(PAIR, io=None), {"model_io": "stacked"}, "but the network has 2 inputs of the form of pair"),
        (
            replace(STACKED, io=None), {"model_io": "pair"},
            "--model-io is pair, which has 2 inputs, but the network has 1: 'images'",
        ),
        (
            PAIR, {"model_io": "pair", "model_inputs": "a"},
            "--model-io is pair, which has 2 inputs, but --model-inputs names 1: 'a'",
        ),
        (PAIR, {"model_inputs": "a"}, "the network has the form of pair, which has 2 inputs, but --model-inputs names"),
        (PAIR, {"model_inputs": "a,c"}, "--model-inputs has 'c', but the inputs of the network are 'a' and 'b'"),
        (PAIR, {"model_inputs": "a,a"}, "--model-inputs has 'a' and 'a'; expected one name, or two different ones"),
        (PAIR, {"model_output_name": "z"}, "--model-output-name is 'z', but the outputs of the network are 'y'"),
        (
            PAIR, {"model_output": "classes:5"},
            "--model-output is classes:5, which has 5 channels, but the output of the network has 2",
        ),
        (PAIR, {"model_output": "logit1"}, "which has 1 channel, but the output of the network has 2"),
        (PAIR, {"model_output": "logits2", "changed": "1"}, "--changed is for --model-output classes:N"),
        (PAIR, {"model_output": "classes:2", "changed": "2"}, "--changed has 2, but classes:2 has the classes 0 to 1"),
        (PAIR, {"model_output": "classes:2", "changed": "0,1"}, "--changed has all 2 classes of classes:2; leave"),
        (PAIR, {"normalization": "half", "mean": "1"}, "--normalization half and --mean were both given"),
        (PAIR, {"normalization": "half", "mean": "1", "std": "1"}, "--normalization half and --mean and --std"),
        (PAIR, {"normalization": "none", "scale": 255.0}, "--normalization none keeps pixels as they are, but --scale"),
        (PAIR, {"normalization": "unit", "scale": 0.0}, "--scale is 0; expected a finite number greater than 0"),
        (PAIR, {"normalization": "unit", "scale": float("nan")}, "--scale is nan"),
        (PAIR, {"normalization": "unit", "scale": float("inf")}, "--scale is inf"),
        (PAIR, {"mean": "1,2", "std": "1"}, "--mean has 2 numbers, but each date has 3 bands"),
        (PAIR, {"mean": "1", "std": "1,2,3,4"}, "--std has 4 numbers, but each date has 3 bands"),
        (PAIR, {"mean": "1", "std": "1,0,1"}, "--std has 0; expected numbers greater than 0"),
        (PAIR, {"mean": "1", "std": "-1"}, "--std has -1"),
        (replace(PAIR, bands=4), {"normalization": "imagenet"}, "imagenet is for 3 bands, but the network reads 4"),
        (replace(PAIR, dtype="uint8"), {"normalization": "unit"}, "the network reads raw uint8 pixels, so it"),
        (replace(PAIR, dtype="uint8"), {"scale": 1.0}, "the network reads raw uint8 pixels"),
        (replace(PAIR, dtype="uint16"), {"mean": "1", "std": "1"}, "the network reads raw uint16 pixels"),
        (replace(PAIR, dtype="uint8"), {"samples": "uint16"}, "--samples is uint16, but the network reads uint8"),
        (STACKED, {"multiple": 100}, "--multiple is 100, but the network accepts only tiles of 512 px"),
        (PAIR, {"resolution": 0.0}, "--resolution is 0; expected metres per pixel, more than 0"),
        (PAIR, {"resolution": float("inf")}, "--resolution is inf"),
        (PAIR, {"resolution": float("nan")}, "--resolution is nan"),
    ],
)  # fmt: skip
def test_contradictions_are_refused_with_both_sides(found: Found, given: dict[str, Any], message: str) -> None:
    assert message in refusal(found, **given)


@pytest.mark.parametrize(
    ("found", "given", "field", "value"),
    [
        (replace(PAIR, io=None), {}, "io", "pair"),
        (replace(STACKED, io=None), {"model_io": "time"}, "io", "time"),
        (replace(PAIR, bands=None), {"bands": 3}, "bands", 3),
        (PAIR, {"model_inputs": "b,a"}, "inputs", ("b", "a")),
        (replace(PAIR, inputs=("a", "b", "c")), {"model_inputs": "c,a"}, "inputs", ("c", "a")),
        (replace(PAIR, inputs=()), {}, "inputs", ("before", "after")),
        (replace(STACKED, inputs=()), {}, "inputs", ("images",)),
        (replace(PAIR, outputs=("y", "z")), {"model_output_name": "z"}, "output_name", "z"),
        (replace(PAIR, outputs=()), {}, "output_name", "output"),
        (replace(PAIR, channels=None), {}, "output", parse_output("logits2")),
        (replace(PAIR, layout="NHWC"), {}, "layout", "NHWC"),
        (replace(PAIR, layout=None), {}, "layout", "NCHW"),
        (replace(PAIR, dtype="float16"), {}, "dtype", "float16"),
        (replace(PAIR, dtype=None), {}, "dtype", "float32"),
        (PAIR, {"samples": "uint16"}, "samples", "uint16"),
        (PAIR, {}, "multiple", 1),
        (STACKED, {"multiple": 32}, "multiple", 32),
    ],
)
def test_found_and_declared_values_are_merged(found: Found, given: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(resolved(found, **ENOUGH, **given), field) == value


def test_classes_keep_those_that_count_as_changed() -> None:
    what, findings = resolve(
        replace(PAIR, channels=5), options(model_output="classes:5", changed="3,1", normalization="unit"), "net.onnx"
    )
    assert what.output == parse_output("classes:5") and what.changed == (1, 3)
    assert findings[-1] == "declared: logits of 5 classes, of which 1, 3 count as changed, pixel / 255"


def test_each_preset_has_its_numbers() -> None:
    assert normalization(normalization="imagenet") == Normalization(1 / 255, IMAGENET_MEAN, IMAGENET_STD)
    four = replace(PAIR, bands=4)
    assert normalization(four, normalization="half") == Normalization(1 / 255, (0.5,) * 4, (0.5,) * 4)
    assert normalization(four, normalization="unit") == Normalization(1 / 255, (0.0,) * 4, (1.0,) * 4)
    assert normalization(four, normalization="none") == Normalization(1.0, (0.0,) * 4, (1.0,) * 4)


def test_mean_and_std_are_repeated_for_all_bands() -> None:
    assert normalization(mean="0.5", std="1,2,4") == Normalization(1 / 255, (0.5,) * 3, (1.0, 2.0, 4.0))


def test_pixels_are_divided_by_scale_or_by_the_largest_value() -> None:
    assert normalization(normalization="unit", samples="uint16").scale == 1 / 65535
    assert normalization(normalization="unit", samples="uint16", scale=10000.0).scale == 1 / 10000
    assert normalization(mean="0", std="1", scale=1.0).scale == 1.0


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_network_that_reads_raw_pixels_needs_no_normalization(dtype: Any) -> None:
    what, findings = resolve(replace(PAIR, dtype=dtype), options(model_output="logits2"), "net.onnx")
    assert what.normalization == Normalization(1.0, (0.0,) * 3, (1.0,) * 3)
    assert what.samples == what.dtype == dtype
    assert findings[-1] == f"declared: logits of two classes, {dtype} pixels as they are"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"normalization": "half"}, "pixel / 255 with mean 0.5 and standard deviation 0.5"),
        ({"normalization": "none"}, "uint8 pixels as they are"),
        ({"mean": "1,2,3", "std": "4", "scale": 10.0}, "pixel / 10 with mean 1, 2, 3 and standard deviation 4"),
        ({"normalization": "unit", "multiple": 16}, "pixel / 255, tiles of a multiple of 16 px"),
        ({"normalization": "unit", "resolution": 0.5}, "pixel / 255, 0.5 m per pixel"),
    ],
)
def test_findings_state_the_declaration(given: dict[str, Any], words: str) -> None:
    findings = resolve(PAIR, options(model_output="logits2", **given), "net.onnx")[1]
    assert findings[-1] == f"declared: logits of two classes, {words}"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (PAIR, "inputs 'a' and 'b': float32 (B, 3, H, W), NCHW, 3 bands of each date, pair"),
        (
            replace(STACKED, layout="NHWC", batch=None),
            "input 'images': float32 (B, 512, 512, 6), NHWC, 3 bands of each ",
        ),
        (replace(STACKED, io="time"), "input 'images': float32 (1, 2, 3, 512, 512), NCHW, 3 bands of each date, time"),
    ],
)
def test_findings_state_the_shape_of_the_inputs(found: Found, words: str) -> None:
    assert resolve(found, options(**ENOUGH), "net.onnx")[1][0].startswith(words)


def test_many_and_long_names_are_shortened() -> None:
    names = tuple(f"\x1b{'x' * 1000}{i}" for i in range(100_000))
    message = refusal(replace(PAIR, inputs=names, outputs=names))
    assert "(100000 in all)" in message and "\x1b" not in message and len(message) < 4000
