"""``misgnet-run``: run a bundle, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from misgnet_runtime.console import make_app, out_console, run_app

app = make_app(
    "misgnet-run",
    "Run a bundle on this machine. Exit codes: 2 usage, 3 a failed gate, 4 bad input, 5 a missing device or library.",
)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")],
    before: Annotated[Path, typer.Argument(help="image of the earlier date, 8-bit RGB")],
    after: Annotated[Path, typer.Argument(help="image of the later date, same size")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="change mask, PNG of 0 and 255")],
    engine: Annotated[str, typer.Option(help="an engine of the bundle, or auto")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="replace an existing mask")] = False,
) -> None:
    """The change mask of one image pair of any size."""
    from misgnet_runtime.predict import predict_files

    result = predict_files(bundle, before, after, output, engine=engine, force=force)
    out_console.print(
        f"{output}: {result.width} x {result.height} px, {100 * result.changed_share:.2f} % changed, "
        f"engine {result.engine} ({result.reason})",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip


@app.command()
def info(bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")]) -> None:
    """What is in a bundle, and what this machine can run of it and why not."""
    from misgnet_runtime.info import print_info

    print_info(bundle, out_console)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="a bundle made by misgnet-export build")],
    engine: Annotated[Optional[str], typer.Option(help="one engine [default: all that can run here]")] = None,  # noqa: UP045 - typer on 3.10
) -> None:
    """Check every file's digest, then the golden tiles on this machine's engines."""
    from misgnet_runtime.verify import verify_bundle

    for line in verify_bundle(bundle, engine):
        out_console.print(line, soft_wrap=True, highlight=False, markup=False)


def main() -> None:
    run_app(app)


if __name__ == "__main__":
    main()
