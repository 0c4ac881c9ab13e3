"""Muon for filters and matrices, SGD for all other parameters, as one optimiser.

Muon (Jordan et al. 2024) replaces the momentum of a matrix by the nearest matrix whose singular
values are all about 1. PyTorch's takes matrices alone: a filter bank is given to it as the matrix
of one row per output channel, a view of the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from upslope.errors import ConfigError

STEPS = 3
"""Newton-Schulz steps per update: enough for small networks, and fewer than PyTorch's five."""


class MuonWithSGD(torch.optim.Optimizer):
    """Two parameter groups: matrices and filters with Muon at `lr`, the rest with SGD at `sgd_lr`.

    Every parameter of two or more dimensions is a matrix or a filter bank, but for the tables of
    embeddings. The weight decay of Muon is decoupled (times the rate); SGD's part has none.
    A group's `factor` is its rate relative to the first group's.

    Raises:
        ConfigError: PyTorch is older than 2.9 and has no Muon.
    """

    def __init__(
        self, model: nn.Module, *, lr: float, sgd_lr: float, momentum: float, weight_decay: float
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                "Expected PyTorch 2.9 or later, whose Muon is used, for optimizer='muon' but got "
                f"{torch.__version__}. Update PyTorch, or take optimizer='sgd' with nesterov=True."
            )
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._matrices = [p for p in parameters if p.ndim > 1 and id(p) not in tables]
        others = [p for p in parameters if p.ndim <= 1 or id(p) in tables]
        groups = [
            {"params": self._matrices, "lr": lr, "factor": 1.0},
            {"params": others, "lr": sgd_lr, "factor": sgd_lr / lr},
        ]
        super().__init__([group for group in groups if group["params"]], {})
        self._views = [_as_matrix(p.detach(), p) for p in self._matrices]
        self._parts: list[torch.optim.Optimizer] = []
        if self._views:
            self._parts.append(
                torch.optim.Muon(
                    self._views,
                    lr=lr,
                    momentum=momentum,
                    weight_decay=weight_decay,
                    ns_steps=STEPS,
                )
            )
        if others:
            self._parts.append(
                torch.optim.SGD(others, lr=sgd_lr, momentum=momentum, nesterov=momentum > 0)
            )
        self._share_state()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients; takes no closure."""
        assert closure is None
        for parameter, view in zip(self._matrices, self._views, strict=True):
            gradient = parameter.grad
            view.grad = None if gradient is None else _as_matrix(gradient, parameter)
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._share_state()

    def _share_state(self) -> None:
        """Let the inner optimisers keep their state in this one's, by its parameters."""
        inner = {id(v): p for v, p in zip(self._views, self._matrices, strict=True)}
        for part in self._parts:
            for tensor in part.param_groups[0]["params"]:
                parameter = inner.get(id(tensor), tensor)
                part.state[tensor] = self.state[parameter]


def _as_matrix(tensor: Tensor, parameter: Tensor) -> Tensor:
    """(rows, columns) of a filter bank (rows, ...); a view where `tensor` lies as `parameter` does.

    The order of the columns is that of the parameter's memory: Muon commutes with it.
    """
    strides = parameter.stride()
    order = sorted(range(1, parameter.ndim), key=lambda d: -strides[d])
    return tensor.permute(0, *order).flatten(1)
