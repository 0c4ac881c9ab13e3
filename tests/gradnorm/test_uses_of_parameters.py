"""However a parameter is used (tied, shared, sliced, composed, bare), it is counted, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import TOLERANCE, assert_agrees, norms_one_by_one, relative_error, watched
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.uses import dense_sums
from upslope.gradnorm.core.weights.weights import Weights


class Functional(nn.Module):
    """A module around one function of an input and some parameters."""

    def __init__(self, function, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


KERNELS = {
    "x @ w": (lambda m, x: torch.tanh(x @ m.w) @ m.v, {"w": (4, 5), "v": (5, 3)}),
    "w @ x": (
        lambda m, x: (m.w @ torch.tanh(m.v @ x[..., None]))[..., 0],
        {"v": (5, 4), "w": (3, 5)},
    ),
    "torch.mm": (lambda m, x: torch.mm(x, m.w), {"w": (4, 3)}),
    "torch.addmm": (lambda m, x: torch.addmm(m.b, x, m.w), {"w": (4, 3), "b": (3,)}),
    "scale and shift": (lambda m, x: (x * m.s + m.b) @ m.w, {"s": (4,), "b": (1, 4), "w": (4, 3)}),
    "in place": (
        lambda m, x: (x.clone().mul_(m.s).add_(m.b)) @ m.w,
        {"s": (4,), "b": (4,), "w": (4, 3)},
    ),
    "augmented": (lambda m, x: _augmented(m, x), {"s": (4,), "b": (4,), "w": (4, 3)}),
    "scalar": (lambda m, x: torch.tanh(x * m.t) @ m.w / m.t.exp(), {"t": (), "w": (4, 3)}),
    "reflected": (lambda m, x: (1 - x) * m.s + (m.s - x) / m.d, {"s": (4,), "d": (4,)}),
    "power": (lambda m, x: x.abs().pow(m.p.sigmoid()) @ m.w, {"p": (4,), "w": (4, 3)}),
    "gate": (
        lambda m, x: torch.lerp(x, x.cos(), torch.sigmoid(m.g)) @ m.w,
        {"g": (4,), "w": (4, 3)},
    ),
    "where": (lambda m, x: torch.where(x > 0, x, m.s) @ m.w, {"s": (4,), "w": (4, 3)}),
    "one column set": (lambda m, x: _column_set(m, x), {"s": (), "w": (4, 3)}),
    "slices": (
        lambda m, x: torch.tanh(F.linear(x, m.w[:3, :4])) * F.linear(x, m.w[3:]),
        {"w": (6, 4)},
    ),
    "split": (lambda m, x: sum(F.linear(x, w).sin() for w in m.w.chunk(3)), {"w": (9, 4)}),
    "overlapping slices": (
        lambda m, x: F.linear(x, m.w[:3]).sin() + F.linear(x, m.w[1:]),
        {"w": (4, 4)},
    ),
    "slice and whole": (
        lambda m, x: F.linear(x, m.w).sin()[:, :3] + F.linear(x, m.w[1:]),
        {"w": (4, 4)},
    ),
    "transpose": (lambda m, x: F.linear(torch.tanh(F.linear(x, m.w)), m.w.t()), {"w": (5, 4)}),
    "reshaped": (lambda m, x: F.linear(x, m.w.view(3, 4)) * m.w[:3], {"w": (12,)}),
    "composed": (
        lambda m, x: F.linear(x, m.w + m.b @ m.a),
        {"w": (3, 4), "b": (3, 2), "a": (2, 4)},
    ),
    "normalised": (lambda m, x: F.linear(x, F.normalize(m.w)), {"w": (3, 4)}),
    "kernel of a network": (
        lambda m, x: F.linear(x, torch.tanh(m.u @ m.v)),
        {"u": (3, 2), "v": (2, 4)},
    ),
    "also a regulariser": (lambda m, x: F.linear(x, m.w) * m.w.norm(), {"w": (3, 4)}),
    "concatenated": (lambda m, x: F.linear(x, torch.cat([m.a, m.b])), {"a": (1, 4), "b": (2, 4)}),
    "prompt": (
        lambda m, x: torch.cat([m.p.expand(len(x), 2), x], 1) @ m.w,
        {"p": (2,), "w": (6, 3)},
    ),
    "attention pooling": (
        lambda m, x: (x.sin() @ m.v)[:, None] * (x @ m.w),
        {"v": (4,), "w": (4, 3)},
    ),
    "one matrix a group": (
        lambda m, x: (x[:, None, None] @ m.w)[..., 0, :].flatten(1),
        {"w": (3, 4, 2)},
    ),
    "one matrix a head, for all samples": (
        lambda m, x: (x[:, None, None] @ m.w.sin())[..., 0, :].flatten(1),
        {"w": (1, 3, 4, 2)},
    ),
    "bmm over groups": (
        lambda m, x: torch.bmm(x.unflatten(1, (2, 2)).transpose(0, 1), m.w).sum(0),
        {"w": (2, 2, 3)},
    ),
    "rows by index": (
        lambda m, x: m.w[x.abs().mul(2).long() % 5].sin().mean(1) * m.b[x.abs().long() % 3][:, :3],
        {"w": (5, 3), "b": (3,)},
    ),
    "matrices by index": (
        lambda m, x: (x[:, None] @ m.w[x[:, 0].abs().mul(9).long() % 3])[:, 0].sin(),
        {"w": (3, 4, 2)},
    ),
    "einsum ni,oi": (lambda m, x: torch.einsum("ni,oi->no", x, m.w), {"w": (3, 4)}),
    "einsum io,ni": (lambda m, x: torch.einsum("io,ni->on", m.w, x).t(), {"w": (4, 3)}),
    "einsum heads": (
        lambda m, x: torch.einsum("nhi,hio->noh", x.unflatten(1, (2, 2)), m.w).sin().flatten(1),
        {"w": (2, 2, 3)},
    ),
    "einsum projection": (
        lambda m, x: torch.einsum("nti,iho->nhto", x.unflatten(1, (2, 2)), m.w).sin().flatten(1),
        {"w": (2, 3, 2)},
    ),
    "einsum sums": (
        lambda m, x: torch.einsum("nti,io->n", x.unflatten(1, (2, 2)), m.w)[:, None].mul(x.cos()),
        {"w": (2, 3)},
    ),
    "stacked": (
        lambda m, x: torch.stack([x, m.p.expand_as(x)], 1).sin().flatten(1) @ m.w,
        {"p": (4,), "w": (8, 3)},
    ),
}


def _augmented(m, x):
    x = x.clone()
    x *= m.s
    x += m.b
    return x @ m.w


def _column_set(m, x):
    x = x.clone()
    x[:, 1] = m.s
    return x @ m.w


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("case", KERNELS)
def test_functional_use_has_a_kernel(case, n):
    function, shapes = KERNELS[case]
    torch.manual_seed(0)
    assert_agrees(Functional(function, **shapes), torch.randn(n, 4))


REPLAYED = {
    "bilinear": (lambda m, x: F.bilinear(x, x, m.w, m.b), {"w": (3, 4, 4), "b": (3,)}),
    "distance": (lambda m, x: -torch.cdist(x, m.w), {"w": (3, 4)}),
    "similarity": (lambda m, x: F.cosine_similarity(x[:, None], m.w[None], dim=-1), {"w": (3, 4)}),
    "tensordot": (lambda m, x: torch.tensordot(x, m.w, dims=1), {"w": (4, 3)}),
    "comparison": (lambda m, x: x @ m.w * (x[:, :3] > m.w[0]), {"w": (4, 3)}),
    "complex": (
        lambda m, x: torch.view_as_real(x[:, :2] * torch.view_as_complex(m.w)).flatten(1),
        {"w": (2, 2)},
    ),
}


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("case", REPLAYED)
def test_functional_use_without_a_kernel_is_exact_without_slowing_the_network(case, n):
    function, shapes = REPLAYED[case]
    torch.manual_seed(0)
    seen = agree_fast(Functional(function, **shapes), torch.randn(n, 4))
    assert seen.one_by_one == 0


def agree_fast(model, inputs):
    try:
        return assert_agrees(model, inputs, path="replayed")
    except AssertionError as error:
        if error.args and isinstance(error.args[0], tuple) and error.args[0][0] == "kernels":
            return assert_agrees(model, inputs)
        raise


class Tied(nn.Module):
    """The decoder's matrix is that of the embedding, and one layer is called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix = nn.Embedding(7, 5, padding_idx=1), nn.Linear(5, 5)
        self.decoder = nn.Linear(5, 7)
        self.decoder.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for _ in range(3):
            x = torch.tanh(self.mix(x))
        return self.decoder(x).mean(dim=1)


def test_tied_embedding_and_a_layer_called_three_times():
    torch.manual_seed(0)
    assert_agrees(Tied(), torch.randint(0, 7, (4, 6)))


def test_one_module_at_two_places():
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    norm = nn.LayerNorm(4)
    assert_agrees(
        nn.Sequential(shared, norm, nn.Tanh(), shared, norm, nn.Linear(4, 3)), torch.randn(3, 4)
    )


def test_weight_normalisation():
    torch.manual_seed(0)
    layers = [parametrizations.weight_norm(m) for m in (nn.Conv1d(2, 4, 3), nn.Linear(4, 3))]
    assert_agrees(nn.Sequential(layers[0], nn.AdaptiveAvgPool1d(1), nn.Flatten(), layers[1]),
          torch.randn(3, 2, 6))  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_weight_normalisation_of_the_old_style():
    torch.manual_seed(0)
    assert_agrees(nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 3)),
          torch.randn(3, 4))  # fmt: skip


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv1d(4, 3, 1)])
def test_spectral_normalisation(layer):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 1) if isinstance(layer, nn.Conv1d) else torch.randn(3, 4)
    assert_agrees(
        nn.Sequential(parametrizations.spectral_norm(layer), nn.Flatten(), nn.Linear(3, 3)), x
    )


def test_orthogonal_parametrisation():
    torch.manual_seed(0)
    assert_agrees(nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 3))), torch.randn(3, 4))


class LoRA(nn.Module):
    """A frozen layer with a low-rank update; the update starts at zero."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.b(self.a(x))


@pytest.mark.parametrize("started", [True, False])
def test_low_rank_adapters_with_the_base_frozen(started):
    torch.manual_seed(0)
    model = nn.Sequential(
        LoRA(nn.Linear(4, 6)),
        nn.LayerNorm(6).requires_grad_(False),
        nn.GELU(),
        LoRA(nn.Linear(6, 3)),
    )
    if started:
        for module in (model[0], model[3]):
            nn.init.normal_(module.b.weight)
    seen = assert_agrees(model, torch.randn(3, 4))
    assert seen.operators == ["linear"] * 4  # nothing is spent on the frozen layers


def test_parameters_that_are_not_used_count_as_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    model.register_parameter("unused", nn.Parameter(torch.randn(5)))
    assert_agrees(model, torch.randn(3, 4))


def test_frozen_parameters_anywhere():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3),
        nn.PReLU(4), nn.Flatten(), nn.Linear(4 * 4, 5), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip
    names = [name for name, _ in model.named_parameters()]
    for i, name in enumerate(names):
        model.requires_grad_(True)
        model.get_parameter(name).requires_grad_(False)
        model.get_parameter(names[(i + 3) % len(names)]).requires_grad_(False)
        assert_agrees(model, torch.randn(2, 2, 6, 6))


def test_a_parameter_list_and_dict():
    torch.manual_seed(0)

    class Lists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ws = nn.ParameterList([torch.randn(4, 4) for _ in range(3)])
            self.by_name = nn.ParameterDict({"scale": torch.randn(4), "out": torch.randn(4, 3)})

        def forward(self, x: Tensor) -> Tensor:
            for w in self.ws:
                x = torch.tanh(x @ w) * self.by_name["scale"]
            return x @ self.by_name["out"]

    assert_agrees(Lists(), torch.randn(3, 4))


def test_parametrisation_held_in_the_cache_of_the_caller():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3))).double()
    x = torch.randn(3, 4).double()
    truth = norms_one_by_one(model, x)
    with nn.utils.parametrize.cached():
        model(x)
        with watched() as seen:
            found = gradient_norms(model, x, "entropy")
    assert relative_error(found, truth) < TOLERANCE
    assert seen.path == "kernels"


def products_of_functions(m, x):
    for w in (m.a, m.b, m.c, m.d):
        x = torch.tanh(x @ (w.sin() + w.sum(0)))
    return x @ m.e


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(("room", "passes"), [(1 << 20, 1), (2 * 1728, 2), (1, 4)])
def test_functions_of_several_parameters_share_a_backward_pass(room, passes, n, monkeypatch):
    torch.manual_seed(0)
    model = Functional(products_of_functions, **dict.fromkeys("abcde", (6, 6)))
    x = torch.randn(n, 6)
    assert_agrees(model, x)  # and its program is proven, which takes passes as well
    monkeypatch.setattr(dense_sums, "CACHE", room * n)
    calls = []
    pull = Weights.gradients_of_parameters

    def count_calls(self, parameters, weight_gradients):
        calls.append(sorted(parameters))
        return pull(self, parameters, weight_gradients)

    monkeypatch.setattr(Weights, "gradients_of_parameters", count_calls)
    assert_agrees(model, x)
    assert len(calls) == 2 * passes  # of both norms
    assert sorted(name for names in calls for name in names) == sorted(2 * "abcd")


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.BatchNorm1d(6)])
def test_a_scale_that_becomes_the_shift_as_well(norm: Any) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 3)).double().eval()
    nn.init.normal_(norm.weight)
    x = torch.randn(5, 4, dtype=torch.float64)
    for _ in range(2):  # the second time, nothing but the tensor has changed
        found = gradient_norms(model, x, "entropy", parameters=["1.weight"])
        truth = norms_one_by_one(model, x, wanted=lambda name: name == "1.weight")
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=0)
        norm.bias = norm.weight


def test_weights_of_a_recurrence_that_become_one() -> None:
    torch.manual_seed(0)
    model = nn.GRU(6, 6, batch_first=True).double()
    x = torch.randn(5, 4, 6, dtype=torch.float64)
    names = ["weight_ih_l0", "bias_ih_l0"]

    def squares(outputs: Any, _: int = 0) -> Tensor:
        return outputs[0].square().sum(dim=(1, 2))

    for _ in range(2):  # the second time, nothing but the tensors has changed
        found = gradient_norms(model, x, squares, parameters=names)
        truth = norms_one_by_one(model, x, squares, wanted=lambda name: name in names).flatten()
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=0)
        model.weight_hh_l0, model.bias_hh_l0 = model.weight_ih_l0, model.bias_ih_l0


def test_an_einsum_of_one_row_without_dimensions() -> None:
    """A product of which no dimension is left, as for each row of a loop over the samples."""
    torch.manual_seed(0)
    model = Functional(
        lambda m, x: torch.stack([torch.einsum("i,i->", row, m.w) for row in x])[:, None] * m.v,
        w=(4,), v=(1, 3),
    ).double()  # fmt: skip
    x = torch.randn(5, 4, dtype=torch.float64)
    norms = gradient_norms(model, x, "entropy")
    torch.testing.assert_close(norms, norms_one_by_one(model, x).flatten(), rtol=1e-9, atol=0)
