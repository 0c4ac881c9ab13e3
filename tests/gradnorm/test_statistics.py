"""Statistics of a batch that meet single samples: told at once, whatever the first batch shows."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError, GradientNormWarning
from upslope.gradnorm import gradient_norms, select
from upslope.gradnorm.proofs.statistics import StatisticsWatch


def squares(z: Tensor) -> Tensor:
    return (z * z).sum(1)


class Hidden(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(5, 8), nn.Linear(8, 3), between
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.between(x, self.first(x))))


def within_capacity(x: Tensor, h: Tensor) -> Tensor:
    """Of two experts each takes what comes first, up to 20 samples."""
    hot = F.one_hot((x[:, 0] > 0).long(), 2)
    queue = (hot.cumsum(0) * hot).sum(1)
    return torch.where(queue[:, None] <= 20, h, torch.zeros_like(h))


def centred_if_all_small(x: Tensor, h: Tensor) -> Tensor:
    return torch.where((x.abs() < 1).all(), h - h.mean(0), h)


def by_near_duplicates(x: Tensor, h: Tensor) -> Tensor:
    return h / (torch.cdist(x, x) < 0.3).sum(1, keepdim=True)


def by_pairs_of_rows(x: Tensor, h: Tensor) -> Tensor:
    near = (x[:, None] - x[None]).abs().sum(2) < 0.3
    return h / near.sum(1, keepdim=True)


def by_pairs_in_an_einsum(x: Tensor, h: Tensor) -> Tensor:
    pairs = torch.einsum("kid,jd->kij", h[None], h)
    return h + pairs.clamp(min=1e6).amax((0, 2), keepdim=True)[0] - 1e6


def clipped_after_a_norm(x: Tensor, h: Tensor) -> Tensor:
    h = F.layer_norm(h.nan_to_num(), (8,))
    return h * torch.clamp(1e9 / h.abs().max(), max=1)


@pytest.mark.parametrize(
    "between",
    [
        within_capacity,
        centred_if_all_small,
        by_near_duplicates,
        by_pairs_of_rows,
        by_pairs_in_an_einsum,
        clipped_after_a_norm,
    ],
)
def test_a_statistic_that_may_reach_a_sample_is_told_on_the_first_batch(between) -> None:
    torch.manual_seed(0)
    model = Hidden(between)
    with pytest.warns(GradientNormWarning, match="may depend on the other samples"):
        gradient_norms(model, 3 + 30 * torch.randn(7, 5).double(), squares)


def test_experts_over_their_capacity_are_refused_when_they_are() -> None:
    """Few samples fit into every queue; of 40 some do not, and which depends on the others."""
    torch.manual_seed(0)
    model = Hidden(within_capacity)
    with pytest.warns(GradientNormWarning):
        gradient_norms(model, torch.randn(12, 5).double(), squares)
    x = torch.randn(40, 5).double()
    x[:, 0] = 1
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, squares)


def test_a_loss_that_is_divided_by_the_mean_once_all_are_small_is_refused_then() -> None:
    def loss(z: Tensor) -> Tensor:
        own = squares(z)
        return torch.where((own.detach() < 1).all(), own / own.detach().mean(), own)

    torch.manual_seed(0)
    model, x = nn.Linear(5, 3).double(), torch.randn(8, 5).double()
    with pytest.warns(GradientNormWarning, match="may depend"):
        gradient_norms(model, 30 + x, loss)
    with pytest.raises(GradientNormError, match="enter the losses of others"):
        gradient_norms(model, 0.01 * x, loss)


def test_a_switch_in_a_buffer_makes_another_program() -> None:
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)
            self.register_buffer("is_on", torch.zeros(()))
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x)
            return h - h.mean(0) if self.is_on > 0 else h

    torch.manual_seed(0)
    model, x = Switched(), torch.randn(6, 5).double()
    gradient_norms(model, x, squares)
    model.is_on.fill_(1)
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, squares)


class MaskedMean(nn.Module):
    """Words up to each text's length, in a mask as long as the longest."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        lengths = (ids > 0).sum(1)
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        h = self.words(ids[:, : mask.shape[1]]) * mask[..., None]
        return self.last(h.sum(1) / lengths[:, None])


class PositionsFirst(nn.Module):
    """A sum over dimension 0 that counts positions, as many as four times the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.transpose(0, 1)).softmax(0)
        return self.last(h.cumsum(0).sum(0))


class Balanced(nn.Module):
    """A loss of balance beside the logits, which nothing of a sample meets."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.last = nn.Linear(5, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        p = self.gate(x).softmax(1)
        assert bool((p.sum(0) > 0).all())
        return {"logits": self.last(p), "balance": (p.mean(0) * 4 - 1).square().sum()}


class OneGroupOfQueries(nn.Module):
    """Queries with a group for each head more than keys have: one, as if broadcast over samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).unflatten(-1, (2, 4)).transpose(1, 2)
        attention = torch.einsum("bghtd,bhsd->bghts", h[:, None], h)
        return self.last((attention + h.mean(3)[:, None, :, :, None]).mean((1, 2, 3)))


class SharedEdges(nn.Module):
    """Messages along edges that all samples share, added to the nodes that they lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.register_buffer("ends", torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]]))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        starts, ends = self.ends
        messages = self.first(x.index_select(1, starts))
        index = ends[None, :, None].expand_as(messages)
        nodes = messages.new_zeros(len(x), 3, 8).scatter_add_(1, index, messages)
        return self.last(nodes.relu().mean(1))


class LinearAttention(nn.Module):
    """Attention of one head by features, divided by a sum of which the type alone is another's."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.last = nn.Linear(5, 8), nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None]
        k = self.features(x).exp()
        size = torch.einsum("...nd,...d->...n", k, k.sum(dim=-2).type_as(k))
        context = torch.einsum("...nd,...ne->...de", k, x)
        attended = torch.einsum("...de,...nd,...n->...ne", context, k, 1 / size)
        return self.last(attended.mean((1, 2)))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (LinearAttention, lambda: torch.randn(3, 6, 5).double()),
        (SharedEdges, lambda: torch.randn(4, 3, 5).double()),
        (OneGroupOfQueries, lambda: torch.randn(3, 6, 5).double()),
        (MaskedMean, lambda: torch.randint(1, 20, (5, 7)) * (torch.arange(7) < 4)),
        (PositionsFirst, lambda: torch.randn(3, 12, 5).double()),
        (Balanced, lambda: torch.randn(6, 5).double()),
    ],
)
def test_idioms_that_keep_samples_apart_are_not_told_of(model, inputs) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientNormWarning)
        norms = gradient_norms(model(), inputs(), "entropy")
    assert bool((norms > 0).all())


def test_the_watch_names_the_operator_where_a_statistic_meets_a_sample() -> None:
    x = torch.randn(4, 3)
    watch = StatisticsWatch(4)
    with watch:
        own = watch.mark(x.clone())
        out = (own * 2) / own.sum(0)
    assert watch.finish([out])
    assert watch.operator in ("div", "__truediv__")


def test_a_running_sum_that_is_put_out_is_a_statistic_of_each_sample() -> None:
    watch = StatisticsWatch(4)
    with watch:
        out = watch.mark(torch.randn(4, 3)).cumsum(0)
    assert watch.finish([out])


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(8), lambda: nn.PReLU(8)])
def test_half_precision_of_five_bits_keeps_its_kernels(make) -> None:
    """Powers of two that separate samples stay within the range of float16."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), make(), nn.Linear(8, 4))
    x = torch.randn(64, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientNormWarning)
        norms = gradient_norms(model, x, "entropy", dtype=torch.float16)
    assert torch.allclose(norms, gradient_norms(model, x, "entropy"), rtol=0.05, atol=1e-3)


def test_a_model_for_one_size_of_batch_is_refused() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).view(6, 3)

    with pytest.raises(GradientNormError, match=r"any number of samples but on 3 of the 6"):
        gradient_norms(Fixed(), torch.randn(6, 5), "entropy")


def test_the_last_layer_may_be_parametrized_and_without_bias() -> None:
    """Its weight is further from the outputs, in steps of the graph, than the layer before."""
    last = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3, bias=False))
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), last)
    names = set(select(model, "last", torch.randn(2, 5)))
    assert names == {f"2.parametrizations.weight.original{i}" for i in (0, 1)}


def test_a_model_that_mixes_is_refused_where_all_losses_are_flat() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + 0.1 * x.mean(0))

    torch.manual_seed(0)
    x = torch.randn(2, 5)
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(Mixed(), x, lambda z: squares(z).clamp(max=1e-3))


def test_a_loss_of_the_harder_half_is_refused_though_it_holds_labels() -> None:
    """Which half a sample is in follows from the others, by a comparison without a gradient."""
    torch.manual_seed(0)
    model, x = nn.Linear(5, 3).double(), torch.randn(3, 5).double()
    labels = torch.tensor([0, 1, 2])

    def loss(z: Tensor) -> Tensor:
        own = F.cross_entropy(z, labels, reduction="none")
        return own * (own >= own.median())

    with pytest.raises(GradientNormError, match="enter the losses of others"):
        gradient_norms(model, x, loss)


class RelativePositions(nn.Module):
    """A table of distances between positions, of which there are as many as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.distances = nn.Embedding(20, 8), nn.Embedding(20, 1)
        self.last = nn.Linear(8, 3)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])
        bias = self.distances((places[:, None] - places[None]).abs())[..., 0]
        h = self.words(ids)
        return self.last((h @ h.mT + bias).softmax(2).matmul(h).mean(1))


def test_whole_numbers_that_are_no_inputs_are_shared_whatever_their_shape() -> None:
    """It goes one by one, which is told: a bias of (n, n) may belong to samples or to positions."""
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gradient_norms(RelativePositions(), torch.randint(20, (4, 4)), "entropy")
    assert not any("may depend" in str(warning.message) for warning in told)


class CentredBeyondOne(nn.Module):
    """Adds the batch's mean to large rows, and leaves a sample alone as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            x = torch.where((x.mean(1) > 5)[:, None], x + x.mean(0), x)
        return self.head(x)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_model_that_mixes_but_not_for_one_sample_is_refused_when_it_does(n: int) -> None:
    torch.manual_seed(0)
    model, x = CentredBeyondOne(), torch.randn(n, 3, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientNormWarning)
        gradient_norms(model, x, squares)
        with pytest.raises(GradientNormError, match="mixes samples"):
            gradient_norms(model, x + torch.tensor([[9.0]] + [[0.0]] * (n - 1)), squares)


def test_samples_without_a_label_do_not_pass_for_those_of_others(recwarn) -> None:
    """The loss of a wholly void mask is made of no sample's numbers."""
    torch.manual_seed(0)
    masks = torch.randint(3, (5, 6, 6))
    masks[1] = 255

    def losses(outputs: Tensor) -> Tensor:
        every = F.cross_entropy(outputs, masks, ignore_index=255, reduction="none")
        return every.flatten(1).sum(1) / (masks != 255).flatten(1).sum(1).clamp(min=1)

    norms = gradient_norms(nn.Conv2d(2, 3, 1).double(), torch.randn(5, 2, 6, 6).double(), losses)
    assert (norms == 0).tolist() == [False, True, False, False, False]
    assert not [w for w in recwarn if "may depend" in str(w.message)]
