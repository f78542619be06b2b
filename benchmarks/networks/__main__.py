"""Builds bundles of networks of other packages, from ONNX files and from PyTorch factories, and compares them.

    python -m benchmarks.networks DATA --keep run/ --json networks.json --markdown networks.md

Run it from the root of the checkout. DATA holds train/, val/ and test/, each with A/, B/ and label/: LEVIR-CD, or tiles
of ``misgnet synthesize``. Each network of benchmarks/networks/networks.py comes from TorchGeo or
segmentation_models_pytorch, is trained for some minutes, exported to ONNX, and built in both ways with ``misgnet-export
build``, as a user would; then all engines of its bundle that run on a CPU are compared with the network in PyTorch. The
packages have their own environment, installed in --cache on first use (about 6 GB from PyPI). A row that fails has the
reason; a row whose figures cannot be right says so, and the exit code is then 3. With --keep, weights, ONNX files and
rows are reused if nothing that they depend on has changed. The table goes to stdout as Markdown, progress to stderr.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.commands import new_parser, report_errors
from benchmarks.contest import kept
from benchmarks.networks.networks import NETWORKS, WAYS
from benchmarks.networks.report import table
from benchmarks.networks.run import Options, run
from misgnet_runtime.errors import GateFailed, UsageError
from misgnet_runtime.storage.atomic import write_file
from misgnet_runtime.storage.schema import encode


def main(arguments: list[str] | None = None) -> None:
    given = vars(_parser().parse_args(arguments))
    files = {name: given.pop(name) for name in ("json", "markdown")}
    keep, only, ways = (given.pop(name) for name in ("keep", "only", "ways"))
    with report_errors():
        for name in ("minutes", "limit", "calib_tiles"):
            if not given[name] > 0:
                raise UsageError(f"--{name.replace('_', '-')} is {given[name]}; expected a number above 0")
        networks = [network for network in NETWORKS if not only or network.key in only]
        with kept.work_folder(keep) as work:
            report = run(Options(**given), work, networks, tuple(ways))
        for path, data in ((files["json"], encode(report)), (files["markdown"], table(report).encode())):
            if path:
                write_file(path, data)
        print(table(report), end="")
        if wrong := [f"{row.title}, {row.way}" for row in report.rows if row.wrong]:
            raise GateFailed(f"the figures of {'; '.join(wrong)} cannot be right; see the table")


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("networks", __doc__)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="Folder of train/, val/ and test/, each with A/, B/ and label/.")
    add("--cache", type=Path, default=home / "misgnet-networks", help="Folder of the networks' environment.")
    add("--keep", type=Path, help="Keep tiles, weights, bundles and rows here; later runs reuse unchanged ones.")
    add("--minutes", type=float, default=2.0, help="Minutes of each training at most (default: 2).")
    add("--control-minutes", type=float, default=1.0, help="As in `misgnet-export build` (default: 1).")
    add("--calib-tiles", type=int, default=32, help="Calibration tiles (default: 32).")
    add("--quick", action="store_true", help="Build without a choice of calibrators, repairs and accuracy control.")
    add("--limit", type=float, default=30.0, help="Time limit in minutes for one step (default: 30).")
    add("--only", nargs="+", choices=[network.key for network in NETWORKS], help="Only these (default: all).")
    add("--ways", nargs="+", choices=WAYS, default=WAYS, help="Only these ways (default: both).")
    add("--markdown", type=Path, help="Also write the table as Markdown to this file.")
    return parser


if __name__ == "__main__":
    main()
