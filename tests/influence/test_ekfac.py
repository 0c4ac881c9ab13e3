from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from small_problems import Explicit, problem, relative
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import InfluenceError
from upslope.influence import EKFAC, ConjugateGradients, Curvature, influence_on_test_loss
from upslope.influence.layers import Layer


def dense(ekfac: EKFAC, size: int) -> Tensor:
    return torch.stack([ekfac.product(e) for e in torch.eye(size, dtype=torch.float64)])


def block(oracle: Explicit, names: list[str], matrix: Tensor) -> Tensor:
    """The rows and columns of the named parameters."""
    ends = torch.tensor([p.numel() for p in oracle.named.values()]).cumsum(0).tolist()
    starts = dict(zip(oracle.named, [0, *ends], strict=False))
    index = torch.cat([torch.arange(starts[n], starts[n] + oracle.named[n].numel()) for n in names])
    return matrix[index][:, index]


def reference(oracle: Explicit, weight: str, bias: str, a: Tensor, g: Tensor) -> Tensor:
    """EK-FAC of one linear layer from its definition, by explicit Kronecker products.

    a: (n, in + 1). g: (n, classes, out), gradients of the outputs with weights sqrt(p).
    """
    u_a = torch.linalg.eigh(a.T @ a).eigenvectors
    u_g = torch.linalg.eigh(torch.einsum("nci,ncj->ij", g, g)).eigenvectors
    basis = torch.kron(u_g, u_a)  # columns of the matrix (out, in + 1) laid out by rows
    gradients = torch.einsum("nci,nj->ncij", g, a).flatten(2)  # (n, c, out * (in + 1))
    values = (gradients @ basis).square().sum((0, 1)) / len(a)
    return basis @ torch.diag(values) @ basis.T


def test_it_is_its_definition_on_a_linear_layer() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    x, y = torch.randn(12, 3).double(), torch.randint(0, 4, (12,))
    curvature = Curvature(model, [(x[:7], y[:7]), (x[7:], y[7:])], kind="fisher")
    p = model(x).softmax(1).detach()
    g = p.sqrt()[:, :, None] * (p[:, None] - torch.eye(4))  # (n, label, out)
    a = torch.cat([x, torch.ones(12, 1)], 1)
    exact = reference(Explicit(model, [(x, y)]), "weight", "bias", a, g)
    weights = [i * 4 + j for i in range(4) for j in range(3)]
    order = torch.tensor(weights + [i * 4 + 3 for i in range(4)])
    found = dense(EKFAC(curvature), curvature.size)
    assert relative(found, exact[order][:, order]) < 1e-10


@pytest.mark.parametrize("name", ["perceptron", "convolutional"])
def test_traces_are_exact_and_other_parameters_diagonal(name: str) -> None:
    """A basis changes no trace: each block's is that of the Fisher matrix."""
    model, data = problem(name)
    curvature = Curvature(model, data, kind="fisher")
    ekfac = EKFAC(curvature)
    oracle = Explicit(model, data)
    exact, found = oracle.fisher(), dense(ekfac, curvature.size)
    assert relative(found, found.T) < 1e-10
    for weight in ekfac.factored:
        bias = weight.replace("weight", "bias")
        names = [weight, bias] if bias in oracle.named else [weight]
        traces = [block(oracle, names, m).trace() for m in (found, exact)]
        assert relative(*traces) < 1e-10
    if name == "convolutional":
        assert ekfac.factored == ["0.weight", "4.weight", "7.weight"]
        assert ekfac.diagonal == ["1.weight", "1.bias"]
        mine, whole = (block(oracle, ekfac.diagonal, m) for m in (found, exact))
        assert relative(mine, whole.diagonal().diag()) < 1e-10
    # Nearer to the Fisher matrix than its diagonal is: it keeps what the layers correlate.
    assert relative(found, exact) < relative(exact.diagonal().diag(), exact)


def test_given_targets_and_drawn_labels() -> None:
    model, data = problem("perceptron")
    curvature, oracle = Curvature(model, data), Explicit(model, data)
    given = dense(EKFAC(curvature, draws="given"), curvature.size)
    assert relative(given.trace(), oracle.empirical_fisher().trace()) < 1e-10
    exact = dense(EKFAC(curvature), curvature.size)
    few, many = (dense(EKFAC(curvature, draws=d), curvature.size) for d in (1, 200))
    assert relative(many, exact) < 0.15
    assert relative(many, exact) < relative(few, exact)


def test_the_inverse_undoes_the_product() -> None:
    model, data = problem("convolutional")
    curvature = Curvature(model, data)
    ekfac = EKFAC(curvature)
    v = torch.randn(curvature.size, dtype=torch.float64)
    back = ekfac.inverse_product(ekfac.product(v) + 0.01 * v, 0.01)
    assert relative(back, v) < 1e-10


def test_influences_agree_in_order_with_the_exact_ones() -> None:
    """Measured on these problems: rank correlations of 0.92 and 0.94."""
    for name in ("perceptron", "convolutional"):
        model, data = problem(name, 60)
        test = problem(name, 30, seed=3)[1]
        curvature = Curvature(model, data, kind="gauss-newton")
        exact = influence_on_test_loss(
            curvature, test, data, solver=ConjugateGradients(damping=0.01)
        )
        fast = influence_on_test_loss(curvature, test, data, solver=EKFAC(curvature).solver(0.01))
        rank = spearmanr(exact.values, fast.values)[0]
        assert rank > 0.8


def test_it_is_a_good_preconditioner() -> None:
    """Logistic regression on inputs of very different scale."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=rng, dtype=torch.float64) * torch.logspace(-1.5, 1, 12)
    y = torch.randint(0, 3, (400,), generator=rng)
    torch.manual_seed(0)
    curvature = Curvature(nn.Linear(12, 3).double(), [(x, y)], kind="gauss-newton")
    ekfac = EKFAC(curvature)
    b = torch.randn(curvature.size, generator=rng, dtype=torch.float64)
    plain = ConjugateGradients(damping=1e-4)(curvature, b)
    helped = ConjugateGradients(
        damping=1e-4, preconditioner=lambda r: ekfac.inverse_product(r, 1e-4)
    )(curvature, b)
    assert plain.converged
    assert helped.converged
    assert helped.iterations < plain.iterations / 2
    assert relative(helped.vector, plain.vector) < 1e-4


CONVOLUTIONS = [
    nn.Conv1d(2, 3, 3, stride=2, padding=1),
    nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)),
    nn.Conv2d(2, 3, (1, 3), padding="same", dilation=(1, 2)),
    nn.Conv2d(2, 3, 2, padding="valid", bias=False),
    nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1), stride=(1, 2, 1)),
]


@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_patches_times_weights_are_the_convolution(conv: nn.Conv2d) -> None:
    conv = conv.double()
    x = torch.randn(4, 2, *[5, 6, 7][: len(conv.kernel_size)], dtype=torch.float64)
    layer = Layer(conv, "weight", None if conv.bias is None else "bias")
    theta = dict(conv.named_parameters())
    found = layer.patches(x) @ layer.block(theta).T  # (n, positions, out)
    assert torch.allclose(found, layer.gradients(conv(x)))
    back = layer.unblock(layer.block(theta), theta)
    assert all(torch.equal(back[name], theta[name]) for name in theta)


class Doubling(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, self.bias)


def test_a_layer_at_many_positions_of_a_sequence() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Embedding(9, 4), nn.Linear(4, 5)
            self.shared, self.grouped = nn.Linear(5, 5), nn.Conv1d(4, 4, 1, groups=2)
            self.head, self.own = nn.Linear(5, 3), Doubling(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.grouped(self.embed(x).transpose(1, 2)).transpose(1, 2)
            return self.own(self.head(F.silu(self.shared(self.shared(self.mix(x)))).mean(1)))

    torch.manual_seed(0)
    model = Words().double()
    data = [(torch.randint(0, 9, (8, 6)), torch.randint(0, 3, (8,)))]
    curvature = Curvature(model, data, kind="fisher")
    ekfac, oracle = EKFAC(curvature), Explicit(model, data)
    assert ekfac.factored == ["mix.weight", "head.weight"]
    assert "shared.weight" in ekfac.diagonal  # used twice: no one patch a gradient
    assert {"grouped.weight", "own.weight"} < set(ekfac.diagonal)
    exact, found = oracle.fisher(), dense(ekfac, curvature.size)
    assert relative(found.trace(), exact.trace()) < 1e-10
    mine, whole = (block(oracle, ekfac.diagonal, m) for m in (found, exact))
    assert relative(mine, whole.diagonal().diag()) < 1e-10


def test_the_model_is_left_as_it_was_and_errors_are_clear() -> None:
    model, data = problem("convolutional")
    model.train()
    ekfac = EKFAC(Curvature(model, data))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    v = torch.ones(127, dtype=torch.float64)
    nothing = ekfac.solver(0.1)(Curvature(model, data), 0 * v)
    assert (nothing.residual, nothing.status) == (0, "approximate")
    with pytest.raises(InfluenceError, match="`damping` to be positive"):
        ekfac.inverse_product(v, 0)
    with pytest.raises(InfluenceError, match="but got -1"):
        ekfac.solver(-1)
    with pytest.raises(InfluenceError, match="`draws` to be None"):
        EKFAC(Curvature(model, data), draws="all")
    pixels = [(torch.randn(2, 1, 2, 2).double(), torch.zeros(2, 2, 2, dtype=torch.int64))]
    dense_outputs = Curvature(nn.Conv2d(1, 3, 1).double(), pixels)
    with pytest.raises(InfluenceError, match='Use draws="given"'):
        EKFAC(dense_outputs)
    EKFAC(dense_outputs, draws="given")


class Folded(nn.Module):
    """A layer on sequences whose positions come first, or are folded into rows with the samples."""

    def __init__(self, fold: bool) -> None:
        super().__init__()
        self.mix, self.head, self.fold = nn.Linear(4, 5), nn.Linear(5, 3), fold

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        x = x.flatten(0, 1) if self.fold else x.transpose(0, 1)
        x = self.mix(x).tanh()
        x = x.unflatten(0, (n, -1)) if self.fold else x.transpose(0, 1)
        return self.head(x.mean(1))


@pytest.mark.parametrize("fold", [True, False])
def test_rows_that_are_not_the_samples_are_not_taken_for_them(
    fold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upslope.influence.ekfac.SCRATCH", 60)  # two samples' gradients at a time
    torch.manual_seed(0)
    model = Folded(fold).double()
    x, y = torch.randn(11, 3, 4).double(), torch.randint(0, 3, (11,))
    data = [(x[:3], y[:3]), (x[3:], y[3:])]  # of the first batch, sizes alone would not tell
    curvature = Curvature(model, data, kind="fisher")
    ekfac, oracle = EKFAC(curvature), Explicit(model, [(x, y)])
    assert ekfac.factored == ["head.weight"]
    exact, ours = oracle.fisher(), dense(ekfac, curvature.size)
    assert relative(ours.trace(), exact.trace()) < 1e-10
    mine, whole = (block(oracle, ekfac.diagonal, m) for m in (ours, exact))
    assert relative(mine, whole.diagonal().diag()) < 1e-10
