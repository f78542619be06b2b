"""Tests plans with several optimization profiles: padding, splitting, memory, graphs and threads."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from misgnet_runtime.bundle.manifest import PlanProfile
from misgnet_runtime.bundle.reader import read_bundle
from misgnet_runtime.engines import ExecutionOptions, batch_for_scenes
from misgnet_runtime.engines.tensorrt import PlanOptions, compile_plan, engine
from misgnet_runtime.engines.tensorrt import open as opening
from misgnet_runtime.engines.tensorrt.engine import TensorRTEngine, open_plan
from misgnet_runtime.engines.tensorrt.profiles import Profile, launches, profiles_for, profiles_in_memory
from misgnet_runtime.errors import InputError, UnavailableError
from misgnet_runtime.inference.detector import ChangeDetector
from misgnet_runtime.inference.selection import open_detector
from misgnet_runtime.jobs.compile.options import CompileOptions
from misgnet_runtime.jobs.compile.run import compile_bundle
from support import bundles, fake_tensorrt
from support.bundles import INTERFACE, TILE
from support.device_bundles import DEVICE, device_bundle
from support.fake_cuda import FakeDriver
from support.fake_tensorrt import ITEM_MEMORY, make_tensorrt, model

VERSIONS = ("10.3.0", "10.16.1", "11.1.0", "rtx 1.7.1")
ITEM_BUFFERS = 48 + 48 + 64  # bytes of two images and one output


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver("sm87")


@pytest.fixture(params=VERSIONS)
def vendor(request: pytest.FixtureRequest, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> str:
    name, _, version = request.param.rpartition(" ")
    return install(version, driver, monkeypatch, rtx=name == "rtx")


def install(version: str, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, *, rtx: bool = False) -> str:
    module = make_tensorrt(version, driver, rtx=rtx)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return "rtx" if rtx else "tensorrt"


def plan(vendor: str, driver: FakeDriver, *profiles: tuple[int, int, int]) -> bytes:
    return compile_plan(model(), PlanOptions(vendor=vendor, profiles=profiles), driver=driver).data


def opened(
    vendor: str, driver: FakeDriver, *profiles: Any, max_batch: int | None = None, **more: Any
) -> TensorRTEngine:
    """Opens a plan with profiles that are batches (static shapes) or ranges of batches."""
    ranges = [(each, each, each) if isinstance(each, int) else each for each in profiles]
    return open_plan(plan(vendor, driver, *ranges), vendor, driver, max_batch=max_batch, **more)


def images(batch: int, seed: int = 0) -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (batch, 4, 4, 3), np.uint8) for name in ("before", "after")}


def expected(arrays: dict[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
    difference = arrays["before"].astype(np.float32) - arrays["after"]
    return np.abs(difference).mean(-1) / np.float32(255)


def check(engine: TensorRTEngine, batch: int, seed: int = 0) -> None:
    arrays = images(batch, seed)
    np.testing.assert_allclose(engine.infer(arrays)["probability"], expected(arrays), atol=1e-6)


def computed(driver: FakeDriver) -> list[int]:
    """Returns the batches that were computed call by call since the last time."""
    found = [call[2][0] for call in driver.calls if call[:2] == ("set_input_shape", "before")]
    driver.calls = []
    return found


# Pure decisions


def profiles(*batches: int | tuple[int, int]) -> list[Profile]:
    pairs = [each if isinstance(each, tuple) else (each, each) for each in batches]
    return [Profile(index, *pair, memory_bytes=100 * pair[1]) for index, pair in enumerate(pairs)]


@pytest.mark.parametrize(
    ("given", "batch", "sizes"),
    [
        (profiles(1, 4), 1, [(1, 1)]),
        (profiles(1, 4), 2, [(2, 4)]),
        (profiles(1, 4), 3, [(3, 4)]),
        (profiles(1, 4), 4, [(4, 4)]),
        (profiles(1, 4), 5, [(4, 4), (1, 1)]),
        (profiles(1, 4), 16, [(4, 4)] * 4),
        (profiles(1, 4, 16), 5, [(4, 4), (1, 1)]),
        (profiles(1, 4, 16), 9, [(9, 16)]),
        (profiles(1, 4, 16), 35, [(16, 16), (16, 16), (3, 4)]),
        (profiles(4), 1, [(1, 4)]),
        (profiles((1, 16)), 5, [(5, 5)]),
        (profiles((2, 8)), 1, [(1, 2)]),
        (profiles((1, 4), 16), 3, [(3, 3)]),
    ],
    ids=str,
)
def test_a_batch_is_padded_or_split(given: list[Profile], batch: int, sizes: list[tuple[int, int]]) -> None:
    found = list(launches(given, batch))
    assert [(each.items.stop - each.items.start, each.batch) for each in found] == sizes


@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 20)).map(sorted),
        min_size=1,
        max_size=4,
        unique_by=lambda pair: pair[1],
    ),
    st.integers(1, 100),
)
def test_launches_cover_a_batch_once_and_fit_their_profiles(ranges: list[list[int]], batch: int) -> None:
    given = [Profile(i, low, high, 1) for i, (low, high) in enumerate(sorted(ranges, key=lambda pair: pair[::-1]))]
    found = list(launches(given, batch))
    assert [item for each in found for item in range(batch)[each.items]] == list(range(batch))
    assert all(each.items.stop - each.items.start <= each.batch for each in found)
    assert all(each.profile.smallest <= each.batch <= each.profile.largest for each in found)
    by_size: dict[int, set[Profile]] = {}
    for each in found:
        by_size.setdefault(each.batch, set()).add(each.profile)
    assert all(len(one) == 1 for one in by_size.values()), "graphs are kept by the batch alone"


def test_only_profiles_that_a_batch_can_need_are_used() -> None:
    found = {batch: [each.largest for each in profiles_for(profiles(1, 4, 16), batch)] for batch in (1, 3, 4, 5, 64)}
    assert found == {1: [1], 3: [1, 4], 4: [1, 4], 5: [1, 4, 16], 64: [1, 4, 16]}


@pytest.mark.parametrize(
    ("free", "kept"), [(10_000, 3), (2136, 3), (2132, 2), (536, 2), (532, 1), (100, 1), (99, 0)], ids=str
)
def test_the_largest_profiles_are_dropped_until_the_others_leave_a_quarter_of_the_memory(free: int, kept: int) -> None:
    found = profiles_in_memory(profiles(1, 4, 16), lambda some: some[-1].memory_bytes, free)
    assert len(found) == kept


def test_scenes_send_batches_that_fill_a_profile() -> None:
    def batch(*ranges: tuple[int, int, int]) -> int:
        return batch_for_scenes(replace(DEVICE, profiles=[PlanProfile(each) for each in ranges]))

    assert batch((1, 1, 1), (4, 4, 4)) == batch((1, 1, 1), (4, 4, 4), (16, 16, 16)) == batch((1, 4, 16)) == 4
    assert (batch((1, 1, 1)), batch((1, 1, 2)), batch((8, 8, 8)), batch((1, 1, 1), (8, 8, 8))) == (1, 2, 8, 1)
    assert batch_for_scenes(replace(DEVICE, batches=(1, 4, 16))) == 4, "a bundle that does not list profiles"


# Engines


def test_every_batch_is_computed(vendor: str, driver: FakeDriver) -> None:
    with opened(vendor, driver, 1, 4, max_batch=16) as found:
        assert found.max_batch == 16
        assert [(each.index, each.largest, each.memory_bytes) for each in found.profiles] == [
            (0, 1, ITEM_MEMORY), (1, 4, 4 * ITEM_MEMORY),
        ]  # fmt: skip
        for batch in range(1, 17):
            for seed in range(2):
                check(found, batch, seed)
        with pytest.raises(InputError, match="takes 1 to 16"):
            found.infer(images(17))


def test_profiles_may_have_any_order_in_the_plan(
    vendor: str, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlanOptions, "__post_init__", lambda _: None)
    with opened(vendor, driver, 4, 1) as found:
        assert ([each.index for each in found.profiles], found.max_batch) == ([1, 0], 4)
        for batch in (1, 2, 3, 4):
            check(found, batch)


def test_an_old_plan_with_one_dynamic_profile_neither_pads_nor_splits(vendor: str, driver: FakeDriver) -> None:
    with opened(vendor, driver, (1, 4, 16), max_batch=16) as found:
        for batch in (1, 3, 5, 16):
            check(found, batch)
            assert computed(driver) == [batch]


def test_a_batch_below_the_smallest_is_padded(vendor: str, driver: FakeDriver) -> None:
    with opened(vendor, driver, (2, 4, 8)) as found:
        check(found, 1)
        assert computed(driver) == [2]


@pytest.mark.parametrize("states_batch", [False, True])
def test_a_single_static_profile_serves_all_batches(
    vendor: str, driver: FakeDriver, states_batch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["tensorrt_rtx" if vendor == "rtx" else "tensorrt"], "states_batch", states_batch)
    with opened(vendor, driver, 2, max_batch=5) as found:
        assert {spec.shape[0] for spec in (*found.inputs, *found.outputs)} == {-1}
        for batch in (1, 2, 5):
            check(found, batch)


def test_padding_does_not_change_the_real_items(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The padding is a copy of the last item, whatever an earlier batch left in the buffers."""
    seen: list[NDArray[np.float32]] = []
    real = fake_tensorrt._network

    def network(arrays: Any) -> Any:
        seen.append(arrays["before"])
        return real(arrays)

    monkeypatch.setattr(fake_tensorrt, "_network", network)
    with opened(install("10.3.0", driver, monkeypatch), driver, 1, 4) as found:
        check(found, 4, seed=1)
        check(found, 2, seed=2)
        np.testing.assert_array_equal(seen[-1][2:], images(2, 2)["before"][[1, 1]])
        alone = images(3, 3)
        beside = {name: np.concatenate([array, array[:1]]) for name, array in alone.items()}
        np.testing.assert_array_equal(found.infer(alone)["probability"], found.infer(beside)["probability"][:3])


def test_graphs_are_kept_for_each_profile_and_replayed_for_padded_and_split_batches(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(install("10.16.1", driver, monkeypatch), driver, 1, 4, max_batch=16) as found:
        for seed, batch in enumerate([1, 1, 4, 4]):
            check(found, batch, seed)
        assert len(driver.executable) == 2
        driver.calls = []
        for seed, batch in enumerate([1, 2, 3, 4, 5, 16]):
            check(found, batch, seed)
        assert [call[0] for call in driver.calls].count("launch") == 1 + 1 + 1 + 1 + 2 + 4
        assert not computed(driver)
    assert driver.empty


@pytest.mark.parametrize("streams", [1, 3])
def test_profiles_share_a_streams_memory(vendor: str, driver: FakeDriver, streams: int) -> None:
    found = opened(vendor, driver, 1, 4, streams=streams)
    per_stream = [4 * 48, 4 * 48, 4 * 64, 4 * ITEM_MEMORY]
    assert sorted(memory.nbytes for memory in driver.memory.values()) == sorted(per_stream * streams)
    assert found.stream_bytes == ITEM_BUFFERS + ITEM_MEMORY, "what a stream needs at least"
    assert found.notes == ()
    found.close()
    assert driver.empty


def test_threads_use_different_profiles_at_once(vendor: str, driver: FakeDriver) -> None:
    with opened(vendor, driver, 1, 4, max_batch=16, streams=3) as found, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: check(found, 1 + number % 7, number), range(60)))


def test_the_largest_profile_is_dropped_if_memory_is_short(vendor: str, driver: FakeDriver) -> None:
    item = ITEM_BUFFERS + ITEM_MEMORY
    driver._left = 2 * 16 * item  # enough, but with nothing left
    with opened(vendor, driver, 1, 4, 16, max_batch=16, streams=2) as found:
        assert [each.largest for each in found.profiles] == [1, 4]
        (note,) = found.notes
        assert note.startswith("batches above 4 are split: with the optimization profile for 16, 2 streams would take")
        for batch in (1, 4, 16):
            check(found, batch)
    with opened(vendor, driver, 1, 4, max_batch=16, streams=2) as found:
        assert found.notes == (), "profiles that the plan does not have are not missed"


def test_a_plan_whose_smallest_profile_does_not_fit_is_refused(vendor: str, driver: FakeDriver) -> None:
    data = plan(vendor, driver, (1, 1, 1), (4, 4, 4))
    least = ITEM_BUFFERS + ITEM_MEMORY
    for free, fits in ((2 * least, True), (2 * least - 1, False)):
        driver._left = free
        if fits:
            with open_plan(data, vendor, driver, streams=2) as found:
                assert [each.largest for each in found.profiles] == [1]
        else:
            with pytest.raises(UnavailableError, match="does not fit into free GPU memory: with 2 streams"):
                open_plan(data, vendor, driver, streams=2)
        assert driver.empty


def test_an_integrated_gpu_counts_the_hosts_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    board = FakeDriver("sm87", integrated=True)
    free = 4 * (2 * ITEM_BUFFERS + ITEM_MEMORY)
    monkeypatch.setattr(engine, "free_bytes", lambda *_: free)
    with opened(install("10.3.0", board, monkeypatch), board, 1, 4) as found:
        assert [each.largest for each in found.profiles] == [1] and found.notes


def test_a_profile_that_tensorrt_rejects_is_reported(
    vendor: str, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(context: Any, profile: int, stream: int) -> bool:
        context.engine.logger.log(context.engine.module.Severity.ERROR, f"no optimization profile {profile}")
        return False

    monkeypatch.setattr(fake_tensorrt.ExecutionContext, "set_optimization_profile_async", reject)
    with pytest.raises(UnavailableError, match="the plan cannot run here: no optimization profile 0"):
        opened(vendor, driver, 1, 4)
    assert driver.empty


@pytest.mark.parametrize(("streams", "wait"), [(1, "spins"), (2, "sleeps")])
def test_a_single_stream_spins_and_several_sleep(vendor: str, driver: FakeDriver, streams: int, wait: str) -> None:
    with opened(vendor, driver, 1, streams=streams):
        assert [call[1] for call in driver.calls if call[0] == "create_event"] == [wait] * streams


# Bundles


def test_a_device_compiles_and_uses_a_plan_with_static_profiles(
    tmp_path: Path, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle's interface allows larger batches than the plan's largest profile."""
    monkeypatch.setenv("MISGNET_CACHE", str(tmp_path / "cache"))
    install("10.3.0", driver, monkeypatch)
    monkeypatch.setattr(opening, "open_driver", lambda: driver)
    entry = replace(DEVICE, profiles=[PlanProfile((size, size, size)) for size in (1, 2)])
    bundle = device_bundle(tmp_path / "bundle", entry)
    active = compile_bundle(bundle, CompileOptions(), driver=driver).activations[0]
    (record,) = active.plans.values()
    assert record.key.profiles == ((1, 1, 1), (2, 2, 2))
    with open_detector(read_bundle(bundle), entry.name, ExecutionOptions(streams=2)) as (detector, _, _):
        assert isinstance(detector, ChangeDetector) and isinstance(detector.engine, TensorRTEngine)
        assert detector.engine.max_batch == INTERFACE.max_batch > 2
        assert record.stream_bytes == detector.engine.stream_bytes, "known before the plan is deserialised next time"
        for batch in (1, 2, 3, 4):
            before, after = bundles.images(batch, TILE, TILE, seed=batch)
            found = detector.probability(before, after)
            np.testing.assert_allclose(found, bundles.expected(before, after), atol=1e-6)
    assert driver.empty
