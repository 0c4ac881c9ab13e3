"""What PyTorch's own operators take of the price of norms, on the networks of training_step.py.

    python benchmarks/operator_time.py                      all small ones, one thread
    python benchmarks/operator_time.py swin hubert --repeats 9

For each network, in milliseconds of one thread: plain forward and backward passes, our norms of the
same batch, and the time that our norms spend inside PyTorch's operators, by its profiler. The last
column, plain over those operators, is what the ratio would be if all Python between them were free:
no change to the engine's own code can go beyond it, only other operators can.

Plain over ours is of medians. Of each kind of operator the least round is taken, and set beside the
least round of plain passes. The profiler adds about a microsecond to a call, so that the last
column is a little too low for networks of very many small operators.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from speed.zoo import SMALL, ZOO, check_networks
from training_step import variants

WARM_UP = 5
"""Batches that are not counted: the first ones are proven."""
OPERATORS = ("aten::", "mkldnn::", "mkl::")
"""How the profiler begins the names of operators that compute."""

HEADER = (
    "| network | plain, ms | ours, ms | least plain, ms | operators of ours, ms "
    "| plain / ours | plain / operators |\n| --- | --: | --: | --: | --: | --: | --: |"
)


def main() -> None:
    """Measure the networks, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "networks", nargs="*", help=f"of {', '.join(ZOO)}; all small ones by default"
    )
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    options = parser.parse_args()
    check_networks(parser, options.networks)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(HEADER, flush=True)
    ratios, bounds = [], []
    for name in options.networks or SMALL:
        times = measure(name, options.repeats)
        ratios.append(times.plain / times.ours)
        bounds.append(times.least_plain / times.inside)
        milliseconds = [f"{1e3 * seconds:.1f}" for seconds in times]
        cells = [name, *milliseconds, f"{ratios[-1]:.2f}", f"{bounds[-1]:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    for what, column in (("plain / ours", ratios), ("plain / operators", bounds)):
        print(f"{what}: median {statistics.median(column):.2f}, least {min(column):.2f}")
    print(f"{len(ratios)} networks, torch {torch.__version__}")


class Times(NamedTuple):
    """Seconds per batch: medians, and the least of plain and of ours inside operators."""

    plain: float
    ours: float
    least_plain: float
    inside: float


def measure(name: str, repeats: int) -> Times:
    """Return the times of a network, each in its better memory format."""
    runs = variants(name)
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, run in runs.items():
            start = time.process_time()
            run()
            seconds[key].append(time.process_time() - start)
    medians = {key: statistics.median(rounds) for key, rounds in seconds.items()}
    best = {
        what: min((key for key in runs if key.startswith(what)), key=medians.__getitem__)
        for what in ("plain", "ours")
    }
    return Times(
        plain=medians[best["plain"]],
        ours=medians[best["ours"]],
        least_plain=min(seconds[best["plain"]]),
        inside=seconds_inside_operators(runs[best["ours"]], repeats),
    )


def seconds_inside_operators(run: Callable[[], Any], repeats: int) -> float:
    """Return the seconds of one call that pass inside operators, each kind's of its least round."""
    least: dict[str, float] = {}
    for _ in range(repeats):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            run()
        for event in profiled.key_averages():
            if event.key.startswith(OPERATORS):
                seconds = event.self_cpu_time_total / 1e6
                least[event.key] = min(seconds, least.get(event.key, seconds))
    return sum(least.values())


if __name__ == "__main__":
    main()
