"""A network as a function of its parameters: theta -> outputs, losses and their derivatives.

The module itself is never written to. Parameters and buffers are taken once, in the type asked
for, and handed to each call, so that a float32 model can be differentiated in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.modules.batchnorm import _BatchNorm

from upslope.autodiff import directional_derivative, evaluating
from upslope.errors import InfluenceError, UpslopeError
from upslope.gradnorm import select
from upslope.gradnorm.parameters import Parameters
from upslope.influence.losses import LossFunction, loss_named

Batches = Iterable[tuple[Any, Any]]
"""Batches of (inputs, targets), to be gone through many times: a list, a DataLoader. Inputs are a
tensor, or a tuple or dict of them, samples in dimension 0; targets are what the loss takes."""
Theta = dict[str, Tensor]
T = TypeVar("T")


class Network:
    """The model and the loss, at the parameters that the model has now."""

    def __init__(
        self,
        model: nn.Module,
        loss: str | LossFunction,
        parameters: Parameters,
        dtype: torch.dtype | None,
    ):
        self.model, self.loss, self.parameters = model, loss_named(loss), parameters
        selection = select(model, parameters)
        first = next(iter(selection.values()))
        self.device, self.dtype = first.device, dtype or first.dtype
        if self.dtype not in (torch.float32, torch.float64):
            whose = "the model's parameters" if dtype is None else "`dtype`"
            raise InfluenceError(
                f"Expected {whose} to be torch.float32 or torch.float64 but got {self.dtype}, in "
                "which no curvature can be inverted. Pass `dtype=torch.float32`: it computes so, "
                "and leaves the model as it is."
            )
        self.theta: Theta = {
            name: self.as_stored(p.detach().clone()) for name, p in selection.items()
        }
        state = (*model.named_parameters(), *model.named_buffers())
        self._rest = {
            name: self.as_stored(t.detach().clone()) for name, t in state if name not in selection
        }
        self.size = sum(p.numel() for p in self.theta.values())
        _refuse_batch_statistics(model)

    def as_stored(self, tree: T) -> T:
        """Return tensors of a batch on the model's device; floating ones in the type asked for."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

        return map_tensors(tree, move)

    def batches(self, data: Batches, name: str) -> Iterator[tuple[Any, Any]]:
        """Yield the batches of the data set `name`, moved.

        Raises:
            InfluenceError: the data can be gone through only once, is not of pairs, or is empty,
                or a batch of it is.
        """
        if isinstance(data, Iterator):
            raise InfluenceError(
                f"Expected `{name}` to be batches that can be gone through many times but got "
                f"{type(data).__name__}, which is used up after one. Pass a list or a DataLoader."
            )
        empty = True
        for batch in data:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise InfluenceError(
                    f"Expected each batch of `{name}` to be a pair (inputs, targets) but got "
                    f"{type(batch).__name__}. Where the loss takes no targets, pass (inputs, None)."
                )
            pair = self.as_stored(batch[0]), self.as_stored(batch[1])
            if sample_count(pair) == 0:
                raise InfluenceError(
                    f"Expected each batch of `{name}` to have at least one sample but got inputs "
                    f"{_shape(pair[0])}. Leave empty batches out."
                )
            yield pair
            empty = False
        if empty:
            raise InfluenceError(f"Expected `{name}` to have at least one batch but got none.")

    def leaves(self) -> Theta:
        """Return the parameters, for autograd to differentiate."""
        return {name: p.clone().requires_grad_() for name, p in self.theta.items()}

    def outputs(self, theta: Theta, inputs: Any) -> Any:
        """Return what the model returns at these parameters."""
        state = {**self._rest, **theta}
        if isinstance(inputs, dict):
            return functional_call(self.model, state, (), inputs)
        args = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        return functional_call(self.model, state, tuple(args))

    def losses(self, theta: Theta, batch: tuple[Any, Any], loss: LossFunction) -> Tensor:
        """Return one loss per sample, (n,).

        Raises:
            InfluenceError: the loss gives something else.
        """
        inputs, targets = batch
        losses = loss(self.outputs(theta, inputs), targets)
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            what = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise InfluenceError(
                f"Expected the loss to give one value per sample, of shape (n,), but got {what}. "
                'Use reduction="none", and the mean over what is left of each sample.'
            )
        return losses

    def finite_losses(
        self, theta: Theta, batch: tuple[Any, Any], loss: LossFunction, name: str, first: int
    ) -> Tensor:
        """Return the `losses` of a batch of the data set `name`.

        first: the number of the batch's first sample.

        Raises:
            InfluenceError: the model or the loss fails on the batch; a loss is not finite.
        """
        with naming(batch, name, first):
            losses = self.losses(theta, batch, loss)
        bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
        if bad:
            raise InfluenceError(
                f"Expected finite losses but that of sample {first + bad[0]} of `{name}` is "
                f"{losses[bad[0]].item()}. Look at its inputs and at the model's outputs on it."
            )
        return losses

    def gradient_sum(self, data: Batches, loss: LossFunction, name: str) -> tuple[Tensor, int]:
        """Return (sum_j grad L(x_j) over the data, (p,); the number of samples).

        Raises:
            InfluenceError: see `batches` and `finite_losses`; a gradient is not finite.
        """
        total, n = torch.zeros(self.size, dtype=self.dtype, device=self.device), 0
        with evaluating(self.model):
            for batch in self.batches(data, name):
                theta = self.leaves()
                losses = self.finite_losses(theta, batch, loss, name, n)
                total += self.flatten_theta(pull_back(losses.sum(), theta))
                n += len(losses)
        if not bool(torch.isfinite(total).all()):
            raise InfluenceError(
                f"Expected a finite gradient of the losses of `{name}` but it holds NaN or "
                "infinity. Look for roots and divisions in the model and the loss."
            )
        return total, n

    def along(self, function: Callable[[Theta], Tensor], direction: Tensor) -> Tensor:
        """Return the derivative of function(theta) in this direction: forward-mode, one pass.

        Where an operator of the model knows no forward mode, by differentiating the backward pass
        in its weights: the same number at about twice the price.
        """
        tangent = self.split(direction)
        _ready_forward_mode()
        try:
            derivative: Tensor = jvp(function, (self.theta,), (tangent,))[1]
            return derivative.detach()
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, RuntimeError):
            # An error of the model's own is raised again here.
            leaves = self.leaves()
            return directional_derivative(
                function(leaves), list(leaves.values()), list(tangent.values())
            )

    def slopes(self, batch: tuple[Any, Any], loss: LossFunction, direction: Tensor) -> Tensor:
        """Return <direction, grad L(x)> for each sample of a batch, (n,), by `along`."""
        return self.along(lambda theta: self.losses(theta, batch, loss), direction)

    def split(self, vector: Tensor) -> Theta:
        """Return one tensor a parameter for (p,)."""
        shapes = [p.shape for p in self.theta.values()]
        pieces = torch.split(vector, [shape.numel() for shape in shapes])
        return {name: v.view(s) for name, v, s in zip(self.theta, pieces, shapes, strict=True)}

    def flatten_theta(self, theta: Theta) -> Tensor:
        """Return (p,) for one tensor a parameter."""
        return torch.cat([theta[name].detach().reshape(-1) for name in self.theta])

    def check_vector(self, vector: Tensor, name: str) -> Tensor:
        """Return the vector, on the device and in the type of the parameters.

        Raises:
            InfluenceError: it has not one finite entry per parameter.
        """
        if vector.shape != (self.size,):
            raise InfluenceError(
                f"Expected `{name}` of shape ({self.size},), one entry per parameter, but got "
                f"{tuple(vector.shape)}."
            )
        if not bool(torch.isfinite(vector).all()):
            raise InfluenceError(f"Expected `{name}` to be finite but it holds NaN or infinity.")
        return vector.to(self.device, self.dtype)


def map_tensors(tree: T, function: Callable[[Tensor], Tensor]) -> T:
    """Return the same tree of tuples, lists and dicts with the function of each tensor."""
    result: Any = tree
    if isinstance(tree, Tensor):
        result = function(tree)
    elif isinstance(tree, dict):
        result = {key: map_tensors(t, function) for key, t in tree.items()}
    elif isinstance(tree, (tuple, list)):
        parts = [map_tensors(t, function) for t in tree]
        result = type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return result  # type: ignore[no-any-return]


def pull_back(output: Tensor, theta: Theta, weights: Tensor | None = None) -> Theta:
    """Return the gradient of sum(weights * output) by theta; zeros where the output does not use
    it.
    """
    if not output.requires_grad:
        return {name: torch.zeros_like(p) for name, p in theta.items()}
    leaves = list(theta.values())
    grads = torch.autograd.grad(output, leaves, weights, allow_unused=True, materialize_grads=True)
    return dict(zip(theta, grads, strict=True))


def sample_count(batch: tuple[Any, Any]) -> int:
    """Return the samples in a batch: the length of its first input."""
    inputs = batch[0]
    while not isinstance(inputs, Tensor):
        inputs = next(iter(inputs.values() if isinstance(inputs, dict) else inputs))
    return len(inputs)


@contextmanager
def naming(batch: tuple[Any, Any], name: str, first: int) -> Iterator[None]:
    """Say of which batch an error is that the model or the loss raises.

    Raises:
        InfluenceError: in place of an error that is not Upslope's own.
    """
    try:
        yield
    except (UpslopeError, torch.OutOfMemoryError):
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines() or [""]
        raise InfluenceError(
            f"Expected the model and the loss to take every batch of `{name}` but the one from "
            f"sample {first} on, inputs {_shape(batch[0])} and targets {_shape(batch[1])}, raised "
            f"{type(error).__name__}: {reason[0].rstrip('.')}. Inputs are what the model takes, "
            "and targets what the loss takes: with C outputs, an integer from 0 to C - 1 a sample."
        ) from error


def _shape(tree: Any) -> str:
    if isinstance(tree, Tensor):
        return f"{tuple(tree.shape)} {tree.dtype}".replace("torch.", "")
    return type(tree).__name__


@cache
def _ready_forward_mode() -> None:
    """Use forward mode once: it then compiles formulas, by means of which torch itself warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InfluenceError(
                f"Expected every sample's loss to depend on that sample alone but {name!r} "
                "normalises by the statistics of the batch, also in eval mode. Build it with "
                "`track_running_stats=True`."
            )
