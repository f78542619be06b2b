"""Implements ``misgnet prepare``, which cuts downloads of published data sets into tiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from misgnet.cli.options import Bar, TileSide
from misgnet_runtime.cli.app import err_console
from misgnet_runtime.formatting import plural
from misgnet_runtime.log import current
from misgnet_runtime.tables import plain_table, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from misgnet.datasets import PrepareReport

_SHOWN = 20  # skipped files listed by name
_OUTPUT_HELP = "Folder for the tiles. If it holds an interrupted run, the run resumes."
_EDGES_HELP = "Use of WHU-CD tiles of which less than half is scene: keep puts them into train, drop omits them."
_BEFORE_HELP = "WHU-CD raster of the earlier date (default: found by its name)."
_AFTER_HELP = "WHU-CD raster of the later date (default: found by its name)."
_LABEL_HELP = "WHU-CD raster with the change label (default: found by its name)."
_FORCE_HELP = "Prepare all tiles again; an existing output is replaced at the end."


def prepare(
    *,
    dataset: Annotated[Literal["levir", "sysu", "whu"], typer.Argument(help="Data set: LEVIR-CD, SYSU-CD or WHU-CD.")],
    source: Annotated[Path, typer.Argument(help="Folder with the unpacked download, unchanged.")],
    output: Annotated[Path, typer.Option("-o", "--output", help=_OUTPUT_HELP)],
    tile: TileSide = 256,
    seed: Annotated[int, typer.Option(help="Seed of the random split of WHU-CD; 0 or more.")] = 0,
    edges: Annotated[Literal["keep", "drop"], typer.Option(help=_EDGES_HELP)] = "keep",
    before: Annotated[Path | None, typer.Option(help=_BEFORE_HELP)] = None,
    after: Annotated[Path | None, typer.Option(help=_AFTER_HELP)] = None,
    label: Annotated[Path | None, typer.Option(help=_LABEL_HELP)] = None,
    force: Annotated[bool, typer.Option("--force", help=_FORCE_HELP)] = False,
) -> None:
    """Cut a downloaded data set into tiles: train/, val/ and test/, each with A/, B/ and label/.

    After an interruption, rerun the command: it resumes, and finished tiles are kept.
    """
    from misgnet.datasets import PrepareOptions
    from misgnet.datasets import prepare as run

    options = PrepareOptions(tile=tile, seed=seed, edges=edges, before=before, after=after, label=label, force=force)
    try:
        with Bar("prepare") as bar:
            report = run(dataset, source, output, options, bar.move)
    except KeyboardInterrupt:
        kept = "nothing was changed" if force else "finished tiles are kept; rerun the command to resume"
        err_console.print(f"interrupted; {kept}", highlight=False)
        raise typer.Exit(130) from None
    print_table(_table(report, output))
    for line in _remarks(report):
        current().result([line])


def _table(report: PrepareReport, output: Path) -> Table:
    found = "tiles drawn" if report.dataset == "whu" else "image pairs"
    table = plain_table(str(output))
    table.add_column("split")
    for name in (found, "published", "tiles written", "tiles kept", "changed pixels"):
        table.add_column(name, justify="right")
    for split in report.splits:
        published = "n/a" if split.official is None else str(split.official)
        counts = (split.found, published, split.written, split.kept)
        table.add_row(split.name, *map(str, counts), f"{100 * split.changed:.3f} %")
    return table


def _remarks(report: PrepareReport) -> list[str]:
    """Returns the remarks to print below the table."""
    lines = []
    if report.edge_tiles:
        lines.append(
            f"train also contains {plural(report.edge_tiles, 'edge tile')} of which less than half is scene; "
            "--edges drop omits them"
        )
    if any(split.official not in (None, split.found) for split in report.splits):
        lines.append(
            "the source is not the complete published set; scores on it cannot be compared with published ones"
        )
    lines += [f"skipped {item.path}: {item.reason}" for item in report.skipped[:_SHOWN]]
    if len(report.skipped) > _SHOWN:
        lines.append(f"skipped {plural(len(report.skipped) - _SHOWN, 'more file')}")
    if report.foreign:
        lines.append(
            f"found {plural(len(report.foreign), 'file')} among the tiles that this data set did not produce; "
            f"the first is {report.foreign[0]}"
        )
    return lines
