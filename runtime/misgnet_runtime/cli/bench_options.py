"""The words of ``misgnet-run bench``. Cheap to import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

_OptionalPath = Optional[Path]  # noqa: UP045 - typer on 3.10
_OptionalPair = Optional[tuple[Path, Path]]  # noqa: UP045
_OptionalInt = Optional[int]  # noqa: UP045
_Names = Optional[list[str]]  # noqa: UP045
_Numbers = Optional[list[int]]  # noqa: UP045

_SCENE = "BEFORE.tif AFTER.tif, 8-bit RGB on one grid: also predict's tiles/s there, with the fastest that was measured"


def _several(*names: str, text: str, default: str) -> Any:
    return typer.Option(*names, help=f"{text}, repeated for more", show_default=default)


Engines = Annotated[_Names, _several("--engine", text="an engine", default="all that run here")]
Batches = Annotated[_Numbers, _several("--batch", text="pairs a call", default="1, 4 and the largest up to 16")]
Streams = Annotated[_Numbers, _several("--streams", text="calls at once", default="1, and one a core, 4 at most")]
Threads = Annotated[_OptionalInt, typer.Option(help="that compute on the CPU", show_default="one a core")]
Seconds = Annotated[float, typer.Option(help="measured of each engine at each batch and streams")]
Rounds = Annotated[int, typer.Option(help="turns that these seconds are shared out to, the engines alternating")]
WarmUp = Annotated[float, typer.Option(help="seconds after which an engine that is not steady is measured anyway")]
Scene = Annotated[_OptionalPair, typer.Option(help=_SCENE)]
JsonFile = Annotated[_OptionalPath, typer.Option("--json", help="write all that was found as JSON")]
Force = Annotated[bool, typer.Option("--force", help="replace an existing JSON file")]
