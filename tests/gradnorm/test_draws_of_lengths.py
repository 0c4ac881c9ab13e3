"""Dropout between layers of packed sequences: lengths say which random numbers a sample meets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms

X, Y = torch.randint(9, (4, 6)), torch.tensor([0, 2, 1, 1])

LENGTHS = [[3, 1, 6, 2], [4, 5, 6, 1], [2, 2, 2, 2], [1, 4, 6, 5]]
"""Among them are some that add up to as many rows with copies of a sample in the others' place."""


class Packed(nn.Module):
    """A packed recurrent network, perhaps behind an operator that the engine cannot follow."""

    def __init__(self, *, is_followed: bool, mixes: bool) -> None:
        super().__init__()
        self.words, self.mixes = nn.Embedding(9, 4), mixes
        layer = nn.Linear(4, 4)
        self.layer = layer if is_followed else torch.jit.script(layer)
        self.recurrent = nn.GRU(4, 5, 2, dropout=0.5, bidirectional=True, batch_first=True)
        self.head = nn.Linear(10, 3)
        self.double().train()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        words = self.layer(self.words(x))
        if self.mixes:
            words = words + words.mean(dim=0, keepdim=True)
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        steps, _ = pad_packed_sequence(self.recurrent(packed)[0], True, total_length=x.shape[1])
        return self.head(steps.sum(dim=1))

    def losses(self, z: Tensor) -> Tensor:
        return F.cross_entropy(z, Y, reduction="none")

    def penalised_losses(self, z: Tensor) -> Tensor:
        return self.losses(z) + self.head.weight.norm()


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning", "ignore:.*torch.jit")
@pytest.mark.parametrize("loss", ["losses", "penalised_losses"])
@pytest.mark.parametrize("is_followed", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_each_sample_meets_the_numbers_of_the_batch(
    lengths: list[int], is_followed: bool, loss: str
) -> None:
    torch.manual_seed(0)
    model = Packed(is_followed=is_followed, mixes=False)
    inputs = X, torch.tensor(lengths)
    torch.manual_seed(1)
    truth = [
        torch.cat([g.flatten() for g in torch.autograd.grad(v, [*model.parameters()],
                                                            retain_graph=True)]).norm()
        for v in getattr(model, loss)(model(*inputs))
    ]  # fmt: skip
    torch.manual_seed(1)
    found = gradient_norms(model, inputs, getattr(model, loss))
    torch.testing.assert_close(found, torch.stack(truth).detach())


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning", "ignore:.*torch.jit")
@pytest.mark.parametrize("loss", ["losses", "penalised_losses"])
@pytest.mark.parametrize("is_followed", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_words_that_are_mixed_are_refused(lengths: list[int], is_followed: bool, loss: str) -> None:
    torch.manual_seed(0)
    model = Packed(is_followed=is_followed, mixes=True)
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, (X, torch.tensor(lengths)), getattr(model, loss))


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning", "ignore:.*torch.jit")
def test_a_model_that_draws_more_each_time_is_said_not_to_repeat() -> None:
    calls: list[int] = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = torch.jit.script(nn.Linear(4, 4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            torch.rand(len(calls))
            return self.head(F.dropout(self.layer(x), 0.5))

    with pytest.raises(GradientNormError, match="counts its calls"):
        gradient_norms(Counting().train(), torch.randn(4, 4), lambda z: z.square().sum(1))
