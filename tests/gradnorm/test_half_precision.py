"""Half precision keeps three digits of a norm, and leaves the model's own type alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormWarning
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.layouts.layout import Samples
from upslope.gradnorm.kernels.linear import Linear
from upslope.models import build


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_three_digits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = build("resnet-small", num_classes=5, input_shape=(3, 16, 16)).eval()
    x = torch.randn(24, 3, 16, 16)
    half = gradient_norms(model, x, "entropy", dtype=dtype)
    exact = gradient_norms(model.double(), x.double(), "entropy")
    assert float(((half - exact) / exact).abs().median()) < 2e-2
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("how", ["products", "model"])
def test_roundings_at_kinks_do_not_send_half_precision_one_by_one(seed: int, how: str) -> None:
    torch.manual_seed(seed)
    # It has many kinks, and ties where maxima are pooled: half precision rounds some either way.
    model = build("cnn-fast", num_classes=10, input_shape=(3, 32, 32)).eval()
    x = torch.randn(8, 3, 32, 32)
    wanted = gradient_norms(model.double(), x.double(), "entropy")
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientNormWarning)
        if how == "products":
            half = gradient_norms(model.float(), x, "entropy", dtype=torch.bfloat16)
        else:
            half = gradient_norms(model.bfloat16(), x.bfloat16(), "entropy")
    assert float(((half - wanted) / wanted).abs().median()) < 5e-2


def test_a_kernel_that_is_wrong_in_half_precision_alone_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5)), torch.randn(8, 12)
    wanted = gradient_norms(model, x, "entropy")
    right = Linear.weight_gradients

    def wrong(self: Linear, g: Tensor, *inputs: Tensor, samples: Samples) -> Iterator[Any]:
        factor = 3 if g.dtype == torch.bfloat16 else 1
        yield from right(self, factor * g, *inputs, samples=samples)

    monkeypatch.setattr(Linear, "weight_gradients", wrong)
    with pytest.warns(GradientNormWarning, match="one sample at a time"):
        half = gradient_norms(model, x, "entropy", dtype=torch.bfloat16)
    assert float(((half - wanted) / wanted).abs().median()) < 5e-2


class _Rotary(nn.Module):
    """Attention whose queries and keys, but no values, are multiplied by constants of float32."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(6, 16, 3, padding=1)
        self.norm, self.project = nn.LayerNorm(16), nn.Linear(16, 48)
        self.head = nn.Linear(16, 5)
        self.register_buffer("turn", torch.rand(10, 16))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x).mT
        q, k, v = self.project(self.norm(rows)).chunk(3, dim=-1)
        rows = nn.functional.scaled_dot_product_attention(q * self.turn, k * self.turn, v)
        head: Tensor = self.head(rows.mean(dim=1))
        return head


@pytest.mark.parametrize("how", ["dtype", "autocast"])
def test_products_in_half_precision_may_meet_numbers_in_float32(how: str) -> None:
    torch.manual_seed(0)
    model, x = _Rotary(), torch.randn(9, 6, 10)
    wanted = gradient_norms(model, x, "entropy")
    types: set[torch.dtype] = set()
    model.embed.register_forward_hook(lambda _, __, out: types.add(out.dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientNormWarning)
        if how == "dtype":
            half = gradient_norms(model, x, "entropy", dtype=torch.bfloat16)
        else:
            with torch.autocast("cpu", torch.bfloat16):
                half = gradient_norms(model, x, "entropy")
    assert types == {torch.bfloat16}
    difference = ((half - wanted) / wanted).abs()
    assert 1e-6 < float(difference.max()) < 5e-2


def test_networks_in_float64_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model, x = _Rotary().double(), torch.randn(9, 6, 10).double()
    assert torch.equal(
        gradient_norms(model, x, "entropy", dtype=torch.bfloat16),
        gradient_norms(model, x, "entropy"),
    )


def test_the_loss_is_not_computed_in_half_precision() -> None:
    types: set[torch.dtype] = set()

    def loss(outputs: Tensor) -> Tensor:
        products = outputs @ outputs.new_ones(5, 1)
        types.add(products.dtype)
        return products.squeeze(1)

    model, x = nn.Linear(4, 5), torch.randn(6, 4)
    gradient_norms(model, x, loss, dtype=torch.bfloat16)
    assert types == {torch.float32}


def test_proofs_of_float64_are_as_close_where_half_precision_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5)).double(),
        torch.randn(8, 12).double(),
    )
    right = Linear.weight_gradients

    def nearly(self: Linear, g: Tensor, *inputs: Tensor, samples: Samples) -> Iterator[Any]:
        yield from right(self, 1.01 * g, *inputs, samples=samples)

    monkeypatch.setattr(Linear, "weight_gradients", nearly)
    with pytest.warns(GradientNormWarning, match="one sample at a time"):
        gradient_norms(model, x, "entropy", dtype=torch.bfloat16)


class ShiftedInFloat32(nn.Module):
    """A layer in half precision whose shift is made for each sample in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6).bfloat16(), nn.Linear(6, 3).bfloat16()
        self.scale, self.shift = nn.Parameter(torch.ones(6)), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        rows = zip(self.body(x.bfloat16()), self.shift(x), strict=True)
        normed = [F.layer_norm(row, (6,), self.scale, shift) for row, shift in rows]
        return self.head(torch.stack(normed))


def test_scale_and_shift_in_float32_leave_a_layer_in_half_precision() -> None:
    torch.manual_seed(0)
    model, x = ShiftedInFloat32(), torch.randn(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientNormWarning)
        norms = gradient_norms(model, x, "entropy")
    alone = torch.cat([gradient_norms(model, row[None], "entropy") for row in x])
    assert torch.allclose(norms, alone, rtol=2e-2)


def test_what_autocast_cannot_run_is_told_by_pytorch_itself() -> None:
    class Bilinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.both = nn.Linear(4, 4), nn.Bilinear(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.both(self.first(x), x)  # bfloat16 and float32, which its kernel takes

    model, x = Bilinear(), torch.randn(6, 4)
    with pytest.raises(RuntimeError, match="same dtype"), torch.autocast("cpu", torch.bfloat16):
        model(x)
    with pytest.raises(RuntimeError, match="same dtype") as refusal:
        gradient_norms(model, x, "entropy", dtype=torch.bfloat16)
    assert "number of samples" not in str(refusal.value)


class Autocasting(nn.Module):
    """A network that enters autocast itself: its backward pass is outside of that."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layers(x).float().flatten(1)


class Heads(nn.Module):
    """A matrix for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] @ self.weight).mean(1)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)], (6,)),
        ([nn.Linear(6, 8), nn.LayerNorm(8, bias=False), nn.Tanh(), nn.Linear(8, 3)], (5, 6)),
        ([Heads(), nn.Tanh(), nn.Linear(4, 3)], (5, 6)),
        ([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 3, 3)], (3, 8, 8)),
    ],
    ids=["vectors", "positions", "a stack", "images"],
)
def test_a_network_that_enters_autocast_itself(
    layers: list[nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model, x = Autocasting(*layers).eval(), torch.randn(7, *shape)
    wanted = gradient_norms(model.layers, x, lambda z: z.flatten(1).square().sum(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientNormWarning)
        norms = gradient_norms(model, x, lambda z: z.square().sum(1))
    assert torch.allclose(norms, wanted, rtol=3e-2)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(6),
        nn.LayerNorm(6, bias=False),
        nn.Sequential(nn.Unflatten(1, (2, 3)), nn.GroupNorm(2, 2), nn.Flatten()),
        nn.Sequential(
            nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, affine=True), nn.Flatten()
        ),
    ],
)  # fmt: skip
def test_a_normalisation_in_float32_within_half_precision(norm: nn.Module) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(4, 6).bfloat16(), nn.Linear(6, 3).bfloat16()
    model, x = nn.Sequential(first, norm, last), torch.randn(7, 4).bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientNormWarning)
        half = gradient_norms(model, x, lambda z: z.float().square().sum(1))
    wanted = gradient_norms(model.double(), x.double(), lambda z: z.square().sum(1))
    assert torch.allclose(half, wanted, rtol=5e-2)
