"""A small data set and a context to fit signals in."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from upslope.signals import FitContext
from upslope.tasks.classification import Classification


@dataclass
class Toy:
    """Bright images are labelled; the unlabelled are bright and dark."""

    values: Tensor
    name: str = "toy"
    classes: tuple[str, ...] = ("a", "b")
    resident: bool = True
    ids: list[str] = field(default_factory=list)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape[1:])

    def __len__(self) -> int:
        return len(self.values)

    def inputs(self, indices: list[int]) -> Tensor:
        return self.values[list(indices)]

    def targets(self, indices: list[int]) -> Tensor:
        raise AssertionError("a signal reads no labels but those it is given")


def context(seed: int = 0, labelled: int = 30, model: nn.Module | None = None) -> FitContext:
    rng = torch.Generator().manual_seed(1)
    level = torch.tensor([1.0] * 60 + [-1.0] * 60)[:, None, None, None]
    values = level + 0.3 * torch.randn(120, 1, 8, 8, generator=rng)
    if model is None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    return FitContext(
        model=model,
        task=Classification(num_classes=2),
        dataset=Toy(values),  # type: ignore[arg-type]
        unlabelled=list(range(labelled, 120)),
        labelled=list(range(labelled)),
        targets=torch.arange(labelled) % 2,
        device=torch.device("cpu"),
        rng=torch.Generator().manual_seed(seed),
        progress=lambda _done, _total: None,
    )
