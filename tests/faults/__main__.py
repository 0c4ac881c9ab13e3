"""The long form: `python -m tests.faults --flips 5000 --seed 0`, with a summary."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from tests.faults.flips import flip_bits  # noqa: E402
from tests.faults.subject import go_on, stop_midway  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=500, help="bits flipped in files of a run")
    parser.add_argument("--seed", type=int, default=0, help="of the places")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        stop_midway(run)
        outcomes = flip_bits(run, go_on, options.flips, options.seed, Path(folder) / "copy")
    print(f"seed {options.seed}, {options.flips} flips:", dict(outcomes))
    return int(outcomes["different"] + outcomes["foreign"] > 0)


if __name__ == "__main__":
    sys.exit(main())
