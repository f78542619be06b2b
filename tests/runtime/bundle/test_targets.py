"""Tests parsing the names of build targets."""

import pytest

from misgnet_runtime.bundle.targets import Target, parse_target
from misgnet_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "target", "name", "slug"),
    [
        ("cpu", Target("cpu"), "cpu", "cpu"),
        ("cpu-vnni", Target("cpu-vnni"), "cpu-vnni", "cpu-vnni"),
        ("CPU-ARM", Target("cpu-arm"), "cpu-arm", "cpu-arm"),
        ("cuda", Target("cuda"), "cuda", "cuda"),
        ("openvino", Target("openvino"), "openvino", "openvino"),
        ("openvino-bf16", Target("openvino-bf16"), "openvino-bf16", "openvino-bf16"),
        ("openvino-int8-bf16", Target("openvino-int8-bf16"), "openvino-int8-bf16", "openvino-int8-bf16"),
        ("tensorrt", Target("tensorrt"), "tensorrt", "tensorrt"),
        ("Jetson-Orin", Target("jetson-orin"), "jetson-orin", "jetson-orin"),
        ("jetson-thor-fp16", Target("jetson-thor-fp16"), "jetson-thor-fp16", "jetson-thor-fp16"),
        ("tensorrt-fp16", Target("tensorrt-fp16"), "tensorrt-fp16", "tensorrt-fp16"),
        ("rtx-sm86", Target("rtx", ("sm86",)), "rtx-sm86", "rtx-sm86"),
        ("rtx-sm86,sm89", Target("rtx", ("sm86", "sm89")), "rtx-sm86,sm89", "rtx-sm86-sm89"),
        # By number, not by letter: "sm120" sorts before "sm89" as text.
        ("rtx-sm120,sm89,sm89", Target("rtx", ("sm89", "sm120")), "rtx-sm89,sm120", "rtx-sm89-sm120"),
        (" RTX-SM89, SM86 ", Target("rtx", ("sm86", "sm89")), "rtx-sm86,sm89", "rtx-sm86-sm89"),
        ("rtx-sm89,sm86-int8", Target("rtx-int8", ("sm86", "sm89")), "rtx-sm86,sm89-int8", "rtx-sm86-sm89-int8"),
        ("TensorRT-INT8", Target("tensorrt-int8"), "tensorrt-int8", "tensorrt-int8"),
        ("rtx-sm89,sm86-fp16", Target("rtx-fp16", ("sm86", "sm89")), "rtx-sm86,sm89-fp16", "rtx-sm86-sm89-fp16"),
    ],
)
def test_target_has_one_canonical_name(text: str, target: Target, name: str, slug: str) -> None:
    assert parse_target(text) == target
    assert (target.name, target.slug) == (name, slug)
    assert parse_target(target.name) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpu",
        "rtx",
        "rtx-",
        "rtx-86",
        "rtx-sm86,",
        "rtx-sm86;sm89",
        "tensorrt-sm86",
        "cpu-sm86",
        "cpu-fp16",
        "cuda-fp16",
        "openvino-fp16",
        "rtx-fp16",
        "rtx-sm86-bf16",
        "rtx-sm86-fp16-fp16",
        "rtx-sm86-int8-fp16",
        "rtx-int8",
        "jetson-orin-int8-int8",
        "tensorrt-sm86-fp16",
        "rtx-sm1",
        "jetson",
        "jetson-nano",
        "jetson-orin-sm87",
    ],
)
def test_unknown_name_is_refused_and_accepted_names_are_listed(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"cpu-vnni.*openvino-int8-bf16.*-int8 or -fp16: .*rtx-smNN\[,smNN\.\.\.\]"
    ) as caught:
        parse_target(text)
    assert f"'{text}'" in str(caught.value)


def test_a_gpu_without_a_suffix_stands_for_both_precisions() -> None:
    assert [target.name for target in parse_target("rtx-sm89,sm86").variants] == [
        "rtx-sm86,sm89-int8", "rtx-sm86,sm89-fp16",
    ]  # fmt: skip
    for kind in ("tensorrt", "jetson-orin", "jetson-thor"):
        assert [target.name for target in parse_target(kind).variants] == [f"{kind}-int8", f"{kind}-fp16"]


@pytest.mark.parametrize("text", ["cpu", "openvino", "torch-tensorrt", "rtx-sm86-fp16", "jetson-orin-int8"])
def test_any_other_target_stands_for_itself(text: str) -> None:
    assert parse_target(text).variants == (parse_target(text),)
