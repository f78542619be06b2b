"""``misgnet prepare``: the published data sets' downloads become tiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from misgnet.cli.options import Bar, TileSide
from misgnet_runtime.cli.app import err_console, out_console
from misgnet_runtime.formatting import printable
from misgnet_runtime.log import current

if TYPE_CHECKING:
    from misgnet.datasets import PrepareReport

_SHOWN = 20  # skipped files that are named


def prepare(
    *,
    dataset: Annotated[Literal["levir", "sysu", "whu"], typer.Argument(help="LEVIR-CD, SYSU-CD or WHU-CD")],
    source: Annotated[Path, typer.Argument(help="the unpacked download, as it came")],
    output: Annotated[Path, typer.Option("-o", "--output", help="folder of tiles; a run that ended goes on there")],
    tile: TileSide = 256,
    seed: Annotated[int, typer.Option(help="whu: seed of the random split")] = 0,
    edges: Annotated[
        Literal["keep", "drop"],
        typer.Option(help="whu: tiles with less than half of the scene go to train, or nowhere"),
    ] = "keep",
    before: Annotated[Path | None, typer.Option(help="whu: the earlier date, if its name does not tell")] = None,
    after: Annotated[Path | None, typer.Option(help="whu: the later date")] = None,
    label: Annotated[Path | None, typer.Option(help="whu: the change label")] = None,
    force: Annotated[bool, typer.Option("--force", help="prepare anew; what is there is replaced at the end")] = False,
) -> None:
    """Cut a downloaded data set into train/, val/ and test/, each with A/ B/ label/; run again to resume."""
    from misgnet.datasets import PrepareOptions
    from misgnet.datasets import prepare as run

    options = PrepareOptions(tile=tile, seed=seed, edges=edges, before=before, after=after, label=label, force=force)
    try:
        with Bar("prepare") as bar:
            report = run(dataset, source, output, options, bar.move)
    except KeyboardInterrupt:
        kept = "nothing was changed" if force else "what is finished stays, and the same command goes on from there"
        err_console.print(f"interrupted; {kept}", highlight=False)
        raise typer.Exit(130) from None
    out_console.print(_table(report, output))
    for line in _remarks(report):
        current().result([line])


def _table(report: PrepareReport, output: Path) -> Table:
    found = "tiles drawn" if report.dataset == "whu" else "image pairs"
    table = Table(
        "split",
        found,
        "published",
        "tiles written",
        "there already",
        "changed pixels",
        title=Text(printable(str(output))),
    )
    for split in report.splits:
        published = "n/a" if split.official is None else str(split.official)
        counts = (split.found, published, split.written, split.kept)
        table.add_row(split.name, *map(str, counts), f"{100 * split.changed:.3f} %")
    return table


def _remarks(report: PrepareReport) -> list[str]:
    """What the table does not say."""
    lines = []
    if report.edge_tiles:
        lines.append(
            f"train also has {report.edge_tiles} edge tiles that hold less than half of the scene and were not drawn; "
            "--edges drop leaves them out"
        )
    if any(split.official not in (None, split.found) for split in report.splits):
        lines.append("the source is not the whole published set: its scores cannot be compared with published ones")
    lines += [f"skipped {item.path}: {item.reason}" for item in report.skipped[:_SHOWN]]
    if len(report.skipped) > _SHOWN:
        lines.append(f"skipped {len(report.skipped) - _SHOWN} more files")
    if report.foreign:
        lines.append(
            f"{len(report.foreign)} files among the tiles are not of this data set, such as {report.foreign[0]}"
        )
    return lines
