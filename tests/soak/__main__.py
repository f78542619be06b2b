"""A soak of ``misgnet-run watch``: a real process, and for minutes all that may come to it. In the repository's root:

    python tests/soak --minutes 30             # other arrivals each time
    python tests/soak --minutes 2 --seed 1     # always the same ones

Pairs arrive whole, in parts, with pauses, under names that change; some are damaged or hostile, and some end the
process that reads them. The watcher is killed and asked to end again and again, and short processes come and go.
Afterwards every good pair was done exactly once and its mask is right, every bad one is named, the watcher is alive,
and its memory and its journal are bounded. Prints figures and what was otherwise; the exit code is 1 then.
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

_SHOWN = 40  # problems
_WAITING = 60  # pairs


def main() -> int:
    options = _options()
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="misgnet-soak-") as folder:
        return soak(Path(folder), seed, options)


def soak(root: Path, seed: int, options: argparse.Namespace) -> int:
    """The exit code."""
    (root / "in").mkdir()
    make_bundle(root / "bundle", engines=[FLOAT])
    chance = random.Random(seed)
    arrivals, watcher = Arrivals(root, chance), Supervisor(root, options.broken)
    oracle, stop = Oracle(root, arrivals, watcher), threading.Event()
    churn = threading.Thread(target=_churn, args=(stop,), daemon=True)
    churn.start()
    if options.broken == "attempts":
        arrivals.add("crash")  # chance may bring none to a short run
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        watcher.look()
        _act(chance, arrivals, watcher, oracle)
        time.sleep(chance.uniform(0.02, 0.3))
    arrivals.finish()
    limit = time.monotonic() + options.patience
    while not oracle.is_settled() and time.monotonic() < limit:
        watcher.look()
        time.sleep(0.2)
    problems = oracle.problems()
    stop.set()
    churn.join()
    for problem in problems[:_SHOWN]:
        print(problem, flush=True)
    print(f"{oracle.figures()}; {len(problems)} problems", flush=True)
    return 1 if problems else 0


def _act(chance: random.Random, arrivals: Arrivals, watcher: Supervisor, oracle: Oracle) -> None:
    """One thing that happens; nothing new arrives while more is waiting than a loaded machine gets done."""
    action = chance.choices(["good", "bad", "crash", "take", "TERM", "KILL"], [60, 16, 1.5, 30, 2, 3])[0]
    waiting = oracle.waiting()
    if action == "take":
        oracle.take(chance)
    elif action in ("TERM", "KILL"):
        watcher.signal(action)
    elif len(waiting) < _WAITING and not (action == "crash" and any("crash" in name for name in waiting)):
        arrivals.add(action)


def _churn(stop: threading.Event) -> None:
    """Short processes, so that what /proc lists is gone when it is read."""
    while not stop.is_set():
        for process in [subprocess.Popen(["true"]) for _ in range(3)]:
            process.wait()
        time.sleep(0.1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python tests/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, help="of what arrives; random without")
    parser.add_argument("--patience", type=float, default=180, help="seconds for the last pairs (default: 180)")
    parser.add_argument("--broken", help=argparse.SUPPRESS)  # a rule that the watcher breaks, see watcher.py
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
