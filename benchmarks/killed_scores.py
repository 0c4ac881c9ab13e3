"""A scoring process killed at random moments: what it left is kept, and the end is bit-equal.

    python benchmarks/killed_scores.py --rows 100000 --kills 20

Generated 32x32 images (`pool_memory.py`) are scored for the margin, and features and posteriors are
stored. A process begins, and is ended by SIGKILL after a random time, again and again. After each
kill every file that was whole before must be the same file, with the same inode and time, but for
those of one block: the open one, of which not all signals were whole. Then a process ends the work,
and all files are compared, byte by byte, with those of a process that nobody killed.

Processes are forked from this one, which has imported everything and computed nothing.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from pool_memory import SHAPE, SHARD, network, write
from upslope import strategies, tasks
from upslope.pools import ReadOptions, open_pool
from upslope.scoring import ShardScorer, score_pool
from upslope.scoring.shards import TABLE
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
        if path.is_file() and not _in_the_making(path.relative_to(out)):
            found = path.stat()
            marks[str(path.relative_to(out))] = (found.st_ino, found.st_mtime_ns)
    return marks


def open_blocks(marks: dict[str, Mark]) -> set[str]:
    """Return the names of blocks that are whole for some signals, and not for all."""
    blocks = [Path(name) for name in marks if name.endswith(".npy")]
    signals = {path.parent for path in blocks}
    names = [path.name for path in blocks]
    return {name for name in names if names.count(name) < len(signals)}


def made_again(before: dict[str, Mark], after: dict[str, Mark]) -> set[str]:
    """Return the blocks that were made again; end where anything else was, or is gone."""
    # The table of all is made anew from the files of the shards whenever a process ends its work.
    again = [n for n, mark in before.items() if after.get(n) != mark and n != TABLE]
    blocks = {Path(name).name for name in again}
    if len(blocks) > 1 or blocks - open_blocks(before):
        raise SystemExit(f"made again, or lost: {again[:3]}")
    return blocks


def _in_the_making(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that is whole."""
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in whole(out)}


def main(
    rows: Annotated[int, typer.Option(min=1)] = 100_000,
    kills: Annotated[int, typer.Option(min=1)] = 20,
    longest: Annotated[float, typer.Option(help="Seconds after which at most one is killed.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    folder: Annotated[Path, typer.Option(help="Where the pool is kept.")] = Path("generated"),
) -> None:
    """Kill a scoring process again and again, and compare what comes out."""
    last = -(-rows // SHARD) - 1
    url = f"{(folder / 'parquet').absolute()}/{{{0:06d}..{last:06d}}}.parquet"
    fork = multiprocessing.get_context("fork")

    def finish(function: Callable[..., None], *arguments: object) -> None:
        process = fork.Process(target=function, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"a process ended with {process.exitcode}")

    finish(write, folder / "parquet", rows, "parquet")
    draw, again = random.Random(seed), 0
    with tempfile.TemporaryDirectory(dir=".") as place:
        killed, once = Path(place) / "killed", Path(place) / "once"
        before: dict[str, Mark] = {}
        for number in range(1, kills + 1):
            process = fork.Process(target=score, args=(url, killed))
            process.start()
            # Counted from the first new file: on a busy machine opening a shard takes longest.
            while process.is_alive() and whole(killed) == before:
                time.sleep(0.02)
            time.sleep(draw.uniform(0, longest))
            if not process.is_alive():
                kills = number - 1
                print(f"it was done after {kills} kills: take a smaller --longest for more")
                break
            process.kill()
            process.join()
            after = whole(killed)
            blocks = made_again(before, after)
            again, before = again + len(blocks), after
            print(f"kill {number}: {len(after)} files whole, made again: {blocks}", flush=True)
        finish(score, url, killed)
        again += len(made_again(before, whole(killed)))
        finish(score, url, once)
        mine, other = digests(killed), digests(once)
        if mine != other:
            different = [n for n in mine.keys() | other.keys() if mine.get(n) != other.get(n)]
            raise SystemExit(f"other bytes than of a process that nobody killed: {different[:3]}")
        print(f"{rows:,} rows, {kills} kills: {len(mine):,} files equal byte by byte, {again} open "
              "blocks made again")  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
