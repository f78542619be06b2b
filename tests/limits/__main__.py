"""Adversarial families of files: what reading the largest accepted file of each takes. In the repository's root:

python tests/limits                 # all families
python tests/limits pickle table    # those whose names begin so
python tests/limits --table         # the table of SECURITY.md, from misgnet_runtime.limits
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = Path(os.environ.get("MISGNET_SOURCES", HERE.parents[1]))  # those of another commit, to compare
sys.path[:0] = [str(HERE), *(str(ROOT / part) for part in ("tests", "", "export", "calibration", "runtime"))]
os.environ["OMP_NUM_THREADS"] = "1"  # each thread would have a stack and an arena

from families import FAMILIES
from measure import as_json, measured


def main() -> int:
    options = _options()
    if options.table:
        from misgnet_runtime.limits import markdown

        print(markdown())
        return 0
    if not options.json:
        print("| family | s | MiB | MiB of addresses | ends as |\n|---|---|---|---|---|")
    begins = tuple(options.families or ("",))
    names = options.families if options.exactly else [name for name in FAMILIES if name.startswith(begins)]
    with tempfile.TemporaryDirectory() as folder:
        for reading in measured(names, Path(folder)):
            print(as_json(reading) if options.json else reading.line(), flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python tests/limits", description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--table", action="store_true", help="print the table of limits")
    parser.add_argument("--exactly", action="store_true", help="the families of these names")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each reading")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
