"""Chooses the optimization profiles of a plan that run a batch, and those that fit into the free memory.

A plan has one or more profiles. Each accepts a range of batches, often a single one: its shapes are then static, which
gives faster kernels and less memory. A batch that no profile accepts is padded or split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from misgnet_runtime.engines.tensorrt.compatibility import mebibytes
from misgnet_runtime.formatting import plural


@dataclass(frozen=True)
class Profile:
    """An optimization profile: its index in the plan, the batches it accepts, and the memory of its activations."""

    index: int
    smallest: int
    largest: int
    memory_bytes: int  # device memory of one execution context

    def padded(self, items: int) -> int:
        """Returns the batch that is computed for ``items``, at most the largest batch."""
        return max(items, self.smallest)


@dataclass(frozen=True)
class Launch:
    """A part of a batch that is computed at once."""

    profile: Profile
    items: slice  # of the batch
    batch: int  # that is computed; more than the items if they are padded


def read_profiles(engine: Any, inputs: Sequence[str]) -> tuple[Profile, ...]:
    """Returns the profiles of a deserialised engine by ascending largest batch; ``inputs`` are its inputs' names."""
    found = [_read(engine, inputs, index) for index in range(int(engine.num_optimization_profiles))]
    return tuple(sorted(found, key=lambda profile: (profile.largest, profile.smallest)))


def _read(engine: Any, inputs: Sequence[str], index: int) -> Profile:
    shapes = [engine.get_tensor_profile_shape(name, index) for name in inputs]
    low, high = max(int(low[0]) for low, _, _ in shapes), min(int(high[0]) for _, _, high in shapes)
    return Profile(index, low, high, int(engine.get_device_memory_size_for_profile_v2(index)))


def launches(profiles: Sequence[Profile], batch: int) -> Iterator[Launch]:
    """Yields the launches that compute a batch of any size, in its order.

    What the largest profile cannot take at once is split. The rest is padded to the smallest profile that holds it, or
    split further if more than half of the computation would be padding: five items take profiles for 4 and 1 rather
    than one for 16.
    """
    start = 0
    while left := batch - start:
        profile = next((each for each in profiles if each.largest >= left), profiles[-1])
        filled = [each for each in profiles if each.largest <= left]
        if filled and profile.padded(left) > 2 * left:
            profile = filled[-1]
        items = min(left, profile.largest)
        yield Launch(profile, slice(start, start + items), profile.padded(items))
        start += items


def profiles_for(profiles: Sequence[Profile], max_batch: int) -> tuple[Profile, ...]:
    """Returns the profiles that batches up to ``max_batch`` need: up to the first one that holds it."""
    smaller = [each for each in profiles if each.largest < max_batch]
    return tuple(profiles[: len(smaller) + 1])


def profiles_in_memory(
    profiles: Sequence[Profile], needed: Callable[[Sequence[Profile]], int], free: int
) -> tuple[Profile, ...]:
    """Returns the profiles without the largest ones that do not fit into memory; none if not even the smallest does.

    A quarter of the memory stays free, for images, other programs and CUDA itself, unless only one profile is left.

    Args:
        profiles: By ascending largest batch.
        needed: Returns the bytes that all streams need to run some of the profiles.
        free: Free bytes.
    """
    kept = tuple(profiles)
    while len(kept) > 1 and needed(kept) > free // 4 * 3:
        kept = kept[:-1]
    return kept if needed(kept) <= free else ()


def dropped_note(dropped: Sequence[Profile], kept: Sequence[Profile], streams: int, needed: int, free: int) -> str:
    """Formats the note about profiles that did not fit: ``needed`` and ``free`` in bytes."""
    batches = " and ".join(str(each.largest) for each in dropped)
    return (
        f"batches above {kept[-1].largest} are split: with the optimization profile for {batches}, "
        f"{plural(streams, 'stream')} would take {mebibytes(needed)} of {mebibytes(free)} of free GPU memory"
    )
