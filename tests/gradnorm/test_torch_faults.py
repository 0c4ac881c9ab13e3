"""Normalisation whose gradient PyTorch gets wrong for some strides: here it is the formula's."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.uses.tape import ComputeOptions, Tape
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.kernels.batch_norm import BatchNormEval, Normalisation
from upslope.gradnorm.torch_faults import exact_batch_norm, in_order

C = 6
SHAPES = [(1, C, 4, 4), (1, C, 4, 1), (2, C, 1, 4), (2, C, 3, 3), (1, C, 5), (1, C, 2, 3, 2)]


def in_every_order(shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Random tensors with every order of dimensions, and odd strides along those of size one."""
    rng = torch.Generator().manual_seed(0)
    for order in itertools.permutations(range(len(shape))):
        values = torch.randn([shape[d] for d in order], generator=rng, dtype=torch.float64)
        tensor = values.permute([order.index(d) for d in range(len(shape))])
        yield tensor
        for dim in (d for d, size in enumerate(shape) if size == 1):
            for stride in (1, shape[1], 1000):
                strides = list(tensor.stride())
                strides[dim] = stride
                yield tensor.as_strided(shape, strides)


def statistics() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    mean, var, weight, bias = torch.rand(4, C, generator=rng, dtype=torch.float64) + 0.5
    return mean, var, weight.requires_grad_(), bias.requires_grad_()


MEAN, VAR, WEIGHT, BIAS = statistics()


def along_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, C, *(1,) * (x.dim() - 2))


def batch_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, MEAN, VAR, WEIGHT, BIAS, False)


def batch_norm_by_formula(x: Tensor) -> Tensor:
    mean, var, weight, bias = (along_channels(t, x) for t in (MEAN, VAR, WEIGHT, BIAS))
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def instance_norm(x: Tensor) -> Tensor:
    return F.instance_norm(x, weight=WEIGHT, bias=BIAS)


def instance_norm_by_formula(x: Tensor) -> Tensor:
    space = tuple(range(2, x.dim()))
    mean = x.mean(space, keepdim=True)
    var = x.var(space, keepdim=True, unbiased=False)
    return (x - mean) / (var + 1e-5).sqrt() * along_channels(WEIGHT, x) + along_channels(BIAS, x)


FUNCTIONS = {
    "batch": (batch_norm, batch_norm_by_formula),
    "instance": (instance_norm, instance_norm_by_formula),
}


@pytest.mark.parametrize("which", FUNCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_the_formula_for_every_order_in_memory(shape, which):
    function, formula = FUNCTIONS[which]
    layouts = list(in_every_order(shape))
    pairs = [(layouts[0], g) for g in layouts] + [(x, layouts[0]) for x in layouts]
    pairs += [(layout, layout) for layout in layouts]
    for x, g in pairs:
        x = x.detach().requires_grad_()
        with exact_batch_norm():
            out = function(x)
        # Asked after the context is left.
        found = torch.autograd.grad(out, [x, WEIGHT, BIAS], g)
        truth = torch.autograd.grad(formula(x), [x, WEIGHT, BIAS], g)
        for ours, right in zip(found, truth, strict=True):
            assert torch.allclose(ours, right, atol=1e-9), (x.stride(), g.stride())


def test_a_tensor_in_either_order_is_not_copied():
    for x in (torch.randn(2, 3, 4, 5), torch.randn(1, 3, 4), torch.randn(4, 3)):
        assert in_order(x) is x
    last = torch.randn(1, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert in_order(last) is last


@pytest.mark.parametrize("which", ["batch", "instance"])
def test_outputs_can_be_written_to_and_differentiated_twice(which):
    function, formula = FUNCTIONS[which]
    x = torch.randn(2, C, 3, 3, dtype=torch.float64, requires_grad=True)
    second = []
    for run in (function, formula):
        with exact_batch_norm():
            out = run(x).mul_(2).relu_()
        (g,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(g.square().sum(), x)[0])
    assert torch.allclose(*second)


class Tokens(nn.Module):
    """Convolution, normalisation, tokens, attention: the gradient comes from transposed tokens."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(2, C, 1), norm, nn.Linear(C, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        return self.out((tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens).mean(1)


class Stack(nn.Module):
    """Convolutions before and after: the gradient has its channels last."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(2, C, 1), norm, nn.Tanh(), nn.Conv2d(C, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean((2, 3))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("body", [Tokens, Stack])
@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(C), nn.InstanceNorm2d(C), nn.InstanceNorm2d(C, affine=True)], ids=repr
)
def test_norms_of_networks_with_normalisation_by_single_samples(norm, body, asked, n):
    """Against the gradients of a batch of ten, formed by the formula of each normalisation."""
    torch.manual_seed(0)
    model = body(norm).double().eval()
    norm.requires_grad_(asked)
    x = torch.randn(n, 2, 4, 4, dtype=torch.float64)
    found = gradient_norms(model, x, "entropy")
    parameters = [p for p in model.parameters() if p.requires_grad]

    def by_formula(_module, taken, _output):
        (images,) = taken
        if isinstance(norm, nn.BatchNorm2d):
            mean, var = (along_channels(t, images) for t in (norm.running_mean, norm.running_var))
        else:
            mean = images.mean((2, 3), keepdim=True)
            var = images.var((2, 3), keepdim=True, unbiased=False)
        out = (images - mean) / (var + norm.eps).sqrt()
        if norm.weight is None:
            return out
        return out * along_channels(norm.weight, images) + along_channels(norm.bias, images)

    handle = norm.register_forward_hook(by_formula)
    p = model(x).softmax(dim=1)
    handle.remove()
    losses = torch.special.entr(p).sum(dim=1)
    for i in range(n):
        gradients = torch.autograd.grad(losses[i], parameters, retain_graph=True)
        truth = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        assert abs(found[i] - truth) < 1e-9 * truth


def test_large_samples_are_summed_rightly_in_every_order():
    """One sample at a time goes through the operator with the fault."""
    norm = nn.BatchNorm2d(C).double().eval()
    tape = Tape(Weights(dict(norm.named_parameters())), ComputeOptions())
    given = Normalisation(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)
    kernel = BatchNormEval(tape, given)
    n, h, w = 2, 64, 4
    x = torch.randn(n, C, h, w, dtype=torch.float64)
    g = torch.randn(n * C * h * w, dtype=torch.float64).as_strided(
        (n, C, h, w), (C, 1, n * w * C, n * C)
    )
    for i in range(n):
        scale, shift = kernel._one_by_one(g[i : i + 1], x[i : i + 1])
        right = kernel._at_once(g[i : i + 1], x[i : i + 1])
        assert torch.allclose(scale, right[0])
        assert torch.allclose(shift, right[1])


@pytest.mark.parametrize("shape", [(3, C, 4, 4), (3, C, 2, 3, 2)])
def test_scales_of_groups_alone_with_channels_last(shape: tuple[int, ...]) -> None:
    # PyTorch's own backward pass ends the process here, so that there is nothing to compare with
    # but the same numbers in another order of memory.
    torch.manual_seed(0)
    norm = nn.GroupNorm(2, C).double().requires_grad_()
    x = torch.randn(shape, dtype=torch.float64)
    order = torch.channels_last if len(shape) == 4 else torch.channels_last_3d

    def loss(y: Tensor) -> Tensor:
        return y.tanh().flatten(1).pow(3).sum(1)

    norms = gradient_norms(norm, x.to(memory_format=order), loss)
    torch.testing.assert_close(norms, gradient_norms(norm, x, loss), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "convolution", [nn.Conv2d(3, 8, 1, 2), nn.ConvTranspose2d(16, 3, 1, 2, output_padding=1)]
)
def test_pixels_of_few_channels_that_lie_last(
    convolution: nn.Conv2d | nn.ConvTranspose2d,
) -> None:
    # On some processors PyTorch's own backward pass ends the process here.
    torch.manual_seed(0)
    model = nn.Sequential(convolution, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.randn(8, convolution.in_channels, 64, 64)
    truth = gradient_norms(copy.deepcopy(model).double(), x.double(), "entropy")
    x = x.to(memory_format=torch.channels_last)
    for _ in range(3):
        norms = gradient_norms(copy.deepcopy(model), x, "entropy")
        torch.testing.assert_close(norms.double(), truth, rtol=1e-3, atol=0)


class NoiseLikeGroups(nn.Module):
    """Noise that lies in memory as the output of a group normalisation does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, C, 3), nn.GroupNorm(2, C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x).contiguous(memory_format=torch.channels_last))
        return y * (1 + torch.randn_like(y))


@pytest.mark.parametrize("n", [1, 3])
def test_noise_like_a_group_normalisation_with_channels_last(n: int) -> None:
    torch.manual_seed(0)
    model, x = NoiseLikeGroups().double(), torch.randn(n, 3, 7, 7, dtype=torch.float64)

    def loss(y: Tensor) -> Tensor:
        return y.tanh().flatten(1).pow(3).sum(1)

    torch.manual_seed(1)
    norms = gradient_norms(model, x, loss)
    torch.manual_seed(1)
    losses = loss(model(x))
    for k in range(n):
        gradients = torch.autograd.grad(losses[k], list(model.parameters()), retain_graph=True)
        expected = torch.cat([g.flatten() for g in gradients]).norm()
        torch.testing.assert_close(norms[k], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("function", [F.batch_norm, F.instance_norm, F.group_norm])
@pytest.mark.parametrize(
    "x",
    [
        torch.randn(1, 35, 4).mT.unflatten(2, (5, 7)),
        torch.randn(3, 35, 4).mT.unflatten(2, (5, 7)),
        torch.randn(3, 5, 1, 4).permute(0, 3, 1, 2),
        torch.randn(1, 4, 5, 6).to(memory_format=torch.channels_last),
        torch.randn(2, 4, 5, 6, 3).to(memory_format=torch.channels_last_3d),
        torch.randn(6, 5, 4, 3).permute(3, 2, 1, 0),
        torch.randn(3, 4, 6),
    ],
    ids=lambda x: str(x.stride()),
)
def test_outputs_lie_where_pytorch_leaves_them(function: Any, x: Tensor) -> None:
    more = {
        F.batch_norm: (torch.zeros(4), torch.ones(4)), F.instance_norm: (), F.group_norm: (2,)
    }[function]  # fmt: skip
    wanted = function(x, *more)
    with exact_batch_norm():
        output = function(x, *more)
    assert output.stride() == wanted.stride()
    torch.testing.assert_close(output, wanted)
