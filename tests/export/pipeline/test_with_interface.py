"""Tests how a request and a source together determine tile size, batch and interface."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="the build needs the [export] extra")

from misgnet_export.pipeline.request import BuildRequest, with_interface
from misgnet_export.sources.declaration import Declaration
from misgnet_runtime.bundle import Normalization
from misgnet_runtime.errors import UsageError
from support.builds import FakeSource, request_of

FREE = FakeSource(declaration=Declaration())
BANDS = Declaration(bands=4, samples="uint16", normalization=Normalization(1e-4, (0.1,) * 4, (0.2,) * 4))


@pytest.mark.parametrize(
    ("tile", "source", "found"),
    [
        (None, FREE, 256),
        (64, FREE, 64),
        (None, FakeSource(declaration=Declaration(multiple=96)), 288),
        (None, FakeSource(fixed_tile=512), 512),
        (512, FakeSource(fixed_tile=512), 512),
    ],
)
def test_tile_is_requested_or_the_only_one_or_the_default(tile: int | None, source: FakeSource, found: int) -> None:
    request, interface = with_interface(request_of("cpu", tile=tile), source)
    assert (request.tile, interface.tile) == (found, found)


@pytest.mark.parametrize(
    ("asked", "source", "message"),
    [
        ({"tile": 100}, FakeSource(), "--tile is 100; it must be a multiple of 32, at least 32"),
        ({"tile": 16}, FREE, "--tile is 16; it must be a multiple of 1, at least 32"),
        ({"tile": 256}, FakeSource(fixed_tile=512), "--tile is 256, but the network accepts only 512 px"),
        ({"input_form": "uint16"}, FREE, "--input is uint16, but --samples is uint8"),
        ({"plan_batches": (1, 4)}, FakeSource(largest_batch=1), "--plan-batches has 4, .* only batches up to 1"),
    ],
)
def test_what_a_source_does_not_support_is_refused(asked: dict[str, object], source: FakeSource, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_interface(request_of("cpu", **asked), source)


@pytest.mark.parametrize(("form", "found"), [("uint8", "uint16"), ("uint16", "uint16"), ("float32", "float32")])
def test_raw_images_have_the_type_of_the_samples(form: str, found: str) -> None:
    request: BuildRequest = request_of("cpu", input_form=form)
    _, interface = with_interface(request, replace(FREE, declaration=BANDS))
    assert (interface.input, interface.samples, interface.bands) == (found, "uint16", 4)
    assert interface.normalization == BANDS.normalization


def test_largest_batch_of_the_source_limits_that_of_the_bundle() -> None:
    request, interface = with_interface(request_of("rtx-sm86", max_batch=16), FakeSource(largest_batch=1))
    assert interface.max_batch == request.max_batch == 1
    assert request.plan_options(request.targets[0]).profiles == ((1, 1, 1),)
