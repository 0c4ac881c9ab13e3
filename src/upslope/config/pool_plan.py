"""The plan of a pool at a URL: time, memory, disk and money, from a short run that is measured.

rows     N = bytes of all shards x rows of the first / bytes of the first, unless given
score    N ((o + s) / W + j) o: seconds per row to fetch and open the first shard;
                             s: seconds per row to decode and to compute the signals, the median of
                             `TIMES`, with the least and the most as bounds; W workers;
                             j: seconds per row to compare and join the ids of all shards
disk     N (2 (i + 8 c) + sum over kept signals (32 + b))
                             i: bytes of an id, c: scores, b: bytes of a signal's row
memory   what this process held while it measured, with one shard; while selecting 4 N bytes,
         for searches 14 N (dcom) or 28 N and K d numbers (core-set, LCMD) more, for BAIT
         48 (C d)^2, and one cell
select   operations of the strategy's two stages / multiply-adds per second measured here
money    hours x W x price
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from upslope.config.scoring import TrainedModel
from upslope.datasets.arrow import read_parquet
from upslope.errors import ConfigError, DataError
from upslope.files import disk_errors
from upslope.pool import Need, Strategy
from upslope.pools import ShardedPool
from upslope.scoring import compute_signals
from upslope.scoring.duplicate_ids import check_distinct
from upslope.scoring.stored import plain_needs
from upslope.strategies.base import TopStrategy
from upslope.strategies.cell_search import PROBES
from upslope.strategies.two_stage import CELL, TWO_STAGE, refusal

SAMPLES_TO_MEASURE = 512
"""Rows that are scored to measure the time per row; a batch before them is not counted."""
TIMES = 5
"""Times that they are scored: on a machine with other work the time differs from one to another."""
_RATE = 2048  # rows and columns of the product that measures multiply-adds per second


def count_operations(name: str, n: float, k: float, d: float, classes: float) -> float:
    """Return the multiply-adds of a selection in two stages, by the leading terms of `TWO_STAGE`.

    Constant factors are rough: `benchmarks/two_stage.py` measures the times.

    name: of the strategy. n: rows. k: budget. d, classes: numbers of the widest signal and of the
    narrowest.
    """
    c = min(float(CELL), n)
    cells = n * min(n / c, 256) * d if n > c and name != "bait" else 0.0
    search = k * PROBES * c * d
    bait = (0.75 * n + 3 * k * classes) * (classes * d) ** 2
    within = {
        "core-set": 2 * search,
        "lcmd": 2 * search + 8 * k * n,
        "badge": k * c * (classes + d),
        "gradnorm-diverse": 2 * k * c * d,  # in double precision
        "binary-bait": 2 * (n / c * d**3 + n * d**2 + 2 * k * c * d),
        "dropquery": 300 * k * c * d,
        "typiclust": 300 * k * c * d + n * c * d,
        "dcom": (2 * n + k) * c * d,
        "bait": 2 * bait,  # in double precision
    }
    return float(cells + within.get(name, 3 * n * c * d))


@dataclass(frozen=True)
class PoolPlan:
    """What scoring a pool and one selection from it will take.

    rows: of the pool. budget: of the selection. open_s, score_s: seconds per row. least_s,
    most_s: bounds of score_s, from short runs of one sitting. join_s: seconds per row to join the
    shards. workers: that score beside each other. disk, score_memory, select_memory: bytes.
    select_s: seconds of one processor. price: per worker and hour of scoring and selecting.
    measured: in words.
    """

    rows: int
    budget: int
    open_s: float
    score_s: float
    least_s: float
    most_s: float
    join_s: float
    workers: int
    disk: float
    score_memory: float
    select_memory: float
    select_s: float
    price: float
    measured: str

    @property
    def score_total_s(self) -> float:
        """Return the seconds that scoring takes."""
        return self._total_s(self.score_s)

    @property
    def score_bounds_s(self) -> tuple[float, float]:
        """Return the seconds that scoring takes by the fastest and the slowest short run."""
        return self._total_s(self.least_s), self._total_s(self.most_s)

    def _total_s(self, score_s: float) -> float:
        return self.rows * ((self.open_s + score_s) / self.workers + self.join_s)

    @property
    def money(self) -> float:
        """Return what workers cost while they score, and one while it selects."""
        hours = (self.score_total_s * self.workers + self.select_s) / 3600
        return hours * self.price


def plan_pool(
    pool: ShardedPool,
    ready: TrainedModel,
    strategy: Strategy,
    *,
    budget: int,
    rows: int | None = None,
    workers: int = 1,
    price: float = 0.0,
    batch_size: int = 256,
    bytes_per_number: int = 4,
    clock: Callable[[], float] = time.perf_counter,
) -> PoolPlan:
    """Return what scoring a pool and selecting from it will take, from a short run here.

    pool: the shards, of which the first is opened. ready: the network and its device. strategy:
    whose signals are computed, and kept unless it takes the highest score. budget: of the
    selection. rows: of the pool; by the bytes of the shards, if not given. workers: that score
    beside each other, each as fast as this one. price: per worker and hour. batch_size: samples at
    a time. bytes_per_number: 2 or 4, of signals that are kept. clock: tells seconds; on a CPU with
    other work, `time.process_time` tells those of this process alone.

    Raises:
        ConfigError: a strategy that scores no sample by itself and has no two stages.
        DataError: the first shard cannot be read, or is empty.
    """
    single = isinstance(strategy, TopStrategy)
    if not single and strategy.name not in TWO_STAGE:
        raise ConfigError(refusal(strategy, rows or 0))
    began = clock()
    with pool.open(pool.shards[0]) as samples:
        count, open_seconds = len(samples), clock() - began
        if not count:
            raise DataError(f"Expected samples in {pool.shards[0].name} but it is empty.")
        needs = plain_needs(strategy.needs)

        def compute(part: range) -> dict[Need, torch.Tensor]:
            return compute_signals(
                needs, ready.model, ready.task, samples, part, device=ready.device, seed=0,
                batch_size=batch_size, on_corrupt="skip",
            ).signals  # fmt: skip

        part = range(min(count, SAMPLES_TO_MEASURE))
        compute(part[:batch_size])
        seconds: list[float] = []
        for _ in range(TIMES):
            began = clock()
            signals = compute(part)
            seconds.append((clock() - began) / len(part))
        join_seconds = min(_join(samples.ids, clock) for _ in range(2)) / count
        id_bytes = sum(len(i.encode()) for i in samples.ids[:SAMPLES_TO_MEASURE]) / len(part)
    first = pool.shards[0].size / count
    total = rows or round(sum(shard.size for shard in pool.shards) / first)
    widths = [math.prod(values.shape[1:]) for values in signals.values()]
    scores, row_bytes = (1, 0.0) if single else (0, sum(32 + bytes_per_number * w for w in widths))
    d, classes = max(widths, default=1), min(widths, default=1)
    cell = min(CELL, total)
    search_bytes = 0.0
    if not single:
        stages = TWO_STAGE[strategy.name]
        search_bytes = stages.kept * total + (4.0 * budget * d if callable(stages.way) else 0.0)
    if strategy.name == "bait":  # matrices of C d rows, and what is followed of candidates
        rows_at_once = cell + 2 * budget
        search_bytes = 48 * (classes * d) ** 2 + 8 * rows_at_once * (d + 3 * classes**2)
    operations = 0.0 if single else count_operations(strategy.name, total, budget, d, classes)
    return PoolPlan(
        rows=total,
        budget=budget,
        open_s=open_seconds / count,
        score_s=statistics.median(seconds),
        least_s=min(seconds),
        most_s=max(seconds),
        join_s=join_seconds,
        workers=workers,
        disk=total * (2 * (id_bytes + 8 * scores) + row_bytes),
        score_memory=_peak(),
        select_memory=4.0 * total + 8 * cell * d + search_bytes,
        select_s=operations / _multiply_adds() if operations else 1e-7 * total,
        price=price,
        measured=f"{len(part):,} of {count:,} rows of {pool.shards[0].name}, {TIMES} times, on "
        f"{ready.device.type}, {torch.get_num_threads()} threads",
    )


def _join(ids: Sequence[str], clock: Callable[[], float]) -> float:
    """Return the seconds that it takes to write the scores of these ids, compare the ids, and
    join.
    """
    began = clock()
    place = Path(tempfile.gettempdir())
    with disk_errors(place), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.parquet"
        table = pa.table({"id": pa.array(ids, pa.string()), "score": np.zeros(len(ids))})
        pq.write_table(table, path)
        check_distinct(["first"], [path], Path(folder))
        pq.write_table(read_parquet(path), path)
    return clock() - began


def _peak() -> float:
    """Return the most memory that this process has held, in bytes."""
    import resource  # which Windows does not have

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def _multiply_adds() -> float:
    """Multiply-adds per second of a product of matrices, in single precision, on this processor."""
    x = torch.randn(_RATE, 256)
    x @ x.T
    began = time.perf_counter()
    x @ x.T
    return float(_RATE * _RATE * 256 / (time.perf_counter() - began))
