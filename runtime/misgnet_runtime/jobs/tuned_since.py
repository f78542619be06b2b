"""What a tuning changes of a run that was begun before it."""

from __future__ import annotations

_TUNED = {"--batch", "--streams"}  # of what a map depends on


def tuned_since(then: dict[str, str], now: dict[str, str]) -> str | None:
    """What to give to go on as then, where nothing has changed but what is tuned: "... give --batch 1 to go on"."""
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if not changed or not set(changed) <= _TUNED & then.keys():
        return None
    given = " ".join(f"{name} {then[name]}" for name in changed)
    return f"misgnet-run tune chooses {' and '.join(changed)} where they are not given: give {given} to go on"
