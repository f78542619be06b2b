"""The words of ``misgnet-run``'s commands that several share, and what they mean. Cheap to import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from misgnet_runtime.bundle.signing.policy import POLICY_VARIABLE, SYSTEM_POLICY, VARIABLE, use_allow_older, use_key
from misgnet_runtime.log import LogFormat, use
from misgnet_runtime.storage.lock import use_lock_timeout

_OptionalPath = Optional[Path]  # noqa: UP045 - typer on 3.10
_OptionalText = Optional[str]  # noqa: UP045
_OptionalInt = Optional[int]  # noqa: UP045


def _output(*names: str, text: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="GeoTIFF output")


def _pixels(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="GeoTIFF input: what its pixels are; nothing is guessed from values")


Log = Annotated[
    LogFormat,
    typer.Option(
        help="lines for a person, or one JSON object a line; also behind the command", callback=use, is_eager=True
    ),
]
RequireSignature = Annotated[
    _OptionalPath,
    typer.Option(
        "--require-signature",
        help="PEM of public keys or certificates; a bundle must be signed by one before anything of it is read "
        f"(default: ${VARIABLE}). Policy files apply besides: {SYSTEM_POLICY} and ${POLICY_VARIABLE}.",
        metavar="KEY", callback=use_key, is_eager=True,
    ),
]  # fmt: skip
AllowOlder = Annotated[
    bool,
    typer.Option(
        "--allow-older",
        help="Accept a signed bundle that has expired or is older than the newest one accepted here, where every "
        "policy file permits it.",
        callback=use_allow_older, is_eager=True,
    ),
]  # fmt: skip
LockTimeout = Annotated[
    float,
    typer.Option(
        "--lock-timeout",
        help="seconds to wait for a lock that another process holds, then exit code 4",
        metavar="SECONDS", callback=use_lock_timeout, is_eager=True,
    ),
]  # fmt: skip
Engine = Annotated[str, typer.Option(help="an engine of the bundle, or auto")]
Force = Annotated[bool, typer.Option("--force", help="replace existing outputs")]
BeforePath = Annotated[
    Path, typer.Argument(help="the earlier date: an 8-bit RGB image or a folder of them; for -o X.tif a GeoTIFF")
]
AfterPath = Annotated[Path, typer.Argument(help="the later date: same size and grid; in a folder the same names")]
MaskOrMap = Annotated[
    Path,
    typer.Option("-o", "--output", help=".png: mask of 0 and 255; .tif: georeferenced change; for folders: of masks"),
]
ProbabilityFile = Annotated[_OptionalPath, _output(text="also the probability of change, .tif of float32")]
VectorFile = Annotated[_OptionalPath, _output(text="also polygons of what changed: .gpkg, .geojson or .fgb")]
QuicklookFile = Annotated[_OptionalPath, _output(text="also a small .png of before, after and change")]
Cog = Annotated[bool, _output("--cog", text="write rasters as Cloud Optimized GeoTIFF")]
WithProbability = Annotated[bool, _output("--probability", text="also DATE.probability.tif of float32")]
WithVector = Annotated[bool, _output("--vector", text="also polygons of what changed, DATE.gpkg")]
WithQuicklook = Annotated[bool, _output("--quicklook", text="also a small picture of both dates and change, DATE.png")]
MinArea = Annotated[float, _output(text="smallest polygon in square metres (pixels where the raster lies nowhere)")]
Simplify = Annotated[float, _output(text="how far outlines of polygons may move, in pixels")]
Align = Annotated[bool, _output("--align", text="warp AFTER onto BEFORE's grid (bilinear) where it has another")]
AlignAll = Annotated[bool, _output("--align", text="warp every date onto the first's grid (bilinear)")]
Overlap = Annotated[_OptionalInt, _output(text="pixels that neighbouring tiles share and blend; a quarter without")]
Batch = Annotated[_OptionalInt, _output(text="tiles that the engine gets at once; what suits it without")]
Streams = Annotated[_OptionalInt, _output(text="batches at once, sharing the device; what suits the engine without")]
Threads = Annotated[_OptionalInt, _output(text="of the CPU, in all streams; all usable cores without")]
MaxUnreadable = Annotated[
    float,
    typer.Option(
        "--max-unreadable",
        help="percent of either date's pixels that may lie in unreadable blocks (truncated or damaged file); beyond "
        "it the pair fails",
        metavar="P", rich_help_panel="GeoTIFF input: what its pixels are; nothing is guessed from values",
    ),
]  # fmt: skip
NoTuned = Annotated[bool, typer.Option("--no-tuned", help="not as misgnet-run tune found best here, but as elsewhere")]
Restart = Annotated[bool, _output("--restart", text="start anew what an ended run of this output began")]
RestartAll = Annotated[
    bool, _output("--restart", text="start anew what ended runs began, with --force also what they finished")
]
Bands = Annotated[_OptionalText, _pixels("which bands are red, green and blue: 3,2,1")]
Scale = Annotated[_OptionalText, _pixels("value * scale + offset is 0 for black, 1 for white; one number or three")]
Offset = Annotated[_OptionalText, _pixels("one number or three; 0 without")]
Stretch = Annotated[_OptionalText, _pixels("instead: percentiles of each band that become black and white: 2,98")]
OneDate = Annotated[_OptionalText, _pixels("of this date alone")]
Reference = Annotated[_OptionalText, _pixels("of the first date alone")]
Later = Annotated[_OptionalText, _pixels("of all dates but the first")]
