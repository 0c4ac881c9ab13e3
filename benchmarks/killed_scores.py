"""A scoring process killed at random moments: what it left is kept, and the end is bit-equal.

    python benchmarks/killed_scores.py --rows 100000 --kills 20

Generated 32x32 images (`pool_memory.py`) are scored for the margin, and features and posteriors are
stored. A process begins, and is ended by SIGKILL after a random time, again and again; after each
kill every block and every shard of scores that was there before must be the same file, with the
same inode and time, so that none was computed twice, and what was in the making is counted. Then
a process ends the work, and all files are compared, byte by byte, with those of a process that
nobody killed.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from pool_memory import SHAPE, SHARD, network, write
from upslope import strategies, tasks
from upslope.pools import ReadOptions, open_pool
from upslope.scoring import ShardScorer, score_pool
from upslope.scoring.stored import plain_needs

Mark = tuple[int, int]


def score(url: str, out: Path) -> None:
    """Score and store, and go on where that was stopped."""
    torch.set_num_threads(1)
    task = tasks.build("classification", num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
    pool = open_pool(url, options=ReadOptions(shape=SHAPE))
    keep = plain_needs(strategies.build("badge").needs)
    scores = {"margin": strategies.build("margin")}
    score_pool(ShardScorer(pool, out, scores, network(), task, torch.device("cpu"), keep=keep))


def whole(out: Path) -> dict[str, Mark]:
    """Return the files that are whole, with inode and time of the last change."""
    marks = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            found = path.stat()
            marks[str(path.relative_to(out))] = (found.st_ino, found.st_mtime_ns)
    return marks


def unfinished(out: Path) -> int:
    """Return how many files are in the making, which a kill left."""
    return sum(path.name.startswith(".") for path in out.rglob("*") if path.is_file())


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that is whole."""
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in whole(out)}


def main(
    rows: Annotated[int, typer.Option(min=1)] = 100_000,
    kills: Annotated[int, typer.Option(min=1)] = 20,
    longest: Annotated[float, typer.Option(help="Seconds after which at most one is killed.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    folder: Annotated[Path, typer.Option(help="Where the pool is kept.")] = Path("generated"),
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Kill a scoring process again and again, and compare what comes out."""
    last = -(-rows // SHARD) - 1
    url = f"{(folder / 'parquet').absolute()}/{{{0:06d}..{last:06d}}}.parquet"
    if one:
        score(url, Path(one))
        return
    write(folder / "parquet", rows, "parquet")
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=".") as place:
        killed, once = Path(place) / "killed", Path(place) / "once"
        begin = [sys.executable, __file__, "--rows", str(rows), "--folder", str(folder), "--one"]
        ended, most = 0, 0
        while ended < kills:
            before = whole(killed) if killed.is_dir() else {}
            process = subprocess.Popen([*begin, str(killed)], env=os.environ)
            # The import takes as long as it takes: the moment counts from the first new file.
            while process.poll() is None and (not killed.is_dir() or whole(killed) == before):
                time.sleep(0.02)
            time.sleep(draw.uniform(0, longest))
            if process.poll() is not None:
                raise SystemExit(f"it was done after {ended} kills: take a smaller --longest")
            process.send_signal(signal.SIGKILL)
            process.wait()
            after = whole(killed)
            again = [name for name, mark in before.items() if after.get(name) != mark]
            if again:
                raise SystemExit(f"made again, or lost: {again[:3]}")
            left, ended = unfinished(killed), ended + 1
            most = max(most, left)
            print(f"kill {ended}: {len(after)} files whole, {left} in the making", flush=True)
        before = whole(killed)
        subprocess.run([*begin, str(killed)], check=True)
        after = whole(killed)
        if again := [name for name, mark in before.items() if after.get(name) != mark]:
            raise SystemExit(f"made again, or lost: {again[:3]}")
        subprocess.run([*begin, str(once)], check=True)
        mine, other = digests(killed), digests(once)
        if mine != other:
            different = [n for n in mine.keys() | other.keys() if mine.get(n) != other.get(n)]
            raise SystemExit(f"other bytes than of a process that nobody killed: {different[:3]}")
        print(
            f"{rows:,} rows, {ended} kills: {len(mine):,} files equal byte by byte, none made "
            f"twice, at most {most} in the making at a kill; left over: {unfinished(killed)}"
        )


if __name__ == "__main__":
    typer.run(main)
