"""Places that no single dimension tells, rows that a model writes for one sample, and bags."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from oracle import assert_agrees
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.weights import derived_gradients
from upslope.gradnorm.trace.forward import Forward
from upslope.gradnorm.trace.memory import Memory


def readout(outputs: Tensor, _: int = 0) -> Tensor:
    return outputs.tanh().sum(dim=1) + outputs.square().sum(dim=1)


def readout_alone(outputs: Tensor, _: int) -> Tensor:
    return readout(outputs)[0]


class Frames(nn.Module):
    """A class token beside the patches of every frame, of which the first n rows' are kept."""

    def __init__(self, frames: int = 2) -> None:
        super().__init__()
        self.frames, self.patch = frames, nn.Linear(3, 4)
        self.cls, self.positions = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4, 4))
        self.mix, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (n, frames, 3 patches, 3)
        n = len(x)
        patches = self.patch(x.flatten(0, 1))
        tokens = torch.cat([self.cls.expand(len(patches), 1, 4), patches], dim=1) + self.positions
        cls = tokens[:n, 0, None]
        rest = tokens[:, 1:].reshape(n, -1, 4)
        tokens = torch.cat([cls, rest], dim=1)
        scores = (tokens @ self.mix(tokens).mT).softmax(dim=-1)
        return self.out((scores @ tokens)[:, 0])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_a_class_token_that_stands_in_the_rows_of_other_samples(n):
    torch.manual_seed(0)
    assert_agrees(Frames(), torch.randn(n, 2, 3, 3), loss=readout, point_loss=readout_alone)


def test_what_codes_have_told_is_remembered(monkeypatch):
    torch.manual_seed(0)
    model, passes = Frames().double(), []
    gradient_norms(model, torch.randn(4, 2, 3, 3).double(), readout)
    backward = Forward.backward
    monkeypatch.setattr(Forward, "backward", lambda *a, **k: passes.append(backward(*a, **k)))
    gradient_norms(model, torch.randn(4, 2, 3, 3).double(), readout)
    assert len(passes) == 1


class Mixed(Frames):
    """The class token of each frame's row has looked at that frame, and is another sample's."""

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        patches = self.patch(x.flatten(0, 1))
        tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1) + self.positions
        return self.out(tokens[:n, 0] + tokens[:, 1:].reshape(n, -1, 4).mean(dim=1))


def test_a_token_of_another_sample_is_refused():
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="mixes samples"):
        gradient_norms(Mixed().double(), torch.randn(4, 2, 3, 3).double(), readout)


class OwnTables(nn.Module):
    """A table of positions, brought to each image's own size and written into its row (Siglip2)."""

    def __init__(self, resized: bool) -> None:
        super().__init__()
        self.resized = resized
        self.table, self.patch = nn.Embedding(4, 3), nn.Linear(3, 3)
        self.out = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.empty(len(x), 6, 3).to(x)
        grid = self.table.weight.reshape(2, 2, 3).permute(2, 0, 1)[None]
        for i in range(len(x)):
            own = F.interpolate(grid, size=(2, 3), mode="bilinear")[0].flatten(1).T
            own = own if self.resized else self.table.weight
            rows[i, : len(own)] = own
            rows[i, len(own) :] = own[0]
        h = self.patch(x) + rows
        return self.out(torch.tanh(h)).mean(dim=1)


@pytest.mark.parametrize("resized", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_tables_written_into_the_row_of_each_sample(n, resized):
    torch.manual_seed(0)
    assert_agrees(OwnTables(resized), torch.randn(n, 6, 3), loss=readout, point_loss=readout_alone)


@pytest.mark.parametrize("n", [2, 5])
def test_a_table_is_differentiated_once_for_each_sample(n):
    torch.manual_seed(0)
    model, x = OwnTables(True).double(), torch.randn(n, 6, 3).double()
    gradient_norms(model, x, readout)  # a program of its own, which is proven
    with (
        mock.patch.object(
            derived_gradients, "_differentiate", wraps=derived_gradients._differentiate
        ) as differentiate,
        mock.patch.object(Memory, "draw_proof", return_value=False),
    ):
        gradient_norms(model, x, readout)
    assert differentiate.call_count == n
    assert not any("is_grads_batched" in call.kwargs for call in differentiate.call_args_list)


class Reversed(OwnTables):
    """The rows are written from the last to the first, each of which is then another sample's."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.empty(len(x), 6, 3).to(x)
        for i in range(len(x)):
            rows[i] = self.table.weight[0] * (i + 1)
        return self.out(torch.tanh(self.patch(x) + rows.flip(0) + rows)).mean(dim=1)


def test_rows_that_are_not_in_order_are_no_one_samples():
    torch.manual_seed(0)
    model, x = Reversed(True).double(), torch.randn(4, 6, 3).double()
    with pytest.raises(ValueError, match="sample"):  # the place in the batch decides
        gradient_norms(model, x, readout)


class Bag(nn.Module):
    """Bags of words by offsets; (n, 5) words."""

    def __init__(self, weighted: bool = False, per_row: int = 1, **options: object) -> None:
        super().__init__()
        self.weighted, self.per_row = weighted, per_row
        self.bag = nn.EmbeddingBag(7, 4, **options)
        self.scale, self.out = nn.Embedding(7, 1), nn.Linear(4 * per_row, 3)

    def forward(self, words: Tensor) -> Tensor:
        n, length = words.shape
        starts = torch.arange(n * self.per_row) * (length // self.per_row)
        if self.bag.include_last_offset:
            starts = torch.cat([starts, torch.tensor([words.numel()])])
        factors = self.scale(words).flatten() if self.weighted else None
        bags = self.bag(words.flatten(), starts, per_sample_weights=factors)
        return self.out(bags.view(n, -1))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"mode": "sum"}, {"mode": "mean", "padding_idx": 2}, {"mode": "sum", "padding_idx": -1},
        {"mode": "sum", "weighted": True}, {"mode": "sum", "weighted": True, "padding_idx": 0},
        {"include_last_offset": True}, {"per_row": 2}, {"mode": "sum", "per_row": 3},
    ],
)  # fmt: skip
@pytest.mark.parametrize("n", [1, 3, 4])
def test_bags_by_offsets(n, options):
    torch.manual_seed(0)
    words = torch.randint(7, (n, 6))
    assert_agrees(Bag(**options), words, loss=readout, point_loss=readout_alone)


class ProjectedTables(nn.Module):
    """Tables projected in every layer by weights of their own, of which two uses are made."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.keys = nn.ModuleList(nn.Linear(4, 4) for _ in range(layers))
        self.decay, self.out = nn.Parameter(torch.randn(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        places, decay = self.norm(self.table.weight), torch.sigmoid(self.decay)
        for key in self.keys:
            shift = key(places)
            scores = (key(x) @ shift.mT).softmax(dim=-1)
            x = x + scores @ shift
            x = decay * x + (1 - decay) * x.roll(1, dims=1)
        return self.out(x.mean(dim=1))


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_weights_made_of_several_parameters_in_every_layer(n):
    torch.manual_seed(0)
    assert_agrees(ProjectedTables(), torch.randn(n, 5, 4), loss=readout, point_loss=readout_alone)


def test_one_backward_pass_for_all_that_is_made_of_parameters(monkeypatch):
    torch.manual_seed(0)
    model, x = ProjectedTables().double(), torch.randn(4, 6, 4).double()
    gradient_norms(model, x, readout)
    calls, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    gradient_norms(model, x, readout)
    assert len(calls) <= 3  # the batch's own, that of the tables, and that of the decay


class Prototypes(nn.Module):
    """Rows of a table of four classes, written one by one; with four samples, rows by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.ParameterList(torch.randn(3) for _ in range(4))
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.zeros(4, 3).to(x)
        for k, row in enumerate(self.classes):
            rows[k] = row
        return torch.tanh(self.layer(x)) @ rows.T


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_rows_that_are_as_many_as_the_samples_by_chance(n):
    torch.manual_seed(0)
    assert_agrees(Prototypes(), torch.randn(n, 3), loss=readout, point_loss=readout_alone)


def test_what_was_no_copy_is_not_tried_as_one_again(monkeypatch):
    torch.manual_seed(0)
    model, x, calls = Prototypes().double(), torch.randn(4, 3).double(), []
    gradient_norms(model, x, readout)
    record = Forward._call
    monkeypatch.setattr(Forward, "_call", lambda self: calls.append(1) or record(self))
    gradient_norms(model, x, readout)
    assert len(calls) == 1
