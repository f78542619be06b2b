"""Runs a soak test of ``misgnet-run watch`` in a real process.

Run from the root of the repository:

    python tests/soak --minutes 30             # random arrivals
    python tests/soak --minutes 2 --seed 1     # reproducible arrivals

Pairs arrive complete, in parts, with pauses, and under changing names; some are damaged or hostile, and some crash the
process that reads them. The watcher is repeatedly killed and stopped, and short-lived processes come and go.
Afterwards, every good pair must have been processed exactly once with a correct mask, every bad one must be reported,
the watcher must be alive, and its memory and journal must be bounded. Prints figures and problems; the exit code is 1
if there are any.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), *(str(ROOT / part) for part in ("tests", "", "export", "calibration", "runtime"))]

import subprocess

from arrivals import Arrivals
from oracle import Oracle
from supervisor import Supervisor

from support.bundles import FLOAT, make_bundle

_SHOWN = 40  # problems printed
_WAITING = 60  # pairs that may be waiting before arrivals pause


def main() -> int:
    options = _options()
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="misgnet-soak-") as folder:
        return soak(Path(folder), seed, options)


def soak(root: Path, seed: int, options: argparse.Namespace) -> int:
    """Runs the soak test; returns the exit code."""
    (root / "in").mkdir()
    make_bundle(root / "bundle", engines=[FLOAT])
    chance = random.Random(seed)
    arrivals, watcher = Arrivals(root, chance), Supervisor(root, options.broken)
    oracle, stop = Oracle(root, arrivals, watcher), threading.Event()
    churn = threading.Thread(target=_churn, args=(stop,), daemon=True)
    churn.start()
    if options.broken == "attempts":
        arrivals.add("crash")  # a short run may have none by chance
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        watcher.supervise()
        _act(chance, arrivals, watcher, oracle)
        time.sleep(chance.uniform(0.02, 0.3))
    arrivals.finish()
    limit = time.monotonic() + options.patience
    while not oracle.is_settled() and time.monotonic() < limit:
        watcher.supervise()
        time.sleep(0.2)
    problems = oracle.problems()
    stop.set()
    churn.join()
    for problem in problems[:_SHOWN]:
        print(problem, flush=True)
    print(f"{oracle.figures()}; {len(problems)} problems", flush=True)
    return 1 if problems else 0


def _act(chance: random.Random, arrivals: Arrivals, watcher: Supervisor, oracle: Oracle) -> None:
    """Performs a random action. No pairs arrive while many are waiting, so that a loaded machine can keep up."""
    action = chance.choices(["good", "bad", "crash", "take", "TERM", "KILL"], [60, 16, 1.5, 30, 2, 3])[0]
    waiting = oracle.waiting()
    if action == "take":
        oracle.take(chance)
    elif action in ("TERM", "KILL"):
        watcher.signal(action)
    elif len(waiting) < _WAITING and not (action == "crash" and any("crash" in name for name in waiting)):
        arrivals.add(action)


def _churn(stop: threading.Event) -> None:
    """Starts short-lived processes, so that entries of /proc disappear while they are read."""
    while not stop.is_set():
        for process in [subprocess.Popen(["true"]) for _ in range(3)]:
            process.wait()
        time.sleep(0.1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python tests/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30, help="Duration in minutes (default: 30).")
    parser.add_argument("--seed", type=int, help="Seed of the arrivals (default: random).")
    parser.add_argument("--patience", type=float, default=180, help="Seconds for the last pairs (default: 180).")
    parser.add_argument("--broken", help=argparse.SUPPRESS)  # a rule that the watcher breaks; see watcher.py
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
