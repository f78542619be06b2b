"""Rounds in turn: every guest in a process of its own, so that a drift of the machine's speed meets all alike."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

from benchmarks.contest.guest import ContenderFailed, Guest

Key = TypeVar("Key")
Found = TypeVar("Found")


def in_rounds(
    what: str, guests: Mapping[Key, Guest], rounds: int, ask: Callable[[Key, Guest, int], Found]
) -> dict[Key, list[Found] | str]:
    """What ``ask(key, guest, round)`` finds in rounds 1 to ``rounds``, or why a guest failed.

    Round 0 warms up and is not kept. A guest that is not asked is stopped, so that no thread of it computes.
    """
    found: dict[Key, list[Found] | str] = {key: [] for key in guests}
    for number in range(1 + rounds):
        for key, guest in _turn(guests, number):
            kept = found[key]
            if isinstance(kept, str):
                continue
            try:
                answer = ask(key, guest, number)
            except ContenderFailed as error:
                found[key] = str(error)
                continue
            guest.pause()
            if number:
                kept.append(answer)
        print(f"{what}: round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def _turn(guests: Mapping[Key, Guest], number: int) -> list[tuple[Key, Guest]]:
    """There and back, so that nobody always runs behind the same neighbour."""
    order = list(guests.items())
    return order if number % 2 else order[::-1]
