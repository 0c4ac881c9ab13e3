"""Convolution and batch normalisation as one kernel: the same norms, or nothing is folded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_agrees, watched
from torch import Tensor, nn

from upslope.gradnorm import gradient_norms, gradient_sketches
from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.weights.weights import Weights
from upslope.gradnorm.kernels.conv import fused
from upslope.gradnorm.kernels.conv.convolution import ORDERS
from upslope.gradnorm.trace.conv_bn_fusion import pairs_of

FOLDED = "conv2d + batch_norm (eval)"


def norm(channels: int, dimensions: int = 2, affine: bool = True) -> nn.Module:
    """With statistics and weights of either sign, one of them zero."""
    kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dimensions]
    made = kind(channels, affine=affine)
    made.running_mean.normal_(std=0.5)
    made.running_var.uniform_(0.3, 2)
    if affine:
        nn.init.normal_(made.weight)
        nn.init.normal_(made.bias)
        with torch.no_grad():
            made.weight[0] = 0
    return made


class Net(nn.Module):
    """A convolution, something in between or beside, and logits."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm, self.other = norm(6), norm(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Linear(6, 3)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self, x)
        return self.last(self.norm(self.second(y)).relu().mean(dim=(2, 3)))


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 2, 9, 8, generator=torch.Generator().manual_seed(1))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_convolution_with_its_normalisation(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    dimensions = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from([1, 1, 2, 4]))
    c, o = (groups * data.draw(st.integers(1, 3)) for _ in range(2))
    kernel, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    padding, dilation = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 2))
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    convolution = kind(
        c, o, kernel, stride, padding, dilation, groups, bias=data.draw(st.booleans())
    )
    x = torch.randn(data.draw(st.integers(1, 4)), c, *(7, 6, 5)[:dimensions])
    model = nn.Sequential(
        convolution, norm(o, dimensions, affine=data.draw(st.booleans())), nn.ReLU(inplace=True),
        nn.Flatten(1), nn.LazyLinear(3),
    )  # fmt: skip
    model.eval()(x)
    with mock.patch.object(fused, "_WORTH", 0):
        assert_agrees(model, x)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 2])
def test_groups_of_channels_of_one_image(n: int, groups: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 4, 3, groups=groups)
    model = nn.Sequential(convolution, norm(4), nn.ReLU(), nn.Flatten(1), nn.LazyLinear(3))
    x = torch.randn(n, 4, 7, 6)
    model.eval()(x)
    assert_agrees(model, x)
    assert_agrees(nn.Sequential(convolution, nn.Flatten(1), nn.Linear(80, 3)), x)


@pytest.mark.parametrize("method", sorted(fused.gradients.GRADIENTS))
def test_by_every_method(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused.cost_model, "best", lambda _: method)
    monkeypatch.setattr(fused, "_WORTH", 0)
    groups = 6 if method in ("depthwise", "windows") else 1
    dimensions = 3 if method == "per_depth_slice" else 2
    kind = nn.Conv3d if dimensions == 3 else nn.Conv2d
    x = torch.randn(5, 6, *(9, 8, 7)[:dimensions])
    model = nn.Sequential(
        kind(6, 6, 3, 2, 1, groups=groups), norm(6, dimensions), nn.Flatten(), nn.LazyLinear(3)
    )
    model.eval()(x)
    for order in (torch.contiguous_format, ORDERS[dimensions + 2]):
        seen = assert_agrees(model.to(memory_format=order), x)
        assert seen.operators == [f"conv{dimensions}d + batch_norm (eval)", "linear"]


def test_what_is_only_normalised_is_folded() -> None:
    model = Net(lambda net, x: net.other(net.first(x)).relu_())
    assert assert_agrees(model, images()).operators == [FOLDED, FOLDED, "linear"]


class Seen(torch.autograd.Function):
    """An operator that no interception sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


def kept(net: Any, x: Tensor) -> Tensor:
    net.kept = net.first(x)
    return net.other(net.kept) + net.kept


def shifted_in_place(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    y.add_(1)
    return net.other(y)


def twice_normalised(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    return net.other(y).relu_() + net.other(y)


def by_two_norms(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    return net.other(y) + net.norm(y)


def through_a_custom_function(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    return net.other(y) + Seen.apply(y)


def by_its_data(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    return net.other(y) * y.detach().mean(dim=(1, 2, 3), keepdim=True)


@pytest.mark.parametrize(
    "middle", [kept, shifted_in_place, twice_normalised, by_two_norms, by_its_data]
)
def test_an_output_that_is_used_otherwise_is_not_folded(middle: Any) -> None:
    seen = assert_agrees(Net(middle), images())
    assert seen.operators.count(FOLDED) == 1  # the second convolution's
    assert seen.operators[0] == "conv2d"


def test_an_output_that_an_unseen_operator_takes() -> None:
    assert_agrees(Net(through_a_custom_function), images())


def test_an_output_that_the_model_returns_as_well() -> None:
    class Both(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.first(x)
            return {"logits": self.last(self.norm(y).mean(dim=(2, 3))), "features": y}

    model, x = Both(kept), images().double()

    def alone(outputs: Any, _: int) -> Tensor:
        return outputs["logits"].square().sum() + outputs["features"].sum()

    def loss(outputs: Any) -> Tensor:
        return outputs["logits"].square().sum(1) + outputs["features"].sum(dim=(1, 2, 3))

    assert_agrees(model, x, loss=loss, point_loss=alone)


def test_one_convolution_before_two_normalisations() -> None:
    def middle(net: Any, x: Tensor) -> Tensor:
        return net.other(net.first(x)) + net.norm(net.first(x.flip(3)))

    assert assert_agrees(Net(middle), images()).operators.count(FOLDED) == 3


@pytest.mark.parametrize("asked", [["first.weight"], ["other"], ["first.bias", "other.weight"]])
def test_some_of_the_parameters(asked: list[str]) -> None:
    model = Net(lambda net, x: net.other(net.first(x)).relu_())
    assert_agrees(
        model, images(), parameters=asked, wanted=lambda n: any(n.startswith(a) for a in asked)
    )


def test_statistics_that_are_replaced_between_calls() -> None:
    model = Net(lambda net, x: net.other(net.first(x)).relu_()).double().eval()
    gradient_norms(model, images().double(), "entropy")
    model.other.running_mean = torch.randn(6, dtype=torch.float64)
    model.other.weight = nn.Parameter(torch.randn(6, dtype=torch.float64))
    assert assert_agrees(model, images()).operators.count(FOLDED) == 2


def test_normalisation_that_is_exchanged_is_noticed() -> None:
    model = Net(lambda net, x: net.other(net.first(x))).double().eval()
    gradient_norms(model, images().double(), "entropy")
    model.other = nn.GroupNorm(2, 6)
    assert assert_agrees(model, images()).operators.count(FOLDED) == 1


def test_the_first_call_rounds_as_the_next() -> None:
    x = images(5)
    first, second = (
        gradient_norms(model, x, "entropy")
        for model in [Net(lambda net, x: net.other(net.first(x))).eval()]
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_a_hook_sees_what_the_convolution_put_out() -> None:
    model = Net(lambda net, x: net.other(net.first(x))).double().eval()
    found: list[Tensor] = []
    model.first.register_forward_hook(lambda *taken: found.append(taken[2].detach()))
    gradient_norms(model, images().double(), "entropy")
    with torch.no_grad():
        truth = nn.functional.conv2d(
            images().double(), model.first.weight, model.first.bias, padding=1
        )
    whole = next(y for y in found if len(y) == 3)
    torch.testing.assert_close(whole, truth)


def test_few_positions_stay_apart() -> None:
    model = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1), norm(64), nn.Flatten(1), nn.Linear(576, 3)
    )
    model, x = model.eval(), torch.randn(2, 64, 3, 3)
    with watched() as seen:
        gradient_norms(model, x, "entropy")
    assert FOLDED not in seen.operators
    weights = Weights(dict(model.named_parameters()))
    learn = partial(pytest.fail, "the pairs of this model are known")
    assert len(pairs_of(Inventory(model), weights, learn)) == 1


def test_sketches_of_folded_layers() -> None:
    model = Net(lambda net, x: net.other(net.first(x)).relu_()).double().eval()
    x = images().double()
    sketched = gradient_sketches(model, x, "entropy", dim=64)
    torch.testing.assert_close(sketched.norms, gradient_norms(model, x, "entropy"))


def test_a_linear_layer_before_a_write_in_place_has_its_kernel() -> None:
    torch.manual_seed(0)
    rows = nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 3))
    model = nn.Sequential(rows, nn.Flatten(1), nn.Linear(15, 3))
    assert_agrees(model, torch.randn(4, 5, 8))


class MadeFilters(nn.Module):
    """Filters that are twice as many numbers as the parameter they are made of, and then others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rates = nn.Parameter(torch.randn(4, 1))
        self.second, self.norm = nn.Conv2d(4, 6, 3), norm(6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        filters = (self.rates * torch.tensor([0.5, 2.0]).to(x)).view(4, 1, 1, 2)
        y = self.second(nn.functional.conv2d(x, filters))
        return self.last(self.norm(y).relu().mean(dim=(2, 3)))


def test_filters_that_two_samples_make_look_like_samples_themselves():
    """In the pass of two that learns what is folded, their convolution is not counted."""
    x = torch.randn(3, 1, 9, 9, generator=torch.Generator().manual_seed(1))
    assert_agrees(MadeFilters(), x)
