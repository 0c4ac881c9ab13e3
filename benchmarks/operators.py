"""What does one operator cost in a forward pass under the interceptor?

    python benchmarks/operators.py --repeats 50

Networks that repeat one operator on next to no numbers: plain, under a mode of torch that does
nothing, and under the interceptor. Times are of the processor, in one thread, of one operator; the
least of all rounds, which are interleaved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.uses.tape import ComputeOptions, Tape
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.trace.intercept import Interceptor

TIMES = 200
"""Operators of a network."""

Operator = Callable[..., Any]
OPERATORS: dict[str, tuple[Operator, tuple[int, ...]]] = {
    "`x.shape`": (lambda x: x.shape, ()),
    "`torch.neg(x)`": (torch.neg, ()),
    "`x * 0.5`": (lambda x: x * 0.5, ()),
    "`torch.maximum(x, x)`": (lambda x: torch.maximum(x, x), ()),
    "`F.relu(x)`": (F.relu, ()),
    "`x.view(2, 4)`": (lambda x: x.view(2, 4), ()),
    "`x[:, :4]`": (lambda x: x[:, :4], ()),
    "`x * w`": (lambda x, w: x * w, (1,)),
    "`F.linear(x, w, b)`": (F.linear, (2, 1)),
    "`F.layer_norm(x, (4,), w, b)`": (lambda x, w, b: F.layer_norm(x, (4,), w, b), (1, 1)),
}
"""Name -> an operator on samples and weights, and how many dimensions of four each weight has."""


class Idle(TorchFunctionMode):
    """A mode that sees every operator and does nothing."""

    def __torch_function__(
        self, func: Operator, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run one operator."""
        return func(*args, **(kwargs or {}))


class Repeated(nn.Module):
    """A layer, and one operator many times on what it puts out."""

    def __init__(self, operator: Operator, dimensions: tuple[int, ...]):
        super().__init__()
        self.layer, self.operator = nn.Linear(4, 4), operator
        self.weights = nn.ParameterList(torch.ones((4,) * d) / 4 ** (d - 1) for d in dimensions)

    def forward(self, x: Tensor) -> None:
        """Run the operators."""
        x, weights = self.layer(x), tuple(self.weights)
        for _ in range(TIMES):
            self.operator(x, *weights)


def seconds(model: Repeated, x: Tensor, way: str) -> float:
    """Return the time of a forward pass. way: plain, idle or ours."""
    mode: Any = Idle() if way == "idle" else nullcontext()
    if way == "ours":
        tape = Tape(Weights(dict(model.named_parameters())), ComputeOptions())
        mode = Interceptor(tape, Inventory(model), len(x))
        x = mode.as_sample(x)
    start = time.process_time()
    with mode:
        model(x)
    return time.process_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=50, help="rounds")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("| operator | plain, us | idle mode, us | ours, us |\n| --- | --: | --: | --: |")
    for name, (operator, dimensions) in OPERATORS.items():
        model, x = Repeated(operator, dimensions), torch.randn(2, 4)
        rounds = [
            [seconds(model, x, way) for way in ("plain", "idle", "ours")] for _ in range(repeats)
        ]
        least = (1e6 * min(column) / TIMES for column in zip(*rounds, strict=True))
        print(f"| {name} | {' | '.join(f'{value:.1f}' for value in least)} |", flush=True)


if __name__ == "__main__":
    main()
