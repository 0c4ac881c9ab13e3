"""What the first batch of a new shape costs: texts of another length, in processor milliseconds.

    python benchmarks/new_shapes.py                     distilbert, twenty lengths
    python benchmarks/new_shapes.py gpt2 --rounds 5

Batches of each length, in turn: plain forward and backward passes; norms of a length that the model
has not met, which are proven; and norms of the same length again. Each round has a fresh model, and
its first length is not counted. Also how often a batch of a new length goes forward and backward
through the tape of the engine. One thread, medians of the lengths and rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from speed.zoo import ZOO, check_networks
from speed.zoo.entry import loss, words
from speed.zoo.published import WORDS
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.trace.forward import Forward

LENGTHS = range(24, 64, 2)


def main() -> None:
    """Measure the networks and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "networks",
        nargs="*",
        default=("distilbert",),
        help="that take words; distilbert by default",
    )
    parser.add_argument("--batch", type=int, default=8, help="texts per batch; 8")
    parser.add_argument("--rounds", type=int, default=3, help="fresh models of each network; 3")
    options = parser.parse_args()
    check_networks(parser, options.networks)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| network | plain, ms | new length | known length | forward | backward |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name in options.networks:
        print(as_markdown(name, options.batch, options.rounds), flush=True)


def as_markdown(name: str, batch: int, rounds: int) -> str:
    """Return the row of a network of the zoo that takes words."""
    seconds: dict[str, list[float]] = {"plain": [], "new": [], "known": []}
    counts: Counter[str] = Counter()
    for _ in range(rounds):
        model = ZOO[name].model()
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradient_norms(model, words(WORDS, LENGTHS.start - 2)(batch), loss)
        for length in LENGTHS:
            x = words(WORDS, length)(batch)

            def plain(x: Any = x, model: Any = model, parameters: Any = parameters) -> None:
                torch.autograd.grad(loss(model(x)).sum(), parameters, allow_unused=True)

            def norms(x: Any = x, model: Any = model) -> None:
                gradient_norms(model, x, loss)

            with counting("_call", counts), counting("backward", counts):
                new = timed(norms)
            for what, taken in (("plain", timed(plain)), ("new", new), ("known", timed(norms))):
                seconds[what].append(taken)
    cells = [f"{1e3 * statistics.median(taken):.1f}" for taken in seconds.values()]
    cells += [f"{counts[what] / rounds / len(LENGTHS):.2f}" for what in ("_call", "backward")]
    return f"| {name} | {' | '.join(cells)} |"


def counting(name: str, counts: Counter[str]) -> Any:
    """Return a patch that counts the calls of a method of `Forward`."""
    method = getattr(Forward, name)

    def counted(self: Forward, *args: Any, **options: Any) -> Any:
        counts[name] += 1
        return method(self, *args, **options)

    return mock.patch.object(Forward, name, counted)


def timed(run: Callable[[], None]) -> float:
    """Return the processor seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
