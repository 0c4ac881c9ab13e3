"""Complex weights and inputs: the other factor of a product is conjugated, as autograd does it."""

from __future__ import annotations

import pytest
import torch
from oracle import TOLERANCE, norms_one_by_one, relative_error, watched
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.gradnorm import gradient_norms, gradient_sketches

C = torch.complex128


class Functional(nn.Module):
    """A module around one function of an input and some parameters of given type and shape."""

    def __init__(self, function, parameters) -> None:
        super().__init__()
        self.function = function
        for name, (dtype, shape) in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, dtype=dtype)))

    def forward(self, x: Tensor) -> Tensor:
        z = self.function(self, x)
        return torch.view_as_real(z.resolve_conj()).flatten(1) if z.is_complex() else z


A, B, V = (C, (4, 4)), (C, (4, 3)), (C, (4,))
REAL = torch.float64
CASES = {
    "two linear layers": (lambda m, x: F.linear(F.linear(x, m.a), m.b.T), {"a": A, "b": B}),
    "linear with a bias": (
        lambda m, x: F.linear(F.linear(x, m.a, m.v), m.b.mH, m.v[:3]),
        {"a": A, "b": B, "v": V},
    ),
    "@": (lambda m, x: (x @ m.a) @ m.b, {"a": A, "b": B}),
    "w @ x": (lambda m, x: (m.b.T @ (m.a @ x[..., None]))[..., 0], {"a": A, "b": B}),
    "addmm": (lambda m, x: torch.addmm(m.v[:3], x @ m.a, m.b), {"a": A, "b": B, "v": V}),
    "many positions": (
        lambda m, x: ((x[:, None] * torch.arange(1, 9)[:, None]) @ m.a @ m.b / 90).sin().sum(1),
        {"a": A, "b": B},
    ),
    "few positions": (
        lambda m, x: ((x[:, None] * torch.arange(1, 3)[:, None]) @ m.a @ m.b / 90).sin().sum(1),
        {"a": (C, (4, 16)), "b": (C, (16, 16))},
    ),
    "two uses": (lambda m, x: (x @ m.a).sin() @ m.a @ m.b, {"a": A, "b": B}),
    "transposed and not": (lambda m, x: (x @ m.a) @ m.a.T @ m.b, {"a": A, "b": B}),
    "conjugated weight": (lambda m, x: (x @ m.a.conj()) @ m.b.mH.mT, {"a": A, "b": B}),
    "einsum": (
        lambda m, x: torch.einsum("nr,ro->no", torch.einsum("ni,ir->nr", x, m.a), m.b),
        {"a": A, "b": B},
    ),
    "einsum over groups": (
        lambda m, x: torch.einsum("nhi,hio->noh", (x @ m.a).unflatten(1, (2, 2)), m.w).flatten(1),
        {"a": A, "w": (C, (2, 2, 3))},
    ),
    "scale and shift": (
        lambda m, x: (x * m.v + m.a[0]) @ m.b,
        {"v": V, "a": A, "b": B},
    ),
    "in place": (
        lambda m, x: x.clone().mul_(m.v).add_(m.a[0]) @ m.b,
        {"v": V, "a": A, "b": B},
    ),
    "real scale of complex samples": (
        lambda m, x: (x * m.s + m.s) @ m.b * m.t,
        {"s": (REAL, (4,)), "t": (REAL, ()), "b": B},
    ),
    "real weights viewed as complex ones": (
        lambda m, x: x @ m.a @ torch.view_as_complex(m.w),
        {"a": A, "w": (REAL, (4, 3, 2))},
    ),
    "torch.complex": (
        lambda m, x: x @ torch.complex(m.r, m.i) @ m.b,
        {"r": (REAL, (4, 4)), "i": (REAL, (4, 4)), "b": B},
    ),
    "polar": (
        lambda m, x: x @ torch.polar(m.r, m.i) @ m.b,
        {"r": (REAL, (4, 4)), "i": (REAL, (4, 4)), "b": B},
    ),
    "cast to complex": (
        lambda m, x: (x @ m.r.to(C)) @ m.b,
        {"r": (REAL, (4, 4)), "b": B},
    ),
    "real and imaginary part": (
        lambda m, x: (x.real @ m.a.real + x.imag @ m.a.imag) @ m.a.real @ m.b.imag,
        {"a": A, "b": B},
    ),
    "parts of one weight in both forms": (
        lambda m, x: (x[:, :2] @ m.a[2:])[:, :3] * m.a.real[3, :3] + m.a.imag[0, :3],
        {"a": A},
    ),
    "viewed as real": (
        lambda m, x: x.real @ torch.view_as_real(m.a).flatten(1) * m.v[0].abs(),
        {"a": A, "v": V},
    ),
    "absolute values": (lambda m, x: (x @ m.a).abs() @ m.b.abs(), {"a": A, "b": B}),
    "convolution": (
        lambda m, x: F.conv1d(F.conv1d(x[:, None], m.w, padding=1), m.u, m.v[:1])[:, 0],
        {"w": (C, (3, 1, 3)), "u": (C, (1, 3, 2)), "v": V},
    ),
    "transposed convolution": (
        lambda m, x: F.conv_transpose1d(
            F.conv_transpose1d(x[:, None], m.w, padding=1), m.u, m.v[:1]
        )[:, 0],
        {"w": (C, (1, 3, 3)), "u": (C, (3, 1, 2)), "v": V},
    ),
    "rows by index": (
        lambda m, x: m.a[(x.real * 3).long() % 4].sin().mean(1) @ m.b,
        {"a": A, "b": B},
    ),
    "bilinear by einsum": (
        lambda m, x: torch.einsum("ni,oij,nj->no", x @ m.a, m.w, x.conj()),
        {"a": A, "w": (C, (3, 4, 4))},
    ),
    "dot product": (lambda m, x: torch.tensordot(x @ m.a, m.b, dims=1), {"a": A, "b": B}),
    "inner product": (lambda m, x: torch.inner(x @ m.a, m.b.T), {"a": A, "b": B}),
    "Fourier transform of the weight": (
        lambda m, x: torch.fft.ifft(torch.fft.fft(x) * torch.fft.fft(m.s)) @ m.b,
        {"s": (REAL, (4,)), "b": B},
    ),
}


def check(model: nn.Module, x: Tensor, paths=("kernels", "replayed")) -> None:
    for norm in ("global", "tensor-sum"):
        truth = norms_one_by_one(model, x, norm=norm)
        with watched() as seen:
            found = gradient_norms(model, x, "entropy", norm=norm)
        assert found.dtype == torch.float64
        assert relative_error(found, truth) < TOLERANCE, (norm, found, truth, seen.operators)
        assert seen.path in paths, seen.operators
    assert truth.min() > 1e-6


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_complex_weights_are_exact(case, n):
    torch.manual_seed(0)
    model = Functional(*CASES[case])
    check(model, torch.randn(n, 4, dtype=C))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("positions", [2, 40])
def test_both_ways_to_the_norm_of_complex_products(n, positions):
    """Few positions take the Gram matrices, many take the products themselves."""
    torch.manual_seed(0)
    model = Functional(lambda m, x: (x @ m.a).mean(1), {"a": (C, (12, 8))})
    check(model, torch.randn(n, positions, 12, dtype=C), ("kernels",))


class SpectralConvolution(nn.Module):
    """The spectral convolution of a Fourier neural operator (Li et al. 2021)."""

    def __init__(self, channels: int = 4, modes: int = 3) -> None:
        super().__init__()
        self.lift, self.project = nn.Linear(1, channels), nn.Linear(channels, 1)
        self.weight = nn.Parameter(torch.rand(channels, channels, modes, dtype=C))
        self.modes = modes

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lift(x[..., None]).transpose(1, 2)
        spectrum = torch.fft.rfft(hidden)
        out = torch.zeros_like(spectrum)
        low = spectrum[:, :, : self.modes]
        out[:, :, : self.modes] = torch.einsum("bix,iox->box", low, self.weight)
        hidden = torch.fft.irfft(out, n=x.shape[-1]).transpose(1, 2)
        return self.project(hidden.sin())[..., 0]


@pytest.mark.parametrize("n", [1, 3])
def test_spectral_convolution(n):
    torch.manual_seed(0)
    model = SpectralConvolution()
    model.lift.double()
    model.project.double()
    check(model, torch.randn(n, 8, dtype=REAL), ("kernels",))


def test_constants_to_be_conjugated_beside_samples():
    """A view that NumPy does not take, moved beside what depends on the samples."""
    torch.manual_seed(0)
    constant = torch.randn(1, 4, dtype=C).conj()
    model = Functional(
        lambda m, x: torch.cat([x @ m.a, constant.expand(len(x), -1)], 1).abs(), {"a": (C, (4, 4))}
    )
    check(model, torch.randn(3, 4, dtype=C), ("kernels",))


def test_sketches_of_complex_gradients_have_exact_norms():
    torch.manual_seed(0)
    model = Functional(*CASES["many positions"])
    x = torch.randn(3, 4, dtype=C)
    found = gradient_sketches(model, x, "entropy", dim=4096)
    assert relative_error(found.norms, norms_one_by_one(model, x)) < TOLERANCE
    assert found.vectors.dtype == REAL
    # 4096 buckets for 56 real numbers: hardly any two share one.
    assert relative_error(found.vectors.norm(dim=1), found.norms) < 0.2


def test_half_precision_leaves_complex_products_as_they_are():
    torch.manual_seed(0)
    model = Functional(lambda m, x: x.to(torch.complex64) @ m.a, {"a": (torch.complex64, (4, 3))})
    x = torch.randn(3, 4)
    found = gradient_norms(model, x, "entropy", dtype=torch.bfloat16)
    assert torch.equal(found, gradient_norms(model, x, "entropy"))
