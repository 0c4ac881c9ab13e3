"""Linear layers, normalisation, PReLU, embeddings: every shape and option against the oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_agrees
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms

checked = settings(max_examples=12, deadline=None, derandomize=True, database=None)


class Head(nn.Module):
    """A body, then the mean over all positions, then logits."""

    def __init__(self, body: nn.Module, width: int, *, channels_first: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.channels_first = body, nn.Linear(width, 3), channels_first

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.body(x))
        if self.channels_first:
            x = x.reshape(*x.shape[:2], -1).mean(dim=2)
        else:
            x = x.flatten(1, -2).mean(dim=1)
        return self.head(x)


@checked
@given(
    n=st.integers(1, 5),
    leading=st.lists(st.integers(1, 4), max_size=3),
    width=st.integers(1, 7),
    out=st.integers(1, 9),
    bias=st.booleans(),
)
def test_linear_over_any_leading_dimensions(n, leading, width, out, bias):
    torch.manual_seed(n + width)
    model = Head(nn.Linear(width, out, bias), out)
    assert_agrees(model, torch.randn(n, *(leading or [1]), width))


@pytest.mark.parametrize(("positions", "i", "o"), [(40, 3, 4), (2, 20, 30), (1, 5, 6)])
def test_linear_direct_gram_and_single_position(positions, i, o):
    torch.manual_seed(0)
    assert_agrees(Head(nn.Linear(i, o), o), torch.randn(3, positions, i))


@checked
@given(n=st.integers(1, 4), space=st.integers(0, 3), c=st.integers(1, 6), affine=st.booleans())
def test_batch_norm_in_eval_mode(n, space, c, affine):
    torch.manual_seed(c)
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[space]
    bn = kind(c, affine=affine)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.2, 2)
    if affine:
        nn.init.normal_(bn.weight)
        nn.init.normal_(bn.bias)
    body = nn.Sequential(nn.PReLU(), bn)
    places = [3, 4, 2][:space] or [1]
    assert_agrees(Head(body, c, channels_first=True), torch.randn(n, c, *places))


@pytest.mark.parametrize("gamma", [0.0, 1e-30, 1e-12, -1e-3])
def test_batch_norm_with_vanishing_scale_after_a_convolution(gamma):
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
    bn.running_mean.normal_()
    with torch.no_grad():
        bn.weight[1:3] = gamma
        bn.bias.normal_()
    body = nn.Sequential(conv, bn, nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, bias=False),
                         nn.BatchNorm2d(4), nn.ReLU(inplace=True))  # fmt: skip
    assert_agrees(Head(body, 4, channels_first=True), torch.randn(3, 2, 6, 6))


def test_batch_norm_that_is_frozen_between_convolutions():
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(4).requires_grad_(False)
    bn.running_var.uniform_(0.5, 2)
    body = nn.Sequential(nn.Conv2d(2, 4, 3), bn, nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
    assert_agrees(Head(body, 4, channels_first=True), torch.randn(3, 2, 6, 6))


@pytest.mark.parametrize("affine", ["both", "weight", "none"])
@pytest.mark.parametrize("shape", [(5,), (4, 5)])
def test_layer_norm(affine, shape):
    torch.manual_seed(0)
    norm = nn.LayerNorm(shape, elementwise_affine=affine != "none", bias=affine == "both")
    for p in norm.parameters():
        nn.init.normal_(p)
    assert_agrees(Head(nn.Sequential(nn.Linear(5, 5), norm), 5), torch.randn(3, 4, 5))


@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_rms_norm(leading):
    torch.manual_seed(0)
    norm = nn.RMSNorm(5)
    nn.init.normal_(norm.weight)
    body = nn.Sequential(nn.Linear(5, 5), norm)
    assert_agrees(Head(body, 5), torch.randn(3, *(leading or (1,)), 5))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("space", [(5,), (3, 4), (2, 3, 2)])
def test_group_norm(groups, affine, space):
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, 6, affine=affine)
    for p in norm.parameters():
        nn.init.normal_(p)
    body = nn.Sequential(nn.PReLU(6), norm)
    assert_agrees(Head(body, 6, channels_first=True), torch.randn(3, 6, *space))


class OneWide(nn.Module):
    """Group normalisation of tokens as an image of width one, whose stride says nothing."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        tokens = self.layer(x).mT
        image = tokens.as_strided((*tokens.shape, 1), (*tokens.stride(), 1))
        return self.head(self.norm(image).mean(dim=(2, 3)))


@pytest.mark.filterwarnings("error")
def test_group_norm_of_images_of_width_one():
    torch.manual_seed(0)
    assert_agrees(OneWide(), torch.randn(5, 3, 4))


@pytest.mark.parametrize("frames_first", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_group_norm_of_frames_that_are_rows_of_their_own(groups, frames_first):
    class Video(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.GroupNorm(groups, 6), nn.Linear(6, 3)
            nn.init.normal_(self.norm.weight)

        def forward(self, x):
            x = x.transpose(0, 1) if frames_first else x
            y = self.norm(x.flatten(0, 1)).tanh().unflatten(0, x.shape[:2])
            return self.head(y.mean((0 if frames_first else 1, 3, 4)))

    assert_agrees(Video(), torch.randn(3, 4, 6, 5, 5))


def test_group_norm_of_channels_that_lie_last():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 4, 1))
    assert_agrees(Head(body, 4, channels_first=True), torch.randn(3, 3, 5, 6))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_instance_norm(dimensions, tracked, affine):
    torch.manual_seed(0)
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dimensions - 1]
    norm = kind(4, affine=affine, track_running_stats=tracked)
    for p in norm.parameters():
        nn.init.normal_(p)
    body = nn.Sequential(nn.PReLU(4), norm)
    assert_agrees(Head(body, 4, channels_first=True), torch.randn(3, 4, *(5, 3, 2)[:dimensions]))


class PartlyZero(nn.Module):
    """Exact zeros that let the gradient through."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.detach() > 0, x, x - x.detach())


@pytest.mark.parametrize("count", [1, 4])
def test_prelu_also_where_its_input_is_exactly_zero(count):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv1d(4, 4, 1), PartlyZero(), nn.PReLU(count), nn.Conv1d(4, 4, 1))
    assert_agrees(Head(body, 4, channels_first=True), torch.randn(3, 4, 6))


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("first", [True, False])
def test_prelu_of_images_in_either_memory_format(first, count, n):
    torch.manual_seed(0)
    layers = [nn.PReLU(count), nn.Conv2d(4, 4, 3), nn.PReLU(count), nn.Conv2d(4, 4, 1)]
    body = nn.Sequential(*layers[0 if first else 1 :])
    x = torch.randn(n, 4, 6, 5)
    assert_agrees(Head(body, 4, channels_first=True), x)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_agrees(Head(body, 4, channels_first=True), last)


class Words(nn.Module):
    def __init__(self, table: nn.Module, width: int) -> None:
        super().__init__()
        self.table, self.head = table, nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(torch.tanh(x if x.dim() == 2 else x.flatten(1, -2).mean(dim=1)))


@pytest.mark.parametrize("padding", [None, 0, 5, -1])
@pytest.mark.parametrize(
    ("length", "rows", "width"), [(1, 6, 4), (7, 6, 4), (30, 6, 5), (4, 50, 9)]
)
def test_embedding(padding, length, rows, width):
    torch.manual_seed(0)
    table = nn.Embedding(rows, width, padding_idx=padding)
    assert_agrees(Words(table, width), torch.randint(0, rows, (4, length)))


@pytest.mark.parametrize("shape", [(4,), (4, 2, 3)])
def test_embedding_of_ids_of_any_shape(shape):
    torch.manual_seed(0)
    assert_agrees(Words(nn.Embedding(6, 4), 4), torch.randint(0, 6, shape))


def test_sparse_embedding():
    torch.manual_seed(0)
    table = nn.Embedding(6, 4, sparse=True)
    assert_agrees(Words(table, 4), torch.randint(0, 6, (4, 5)))


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_embedding_bag_of_rows(mode, padding):
    torch.manual_seed(0)
    table = nn.EmbeddingBag(6, 4, mode=mode, padding_idx=padding)
    assert_agrees(Words(table, 4), torch.randint(0, 6, (4, 5)))


def test_embedding_bag_of_maxima_takes_the_exact_slow_path():
    torch.manual_seed(0)
    table = nn.EmbeddingBag(6, 4, mode="max")
    assert_agrees(Words(table, 4), torch.randint(0, 6, (4, 5)), path="one by one")


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(6, 4, mode="sum"), nn.Linear(4, 3)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bag(ids, per_sample_weights=weights)))


def test_embedding_bag_with_weights_in_the_input():
    torch.manual_seed(0)
    assert_agrees(Weighted(), (torch.randint(0, 6, (4, 5)), torch.randn(4, 5)))


class Styled(nn.Module):
    """Images that a batch normalisation of one row normalises each by itself (AdaIN)."""

    def __init__(self, has_own_scales: bool, is_folded: bool = False) -> None:
        super().__init__()
        self.conv, self.style = nn.Conv2d(3, 4, 3), nn.Linear(5, 8)
        self.scale, self.shift = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.has_own_scales, self.is_folded = has_own_scales, is_folded
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = self.conv(x)
        n, c = x.shape[:2]
        scale, shift = (rows.flatten() for rows in self.style(style).chunk(2, dim=1))
        if self.has_own_scales:
            scale, shift = self.scale.repeat(n), self.shift.repeat(n)
        mean, var = torch.zeros(n * c).to(x), torch.ones(n * c).to(x)
        if self.is_folded:  # the samples side by side in one image
            row = x.movedim(0, 2).reshape(1, c, -1, x.shape[3])
            row = F.batch_norm(row, mean[:c], var[:c], self.scale, self.shift, True)
            return self.head(torch.tanh(row.view(c, -1, n, x.shape[3]).mean((1, 3))).T)
        row = F.batch_norm(x.reshape(1, n * c, *x.shape[2:]), mean, var, scale, shift, True)
        return self.head(torch.tanh(row.view(x.shape)).mean(dim=(2, 3)))


@pytest.mark.parametrize("has_own_scales", [True, False])
def test_batch_statistics_of_channels_of_single_samples(has_own_scales):
    model = Styled(has_own_scales).double()
    x = torch.randn(5, 3, 7, 7, dtype=torch.float64), torch.randn(5, 5, dtype=torch.float64)
    assert_agrees(model, x)


def test_batch_statistics_of_one_row_that_mixes_samples_are_refused():
    x = torch.randn(5, 3, 7, 7), torch.randn(5, 5)
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(Styled(False, is_folded=True), x, "entropy")
