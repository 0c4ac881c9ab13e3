"""What the engine is held against: one sample at a time, ordinary autograd, float64.

`assert_agrees` compares both norms, asserts which path was taken, and that the model is as it was.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from upslope.errors import GradientNormError
from upslope.gradnorm import entropy_over, gradient_norms
from upslope.gradnorm.core.uses.tape import Tape
from upslope.gradnorm.torch_faults import exact_batch_norm
from upslope.gradnorm.trace import recording

NORMS = ("tensor-sum", "global")
"""In this order: the first batch is proven parameter by parameter, the second adds them up."""
TOLERANCE = 1e-9
PointLoss = Callable[[Any, int], Tensor]
"""From the outputs for sample i alone, and i, to its loss."""


def logits_in(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits


def entropy_alone(outputs: Any, _: int) -> Tensor:
    """The entropy, by operators of which autograd keeps the sure class's digits: log p is no 0."""
    z = logits_in(outputs)[0]
    first = z.argmax(dim=0, keepdim=True)
    below = (z - z.gather(0, first)).scatter(0, first, 0)
    others = below.exp().scatter(0, first, 0).sum(dim=0)
    log_p = below - others.log1p()
    surprise = log_p.masked_fill(log_p == -math.inf, 0)  # of masked classes, of probability 0
    return -(log_p.exp() * surprise).sum(dim=0).mean()


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def count(inputs: Any) -> int:
    if isinstance(inputs, Tensor):
        return len(inputs)
    return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs[0])


def alone(inputs: Any, i: int) -> Any:
    n = count(inputs)
    inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    return tree_map_only(Tensor, lambda t: t[i : i + 1].clone() if len(t) == n else t, inputs)


def norms_one_by_one(
    model: nn.Module,
    inputs: Any,
    loss: PointLoss = entropy_alone,
    norm: str = "global",
    wanted: Callable[[str], bool] = lambda _: True,
) -> Tensor:
    """(n,) float64."""
    parameters = [p for name, p in model.named_parameters() if p.requires_grad and wanted(name)]
    rows = []
    for i in range(count(inputs)):
        with exact_batch_norm():
            outputs = call(model, alone(inputs, i))
        value = loss(outputs, i)
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        each = torch.stack(
            [torch.zeros(()) if g is None else g.abs().square().sum() for g in gradients]
        )
        rows.append(each.sum().sqrt() if norm == "global" else each.sqrt().sum())
    return torch.stack(rows).detach().double()


class Seen:
    """What a call did: the operators that met weights, and whether it went sample by sample."""

    def __init__(self) -> None:
        self.operators: list[str] = []
        self.one_by_one = 0

    @property
    def path(self) -> str:
        if self.one_by_one:
            return "one by one"
        return "replayed" if any("replayed" in name for name in self.operators) else "kernels"


@contextlib.contextmanager
def watched() -> Iterator[Seen]:
    """Sees every use of a weight, and every fall back to one backward pass per sample."""
    seen = Seen()
    use, slow = Tape.use, recording.reduce_one_by_one

    def watched_use(self: Tape, kernel: Any, *inputs: Tensor) -> Tensor:
        seen.operators.append(kernel.name)
        return use(self, kernel, *inputs)

    def watched_slow(*wanted: Any) -> Any:
        seen.one_by_one += 1
        return slow(*wanted)

    with (
        mock.patch.object(Tape, "use", watched_use),
        mock.patch.object(recording, "reduce_one_by_one", watched_slow),
    ):
        yield seen


def state(model: nn.Module) -> dict[str, Any]:
    """All that a call must leave as it was."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": [
            [len(v) for k, v in vars(m).items() if "hooks" in k and isinstance(v, dict)]
            for m in model.modules()
        ],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "identity": {name: id(t) for name, t in tensors.items()},
        "values": {name: t.detach().clone() for name, t in tensors.items()},
        "requires_grad": {name: t.requires_grad for name, t in tensors.items()},
        "grad": {name: (id(t.grad), copy.copy(t.grad)) for name, t in tensors.items()},
        "on tensors": {name: dict(vars(t)) for name, t in tensors.items()},
    }


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in before:
        if key == "values":
            for name, value in before[key].items():
                assert torch.equal(value, after[key][name]), name
        elif key == "grad":
            assert {n: i for n, (i, _) in before[key].items()} == {
                n: i for n, (i, _) in after[key].items()
            }
            for name, (_, value) in before[key].items():
                assert value is None or torch.equal(value, after[key][name][1]), name
        else:
            assert before[key] == after[key], key


def relative_error(found: Tensor, truth: Tensor) -> float:
    return float(((found - truth).abs() / truth.abs().clamp_min(1e-12)).max())


def count_refused(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Return how many batches are refused; the norms of all others must be exact."""
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for x in batches:
            try:
                norms = gradient_norms(model, x, "entropy")
            except GradientNormError:
                refused += 1
                continue
            assert relative_error(norms, norms_one_by_one(model, x)) < TOLERANCE
    return refused


def assert_agrees(
    model: nn.Module,
    inputs: Any,
    *,
    path: str = "kernels",
    loss: Any = entropy_over(1),  # noqa: B008 (a function that keeps nothing)
    point_loss: PointLoss = entropy_alone,
    parameters: Any = None,
    wanted: Callable[[str], bool] = lambda _: True,
    evaluate: bool = True,
) -> Seen:
    """Assert that the engine agrees with the oracle to 1e-9 for both norms, by this path."""
    model = model.double()
    model = model.eval() if evaluate else model
    doubled = tree_map_only(
        Tensor,
        lambda t: t.double() if t.is_floating_point() else t,
        dict(inputs) if isinstance(inputs, Mapping) else inputs,
    )
    for norm in NORMS:
        truth = norms_one_by_one(model, doubled, point_loss, norm, wanted)
        before = state(model)
        with watched() as seen:
            found = gradient_norms(model, doubled, loss, norm=norm, parameters=parameters)
        assert_unchanged(before, state(model))
        assert found.shape == truth.shape
        assert found.dtype == torch.float64
        assert not found.requires_grad
        assert relative_error(found, truth) < TOLERANCE, (norm, found, truth, seen.operators)
        assert seen.path == path, (seen.path, seen.operators)
    assert truth.max() > 1e-8, "the comparison is empty: all gradients are zero"
    return seen
