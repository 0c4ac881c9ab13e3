"""What the tests of Ray run in processes of their own, and the slow network they kill; no test."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from small_tasks import MODEL, TASK, Points, perceptron, splits
from upslope import strategies
from upslope.comparison import ComparisonResult, compare
from upslope.experiment import ExperimentSettings
from upslope.seeds import global_generator
from upslope.training import TrainingSettings

CPU = torch.device("cpu")


class Slow(nn.Module):
    """A network that says which process runs it, in files of a folder, and takes its time."""

    def __init__(self, folder: Path, seconds: float) -> None:
        super().__init__()
        with global_generator(1, device=CPU):
            self.network = perceptron()
        self.folder, self.seconds = folder, seconds

    def forward(self, inputs: Tensor) -> Tensor:
        (self.folder / str(os.getpid())).touch()
        time.sleep(self.seconds)
        logits: Tensor = self.network(inputs)
        return logits


class Deadly(nn.Module):
    """A network that ends its process, unless that is the one that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.safe = perceptron(), os.getpid()

    def forward(self, inputs: Tensor) -> Tensor:
        if os.getpid() != self.safe:
            os._exit(3)
        logits: Tensor = self.network(inputs)
        return logits


def comparison(out: Path, **settings: Any) -> ComparisonResult:
    """A small comparison of two strategies under two seeds."""
    return compare(
        out,
        strategies={name: strategies.build(name) for name in ("margin", "egl")},
        seeds=[0, 1],
        splits=splits(),
        task=TASK,
        model=MODEL,
        settings=ExperimentSettings(initial=20, budget=10, cycles=3),
        training=TrainingSettings(epochs=3, batch_size=8),
        device="cpu",
        progress=False,
        **settings,
    )


def pool(n: int = 400, **options: Any) -> Points:
    return Points(n, **options)


def slow(folder: Path, seconds: float) -> Any:
    return partial(Slow, folder, seconds)
