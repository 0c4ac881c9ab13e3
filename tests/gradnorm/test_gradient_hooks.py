"""Hooks on gradients are refused by name, or given the gradients of single samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import assert_agrees, norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.trace.refusals import module_with_backward_hook, refuse_parameter_hooks


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def test_hooks_on_parameters_are_refused_by_name_until_they_are_removed():
    model = net()
    parameters = dict(model.named_parameters())
    refuse_parameter_hooks(parameters)
    handle = model[2].weight.register_hook(lambda g: 2 * g)
    with pytest.raises(GradientNormError, match=r"\['2\.weight'\] have some.*remove\(\)"):
        refuse_parameter_hooks(parameters)
    refuse_parameter_hooks({"0.weight": model[0].weight})  # others are not asked about
    handle.remove()
    refuse_parameter_hooks(parameters)
    for parameter in parameters.values():
        parameter.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(
        GradientNormError, match=r"'0\.weight', '0\.bias', '2\.weight'\] and 1 more"
    ):
        refuse_parameter_hooks(parameters)


def clipped(_module, _inner, outer):
    """Not linear: the gradient of a batch would be clipped as a whole."""
    return tuple(g / g.norm() for g in outer)


def test_full_backward_hooks_are_given_single_samples():
    model = net()
    model[1].register_full_backward_hook(clipped)
    assert module_with_backward_hook(Inventory(model)) == "`1`"
    seen = assert_agrees(model, torch.randn(3, 4), path="one by one")
    assert seen.one_by_one == 1


def test_full_backward_pre_hooks_are_given_single_samples():
    model = net()
    model[1].register_full_backward_pre_hook(lambda _, outer: tuple(g / g.norm() for g in outer))
    assert_agrees(model, torch.randn(3, 4), path="one by one")


class Hooked(nn.Module):
    """A hook on a tensor of the forward pass: on samples, or on what is made of weights."""

    def __init__(self, on_weight: bool) -> None:
        super().__init__()
        self.first, self.last, self.on_weight = nn.Linear(4, 5), nn.Linear(5, 3), on_weight

    def forward(self, x: Tensor) -> Tensor:
        h, w = torch.tanh(self.first(x)), self.last.weight * 2
        (w if self.on_weight else h).register_hook(lambda g: g / g.norm())
        return nn.functional.linear(h, w, self.last.bias)


@pytest.mark.parametrize("on_weight", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_hooks_on_tensors_are_given_single_samples(on_weight, n):
    torch.manual_seed(0)
    assert_agrees(Hooked(on_weight), torch.randn(n, 4), path="one by one")


class Equilibrium(nn.Module):
    """A fixed point whose gradient a hook solves for, by backward passes inside the backward pass.

    After Bai, Kolter & Koltun 2019, arXiv:1909.01377.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state, self.input, self.out = nn.Linear(6, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        u = self.input(x)

        def step(z: Tensor) -> Tensor:
            return torch.tanh(0.3 * self.state(z) + u)

        with torch.no_grad():
            z = torch.zeros_like(u)
            for _ in range(40):
                z = step(z)
        z = step(z)
        inner = z.clone().detach().requires_grad_()
        again = step(inner)

        def solve(g: Tensor) -> Tensor:
            v = g
            for _ in range(40):
                v = torch.autograd.grad(again, inner, v, retain_graph=True)[0] + g
            return v

        if z.requires_grad:
            z.register_hook(solve)
        return self.out(z)


def test_hooks_that_run_backward_passes_of_their_own():
    torch.manual_seed(0)
    assert_agrees(Equilibrium(), torch.randn(3, 5), path="one by one")


def test_forward_hooks_are_part_of_the_model():
    model = net()
    model[0].register_forward_hook(lambda _, taken, out: out * 2 + taken[0][:, :1])
    model[2].register_forward_pre_hook(lambda _, taken: (taken[0].sin(),))
    assert module_with_backward_hook(Inventory(model)) is None
    assert_agrees(model, torch.randn(3, 4))


class ClippedByAll(torch.autograd.Function):
    """Scales the gradient of the whole batch down to norm 1."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(_: Any, g: Tensor) -> Tensor:
        return g / g.norm().clamp(min=1)


class Clipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(ClippedByAll.apply(torch.tanh(self.body(x))))


class ClippedLater(Clipped):
    """Has the custom function once it is warm; until then, what that does forward."""

    is_warm = False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        return self.head(ClippedByAll.apply(h) if self.is_warm else h * 1)


class HookedNode(nn.Module):
    """A hook on a node of autograd's graph, which does nothing to small gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        if h.requires_grad:
            h.grad_fn.register_prehook(lambda g: (g[0] / g[0].norm().clamp(min=1),))
        return self.head(h)


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("kind", [Clipped, HookedNode])
def test_gradients_that_begin_to_mix_in_the_backward_pass(kind):
    """They do not in the batches that are proven."""
    torch.manual_seed(0)
    model = kind().double()
    for size in (0.01, 0.01, 5.0, 0.01, 5.0):
        x = torch.randn(4, 3, dtype=torch.float64)
        norms = gradient_norms(model, x, lambda z, size=size: size * z.square().sum(dim=1))
        truth = norms_one_by_one(model, x, lambda z, _, size=size: size * z.square().sum())
        assert relative_error(norms, truth) < 1e-9


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
def test_a_custom_function_that_comes_later_with_the_same_operators():
    torch.manual_seed(0)
    model = ClippedLater().double()
    for is_warm in (False, False, True, True):
        model.is_warm = is_warm
        x = torch.randn(4, 3, dtype=torch.float64)
        norms = gradient_norms(model, x, five_squares)
        truth = norms_one_by_one(model, x, lambda z, _: 5 * z.square().sum())
        assert relative_error(norms, truth) < 1e-9


def five_squares(z: Tensor) -> Tensor:
    return 5 * z.square().sum(dim=1)


class DoubledForAll(torch.autograd.Function):
    """Doubles all gradients if any sample is marked."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return h.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return (2 * g if (x[:, 0] < 0).any() else g), None


class Doubled(Clipped):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(DoubledForAll.apply(torch.tanh(self.body(x)), x))


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_a_backward_pass_that_one_sample_steers_is_refused(n: int) -> None:
    for unmarked in range(n):
        torch.manual_seed(0)
        model = Doubled().double()
        x = -torch.rand(n, 3, dtype=torch.float64) - 0.1
        x[unmarked] *= -1
        with pytest.raises(GradientNormError):
            gradient_norms(model, x, five_squares)
