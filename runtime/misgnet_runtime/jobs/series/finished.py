"""Identifies by their tags the run that wrote a series' outputs, so that a later call skips finished dates."""

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
    """Returns the tags by which a later call identifies the outputs of this run; ``same``: :func:`digest` of it."""
    settings = run.settings()
    return {
        "MISGNET_SPLIT": "yes", _SAME_RUN: same, "MISGNET_BATCH": settings["--batch"],
        "MISGNET_STREAMS": settings["--streams"],
    }  # fmt: skip


def digest(run: Run) -> str:
    """Returns the SHA-256 of everything that a run's outputs depend on, except the paths of the outputs."""
    return _digest_of(run, run.settings())


def _digest_of(run: Run, settings: dict[str, str]) -> str:
    placed = {**settings, **dict.fromkeys((f"--{name}" for name in run.options.products()), "yes")}
    return hashlib.sha256(msgspec.json.encode(sorted(placed.items()))).hexdigest()


def refuse_tuned_since(run: Run) -> None:
    """Raises UsageError if the outputs are of this run, but misgnet-run tune changed settings since."""
    change, now = run.outputs[0], run.settings()
    with suppress(InputError):
        tags = read_tags(change)
        chosen = {"the engine": "MISGNET_ENGINE", "--batch": "MISGNET_BATCH", "--streams": "MISGNET_STREAMS"}
        then = now | {name: tags.get(tag, "") for name, tag in chosen.items()}
        if tags.get(_SAME_RUN) == _digest_of(run, then) and (advice := tuned_since(then, now)):
            raise UsageError(
                f"output {change} differs from this run only in tuned settings; {advice}, or replace it with --force"
            )


def is_done(outputs: list[Path], same: str) -> bool:
    """Returns whether all outputs exist and were written by the run with digest ``same``.

    The change raster is renamed last, so its tag holds for all of them.
    """
    if not all(path.exists() for path in outputs):
        return False
    with suppress(InputError):
        return read_tags(outputs[0]).get(_SAME_RUN) == same
    return False
