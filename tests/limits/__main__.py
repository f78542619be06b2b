"""Measures the time and memory for reading the largest accepted file of each family of hostile files.

Run from the root of the repository:

    python tests/limits                 # all families
    python tests/limits pickle table    # families whose names start with these words
    python tests/limits --table         # the table of SECURITY.md, from misgnet_runtime.limits
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = Path(os.environ.get("MISGNET_SOURCES", HERE.parents[1]))  # may be another commit's, for comparison
sys.path[:0] = [str(HERE), *(str(ROOT / part) for part in ("tests", "", "export", "calibration", "runtime"))]
os.environ["OMP_NUM_THREADS"] = "1"  # each thread would add a stack and an arena

from families import FAMILIES
from measure import as_json, measured


def main() -> int:
    options = _options()
    if options.table:
        from misgnet_runtime.limits import markdown

        print(markdown())
        return 0
    if not options.json:
        print("| family | s | MiB | virtual MiB | outcome |\n|---|---|---|---|---|")
    begins = tuple(options.families or ("",))
    names = options.families if options.exactly else [name for name in FAMILIES if name.startswith(begins)]
    with tempfile.TemporaryDirectory() as folder:
        for reading in measured(names, Path(folder)):
            print(as_json(reading) if options.json else reading.line(), flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python tests/limits", description=__doc__.splitlines()[0])
    families = f"Starts of family names (default: all): {', '.join(FAMILIES)}."
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=families)
    parser.add_argument("--table", action="store_true", help="Print the table of limits.")
    parser.add_argument("--exactly", action="store_true", help="Treat FAMILY as full names.")
    parser.add_argument("--json", action="store_true", help="Print a JSON line per measurement.")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
