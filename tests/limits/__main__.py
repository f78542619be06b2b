"""Adversarial families of files: what reading the largest accepted file of each takes. In the repository's root:

python tests/limits                    # all families, against the limits of misgnet_runtime.limits
python tests/limits pickle-colliding   # these alone
python tests/limits --table            # the table of SECURITY.md, from misgnet_runtime.limits
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

from families import FAMILIES
from measure import measure, read_here


def main() -> int:
    options = _options()
    if options.read:
        print(read_here(options.read, options.folder, options.over))
        return 0
    if options.table:
        from misgnet_runtime.limits import markdown

        print(markdown())
        return 0
    print("| family | s | MiB | MiB, virtual | ends as |\n|---|---|---|---|---|")
    for name in options.families or FAMILIES:
        for over in (False, True) if FAMILIES[name].has_over else (False,):
            with tempfile.TemporaryDirectory() as folder:
                found = measure(name, Path(folder), over=over)
            words = f"{name}{', over' if over else ''}"
            print(f"| {words} | {found.seconds:.1f} | {found.resident:.0f} | {found.virtual:.0f} | {found.end[:90]} |", flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python tests/limits", description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--table", action="store_true", help="print the table of limits")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--over", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
