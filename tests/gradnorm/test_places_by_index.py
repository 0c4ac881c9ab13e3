"""Entries that an index of the samples moves, where shapes alone say whose they are (`program`)."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
from oracle import TOLERANCE, norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.trace.forward import Forward
from upslope.gradnorm.trace.memory import Memory, memory_of

WORDS, T, WIDTH = 9, 5, 6
TABLE = torch.arange(40).view(1, 40) % WORDS


class Model(nn.Module):
    """Vectors of words, made of the words by a function, and a head."""

    def __init__(self, places: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 3)
        self.places = places

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.places(words, self.words(words)).mean(dim=1))


def positions_without_padding(words: Tensor, x: Tensor) -> Tensor:
    """Types of words looked up by positions that count no padding, as in RoBERTa."""
    mask = words.ne(1).long()
    places = mask.cumsum(dim=1) * mask
    types = TABLE.expand(len(words), -1).gather(1, places)
    return x * types[..., None]


def shifted_to_the_right(words: Tensor, x: Tensor) -> Tensor:
    shifted = words.new_zeros(words.shape)
    shifted[:, 1:] = words[:, :-1].clone()
    shifted[:, 0] = 2
    return x * F.one_hot(shifted, WORDS)[..., :WIDTH]


def filled_by_a_mask(words: Tensor, x: Tensor) -> Tensor:
    words = words.clone()
    words[words == 1] = 0
    x = 2 * torch.tanh(x)
    x[words > 4] = 0.25
    x[(words == 0).all(dim=1)] = 0
    return x * words[..., None]


def along_the_positions(words: Tensor, x: Tensor) -> Tensor:
    return x * torch.take_along_dim(TABLE.repeat(len(words), 1), words, dim=1)[..., None]


def filled_at_the_end(words: Tensor, x: Tensor) -> Tensor:
    """A mask of the frames that a text reaches, as models of speech make it."""
    lengths = torch.div(words.ne(1).cumsum(dim=-1)[:, -1] + 1, 2, rounding_mode="floor")
    mask = torch.zeros(words.shape, dtype=torch.long)
    mask[(torch.arange(len(words)), lengths - 1)] = 1
    mask = mask.flip([-1]).cumsum(-1).flip([-1]).bool()
    x = 2 * torch.tanh(x)
    x[~mask.unsqueeze(-1).repeat(1, 1, WIDTH)] = 0
    return x


def messages(words: Tensor, x: Tensor) -> Tensor:
    """Messages along edges, added up at the nodes that they go to."""
    to = (words % T)[..., None].expand_as(x)
    total = torch.zeros_like(x).scatter_add(1, to, x.gather(1, to.flip(1)))
    return total + torch.scatter_reduce(torch.zeros(x.shape).to(x), 1, to, x, "amax")


def scores_of_the_best(words: Tensor, x: Tensor) -> Tensor:
    """Scores of the experts that were chosen, none of the others, as in Llama 4."""
    rows = x.flatten(0, 1)
    best, which = torch.topk(rows, 2, dim=1)
    scores = torch.full_like(rows, -torch.inf).scatter_(1, which, best)
    mask = torch.zeros_like(rows).scatter_(1, torch.topk(rows, 3, dim=-1)[1], 1)
    return (rows * scores.sigmoid() * mask).view(x.shape)


IN_PLACE = [
    positions_without_padding,
    shifted_to_the_right,
    filled_by_a_mask,
    filled_at_the_end,
    along_the_positions,
    messages,
    scores_of_the_best,
]


@pytest.mark.parametrize("n", [4, 5])  # five samples of five words
@pytest.mark.parametrize("places", IN_PLACE)
def test_later_batches_are_not_probed(places, n):
    torch.manual_seed(0)
    model = Model(places).double().eval()
    probe, probed = Forward.probe, []

    def watched_probe(self: Forward, losses: Tensor) -> object:
        probed.append(self)
        return probe(self, losses)

    with (
        mock.patch.object(Forward, "probe", watched_probe),
        mock.patch.object(Memory, "draw_proof", return_value=False),
    ):
        for _ in range(5):
            words = torch.randint(WORDS, (n, T))
            found = gradient_norms(model, words, "entropy")
            assert relative_error(found, norms_one_by_one(model, words)) < TOLERANCE
    assert len(probed) == 1
    assert not any(record.may_mix_samples for record in memory_of(model)._programs.values())


def rows_of_another(words: Tensor, x: Tensor) -> Tensor:
    """Rows of a table of samples, chosen by a number of another sample."""
    order = words.sum(dim=1).argsort()
    return x.gather(0, order[:, None, None].expand_as(x))


def weights_where_a_mask_is_true(words: Tensor, x: Tensor) -> Tensor:
    x = x.clone()
    x[words == 1] = 0
    return x[words.sum(dim=1).argsort()][words.sum(dim=1).argsort().argsort()]


def one_row_by_another_s_number(words: Tensor, x: Tensor) -> Tensor:
    x = 2 * torch.tanh(x)
    x[words[:, 0] % len(x)] = 0
    return x


def lengths_of(words: Tensor) -> Tensor:
    return words.ne(1).sum(dim=1) - 1


def filled_by_another_s_mask(words: Tensor, x: Tensor) -> Tensor:
    x = 2 * torch.tanh(x)
    x[(words == 1).flip(0)] = 0
    return x


def filled_up_to_another_s_length(words: Tensor, x: Tensor) -> Tensor:
    mask = torch.zeros(words.shape)
    mask[torch.arange(len(words)), lengths_of(words).flip(0)] = 1
    return x * mask[..., None]


def filled_in_another_s_row(words: Tensor, x: Tensor) -> Tensor:
    mask = torch.zeros(words.shape)
    mask[torch.arange(len(words)).flip(0), lengths_of(words)] = 1
    return x * mask[..., None]


def looked_up_by_another(words: Tensor, x: Tensor) -> Tensor:
    types = TABLE.expand(len(words), -1).gather(1, words.ne(1).long().flip(0))
    return x * types[..., None]


def sent_to_others(words: Tensor, x: Tensor) -> Tensor:
    to = (words[:, 0].argsort().argsort())[:, None, None].expand_as(x)
    return torch.zeros_like(x).scatter_add(0, to, x)


def sent_across(words: Tensor, x: Tensor) -> Tensor:
    """Samples in the last dimension, along which they are scattered."""
    rows = x[:, 0].t()  # (width, n)
    to = words[:, 0].argsort().argsort().expand_as(rows)
    sent = torch.zeros(rows.shape).to(rows).scatter(1, to, rows)
    return x + sent.t()[:, None]


def moved_by_another(words: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(x).gather(1, (words % T).flip(0)[..., None].expand_as(x)).cumsum(dim=1)


def sent_by_another(words: Tensor, x: Tensor) -> Tensor:
    to = (words % T).flip(0)[..., None].expand_as(x)
    return torch.zeros_like(x).scatter_add(1, to, torch.tanh(x)).cumsum(dim=1)


MIXING = [
    moved_by_another,
    sent_by_another,
    rows_of_another,
    one_row_by_another_s_number,
    filled_by_another_s_mask,
    filled_up_to_another_s_length,
    filled_in_another_s_row,
    looked_up_by_another,
    sent_to_others,
    sent_across,
]


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("places", MIXING)
def test_later_batches_that_mix_are_refused(places):
    """Behind a first batch of samples that are alike, or in order, and harmless therefore."""
    torch.manual_seed(0)
    model = Model(places).double().eval()
    harmless = torch.arange(3, 3 + T).repeat(4, 1)
    if places in (rows_of_another, sent_to_others, sent_across):
        harmless[:, 0] = torch.arange(4)
    if places is not one_row_by_another_s_number:
        found = gradient_norms(model, harmless, "entropy")
        assert relative_error(found, norms_one_by_one(model, harmless)) < TOLERANCE
    mixing = harmless.flip(0).clone()
    mixing[0, 2:] = 1
    with pytest.raises(GradientNormError):
        gradient_norms(model, mixing, "entropy")


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("places", [rows_of_another, one_row_by_another_s_number])
def test_places_that_other_samples_choose_are_refused(places):
    torch.manual_seed(0)
    model = Model(places).double().eval()
    refused = 0
    for seed in range(6):
        words = torch.randint(WORDS, (4, T), generator=torch.Generator().manual_seed(seed))
        try:
            found = gradient_norms(model, words, "entropy")
        except GradientNormError:
            refused += 1
        else:  # a batch in which each takes its own
            assert relative_error(found, norms_one_by_one(model, words)) < TOLERANCE
    assert refused > 0


def test_rows_put_back_by_data_are_probed_in_every_batch():
    torch.manual_seed(0)
    model = Model(weights_where_a_mask_is_true).double().eval()
    for _ in range(4):
        words = torch.randint(WORDS, (4, T))
        found = gradient_norms(model, words, "entropy")
        assert relative_error(found, norms_one_by_one(model, words)) < TOLERANCE


class Masked(nn.Module):
    """A vector of the model's own in the places of some words, as many as the data say."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 3)
        self.number = nn.Parameter(torch.randn(()))

    def forward(self, words: Tensor) -> Tensor:
        x = 2 * torch.tanh(self.words(words))
        x[words == 1] = self.number
        return self.head(x.mean(dim=1))


def test_a_weight_that_is_written_where_a_mask_is_true():
    torch.manual_seed(0)
    model = Masked().double().eval()
    for _ in range(4):
        words = torch.randint(3, (4, T))
        found = gradient_norms(model, words, "entropy")
        assert relative_error(found, norms_one_by_one(model, words)) < TOLERANCE


class TimeFirst(nn.Module):
    """A recurrence over words in the first dimension, as in XLNet."""

    def __init__(self, mixes: bool):
        super().__init__()
        self.words, self.head, self.mixes = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 3), mixes

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words.t().contiguous())  # (t, n, width)
        x = x.cumsum(dim=0)
        if self.mixes:
            x = x / x.detach().abs().amax().clamp(min=100.0)
        return self.head(x.mean(dim=0))


def test_words_in_another_dimension_are_no_mixing():
    torch.manual_seed(0)
    model = TimeFirst(mixes=False).double().eval()
    for _ in range(3):
        words = torch.randint(WORDS, (4, 4 * T))
        found = gradient_norms(model, words, "entropy")
        assert relative_error(found, norms_one_by_one(model, words)) < TOLERANCE
    assert [r.may_mix_samples for r in memory_of(model)._programs.values()] == [False]


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
def test_words_in_another_dimension_that_may_mix_are_told_of():
    torch.manual_seed(0)
    model = TimeFirst(mixes=True).double().eval()
    gradient_norms(model, torch.randint(WORDS, (4, 4 * T)), "entropy")
    assert [r.may_mix_samples for r in memory_of(model)._programs.values()] == [True]


class Distribution(nn.Module):
    """A model that puts its outputs into a distribution, which validates them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        mean, scale = self.body(x).unbind(dim=-1)
        normal = torch.distributions.Normal(mean, F.softplus(scale))
        return -normal.log_prob(x.sum(dim=-1))


@pytest.mark.parametrize("n", [2, 4, T])
def test_distributions_that_validate_run_no_sample_alone(monkeypatch, n):
    from upslope.gradnorm.proofs.batch_run import BatchRun

    torch.manual_seed(0)
    model, x = Distribution().double().eval(), torch.randn(n, T, WIDTH).double()
    gradient_norms(model, x, losses)
    passes: list[int] = []
    monkeypatch.setattr(BatchRun, "run_plain", lambda *_, **__: passes.append(1))
    monkeypatch.setattr(Memory, "draw_proof", lambda _: False)
    found = gradient_norms(model, x, losses)
    monkeypatch.undo()
    assert not passes
    truth = norms_one_by_one(model, x, loss=lambda out, _: losses(out)[0])
    assert relative_error(found, truth) < TOLERANCE


def losses(outputs: Tensor) -> Tensor:
    return outputs.mean(dim=1)
