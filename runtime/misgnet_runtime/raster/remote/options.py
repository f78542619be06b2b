"""Options for rasters on servers. Cheap to import."""

from __future__ import annotations

from dataclasses import dataclass

from misgnet_runtime.limits import REMOTE_BYTES
from misgnet_runtime.options import option

PANEL = "Remote rasters"
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """Whether a network may be used, and the limits of what is fetched from it."""

    remote: bool = option(
        False, help="Allow rasters at https://, http:// and s3:// addresses (default: no network is used).", panel=PANEL
    )
    remote_timeout: float = option(
        30.0, help="Seconds to wait for a server to connect, and for the next bytes of its answer.", metavar="SECONDS",
        panel=PANEL, minimum=0.1, maximum=3600,
    )  # fmt: skip
    remote_retries: int = option(
        4, help="Retries of a request after a network error or a temporary error of the server.", panel=PANEL,
        minimum=0, maximum=20,
    )  # fmt: skip
    remote_limit: float = option(
        REMOTE_BYTES / _GIB, help="Most GiB to fetch of each raster.", metavar="GIB", panel=PANEL, minimum=0.0001,
        maximum=1024,
    )  # fmt: skip

    @property
    def most_bytes(self) -> int:
        """The most bytes to fetch of each raster."""
        return int(self.remote_limit * _GIB)


NO_REMOTE = RemoteOptions()
