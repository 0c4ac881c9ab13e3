"""The plan of a pool at a URL: time, memory, disk and money, from a short run that is measured.

rows     N = bytes of all shards x rows of the first / bytes of the first, unless given
score    N (o + s) / W       o: seconds per row to fetch and open the first shard;
                             s: seconds per row to decode and to compute the signals; W workers
disk     N (2 (i + 8 c) + sum over kept signals (32 + b))
                             i: bytes of an id, c: scores, b: bytes of a signal's row
memory   what this process held while it measured, with one shard; while selecting 4 N bytes
         and one cell
select   operations of the strategy's two stages / multiply-adds per second measured here
money    hours x W x price
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import torch

from upslope.config.scoring import TrainedModel
from upslope.errors import ConfigError, DataError
from upslope.pool import Need, Strategy
from upslope.pools import ShardedPool
from upslope.scoring import compute_signals
from upslope.scoring.stored import plain_needs
from upslope.strategies.base import TopStrategy
from upslope.strategies.two_stage import CELL, OVER, TWO_STAGE

SAMPLES_TO_MEASURE = 512
"""Rows that are scored to measure the time per row; a batch before them is not counted."""
_RATE = 2048  # rows and columns of the product that measures multiply-adds per second


def count_operations(name: str, n: float, k: float, d: float, classes: float) -> float:
    """Return the multiply-adds of a selection in two stages, by the leading terms of `TWO_STAGE`.

    Constant factors are rough: `benchmarks/two_stage.py` measures the times.

    name: of the strategy. n: rows. k: budget. d, classes: numbers of the widest signal and of the
    narrowest.
    """
    c = min(float(CELL), n)
    cells = n * min(n / c, 256) * d if n > c else 0.0
    second_stage = OVER * k * (c + k) * d
    bait = n / c * (classes * d) ** 3 + k * (c * classes**2 * d + classes**3 * d**2)
    within = {
        "core-set": second_stage,
        "lcmd": 2 * second_stage,  # in double precision
        "badge": k * c * (classes + d),
        "typiclust": 300 * k * c * d + n * c * d,
        "bait": 2 * bait,  # in double precision
    }
    return cells + within.get(name, 3 * n * c * d)


@dataclass(frozen=True)
class PoolPlan:
    """What scoring a pool and one selection from it will take.

    rows: of the pool. budget: of the selection. open_s, score_s: seconds per row. workers: that
    score beside each other. disk, score_memory, select_memory: bytes. select_s: seconds of one
    processor. price: per worker and hour. hours: of scoring and selecting. measured: in words.
    """

    rows: int
    budget: int
    open_s: float
    score_s: float
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
        return self.rows * (self.open_s + self.score_s) / self.workers

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
) -> PoolPlan:
    """Return what scoring a pool and selecting from it will take, from a short run here.

    pool: the shards, of which the first is opened. ready: the network and its device. strategy:
    whose signals are computed, and kept unless it takes the highest score. budget: of the
    selection. rows: of the pool; by the bytes of the shards, if not given. workers: that score
    beside each other, each as fast as this one. price: per worker and hour. batch_size: samples at
    a time. bytes_per_number: 2 or 4, of signals that are kept.

    Raises:
        ConfigError: a strategy that scores no sample by itself and has no two stages.
        DataError: the first shard cannot be read, or is empty.
    """
    single = isinstance(strategy, TopStrategy)
    if not single and strategy.name not in TWO_STAGE:
        raise ConfigError(
            f"Expected a strategy with one score per sample, or one of {', '.join(TWO_STAGE)}, to "
            f"plan a pool at a URL but got {strategy.name}."
        )
    began = time.perf_counter()
    with pool.open(pool.shards[0]) as samples:
        count, open_seconds = len(samples), time.perf_counter() - began
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
        began = time.perf_counter()
        signals = compute(part)
        seconds = (time.perf_counter() - began) / len(part)
        id_bytes = sum(len(i.encode()) for i in samples.ids[:SAMPLES_TO_MEASURE]) / len(part)
    first = pool.shards[0].size / count
    total = rows or round(sum(shard.size for shard in pool.shards) / first)
    widths = [math.prod(values.shape[1:]) for values in signals.values()]
    scores, row_bytes = (1, 0.0) if single else (0, sum(32 + bytes_per_number * w for w in widths))
    d, classes = max(widths, default=1), min(widths, default=1)
    cell = min(CELL, total)
    operations = 0.0 if single else count_operations(strategy.name, total, budget, d, classes)
    return PoolPlan(
        rows=total,
        budget=budget,
        open_s=open_seconds / count,
        score_s=seconds,
        workers=workers,
        disk=total * (2 * (id_bytes + 8 * scores) + row_bytes),
        score_memory=_peak(),
        select_memory=4.0 * total + 8 * cell * d + 8 * OVER * budget * d,
        select_s=operations / _multiply_adds() if operations else 1e-7 * total,
        price=price,
        measured=f"{len(part):,} of {count:,} rows of {pool.shards[0].name} on "
        f"{ready.device.type}, {torch.get_num_threads()} threads",
    )


def _peak() -> float:
    """The most memory that this process has held, in bytes."""
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
