"""Assembles the ``misgnet`` command: prepare data sets, train the network, evaluate it, predict with it."""

from __future__ import annotations

from misgnet.cli.evaluate import evaluate
from misgnet.cli.predict import predict
from misgnet.cli.prepare import prepare
from misgnet.cli.synthesize import synthesize
from misgnet.cli.train import train
from misgnet_runtime.cli import options as arguments
from misgnet_runtime.cli.app import make_app, run_app
from misgnet_runtime.storage.lock import DEFAULT_TIMEOUT

app = make_app(
    "misgnet",
    "MISGNet in PyTorch: prepare data, train, evaluate and predict. "
    "Exit codes: 2 wrong usage, 3 training diverged, 4 bad input, 5 missing device or library, 130 interrupted.",
)


@app.callback()
def every_command(
    *,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
    lock_timeout: arguments.LockTimeout = DEFAULT_TIMEOUT,
    version: arguments.Version = False,
) -> None:
    """Accepts the options of all commands; they may precede or follow the command's name."""


for command in (prepare, train, evaluate, predict, synthesize):
    app.command()(command)


def main() -> None:
    run_app(app)
