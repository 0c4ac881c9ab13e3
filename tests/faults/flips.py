"""Bit flips in every file of a run: each is noticed, mended or without effect."""

from __future__ import annotations

import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from upslope.errors import UpslopeError


def flip_bits(
    folder: Path, go_on: Callable[[Path], object], count: int, seed: int, scratch: Path
) -> Counter[str]:
    """Flip one bit in a file of a copy of `folder`, `count` times, and go on with the copy.

    go_on: works on a run's folder and returns what must not change. Returns how often the outcome
    was "same", "refused", and "different" or "foreign" for a fault of Upslope's.
    """
    rng = random.Random(seed)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    files = [p for p in files if p.name != "run.lock" and (folder / p).stat().st_size]
    shutil.copytree(folder, scratch, dirs_exist_ok=False)
    expected = go_on(scratch)
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        shutil.rmtree(scratch)
        shutil.copytree(folder, scratch)
        victim = scratch / rng.choice(files)
        data = bytearray(victim.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        victim.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcomes["same" if go_on(scratch) == expected else "different"] += 1
        except UpslopeError:
            outcomes["refused"] += 1
        except Exception as error:  # counted, and named: this is what the campaign looks for
            outcomes["foreign"] += 1
            print(f"foreign: {type(error).__name__} after a flip in {victim.name}: {error}")
    shutil.rmtree(scratch)
    return outcomes
