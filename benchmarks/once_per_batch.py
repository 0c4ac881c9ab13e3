"""What a call of `gradient_norms` costs outside the passes: once per batch, whatever its size.

    python benchmarks/once_per_batch.py                          a few networks, two samples each
    python benchmarks/once_per_batch.py mobilenet-v2 --rounds 100

Processor milliseconds of a call, and those of it that are spent neither in the model, nor in the
loss, nor in the backward pass with its reductions: the look at what the model is made of, the state
that is kept and put back, the refusals, the identity of the program. One thread; the batches that
are proven come before. The least and the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from speed.zoo import ZOO, check_networks
from speed.zoo.entry import loss
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.trace import forward, recording

NETWORKS = ("embedding-bag", "tabular-embeddings", "fixed-point", "recurrence", "regnet-y")

PROVEN = 8
"""Calls before the first that counts: by then every batch is proven that has to be."""


class Inside:
    """The processor time that some functions take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its time counted."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - start

        return run


def main() -> None:
    """Measure the networks and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=NETWORKS, help=f"of {', '.join(ZOO)}")
    parser.add_argument("--rounds", type=int, default=60, help="calls of each network; 60")
    options = parser.parse_args()
    check_networks(parser, options.networks)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    inside = Inside()
    forward.call = inside.timed(forward.call)  # type: ignore[attr-defined]
    recording.reduce_unproven = inside.timed(recording.reduce_unproven)  # type: ignore[attr-defined]
    print("| network | call, least | median | outside, least | median |")
    print("| --- | --: | --: | --: | --: |")
    for name in options.networks:
        numbers = " | ".join(f"{1e3 * x:.2f}" for x in measure(name, options.rounds, inside))
        print(f"| {name} | {numbers} |", flush=True)
    print(f"torch {torch.__version__}, one thread, two samples")


def measure(name: str, rounds: int, inside: Inside) -> tuple[float, float, float, float]:
    """Return the seconds of a call, least and median, and those of them outside the passes."""
    model, timed_loss = ZOO[name].model(), inside.timed(loss)
    inputs = tree_map_only(Tensor, lambda x: x[:2], ZOO[name].inputs())
    whole, outside = [], []
    for i in range(PROVEN + rounds):
        inside.seconds, start = 0.0, time.thread_time()
        gradient_norms(model, inputs, timed_loss)
        if i >= PROVEN:
            whole.append(time.thread_time() - start)
            outside.append(whole[-1] - inside.seconds)
    return min(whole), statistics.median(whole), min(outside), statistics.median(outside)


if __name__ == "__main__":
    main()
