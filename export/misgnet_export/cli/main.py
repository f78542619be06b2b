"""The ``misgnet-export`` command: compiles a trained network into a verified bundle and works with existing bundles."""

from __future__ import annotations

from misgnet_export.cli.build import build
from misgnet_export.cli.inspect import inspect
from misgnet_export.cli.parity import parity
from misgnet_export.cli.publish import publish
from misgnet_export.cli.sign import sign
from misgnet_export.cli.triton import triton
from misgnet_export.cli.wheelhouse import wheelhouse
from misgnet_runtime.cli import options as arguments
from misgnet_runtime.cli.app import make_app, run_app
from misgnet_runtime.storage.lock import DEFAULT_TIMEOUT

app = make_app(
    "misgnet-export",
    "Compile a trained change-detection network into engines, each verified against the float model. "
    "Exit codes: 2 usage error, 3 failed gate, 4 bad input, 5 missing device or library.",
)


@app.callback()
def every_command(
    *,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
    require_signature: arguments.RequireSignature = None,
    allow_older: arguments.AllowOlder = False,
    lock_timeout: arguments.LockTimeout = DEFAULT_TIMEOUT,
    version: arguments.Version = False,
) -> None:
    """Options of all commands; they may be given before or after the command."""


for command in (build, parity, inspect, publish, triton, wheelhouse, sign):
    app.command()(command)


def main() -> None:
    run_app(app)
