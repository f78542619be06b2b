"""Options of a batch job. Cheap to import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.jobs.batch.row import RowOptions, Scene
from misgnet_runtime.jobs.batch.table import Shard
from misgnet_runtime.options import check, group, option
from misgnet_runtime.raster.remote.options import RemoteOptions


def _cluster(text: str) -> str | None:
    return None if text == "none" else text


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How scenes are distributed, and the options of scenes whose own table cells are empty."""

    ray: str | None = option(
        None, help="Ray cluster to use: auto, or an address (default: none, use this machine).", parse=_cluster
    )
    shard: Shard = option(
        Shard(), help="Process only part I of N, from 0/8 to 7/8 (default: all scenes).", parse=Shard.parse,
        show_default="",
    )  # fmt: skip
    workers: int | None = option(
        None, help="Maximum number of parallel workers (default: 1; on Ray one per GPU or per --cores CPU cores).",
        minimum=1,
    )  # fmt: skip
    cores: int | None = option(
        None, help="CPU cores per worker (default: 1 on Ray, otherwise an equal share of all cores).", minimum=1
    )
    retries: int = option(2, help="Retries of a scene whose worker died.", minimum=0)
    remote: RemoteOptions = group(RemoteOptions)
    # Options of predict by column name, as text.
    words: Mapping[str, str] = group(
        RowOptions, without=("output",), as_text=True,
        help={"force": "Replace existing outputs, including those of another bundle."},
    )  # fmt: skip

    def common(self) -> dict[str, str]:
        """Returns the options of scenes whose own cells are empty; workers may run in another folder."""
        area = self.words.get("aoi")
        return {**self.words, **({"aoi": os.path.realpath(area)} if area else {})}

    def check(self) -> None:
        """Raises UsageError for invalid values."""
        check(self)
        Scene("x", Path(), Path(), self.words).options()
