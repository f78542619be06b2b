"""What a batch is asked for. Cheap to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from misgnet_runtime.jobs.batch.row import RowOptions, Scene
from misgnet_runtime.jobs.batch.table import Shard
from misgnet_runtime.options import check, group, option


def _cluster(text: str) -> str | None:
    return None if text == "none" else text


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How the scenes of a table are shared out, and what each of them is asked for where its own cells are empty."""

    ray: str | None = option(None, help="A Ray cluster: auto, its address, or none for this machine.", parse=_cluster)
    shard: Shard = option(
        Shard(), help="INDEX/COUNT: this share of the scenes alone, 0/8 to 7/8.", parse=Shard.parse, show_default=""
    )
    workers: int | None = option(
        None, help="Most workers at once (default: 1; on Ray one for each GPU or slot of cores).", minimum=1
    )
    cores: int | None = option(
        None, help="CPU cores of each worker (default: 1 on Ray, else an equal share of all).", minimum=1
    )
    retries: int = option(2, help="Further attempts of a scene whose worker died.", minimum=0)
    words: Mapping[str, str] = group(
        RowOptions, without=("output",), as_text=True, help={"force": "Replace others' outputs, and another bundle's."}
    )

    def check(self) -> None:
        """Raise UsageError for invalid values."""
        check(self)
        Scene("x", Path(), Path(), self.words).options()
