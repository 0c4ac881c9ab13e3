"""The optimiser that the settings ask for."""

from __future__ import annotations

import torch
from torch import nn

from upslope.errors import ModelError
from upslope.training.muon import MuonWithSGD
from upslope.training.settings import TrainingSettings


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return an optimiser of the trainable parameters of `model`, which lies where it is trained.

    Raises:
        ModelError: the model has no trainable parameters.
        ConfigError: this version of PyTorch does not have the optimiser.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError(
            f"Expected {type(model).__name__} to have trainable parameters but it has none. Set "
            "requires_grad on those to train."
        )
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    if settings.optimizer == "muon":
        return MuonWithSGD(
            model,
            lr=settings.lr,
            sgd_lr=settings.sgd_lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
