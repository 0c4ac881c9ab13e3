"""Time of the demonstration's runs in two trees, such as two commits, in turns.

    python benchmarks/demo.py . ../before --rounds 5 -s seeds=1 -s experiment.cycles=3

Every call is `upslope compare` on the first tree's digits.yaml, with one thread, by this Python
with the tree's own `src`. Wall time says little on a machine that does other things: the
processor's time, of the command and its workers, is what to compare.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trees", nargs="+", type=Path, help="folders with src/ and configs/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    seconds: dict[Path, list[tuple[float, float]]] = {tree: [] for tree in options.trees}
    for i in range(options.rounds):
        # Each tree comes first in turn: what runs beside this drifts.
        for tree in options.trees[i % 2 :] + options.trees[: i % 2]:
            seconds[tree].append(measure(tree, options.trees[0], options.set))
            print(f"{tree}: {seconds[tree][-1][0]:.2f} s of the processor", flush=True)
    first = statistics.median(cpu for cpu, _ in seconds[options.trees[0]])
    for tree, taken in seconds.items():
        cpu, wall = (statistics.median(column) for column in zip(*taken, strict=True))
        print(f"{tree}: median {cpu:.2f} s of the processor, {wall:.2f} s; {cpu / first:.3f}")


def measure(tree: Path, configured: Path, assignments: list[str]) -> tuple[float, float]:
    """Return the seconds of the processor, and the seconds, of one call.

    configured: the tree whose configuration is run, in all trees the same.
    """
    words = [word for assignment in assignments for word in ("-s", assignment)]
    with tempfile.TemporaryDirectory() as folder:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "upslope", "compare",
             str(configured / "configs" / "digits.yaml"), "--out", f"{folder}/out", *words],
            env={**os.environ, "PYTHONPATH": str(tree.resolve() / "src"), "OMP_NUM_THREADS": "1"},
            check=True, capture_output=True,
        )  # fmt: skip
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, wall


if __name__ == "__main__":
    main()
