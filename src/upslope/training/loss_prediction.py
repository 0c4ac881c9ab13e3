"""A module trained beside the task network to predict its loss: LL4AL (Yoo, Kweon, CVPR 2019).

The outputs of the network's stages are pooled, each goes through a linear layer of 128 units and
ReLU, and one linear layer on all of them predicts the loss l^ of a sample. The first half of a
batch is paired with the second half from the end; with losses l_i, l_j held constant,

    loss = mean over pairs of max(0, 1 - sign(l_i - l_j) (l^_i - l^_j)),   added to the task's.

Once 60 % of the training are done, its gradient no longer reaches the task network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.models.base import NamesStages
from upslope.models.features import mean_over_positions
from upslope.pool import Need
from upslope.strategies.learning_loss import PREDICTED_LOSS
from upslope.training.auxiliary_module import Step

STOP = 0.6
WIDTH = 128
MARGIN = 1.0


class LearningLossModule:
    """The `AuxiliaryModule` that trains a `LossPrediction` along with the task network."""

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.outputs: dict[int, Tensor] = {}
        self.module: LossPrediction | None = None

    def begin(self, model: nn.Module, device: torch.device, seed: int) -> None:
        """Attach to the stages that `model` names, and start anew."""
        self.device, self.seed, self.module = device, seed, None
        names = model.stages if isinstance(model, NamesStages) else ()
        modules = dict(model.named_modules())
        if not names or not all(name in modules for name in names):
            raise ModelError(
                f"Expected {type(model).__name__} to name its stages, whose outputs ll4al reads, "
                f"in an attribute `stages`, a tuple of submodule names, but got {names!r}."
            )
        self.count = len(names)
        self.handles = [
            modules[name].register_forward_hook(self._keep(i)) for i, name in enumerate(names)
        ]

    def loss(self, step: Step) -> Tensor | None:
        """The ranking loss of the batch that the model just saw."""
        if len(step.losses) < 2:
            return None
        outputs = self.take_outputs()
        if step.progress >= STOP:
            outputs = [x.detach() for x in outputs]
        return ranking_loss(self.predict(outputs), step.losses)

    def step(self, step: Step) -> None:
        """SGD at the rate of the task network's."""
        if self.module is None or self.module.head.weight.grad is None:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = step.lr
        step.scaler.step(self.optimizer)
        self.optimizer.zero_grad()

    def end(self) -> None:
        """Detach the hooks from the model."""
        for handle in self.handles:
            handle.remove()
        self.handles, self.outputs = [], {}

    def state(self) -> dict[str, Tensor]:
        """Weights and momenta, by name."""
        if self.module is None:
            return {}
        state = {f"weight.{n}": p.detach() for n, p in self.module.named_parameters()}
        for n, p in self.module.named_parameters():
            if (momentum := self.optimizer.state[p].get("momentum_buffer")) is not None:
                state[f"momentum.{n}"] = momentum
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        if not state:
            return
        self._make([state[f"weight.stages.{i}.weight"].shape[1] for i in range(self.count)])
        assert self.module is not None
        for n, p in self.module.named_parameters():
            p.data.copy_(state[f"weight.{n}"])
            if f"momentum.{n}" in state:
                momentum = state[f"momentum.{n}"].to(self.device, copy=True)
                self.optimizer.state[p]["momentum_buffer"] = momentum

    def signal(self, need: Need) -> PredictedLoss | None:
        """The predicted loss; no other."""
        return PredictedLoss(self) if need == PREDICTED_LOSS else None

    def take_outputs(self) -> list[Tensor]:
        """The stage outputs of the last forward, first stage first; they are kept no longer."""
        outputs, self.outputs = self.outputs, {}
        if len(outputs) < self.count:
            raise ModelError(f"Expected {self.count} stages to run but {len(outputs)} did.")
        return [outputs[i] for i in range(self.count)]

    def predict(self, outputs: list[Tensor]) -> Tensor:
        """Return the predicted losses, (n,)."""
        if self.module is None:
            self._make([x.shape[1] for x in outputs])
        assert self.module is not None
        prediction: Tensor = self.module(outputs)
        return prediction

    def _make(self, widths: list[int]) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.module = LossPrediction(widths).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
        )

    def _keep(self, place: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self.outputs[place] = output

        return hook


@dataclass(frozen=True)
class PredictedLoss:
    """The loss that the companion predicts: (n,)."""

    companion: LearningLossModule
    name: ClassVar[str] = PREDICTED_LOSS.name

    def compute(self, model: nn.Module, task: Any, inputs: Tensor) -> Tensor:  # noqa: ARG002
        """(n,) for a prepared batch."""
        with torch.no_grad():
            model(inputs)
            return self.companion.predict(self.companion.take_outputs())


class LossPrediction(nn.Module):
    """Predicts the loss from stage outputs of these widths: list of (n, c, ...) -> (n,)."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)
        self.head = nn.Linear(WIDTH * len(widths), 1)

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """Return one number per sample, (n,)."""
        units = [
            layer(mean_over_positions(x).float()).relu()
            for layer, x in zip(self.stages, outputs, strict=True)
        ]
        prediction: Tensor = self.head(torch.cat(units, dim=1))
        return prediction.flatten()


def ranking_loss(predictions: Tensor, losses: Tensor) -> Tensor:
    """mean over pairs of max(0, 1 - sign(l_i - l_j) (l^_i - l^_j)), i from the first half of the
    batch and j from the end. Both (n,), n >= 2; the middle one of an odd batch has no partner.
    """
    half = len(losses) // 2
    gap = (predictions - predictions.flip(0))[:half]
    losses = losses.detach()
    # Equal losses count as the first being smaller, as in the source.
    sign = torch.where((losses - losses.flip(0))[:half] > 0, 1.0, -1.0)
    return (MARGIN - sign * gap).clamp(min=0).mean()
