"""Numbers of a batch that leave for Python: exact where they decide nothing, refused elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from short_forms import mark_rest_long
from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.proofs.batch_run import BatchRun


def squares(outputs: Tensor) -> Tensor:
    return outputs.square().flatten(1).sum(dim=1)


def norms_alone(model: nn.Module, *inputs: Tensor) -> Tensor:
    """The norm of each sample that goes by itself, which meets no numbers of others."""
    norms = []
    for i in range(len(inputs[0])):
        (loss,) = squares(model(*(x[i : i + 1] for x in inputs)))
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        norms.append(sum(g.square().sum() for g in gradients if g is not None) ** 0.5)
    return torch.stack(norms)


CUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "to the largest length": lambda t, n: t[:, : n.max()],
    "to a whole number": lambda t, n: t[:, : int(n.max())],
    "to the largest of a list": lambda t, n: t[:, : max(n.tolist())],
    "to a sum per text": lambda t, n: t[:, : (t != 0).sum(dim=1).max().item()],
    "to what any text has": lambda t, n: t[:, (t != 0).any(dim=0)],
    "by an array": lambda t, n: t[:, : int(n.numpy().max())],
}


class Texts(nn.Module):
    """The mean of the words' vectors, over the words or over all places."""

    def __init__(self, cut: Callable[[Tensor, Tensor], Tensor], *, masks: bool, rate: float = 0.0):
        super().__init__()
        self.words = nn.Sequential(nn.Embedding(9, 6), nn.Dropout(rate))
        self.head = nn.Linear(6, 3)
        self.cut, self.masks = cut, masks
        self.double()

    def forward(self, texts: Tensor, lengths: Tensor) -> Tensor:
        texts = self.cut(texts, lengths)
        if not self.masks:
            return self.head(self.words(texts).mean(dim=1))
        if (texts != 0).all():
            return self.head(self.words(texts).mean(dim=1))
        mask = (texts != 0).double()[..., None]
        return self.head((self.words(texts) * mask).sum(dim=1) / mask.sum(dim=1))


def texts(n: int, seed: int, *, full: bool = False) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 8, (n,), generator=rng)
    lengths[-1] = 7
    lengths = torch.full_like(lengths, 7) if full else lengths
    words = torch.randint(1, 9, (n, 9), generator=rng)
    return words * (torch.arange(9) < lengths[:, None]), lengths


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("n", [2, 6, 40])
def test_what_a_mask_makes_harmless_is_exact_in_every_batch(name: str, n: int) -> None:
    torch.manual_seed(0)
    model = Texts(CUTS[name], masks=True)
    for seed in range(3):
        batch = texts(n, seed)
        torch.testing.assert_close(
            gradient_norms(model, batch, squares), norms_alone(model, *batch), rtol=1e-9, atol=0
        )


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("n", [2, 6, 40])
def test_a_mean_over_the_padding_of_others_is_refused(name: str, n: int) -> None:
    model = Texts(CUTS[name], masks=False)
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, texts(n, 0), squares)


@pytest.mark.parametrize("name", CUTS)
def test_a_first_batch_of_equal_lengths_does_not_speak_for_the_next(name: str) -> None:
    model = Texts(CUTS[name], masks=False)
    full = texts(6, 0, full=True)
    torch.testing.assert_close(
        gradient_norms(model, full, squares),
        norms_alone(model, full[0][:, :7], full[1]),
        rtol=1e-9,
        atol=0,
    )
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, texts(6, 1), squares)


BRANCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "any": lambda x: x / 255 if (x > 1).any() else x,
    "not all": lambda x: x if (x <= 1).all() else x / 255,
    "largest": lambda x: x if x.max() <= 1 else x / 255,
    "least": lambda x: x / 255 if x.amin() > 1 else x,
    "sum": lambda x: x / 255 if x.sum() > 5 * len(x) else x,
    "as many as there are": lambda x: x if (x <= 1).sum() == x.numel() else x / 255,
    "count": lambda x: x / 255 if len((x > 1).nonzero()) > 0 else x,
    "size of what is taken": lambda x: x / 255 if x[x > 1].shape[0] > 0 else x,
    "one of a list": lambda x: x / 255 if any(v > 1 for row in x.tolist() for v in row) else x,
}


class Images(nn.Module):
    def __init__(self, scale: Callable[[Tensor], Tensor]):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.scale(x))


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize(("n", "odd"), mark_rest_long([(2, 0), (20, 7), (6, 3), (64, 30)], 2))
def test_a_branch_that_one_sample_alone_would_not_take_is_refused(
    name: str, n: int, odd: int
) -> None:
    rng = torch.Generator().manual_seed(n)
    x = torch.rand(n, 5, dtype=torch.float64, generator=rng) * 200 + 20
    torch.manual_seed(0)
    model = Images(BRANCHES[name])
    right = norms_alone(model, x)
    torch.testing.assert_close(gradient_norms(model, x, squares), right, rtol=1e-9, atol=0)
    x[odd] /= 255
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, squares)


def test_what_was_seen_of_a_length_is_not_tried_again() -> None:
    model = Texts(CUTS["to the largest length"], masks=True)
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    counts = []
    for seed in range(8):
        passes.clear()
        gradient_norms(model, texts(12, seed), squares)
        counts.append(len(passes))
    assert min(counts[1:]) == 1
    assert sum(counts[-3:]) <= 5  # lengths that no earlier text had


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "loss",
    [
        lambda o: o.square().sum(dim=1) * (2 if (o > 0.5).any() else 1),
        lambda o: o.square().sum(dim=1) / max(o.square().sum(dim=1).tolist()),
    ],
)
@pytest.mark.parametrize("n", [6, 40])
def test_a_loss_that_branches_on_the_whole_batch_is_refused(
    loss: Callable[[Tensor], Tensor], n: int
) -> None:
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    model = Images(lambda x: x)
    for _ in range(3):
        x = torch.randn(n, 5, dtype=torch.float64, generator=rng) * 9
        with pytest.raises(GradientNormError):
            gradient_norms(model, x, loss)


@pytest.mark.parametrize("name", ["to the largest length", "to the largest of a list"])
def test_dropout_does_not_hide_the_padding_of_others(name: str) -> None:
    torch.manual_seed(0)
    masked, mixing = (Texts(CUTS[name], masks=masks, rate=0.2).train() for masks in (True, False))
    for seed in range(3):
        batch = texts(12, seed)
        torch.manual_seed(seed)
        norms = gradient_norms(masked, batch, squares)
        torch.manual_seed(seed)
        gradients = (
            torch.autograd.grad(loss, list(masked.parameters()), retain_graph=True)
            for loss in squares(masked(*batch))
        )
        expected = torch.stack([sum(g.square().sum() for g in own) ** 0.5 for own in gradients])
        torch.testing.assert_close(norms, expected, rtol=1e-9, atol=0)
        with pytest.raises(GradientNormError, match="mixes samples"):
            gradient_norms(mixing, batch, squares)


class Warned(nn.Module):
    """Looks whether a word of padding is there, as models of Hugging Face do to warn."""

    def __init__(self, steers: bool) -> None:
        super().__init__()
        self.words, self.head, self.steers = nn.Embedding(9, 6), nn.Linear(6, 3), steers
        self.double()

    def forward(self, words: Tensor) -> Tensor:
        padded = 0 in words[:, [-1, 0]]
        scale = 2.0 if padded and self.steers else 1.0
        return scale * self.head(self.words(words).mean(dim=1))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_words_that_are_in_no_text_steer_none(monkeypatch, n: int) -> None:
    model, words = Warned(steers=True), torch.randint(1, 9, (n, 4))
    gradient_norms(model, words, squares)  # the first batch is proven
    passes: list[int] = []
    monkeypatch.setattr(BatchRun, "run_plain", lambda *_, **__: passes.append(1))
    norms = gradient_norms(model, words, squares)
    assert not passes
    assert torch.allclose(norms, norms_alone(model, words), rtol=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_word_of_one_text_that_steers_all_is_refused(n: int) -> None:
    model, words = Warned(steers=True), torch.randint(1, 9, (n, 4))
    gradient_norms(model, words, squares)
    words[0, 0] = 0
    with pytest.raises(GradientNormError):
        gradient_norms(model, words, squares)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_word_of_one_text_that_only_warns_is_exact(n: int) -> None:
    model, words = Warned(steers=False), torch.randint(1, 9, (n, 4))
    words[0, 0] = 0
    norms = gradient_norms(model, words, squares)
    assert torch.allclose(norms, norms_alone(model, words), rtol=1e-9)


class Filled(nn.Module):
    """Leaves its mask out where the count of words is that of places, or some other number.

    scale: what the outputs are multiplied by where it does.
    """

    def __init__(self, places: int | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 6), nn.Linear(6, 3)
        self.places, self.scale = places, scale
        self.double()

    def forward(self, words: Tensor) -> Tensor:
        mask, vectors = words != 0, self.words(words)
        if mask.sum() == (mask.numel() if self.places is None else self.places):
            return self.scale * self.head(vectors.mean(dim=1))
        weights = mask.double()[..., None]
        return self.head((vectors * weights).sum(dim=1) / mask.sum(dim=1)[:, None])


def filled(n: int, seed: int, *full: int) -> Tensor:
    """Return (n, 5) words, of which those of some texts fill all places."""
    rng = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 9, (n, 5), generator=rng)
    words[[i for i in range(n) if i not in full], -1] = 0
    return words


@pytest.mark.parametrize("n", [2, 3, 4, 12])
def test_whether_all_places_are_filled_is_known_of_each_text(monkeypatch, n: int) -> None:
    torch.manual_seed(0)
    model = Filled()
    passes: list[int] = []
    run_plain = BatchRun.run_plain
    monkeypatch.setattr(
        BatchRun, "run_plain", lambda *a, **k: passes.append(1) or run_plain(*a, **k)
    )
    for seed, full in enumerate([(0,), (1, 0), range(n), (), (n - 1,), range(n)] * 3):
        words = filled(n, seed, *full)
        passes.clear()
        norms = gradient_norms(model, words, squares)
        assert torch.allclose(norms, norms_alone(model, words), rtol=1e-9)
    assert not passes  # the last batches had nothing new to show


@pytest.mark.parametrize("n", [3, 4, 12])
@pytest.mark.parametrize("full", [(0,), (1, 2)])
def test_what_is_done_for_full_texts_alone_is_refused_beside_others(n: int, full) -> None:
    torch.manual_seed(0)
    model = Filled(scale=2.0)
    for words in (filled(n, 0, *range(n)), filled(n, 1), filled(n, 2, *range(n))):
        norms = gradient_norms(model, words, squares)
        assert torch.allclose(norms, norms_alone(model, words), rtol=1e-9)
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, filled(n, 3, *full), squares)


@pytest.mark.parametrize("n", [3, 4, 12])
def test_a_count_that_is_that_of_all_places_by_chance_is_tried(n: int) -> None:
    torch.manual_seed(0)
    model = Filled(places=5 * n, scale=2.0)
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, filled(n, 0, *range(n)), squares)


class Branching(nn.Module):
    """Adds what a ReLU lets through, by what some entries of all samples say."""

    def __init__(self, factor: Callable[[Tensor], float]) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.factor = factor
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        return self.head(h + self.factor(x[:, :4]) * torch.relu(x[:, 4:5]) * h)


FACTORS: dict[str, Callable[[Tensor], float]] = {
    "whether all are": lambda x: 2.0 if (x > 0).all() else 1.0,
    "whether any is": lambda x: 2.0 if (x < 0).any() else 1.0,
    "the largest count": lambda x: int((x > 0).sum(dim=1).max()),
}


@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize("factor", FACTORS)
def test_what_steered_nothing_in_the_first_batches_is_tried_again(n: int, factor: str) -> None:
    """A ReLU stops it there, in all samples."""
    torch.manual_seed(0)
    model = Branching(FACTORS[factor])
    for sign in (-1, -1):
        x = torch.rand(n, 6, dtype=torch.float64) + 0.1
        x[0, 0] *= -1
        x[:, 4] *= sign
        norms = gradient_norms(model, x, squares)
        assert torch.allclose(norms, norms_alone(model, x), rtol=1e-9)
    x[:, 4] *= -1
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, squares)


class Gated(nn.Module):
    """A branch behind a gate that is zero, which a count of the batch scales."""

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.gate = nn.Parameter(torch.zeros(6))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        largest = int((x[:, :3] > 0).sum(dim=1).max())
        return self.head(x + largest * self.gate * torch.tanh(self.branch(x)))


@pytest.mark.parametrize("n", [2, 3, 4, 12])
def test_what_steers_gradients_alone_is_refused(n: int) -> None:
    torch.manual_seed(0)
    model, x = Gated(), torch.rand(n, 6, dtype=torch.float64) + 0.1
    x[0, 0] = -1
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, squares)
