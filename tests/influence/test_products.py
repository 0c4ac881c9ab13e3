from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from small_problems import MODELS, Explicit, altered, problem, relative
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from short_forms import mark_rest_long
from upslope.autodiff import directional_derivative, hessian_product
from upslope.errors import GradientNormError, InfluenceError
from upslope.influence import EKFAC, Curvature, entropy_loss

MATRICES: dict[str, Callable[[Explicit], Tensor]] = {
    "hessian": Explicit.hessian,
    "gauss-newton": Explicit.gauss_newton,
    "fisher": Explicit.fisher,
    "empirical-fisher": Explicit.empirical_fisher,
}


@pytest.mark.parametrize("name", mark_rest_long(MODELS, 2))
@pytest.mark.parametrize("kind", MATRICES)
def test_products_are_those_of_the_explicit_matrix(name: str, kind: str) -> None:
    model, data = problem(name)
    exact = MATRICES[kind](Explicit(model, data))
    curvature = Curvature(model, data, kind=kind)
    v = torch.randn(curvature.size, dtype=torch.float64)
    assert relative(curvature.product(v), exact @ v) < 1e-10
    if curvature.size < 200:  # as many products
        assert relative(curvature.matrix(), exact) < 1e-10


@pytest.mark.parametrize("kind", ["hessian", "gauss-newton"])
def test_products_of_the_entropy(kind: str) -> None:
    model, data = problem("perceptron")
    exact = MATRICES[kind](Explicit(model, data), "entropy")  # type: ignore[call-arg]
    for loss in ("entropy", "expected", entropy_loss):
        assert relative(Curvature(model, data, loss, kind=kind).matrix(), exact) < 1e-10


def test_gauss_newton_of_cross_entropy_is_the_fisher_matrix() -> None:
    model, data = problem("convolutional")
    kinds = [Curvature(model, data, kind=kind).matrix() for kind in ("gauss-newton", "fisher")]
    assert relative(*kinds) < 1e-12


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("label", [0, 2])
@pytest.mark.parametrize("loss", ["label", "entropy"])
def test_products_of_sure_samples_keep_their_digits(kind: str, label: int, loss: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(5, 4), torch.randn(12, 5)
    with torch.no_grad():
        model.weight.mul_(0.1)
        model.bias.copy_(torch.tensor([20.0, -0.5, 1.0, 0.0]))
    data = [(x, torch.full((12,), label))]
    v = torch.randn(24, dtype=torch.float64)
    products = [
        Curvature(model, data, loss, kind=kind, dtype=dtype).product(v)
        for dtype in (torch.float32, torch.float64)
    ]
    assert relative(*products) < 2e-5


def test_derivatives_of_what_depends_on_no_parameter_are_zero() -> None:
    used, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    direction = torch.randn(2)
    for outputs in (torch.ones(4), (used * 2).expand(4, 3).sum(1)):
        along = directional_derivative(outputs, [unused], [direction])
        assert torch.equal(along, torch.zeros(4))
        (product,) = hessian_product(outputs.sum(), [unused], [direction])
        assert torch.equal(product, torch.zeros(2))
    by_both = directional_derivative(used * 2, [used, unused], [torch.ones(3), direction])
    assert torch.equal(by_both, torch.full((3,), 2.0))


@pytest.mark.parametrize("kind", ["hessian", "gauss-newton", "empirical-fisher"])
def test_a_loss_that_ignores_the_outputs_has_no_curvature(kind: str) -> None:
    model, data = problem("perceptron")
    curvature = Curvature(model, data, lambda z, _: torch.ones_like(z[:, 0]).detach(), kind=kind)
    product = curvature.product(torch.ones(curvature.size, dtype=torch.float64))
    assert torch.equal(product, torch.zeros_like(product))


def test_batch_products_average_to_the_product() -> None:
    model, data = problem("perceptron")
    curvature = Curvature(model, data)
    v = torch.randn(curvature.size, dtype=torch.float64)
    parts = sum(len(b[0]) * curvature.batch_product(b, v) for b in data) / curvature.samples
    assert relative(parts, curvature.product(v)) < 1e-12


def test_the_mean_gradient_and_the_number_of_samples() -> None:
    model, data = problem("perceptron")
    curvature = Curvature(model, data)
    assert curvature.samples == 23
    assert relative(curvature.gradient, Explicit(model, data).gradients().mean(0)) < 1e-12


def test_float64_for_a_float32_model_which_is_left_as_it_was() -> None:
    model, data = problem("convolutional")
    exact = Explicit(model, data).hessian()
    single = model.float().train()
    single[1].eval()
    # The oracle's weights are those of float32, rounded once.
    rounded = Explicit(problem("convolutional")[0].float().double(), data).hessian()
    before = {k: v.clone() for k, v in single.state_dict().items()}
    batches = [(x.float(), y) for x, y in data]
    found = Curvature(single, batches, dtype=torch.float64).matrix()
    assert found.dtype == torch.float64
    assert 1e-9 < relative(found, exact) < 1e-5  # inputs rounded to float32
    assert relative(found, rounded) < 1e-5
    assert single.training
    assert not single[1].training
    assert all(torch.equal(v, before[k]) for k, v in single.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in single.parameters())
    assert not any(module._forward_hooks for module in single.modules())


def test_chosen_parameters_are_a_block_of_the_matrix() -> None:
    model, data = problem("perceptron")
    exact = Explicit(model, data).hessian()
    assert relative(Curvature(model, data, parameters="last").matrix(), exact[-32:, -32:]) < 1e-10


def test_the_estimated_diagonal_nears_the_diagonal() -> None:
    model, data = problem("perceptron")
    curvature = Curvature(model, data, kind="fisher")
    exact = curvature.matrix().diagonal()
    few, many = (relative(curvature.diagonal(probes), exact) for probes in (4, 128))
    assert many < 0.3
    assert many < few


class Attending(nn.Module):
    """Attention in eval mode takes fused paths that cannot be differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


@pytest.mark.parametrize("kind", MATRICES)
def test_attention(kind: str) -> None:
    torch.manual_seed(0)
    model = Attending().double().train()
    data = [(torch.randn(5, 3, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1]))]
    curvature = Curvature(model, data, kind=kind)
    v = torch.randn(curvature.size, dtype=torch.float64)
    found = curvature.product(v)
    assert torch.backends.mha.get_fastpath_enabled()
    with sdpa_kernel(SDPBackend.MATH):
        exact = MATRICES[kind](Explicit(model, data))
    assert relative(found, exact @ v) < 1e-9


class _Square(torch.autograd.Function):
    """Knows how to go backward, twice even, and no forward mode."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return 2 * g * ctx.saved_tensors[0]


class Squaring(nn.Module):
    def __init__(self, own: bool):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.own = nn.Linear(5, 6), nn.Linear(6, 4), own

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(_Square.apply(h) if self.own else h * h)


@pytest.mark.parametrize("kind", MATRICES)
def test_an_operator_without_forward_mode(kind: str) -> None:
    data = problem("perceptron")[1]
    own, plain = (Curvature(Squaring(o).double(), data, kind=kind) for o in (True, False))
    v = torch.randn(own.size, dtype=torch.float64)
    assert relative(own.product(v), plain.product(v)) < 1e-12


def test_tied_weights_count_once() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh(), shared).double()
    data = [(torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1]))]
    assert relative(Curvature(model, data).matrix(), Explicit(model, data).hessian()) < 1e-10


def test_inputs_in_a_dict_or_a_tuple() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.a(left) * self.b(right)

    torch.manual_seed(0)
    model, y = Two().double(), torch.tensor([0, 1, 2])
    left, right = torch.randn(3, 2).double(), torch.randn(3, 3).double()
    by_name = Curvature(model, [({"left": left, "right": right}, y)]).matrix()
    by_place = Curvature(model, [((left, right), y)]).matrix()
    assert torch.equal(by_name, by_place)


def test_wrong_arguments_are_named() -> None:
    model, data = problem("perceptron")
    with pytest.raises(InfluenceError, match=r"one of \['empirical-fisher', .* but got 'hesian'"):
        Curvature(model, data, kind="hesian")
    with pytest.raises(InfluenceError, match="but got 'cross'"):
        Curvature(model, data, "cross")
    with pytest.raises(InfluenceError, match=r"of shape \(74,\), one entry per parameter, but got"):
        Curvature(model, data).product(torch.zeros(3))
    with pytest.raises(InfluenceError, match="`vector` to be finite"):
        Curvature(model, data).product(torch.full((74,), torch.nan))
    with pytest.raises(InfluenceError, match=r"`dtype` to be .* but got torch\.float16"):
        Curvature(model, data, dtype=torch.float16)
    with pytest.raises(
        InfluenceError, match=r"parameters to be .* got torch.bfloat16, .* `dtype=torch.float32`"
    ):
        Curvature(copy.deepcopy(model).bfloat16(), data)
    with pytest.raises(GradientNormError, match="are none"):
        Curvature(model, data, parameters="third")
    with pytest.raises(InfluenceError, match="`probes` to be at least 1"):
        Curvature(model, data).diagonal(0)


def test_unusable_data_is_named() -> None:
    model, data = problem("perceptron")
    with pytest.raises(InfluenceError, match="gone through many times but got generator"):
        Curvature(model, (batch for batch in data))
    with pytest.raises(InfluenceError, match="at least one batch"):
        Curvature(model, [])
    with pytest.raises(InfluenceError, match=r"a pair \(inputs, targets\) but got Tensor"):
        Curvature(model, [data[0][0]])  # type: ignore[list-item]
    with pytest.raises(InfluenceError, match=r"of shape \(n,\), but got \(\)"):
        Curvature(model, data, lambda z, y: nn.functional.cross_entropy(z, y))
    with pytest.raises(InfluenceError, match=r"`data` .* but got inputs \(0, 5\) float64"):
        Curvature(model, [data[0], (data[0][0][:0], data[0][1][:0])])
    with pytest.raises(InfluenceError, match="that of sample 11 of `data` is nan"):
        Curvature(model, altered(data, 11, value=torch.nan))
    with pytest.raises(InfluenceError, match=r"from sample 9 on, .* Target 4 is out of bounds\. "):
        Curvature(model, altered(data, 11, label=4))
    with pytest.raises(InfluenceError, match=r"inputs \(9, 5\) float64 and targets \(3,\) int64"):
        Curvature(model, [(data[0][0], data[0][1][:3])])
    with pytest.raises(InfluenceError, match="finite gradient of the losses of `data`"):
        Curvature(model, data, lambda z, _: (0 * z.square().sum(1)).sqrt())
    # Infinite curvature where the loss itself is finite: |z|^1.5 at 0.
    torch.nn.init.zeros_(model[2].weight)  # type: ignore[index,arg-type]
    torch.nn.init.zeros_(model[2].bias)  # type: ignore[index,arg-type]
    steep = Curvature(model, data, lambda z, _: (z.square().sum(1) + 1e-300) ** 0.75)
    with pytest.raises(InfluenceError, match="finite hessian product"):
        steep.product(torch.full((74,), 1e300, dtype=torch.float64))


def test_a_model_whose_samples_meet_is_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False)).double()
    with pytest.raises(InfluenceError, match="'1' normalises by the statistics of the batch"):
        Curvature(model, problem("perceptron")[1])


def test_a_matrix_too_large_is_refused() -> None:
    curvature = Curvature(nn.Linear(100, 60), [(torch.randn(2, 100), torch.tensor([0, 1]))])
    with pytest.raises(InfluenceError, match=r"at most 5000 parameters .* has 6060"):
        curvature.matrix()


def test_fisher_of_dense_outputs_is_refused() -> None:
    model = nn.Conv2d(1, 3, 1).double()
    data = [(torch.randn(2, 1, 2, 2).double(), torch.zeros(2, 2, 2, dtype=torch.int64))]
    v = torch.arange(6, dtype=torch.float64)
    with pytest.raises(InfluenceError, match='Use kind="gauss-newton"'):
        Curvature(model, data, kind="fisher").product(v)
    exact = Curvature(model, data).matrix()  # linear, so its Hessian is its Gauss-Newton matrix
    assert relative(Curvature(model, data, kind="gauss-newton").product(v), exact @ v) < 1e-10


class Parts(NamedTuple):
    left: Tensor
    right: Tensor


class Joins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([left, right], dim=1)))


def test_inputs_that_are_a_named_tuple_are_those_of_a_tuple() -> None:
    left, right, y = torch.randn(9, 2), torch.randn(9, 4), torch.arange(9) % 3
    model = Joins()
    results = []
    for inputs in ((left, right), Parts(left, right)):
        curvature = Curvature(model, [(inputs, y)], dtype=torch.float64)
        v = torch.ones(curvature.size, dtype=torch.float64)
        results.append((curvature.product(v), EKFAC(curvature).product(v)))
    for expected, result in zip(*results, strict=True):
        assert torch.equal(expected, result)
