"""A comparison in a process of its own, for the tests that kill its workers; not a test itself."""

from __future__ import annotations

import sys
import time
import warnings
from functools import partial

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


def main() -> int:
    warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
    try:
        compare(
            sys.argv[1],
            strategies={"margin": strategies.build("margin")},
            seeds=[0, 1],
            splits=splits(),
            task=TASK,
            model=partial(Slow, 0.1 if sys.argv[2] == "slow" else 0.0),
            settings=ExperimentSettings(initial=20, budget=10, cycles=2),
            training=TrainingSettings(epochs=3, batch_size=8),
            device="cpu",
            workers=2,
            progress=False,
        )
    except UpslopeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    torch.set_num_threads(2)
    sys.exit(main())
