"""A small data set, a task and networks for the tests of training, scoring and experiments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upslope import strategies
from upslope.datasets import Splits
from upslope.errors import DataError
from upslope.experiment import Experiment
from upslope.tasks import Classification

CLASSES = ("left", "right", "far")


@dataclass(frozen=True)
class Points:
    """`n` points in the plane, three classes by where they lie; some may be unreadable."""

    n: int
    seed: int = 0
    resident: bool = True
    name: str = "points"
    classes: tuple[str, ...] = CLASSES
    input_shape: tuple[int, ...] = (2,)
    corrupt: frozenset[int] = frozenset()
    labelled: bool = True

    @property
    def ids(self) -> Sequence[str]:
        return tuple(f"p{i:04d}" for i in range(self.n))

    def __len__(self) -> int:
        return self.n

    def _all(self) -> Tensor:
        return torch.randn(self.n, 2, generator=torch.Generator().manual_seed(self.seed))

    def inputs(self, indices: Sequence[int]) -> Tensor:
        if bad := self.corrupt & set(indices):
            raise DataError(f"Expected to read {self.ids[min(bad)]} but it is torn.")
        return self._all()[torch.as_tensor(indices)]

    def targets(self, indices: Sequence[int]) -> Tensor:
        if not self.labelled:
            raise DataError("Expected labels but nobody knows them.")
        x = self._all()[torch.as_tensor(indices)]
        return torch.where(x.norm(dim=1) > 1.5, 2, (x[:, 0] > 0).long())


def perceptron(width: int = 16, dropout: float = 0.0, norm: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, width),
        nn.BatchNorm1d(width) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, 3),
    )


TASK = Classification(3, classes=CLASSES)
MODEL = partial(perceptron, 16)


def splits(n: int = 200, **options: object) -> Splits:
    return Splits(Points(n, **options), Points(80, seed=1, name="test points"))  # type: ignore[arg-type]


@contextmanager
def opening(folder: Path, **defaults: Any) -> Iterator[Callable[..., Experiment]]:
    """Yield a function that opens experiments below a folder, and close them all at the end.

    It takes the name of a run's folder, a strategy or the name of one, and other arguments of
    `Experiment` in place of the defaults.
    """
    with ExitStack() as opened:

        def open_one(name: str = "run", strategy: Any = "margin", **options: Any) -> Experiment:
            arguments = {"splits": splits(), "task": TASK, "model": MODEL, "device": "cpu"}
            arguments |= {**defaults, **options}
            if isinstance(strategy, str):
                strategy = strategies.build(strategy)
            return opened.enter_context(Experiment(folder / name, strategy=strategy, **arguments))

        yield open_one
