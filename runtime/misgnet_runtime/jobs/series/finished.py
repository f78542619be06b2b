"""Outputs of a series know the run that wrote them by their tags, so that a later call finds what is done."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import msgspec

from misgnet_runtime.errors import InputError, UsageError
from misgnet_runtime.jobs.journal import tuned_since
from misgnet_runtime.jobs.scene.run import Run
from misgnet_runtime.raster.geotiff import read_tags

_SAME_RUN = "MISGNET_RUN_SHA256"


def tags(run: Run, same: str) -> dict[str, str]:
    """By which a later call knows the outputs of this run, and of one that differs by what was tuned since."""
    settings = run.settings()
    return {
        "MISGNET_SPLIT": "yes", _SAME_RUN: same, "MISGNET_BATCH": settings["--batch"],
        "MISGNET_STREAMS": settings["--streams"],
    }  # fmt: skip


def digest(run: Run) -> str:
    """SHA-256 of all that a run's outputs depend on, wherever they lie."""
    return _digest_of(run, run.settings())


def _digest_of(run: Run, settings: dict[str, str]) -> str:
    placed = {**settings, **dict.fromkeys((f"--{name}" for name in run.options.products()), "yes")}
    return hashlib.sha256(msgspec.json.encode(sorted(placed.items()))).hexdigest()


def refuse_tuned_since(run: Run) -> None:
    """UsageError where the outputs are of this run, but for what misgnet-run tune has changed since."""
    change, now = run.outputs[0], run.settings()
    with suppress(InputError):
        tags = read_tags(change)
        chosen = {"the engine": "MISGNET_ENGINE", "--batch": "MISGNET_BATCH", "--streams": "MISGNET_STREAMS"}
        then = now | {name: tags.get(tag, "") for name, tag in chosen.items()}
        if tags.get(_SAME_RUN) == _digest_of(run, then) and (advice := tuned_since(then, now)):
            raise UsageError(f"output {change} is of the same run but for that: {advice}, or replace it with --force")


def is_done(outputs: list[Path], same: str) -> bool:
    """Whether all outputs are there, and a run of that digest wrote them: the change raster gets its name last."""
    if not all(path.exists() for path in outputs):
        return False
    with suppress(InputError):
        return read_tags(outputs[0]).get(_SAME_RUN) == same
    return False
