"""A comparison in a process of its own, for the tests that kill its workers; not a test itself."""

from __future__ import annotations

import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from torch import nn

from small_tasks import MODEL, TASK, splits
from upslope import strategies
from upslope.comparison import compare
from upslope.errors import UpslopeError
from upslope.experiment import ExperimentSettings
from upslope.training import TrainingSettings


class Slow(nn.Module):
    """A network whose training takes long enough to be killed in."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.network = MODEL()
        self.seconds = seconds

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(self.seconds)
        return self.network(inputs)


def main(out: Path, pause: float = 0.0, workers: int = 2, seeds: int = 2) -> int:
    torch.set_num_threads(workers)
    warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
    try:
        compare(
            out,
            strategies={"margin": strategies.build("margin")},
            seeds=range(seeds),
            splits=splits(),
            task=TASK,
            model=partial(Slow, pause),
            settings=ExperimentSettings(initial=20, budget=10, cycles=2),
            training=TrainingSettings(epochs=3, batch_size=8),
            device="cpu",
            workers=workers,
            progress=False,
        )
    except UpslopeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0
