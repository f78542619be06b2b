"""``misgnet-run``: run a bundle, without torch."""

from __future__ import annotations

from misgnet_runtime.cli.app import make_app, run_app
from misgnet_runtime.cli.batch import batch
from misgnet_runtime.cli.bench import bench
from misgnet_runtime.cli.compile import compile_plans
from misgnet_runtime.cli.info import info
from misgnet_runtime.cli.options import AllowOlder, LockTimeout, Log, RequireSignature, Version
from misgnet_runtime.cli.predict import predict
from misgnet_runtime.cli.series import encode, series
from misgnet_runtime.cli.tune import tune
from misgnet_runtime.cli.verify import verify
from misgnet_runtime.cli.watch import watch
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
    version: Version = False,
) -> None:
    """What all commands take, before the command or behind it."""


for command in (predict, info, verify, batch, bench, encode, series, tune, watch):
    app.command()(command)
app.command("compile")(compile_plans)


def main() -> None:
    run_app(app)
