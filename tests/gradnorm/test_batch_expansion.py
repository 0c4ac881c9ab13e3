"""Weights that a model copies to every sample before they meet."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees
from torch import Tensor, nn

from upslope.gradnorm.trace.batch_expansion import is_batch_expansion, repeat_weight


class ShiftedWindows(nn.Module):
    """A table of biases, added to a mask with rows for every window of every sample (Swin)."""

    def __init__(self, windows: int = 2, heads: int = 2, size: int = 3) -> None:
        super().__init__()
        self.windows, self.heads = windows, heads
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)
        self.table = nn.Parameter(torch.randn(5, heads))
        index = torch.arange(size)
        self.register_buffer("index", index[:, None] - index + size - 1)
        self.register_buffer("mask", torch.randn(windows, size, size).double())

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        x = x.unflatten(1, (self.windows, -1)).flatten(0, 1)  # (n * windows, size, 4)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].permute(2, 0, 1)[None]  # (1, heads, size, size)
        mask = self.mask.unsqueeze(1).expand(-1, self.heads, -1, -1)
        bias = bias + mask.repeat(n, 1, 1, 1)  # of weights and constants, for every window
        y = (q @ k.mT + bias).softmax(dim=-1) @ v
        return self.out(y.transpose(1, 2).flatten(2)).view(n, -1, 3).mean(dim=1)


# With 2, 3 and 4 samples, sizes of the network are multiples of the batch's by coincidence.
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_biases_added_to_masks_of_every_sample(n):
    torch.manual_seed(0)
    assert_agrees(ShiftedWindows(), torch.randn(n, 6, 4))


class RelativePositions(nn.Module):
    """A projected table of positions, repeated for every sample and head (DeBERTa)."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.positions = heads, nn.Embedding(7, 4)
        self.query, self.key, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def by_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        places = self.by_heads(self.key(self.positions.weight[None])).repeat(len(x), 1, 1)
        scores = self.by_heads(self.query(x)) @ places.mT  # (n * heads, t, 7)
        return self.out(x * scores.unflatten(0, (len(x), -1)).mean(dim=(1, 3))[..., None]).mean(1)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_tables_repeated_for_every_head_of_every_sample(n):
    torch.manual_seed(0)
    assert_agrees(RelativePositions(), torch.randn(n, 5, 4))


class InPlace(nn.Module):
    """Copies by way of what is written into constants, and by arguments with names."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(1, 3))

    def forward(self, x: Tensor) -> Tensor:
        shift = x.new_ones(len(x), 3)
        shift += self.shift
        shift.mul_(self.shift.sin())
        return x * torch.broadcast_to(input=self.scale, size=x.shape) + shift


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_copies_written_into_constants(n):
    torch.manual_seed(0)
    assert_agrees(InPlace(), torch.randn(n, 3))


class Tiled(nn.Module):
    """A weight that is as many times as long as the batch by coincidence: no copies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.repeat(4, 1).sin().T


@pytest.mark.parametrize("n", [2, 4])
def test_lengths_that_are_multiples_of_the_batch_by_coincidence(n):
    torch.manual_seed(0)
    assert_agrees(Tiled(), torch.randn(n, 3))


@pytest.mark.parametrize(
    ("shape", "sizes", "n", "expected"),
    [
        ((4, 1, 3), (1, 1, 3), 4, True),
        ((8, 3), (2, 3), 4, True),
        ((8, 3), (3,), 4, True),
        ((8, 3), (8, 1), 4, False),
        ((3, 3), (1, 3), 1, False),
        ((0, 3), (1, 3), 4, False),
        ((6, 3), (1, 3), 4, False),
    ],
)
def test_what_counts_as_copies(shape, sizes, n, expected):
    assert is_batch_expansion(shape, [torch.zeros(sizes)], n) is expected


@pytest.mark.parametrize(
    ("sizes", "times"), [((3,), (2,)), ((1, 3), (4, 1)), ((2, 3), (3, 1, 2)), ((2,), (2, 0))]
)
def test_repeating_as_torch_does(sizes, times):
    weight = torch.randn(sizes)
    assert torch.equal(repeat_weight((weight, *times)), weight.repeat(times))
    assert torch.equal(repeat_weight((weight, times)), weight.repeat(times))
