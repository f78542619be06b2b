"""The ``misgnet-export build`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misgnet_export.pipeline.config import read_config, write_config
from misgnet_export.pipeline.request import BuildRequest
from misgnet_runtime.cli.app import out_console
from misgnet_runtime.cli.options import Given, none_required, takes_options
from misgnet_runtime.errors import UnavailableError
from misgnet_runtime.log import current, is_quiet, unless_quiet
from misgnet_runtime.options import check as check_limits
from misgnet_runtime.options import make, missing
from misgnet_runtime.tables import print_table

_PANEL = "Options in a file, and checks"


@takes_options
def build(
    given: Annotated[Given, BuildRequest],
    *,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of any of these options, under their names without dashes in front; those of the network "
            "may be in [model]. Paths in it start from its folder; the command line wins (default: none).",
            rich_help_panel=_PANEL, metavar="FILE", callback=none_required, is_eager=True,
        ),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print all options as such a file, and exit.", rich_help_panel=_PANEL),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Only read the network and print what was found and what is missing; build nothing.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
) -> None:  # fmt: skip
    """Compile a network into a bundle: engines, manifest and evidence. Fails if an engine loses too much F1."""
    values = {**(read_config(config, BuildRequest) if config else {}), **given}
    lacking = missing(BuildRequest, values)
    if print_config or check:
        known = make(BuildRequest, {**values, **dict.fromkeys(one.name for one in lacking)})
        check_limits(known)
    if print_config:
        typer.echo(write_config(known), nl=False)
        return
    _need_compiler()
    if check:
        from misgnet_export.pipeline.check import check_build

        check_build(known, lambda line: current().result([line]))
        return
    request = make(BuildRequest, values)
    from misgnet_export.pipeline.build import build as run
    from misgnet_export.report import parity_table, stage_table, throughput_table

    built = run(request, unless_quiet(out_console))
    if not is_quiet():
        print_table(stage_table(built.stages))
        print_table(parity_table(built.draft.evidence.parity))
        print_table(throughput_table(built.draft.evidence.timings))
    current().result([f"bundle: {built.bundle}", f"report: {built.report}"])


def _need_compiler() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        import onnxsim  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise UnavailableError(
            f"`misgnet-export build` requires {error.name}: pip install 'misgnet-export[export]'"
        ) from error
