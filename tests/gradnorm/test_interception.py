"""Operators on their way through the interceptor: short or long, the numbers are autograd's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from oracle import assert_agrees, norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.tensor_marks import mark, marks_of, shared_marks

N = 3


class Net(nn.Module):
    """Logits of what is made of hidden units and weights, (n, 6) -> (n, 6)."""

    def __init__(self, middle: Callable[[Net, Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.scale, self.table = nn.Parameter(torch.rand(6)), nn.Parameter(torch.randn(5, 6))
        self.frozen = nn.Parameter(torch.rand(6), requires_grad=False)
        self.register_buffer("mean", torch.rand(6))
        self.register_buffer("var", torch.rand(6) + 0.5)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self, self.first(x)))
        return out


def _put(net: Net, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 6, dtype=x.dtype)
    out[:, :4] = x[:, 2:]
    out[..., 4] = 0.5
    out[:, -1] = x[:, 0] * net.scale[0]
    return out


def _put_into_a_view(net: Net, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 6, dtype=x.dtype)
    out.view(len(x), 2, 3)[:, 1] = (x * net.scale).view(len(x), 2, 3)[:, 0]
    return out + x


def _write(net: Net, x: Tensor) -> Tensor:
    out = torch.zeros_like(x).copy_(x).mul_(2).add_(net.scale)
    return F.relu(out, inplace=True)


def _like_another(net: Net, x: Tensor) -> Tensor:
    like = net.mean.expand_as(x).to(x) + net.frozen.type_as(x)
    return x.expand_as(like).to(like) * like + net.scale.expand_as(x)


def _by_names(net: Net, x: Tensor) -> Tensor:
    rows = F.group_norm(x, num_groups=2, weight=net.scale, eps=1e-3)
    return rows + F.rms_norm(input=x, normalized_shape=(6,), weight=net.scale)


def _normalise(net: Net, x: Tensor) -> Tensor:
    one = F.batch_norm(x, net.mean, net.var, net.scale, None, training=False)
    return one + torch.batch_norm(
        x, None, net.scale, net.mean, net.var, training=False, momentum=0.1, eps=1e-5,
        cudnn_enabled=False,
    )  # fmt: skip


def _look_up(net: Net, x: Tensor) -> Tensor:
    ids = x.argmax(dim=1) % 5
    return x + F.embedding(ids, net.table, padding_idx=1) + torch.embedding(net.table, ids)


def _index(net: Net, x: Tensor) -> Tensor:
    return x[True][0][None, :, ...][0] + x[:, [1, 0, 2, 4, 3, 5]] * net.scale


def _constants(net: Net, x: Tensor) -> Tensor:
    places = torch.arange(6, dtype=x.dtype).div_(6)
    places[2:4] = 3
    return x * torch.cat([places[:3], places[3:]]) + net.frozen * net.scale.pow(2)


MIDDLES = (
    _put, _put_into_a_view, _write, _like_another, _by_names, _normalise, _look_up, _index,
    _constants,
)  # fmt: skip


@pytest.mark.parametrize("middle", MIDDLES)
def test_norms_are_those_of_autograd(middle: Callable[[Net, Tensor], Tensor]) -> None:
    net = Net(middle)
    # The second batch is of a program that is known.
    for seed in range(2):
        x = torch.randn(N, 4, generator=torch.Generator().manual_seed(seed))
        assert_agrees(net, x)


def test_a_single_parameter_beside_others_that_are_not_asked_for() -> None:
    x = torch.randn(N, 4)
    assert_agrees(Net(_write), x, parameters=["scale"], wanted=lambda name: name == "scale")


def test_a_weight_written_through_a_view_of_a_convolution_is_no_kernels_work() -> None:
    class Writes(nn.Module):
        """A convolution whose output, channels last here, is written to through a view."""

        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.shift = nn.Conv2d(5, 6, 3), nn.Parameter(torch.randn(6 * 4))

        def forward(self, x: Tensor) -> Tensor:
            out = self.convolution(x)
            out.view(len(x), -1).add_(self.shift)
            return out.exp().mean(dim=(2, 3))

    # One by one, as the kernels' view is a copy that the model's own convolution does not make.
    assert_agrees(Writes(), torch.randn(N, 5, 4, 4), path="one by one")


def test_options_that_no_short_way_takes_are_refused() -> None:
    ids = torch.tensor([[0, 1], [2, 3], [4, 4]])
    net = nn.Embedding(5, 3, scale_grad_by_freq=True)
    with pytest.raises(GradientNormError, match="scale_grad_by_freq"):
        gradient_norms(net, ids, lambda out: out.sum(dim=(1, 2)))
    moving = Net(lambda net, x: F.batch_norm(x, None, None, net.scale, training=True))
    with pytest.raises(GradientNormError, match="normalises by the batch"):
        gradient_norms(moving, torch.randn(N, 4), lambda out: out.sum(dim=1))


def test_indices_of_another_place_are_another_program() -> None:
    class Takes(nn.Module):
        """A column of the hidden units that an attribute names."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.column = nn.Linear(4, 5), slice(0, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.hidden(x)[:, self.column]

    net, x = Takes(), torch.randn(N, 4)
    for column in (slice(0, 2), slice(1, 3), slice(0, 4, 2), 0, True, None):
        net.column = column
        assert_agrees(net, x, loss=_squares, point_loss=lambda out, _: _squares(out)[0])


def _squares(out: Tensor) -> Tensor:
    return out.square().reshape(len(out), -1).sum(dim=1)


def test_marks_that_tensors_share_are_written_for_one_alone() -> None:
    shared = shared_marks(7)
    a, b = torch.zeros(2), torch.zeros(2)
    a.__dict__["_upslope_marks"] = b.__dict__["_upslope_marks"] = shared
    with pytest.raises(AttributeError, match="by `mark`"):
        marks_of(a).is_copy = True
    mark(a).is_copy = True
    assert (marks_of(a).is_copy, marks_of(a).samples_in) == (True, 7)
    assert (marks_of(b).is_copy, marks_of(b).samples_in) == (False, 7)
    for copied in (copy.deepcopy(b), pickle.loads(pickle.dumps(b))):
        assert marks_of(copied).samples_in == 7


def test_a_question_whether_samples_equal_a_weight_is_no_use_of_it(recwarn) -> None:
    """It went one sample at a time, by a warning that told of outputs which there are not."""
    asked = []

    def middle(net: Net, x: Tensor) -> Tensor:
        asked.append(torch.equal(x[..., :2], net.scale) or torch.allclose(x[0], net.scale))
        return x * net.scale * (1.0 if asked[-1] else 2.0)

    model, x = Net(middle).double(), torch.randn(N, 4, dtype=torch.float64)
    norms = gradient_norms(model, x, _squares)
    assert relative_error(norms, norms_one_by_one(model, x, lambda z, _: _squares(z)[0])) < 1e-12
    assert asked
    assert not any(asked)
    assert not recwarn.list
