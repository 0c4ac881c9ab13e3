"""Tables that samples look rows up in: every way to index them, every option of the modules."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees, assert_unchanged, state
from test_compositions import agree_by_some_path
from test_uses_of_parameters import Functional
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.trace.refusals import refuse_unready_modules

IDS = torch.randint(0, 7, (4, 5), generator=torch.Generator().manual_seed(0))


def table(**options) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 3, **options), nn.Flatten(), nn.Linear(15, 3)).double()


def bag(**options) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.EmbeddingBag(7, 3, **options), nn.Linear(3, 3)).double()


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("padding", [None, 0, 3, -1, -7])
def test_padding_of_tables_and_bags(padding, n):
    assert_agrees(table(padding_idx=padding), IDS[:n])
    assert_agrees(bag(padding_idx=padding, mode="sum"), IDS[:n])


@pytest.mark.parametrize("n", [1, 2])
def test_a_bag_of_padding_alone(n):
    ids = torch.tensor([[2, 2, 2, 2, 2], [1, 2, 3, 4, 5]])[:n]
    assert_agrees(bag(padding_idx=2), ids)
    assert_agrees(bag(padding_idx=2, mode="max"), ids, path="one by one")


class Flat(nn.Module):
    """Bags that lie one behind the other, with offsets."""

    def __init__(self, mode: str, last: bool) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 3, mode=mode, include_last_offset=last)
        self.out = nn.Linear(3, 3)

    def forward(self, ids: Tensor) -> Tensor:
        ends = torch.arange(0, ids.numel() + self.bag.include_last_offset, ids.shape[1])
        return self.out(self.bag(ids.flatten(), ends))


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
@pytest.mark.parametrize("last", [True, False])
def test_bags_with_offsets(mode, last, n):
    torch.manual_seed(0)
    path = "one by one" if mode == "max" else "kernels"
    assert_agrees(Flat(mode, last), IDS[:n], path=path)


def test_bags_made_from_pretrained_rows():
    torch.manual_seed(0)
    rows = nn.EmbeddingBag.from_pretrained(torch.randn(7, 3), freeze=False, mode="sum")
    assert_agrees(nn.Sequential(rows), IDS)


USES = {
    "weights of rows from a table": (
        lambda m, x: F.embedding_bag(x, m.w, mode="sum", per_sample_weights=m.p[x]),
        {"w": (7, 3), "p": (7,)},
    ),
    "weights of rows for all samples": (
        lambda m, x: F.embedding_bag(x, m.w, mode="sum", per_sample_weights=m.p.expand(len(x), 5)),
        {"w": (7, 3), "p": (5,)},
    ),
    "one-hot": (lambda m, x: F.one_hot(x, 7).double() @ m.w, {"w": (7, 3)}),
    "from the end": (lambda m, x: m.w[x - 7], {"w": (7, 3)}),
    "rows that a mask takes": (
        lambda m, x: torch.stack([m.w[v > 2].sum(0) + m.w[0] for v in x]),
        {"w": (5, 3)},
    ),
    "a mask over the batch": (
        lambda m, x: m.w.expand(len(x), 5, 3)[x >= 0].view(len(x), 5, 3),
        {"w": (5, 3)},
    ),
    "columns": (lambda m, x: m.w[:, x].movedim(1, 0), {"w": (3, 7)}),
    "last dimension": (lambda m, x: m.w[..., x].movedim(1, 0), {"w": (3, 7)}),
    "rows, cut": (lambda m, x: m.w[x, 1:], {"w": (7, 3)}),
    "new dimension": (lambda m, x: m.w[x, None], {"w": (7, 3)}),
    "two indices": (lambda m, x: m.w[x, x % 3], {"w": (7, 3)}),
    "two indices, broadcast": (lambda m, x: m.w[x[:, :1], x % 3], {"w": (7, 3)}),
    "constant and sample": (lambda m, x: m.w[torch.arange(5), x], {"w": (5, 7, 2)}),
    "number and sample": (lambda m, x: m.w[1, x], {"w": (5, 7, 2)}),
    "index_select": (
        lambda m, x: torch.index_select(m.w, dim=0, index=x.flatten()).view(len(x), -1),
        {"w": (7, 3)},
    ),
    "index_select of columns": (
        lambda m, x: m.w.index_select(1, x.flatten()).T.reshape(len(x), -1),
        {"w": (3, 7)},
    ),
    "gather": (lambda m, x: torch.gather(m.w, 0, x), {"w": (7, 5)}),
    "take": (lambda m, x: torch.take(m.w, x), {"w": (7,)}),
    "take_along_dim": (
        lambda m, x: torch.take_along_dim(m.w[None], x[..., None], 1),
        {"w": (7, 3)},
    ),
    "torch's own names": (lambda m, x: torch.embedding(weight=m.w, indices=x), {"w": (7, 3)}),
    "row by row": (lambda m, x: torch.stack([m.w[v[0]] for v in x]), {"w": (7, 3)}),
    "scattered": (
        lambda m, x: torch.zeros(len(x), 7).double().scatter_add(1, x, m.w.expand(len(x), 5)),
        {"w": (5,)},
    ),
}


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("case", USES)
def test_rows_of_weights_by_every_index(case, n):
    function, shapes = USES[case]
    torch.manual_seed(0)
    model = Functional(lambda m, x: (function(m, x) * m.s).flatten(1), s=(), **shapes)
    agree_by_some_path(model, IDS[:n], ("kernels", "replayed", "one by one"))


def test_ids_beyond_the_table_are_the_error_of_the_model():
    model = Functional(lambda m, x: m.w[x].flatten(1), w=(5, 3)).double()
    with pytest.raises(IndexError):
        model(IDS)
    with pytest.raises(IndexError):
        gradient_norms(model, IDS, "entropy")


class Shared(nn.Module):
    """The functions in place of the modules, with their options by place and by name."""

    def __init__(self, *args, **options) -> None:
        super().__init__()
        self.words, self.args, self.options = nn.Embedding(7, 3), args, options

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.words.weight, *self.args, **self.options).mean(dim=1)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize(
    ("model", "where"),
    [
        (table(scale_grad_by_freq=True), "`0`"),
        (bag(scale_grad_by_freq=True), "`0`"),
        (Shared(scale_grad_by_freq=True), "`words`"),
        (Shared(None, None, 2.0, True), "`words`"),
    ],
)
def test_gradients_scaled_by_frequency_are_refused_by_name(model, where, n):
    with pytest.raises(GradientNormError, match=f"{where} has `scale_grad_by_freq=True`"):
        gradient_norms(model, IDS[:n], "entropy")


def test_frequencies_of_a_frozen_table_do_not_matter():
    model = table(scale_grad_by_freq=True)
    model[0].weight.requires_grad_(False)
    assert_agrees(model, IDS)


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (table(max_norm=1.0), "`0`"),
        (bag(max_norm=1.0), "`0`"),
        (Shared(None, 1.0), "`words`"),
    ],
)
def test_tables_that_look_ups_write_are_refused_by_name(model, where):
    before = state(model)
    with pytest.raises(GradientNormError, match=rf"{where} has `max_norm=1\.0`.*torch\.renorm"):
        gradient_norms(model, IDS[:2], "entropy")
    assert_unchanged(before, state(model))


def test_modules_that_write_their_table_are_refused_before_they_run():
    model = table(max_norm=1.0)
    before = state(model)
    with pytest.raises(GradientNormError, match=r"`0` has `max_norm=1\.0`"):
        refuse_unready_modules(Inventory(model))
    assert_unchanged(before, state(model))
    refuse_unready_modules(Inventory(table()))
