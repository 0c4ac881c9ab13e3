"""The optimiser that the settings ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from upslope.errors import ModelError
from upslope.models import head
from upslope.models.base import NamesBackbone
from upslope.training.muon import MuonWithSGD
from upslope.training.settings import TrainingSettings


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return an optimiser of the trainable parameters of `model`, which lies where it is trained.

    Raises:
        ModelError: the model has no trainable parameters, or no head, which `backbone_rate` needs.
        ConfigError: this version of PyTorch does not have the optimiser.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ModelError(
            f"Expected {type(model).__name__} to have trainable parameters but it has none. Set "
            "requires_grad on those to train."
        )
    groups = _groups(model, parameters, settings)
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    if settings.optimizer == "muon":
        return MuonWithSGD(
            model,
            lr=settings.lr,
            sgd_lr=settings.sgd_lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.SGD(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )


def _groups(
    model: nn.Module, parameters: list[nn.Parameter], settings: TrainingSettings
) -> list[dict[str, Any]]:
    """Return the groups of an optimiser, the head's first; `factor`: the rate relative to `lr`."""
    if settings.backbone_rate == 1:
        return [{"params": parameters}]
    below = _backbone(model)
    parts = (
        ([p for p in parameters if id(p) not in below], 1.0),
        ([p for p in parameters if id(p) in below], settings.backbone_rate),
    )
    return [
        {"params": part, "lr": settings.lr * factor, "factor": factor}
        for part, factor in parts
        if part
    ]


def _backbone(model: nn.Module) -> set[int]:
    """The ids of the parameters that are not new: the named parts', or all below the head."""
    if isinstance(model, NamesBackbone):
        parts = [model.get_submodule(name) for name in model.backbone]
        return {id(parameter) for part in parts for parameter in part.parameters()}
    of_head = {id(parameter) for parameter in head(model).parameters()}
    return {id(p) for p in model.parameters()} - of_head
