"""``misgnet-run``: run a bundle, without torch."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from misgnet_runtime.cli.app import make_app, out_console, run_app
from misgnet_runtime.cli.batch import batch
from misgnet_runtime.cli.bench import bench
from misgnet_runtime.cli.compile import compile_plans
from misgnet_runtime.cli.options import AllowOlder, BundlePath, LockTimeout, Log, RequireSignature
from misgnet_runtime.cli.predict import predict
from misgnet_runtime.cli.series import encode, series
from misgnet_runtime.cli.tune import tune
from misgnet_runtime.cli.watch import watch
from misgnet_runtime.log import current, is_json
from misgnet_runtime.storage.lock import DEFAULT_TIMEOUT

app = make_app(
    "misgnet-run",
    "Run a bundle on this machine. Exit codes: 2 usage, 3 a failed gate, 4 bad input, 5 a missing device or library, "
    "6 some scenes of a batch.",
)


@app.callback()
def every_command(
    *,
    log: Log = "text",
    require_signature: RequireSignature = None,
    allow_older: AllowOlder = False,
    lock_timeout: LockTimeout = DEFAULT_TIMEOUT,
) -> None:
    """What all commands take, before the command or behind it."""


app.command()(predict)


@app.command()
def info(bundle: BundlePath) -> None:
    """What is in a bundle, and what this machine can run of it and why not."""
    from misgnet_runtime.cli.info import bundle_facts, print_info

    if is_json():
        current().result([f"bundle {bundle}"], **bundle_facts(bundle))
    else:
        print_info(bundle, out_console)


@app.command()
def verify(
    bundle: BundlePath,
    engine: Annotated[Optional[str], typer.Option(help="One engine [default: all that can run here].")] = None,  # noqa: UP045 - typer on 3.10
) -> None:
    """Check every file's digest, and the signature if one is required; then golden tiles on this machine's engines."""
    from misgnet_runtime.inference.self_test import verify_bundle

    for line in verify_bundle(bundle, engine):
        current().result([line])


app.command()(batch)
app.command()(bench)
app.command("compile")(compile_plans)
app.command()(encode)
app.command()(series)
app.command()(tune)
app.command()(watch)


def main() -> None:
    run_app(app)
