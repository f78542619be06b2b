"""Measures guests in alternating rounds, so that a drift of the machine's speed affects all of them equally."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

from benchmarks.contest.guest import ContenderFailed, Guest

Key = TypeVar("Key")
Found = TypeVar("Found")


def in_rounds(
    name: str, guests: Mapping[Key, Guest], rounds: int, send: Callable[[Key, Guest, int], Found]
) -> dict[Key, list[Found] | str]:
    """Returns the results of ``send(key, guest, round)`` in rounds 1 to ``rounds``, or why a guest failed.

    Round 0 is a warm-up and is discarded. Guests are paused while others are measured.
    """
    found: dict[Key, list[Found] | str] = {key: [] for key in guests}
    for number in range(1 + rounds):
        for key, guest in _turn(guests, number):
            kept = found[key]
            if isinstance(kept, str):
                continue
            try:
                result = send(key, guest, number)
            except ContenderFailed as error:
                found[key] = str(error)
                continue
            guest.pause()
            if number:
                kept.append(result)
        print(f"{name}: round {number} of {rounds}", file=sys.stderr, flush=True)
    return found


def _turn(guests: Mapping[Key, Guest], number: int) -> list[tuple[Key, Guest]]:
    """Returns the guests in an order that reverses every round, so that none always follows the same neighbour."""
    order = list(guests.items())
    return order if number % 2 else order[::-1]
