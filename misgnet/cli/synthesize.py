"""Implements ``misgnet synthesize``, which draws synthetic tile pairs."""

from __future__ import annotations

from typing import Annotated

import typer

from misgnet.cli.options import Bar, Force, Output
from misgnet_runtime.errors import UsageError
from misgnet_runtime.log import current
from misgnet_runtime.storage.atomic import refuse_existing, replace_folder


def synthesize(
    *,
    output: Output,
    train_pairs: Annotated[int, typer.Option("--train", help="Number of pairs in train/.")] = 160,
    val_pairs: Annotated[int, typer.Option("--val", help="Number of pairs in val/.")] = 48,
    test_pairs: Annotated[int, typer.Option("--test", help="Number of pairs in test/.")] = 64,
    size: Annotated[int, typer.Option(help="Side of a tile in pixels; a multiple of 32, at least 64.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed; the same seed draws identical tiles.")] = 0,
    force: Force = False,
) -> None:
    """Draw synthetic tile pairs with labels into train/, val/ and test/, each with A/, B/ and label/."""
    from misgnet.synthetic import write_split

    refuse_existing(output, force)
    if size < 64 or size % 32:
        raise UsageError(f"--size is {size}; it must be a multiple of 32, at least 64")
    with replace_folder(output, force=force) as folder:
        for index, (name, count) in enumerate((("train", train_pairs), ("val", val_pairs), ("test", test_pairs))):
            if count:
                with Bar(name) as bar:
                    write_split(folder / name, count, 3 * seed + index + 1, size, bar.move)
    current().result([f"{train_pairs} + {val_pairs} + {test_pairs} pairs: {output}"])
