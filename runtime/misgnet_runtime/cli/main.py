"""Entry point of ``misgnet-run``, which runs a bundle without torch."""

from __future__ import annotations

from misgnet_runtime.cli.app import make_app, run_app
from misgnet_runtime.cli.batch import batch
from misgnet_runtime.cli.bench import bench
from misgnet_runtime.cli.compile import compile_plans
from misgnet_runtime.cli.info import info
from misgnet_runtime.cli.options import (
    AllowOlder,
    Config,
    LockTimeout,
    Log,
    Quiet,
    RequireSignature,
    Timestamps,
    Verbose,
    Version,
)
from misgnet_runtime.cli.predict import predict
from misgnet_runtime.cli.series import encode, series
from misgnet_runtime.cli.tune import tune
from misgnet_runtime.cli.verify import verify
from misgnet_runtime.cli.watch import watch
from misgnet_runtime.storage.lock import DEFAULT_TIMEOUT

app = make_app(
    "misgnet-run",
    "Run a change-detection bundle on this machine. Exit codes: 2 invalid usage, 3 failed gate, 4 invalid input, "
    "5 missing device or library, 6 some scenes of a batch failed.",
)


@app.callback()
def every_command(
    *,
    config: Config = None,  # first: later options take their defaults from it
    log: Log = "text",
    quiet: Quiet = False,
    verbose: Verbose = False,
    timestamps: Timestamps = False,
    require_signature: RequireSignature = None,
    allow_older: AllowOlder = False,
    lock_timeout: LockTimeout = DEFAULT_TIMEOUT,
    version: Version = False,
) -> None:
    """Takes the options that every command accepts, before the command or after it."""


for command in (predict, info, verify, batch, bench, encode, series, tune, watch):
    app.command()(command)
app.command("compile")(compile_plans)


def main() -> None:
    run_app(app)
