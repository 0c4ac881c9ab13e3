"""Batches of new shapes: held to have samples in front where other shapes had, and proven."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from oracle import norms_one_by_one, relative_error, watched
from torch import Tensor, nn

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.layouts.layout import Layout
from upslope.gradnorm.core.layouts.layout_probe import FrontGuess, LayoutUnknown
from upslope.gradnorm.core.layouts.separation import scales
from upslope.gradnorm.proofs.proof import choose_samples
from upslope.gradnorm.trace import memory as memories
from upslope.gradnorm.trace.forward import Forward
from upslope.gradnorm.trace.memory import memory_of

D = torch.float64


def spread_loss(z: Tensor) -> Tensor:
    """A loss per sample whose gradient is zero nowhere."""
    z = z.flatten(1)
    mix = torch.randn(z.shape[1], generator=torch.Generator().manual_seed(7), dtype=D)
    return torch.tanh(z) @ mix.to(z) + 0.5 * (z * z).mean(1)


def truth(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return norms_one_by_one(model, inputs, lambda z, _: spread_loss(z)[0])


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the forward passes with a tape, the probes and the passes backward through it."""
    counts: Counter[str] = Counter()

    def counting(name: str):
        method = getattr(Forward, name)

        def counted_method(self, *args, **options):
            counts[name] += 1
            return method(self, *args, **options)

        return mock.patch.object(Forward, name, counted_method)

    with counting("_call"), counting("probe"), counting("backward"):
        yield counts


class Reader(nn.Module):
    """Tokens through two layers, with positions in front for lengths that are `turned`.

    Reads one token of each sample where it is given places; all of them otherwise.
    """

    turned: tuple[int, ...] = ()

    def __init__(self, *, shifts: bool = False, most: int = 64) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 2)
        self.shift = nn.Parameter(torch.randn(most, 3)) if shifts else None

    def forward(self, x: Tensor, places: Tensor | None = None, share: Tensor | None = None):
        is_turned = x.shape[1] in self.turned
        x = x.transpose(0, 1) if is_turned else x
        if self.shift is not None:
            own = self.shift[: len(x)][:, None] if is_turned else self.shift[: x.shape[1]]
            x = x + own
        out = self.second(torch.tanh(self.first(x)))
        out = out.transpose(0, 1) if is_turned else out
        if places is not None:
            out = out[torch.arange(len(places)), places]
        return out if share is None else out * share[:, None]


def reader(**options: bool | int) -> Reader:
    torch.manual_seed(0)
    return Reader(**options).to(D).eval()


def assert_right(model: nn.Module, *inputs: Tensor) -> None:
    one = inputs[0] if len(inputs) == 1 else inputs
    with watched() as seen:
        norms = gradient_norms(model, one, spread_loss)
    assert relative_error(norms, truth(model, one)) < 1e-9
    assert seen.one_by_one == 0


@pytest.mark.parametrize("shape", [(4, 7, 3), (4, 8, 3), (6, 5, 3), (50, 6, 3)])
def test_a_new_shape_takes_two_passes_backward_and_no_probe(shape):
    model = reader()
    assert_right(model, torch.randn(4, 5, 3, dtype=D))
    for again in range(3):
        x = torch.randn(shape, dtype=D)
        with counted() as counts, mock.patch.object(memories, "PROOF_SHARE", 0.0):
            norms = gradient_norms(model, x, spread_loss)
        expected = Counter(_call=1, backward=1 if again else 2)
        assert counts == expected
        assert relative_error(norms, truth(model, x)) < 1e-9


def test_images_of_a_new_size_are_not_probed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    ).to(D).eval()  # fmt: skip
    for size in (8, 9, 12):
        x = torch.randn(4, 3, size, size, dtype=D)
        with counted() as counts:
            norms = gradient_norms(model, x, spread_loss)
        assert relative_error(norms, truth(model, x)) < 1e-9
        assert counts["probe"] == (size == 8)
        assert counts["_call"] == 1


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize("length", [4, 7, 8, 1])
def test_samples_that_are_elsewhere_in_a_new_shape_are_found_there(length, shifts):
    # Of lengths that n divides, every tensor looks as if samples could be in front.
    model = reader(shifts=shifts)
    model.turned = (length,)
    assert_right(model, torch.randn(4, 5, 3, dtype=D))
    with counted() as counts:
        assert_right(model, torch.randn(4, length, 3, dtype=D))
    if length > 1:
        assert counts["probe"] == 1
    # The shape is known from now on, and other shapes are as they were.
    with counted() as counts, mock.patch.object(memories, "PROOF_SHARE", 0.0):
        assert_right(model, torch.randn(4, length, 3, dtype=D))
    assert counts == Counter(_call=1, backward=1)
    for other in (6, 9):
        assert_right(model, torch.randn(4, other, 3, dtype=D))


def test_shapes_that_turn_again_and_again():
    model = reader(shifts=True)
    model.turned = (2, 4, 6, 8, 12)
    for length in (5, 4, 7, 8, 9, 12, 3, 2, 11, 6):
        for _ in range(2):
            assert_right(model, torch.randn(4, length, 3, dtype=D))


def test_a_wrong_guess_in_single_precision_ends_in_the_right_numbers():
    torch.manual_seed(0)
    model = Reader().eval()
    model.turned = (8,)
    for length in (5, 8, 8):
        x = torch.randn(4, length, 3)
        expected = truth(model.double(), x.double())
        norms = gradient_norms(model.float(), x, spread_loss).double()
        assert relative_error(norms, expected) < 1e-4


def test_what_fits_two_layouts_is_right_and_not_remembered():
    model, n = reader(), 4
    model.turned = (n,)
    own = torch.arange(n)
    assert_right(model, torch.randn(n, 5, 3, dtype=D), own)
    with mock.patch.object(memories, "PROOF_SHARE", 0.0):
        # Only entry (i, i) of each sample is reached: both dimensions could be that of the samples.
        assert_right(model, torch.randn(n, n, 3, dtype=D), own)
        for places in (own.roll(1), own, own.flip(0), torch.zeros_like(own)):
            assert_right(model, torch.randn(n, n, 3, dtype=D), places)


def test_samples_that_share_a_power_are_not_taken_for_each_other():
    n = 64
    u, proven = scales(n, torch.zeros(n, dtype=D)), torch.cat(choose_samples(n)).tolist()
    a, b = next(
        (i, j) for i in range(n) for j in range(i)
        if u[i] == u[j] and i not in proven and j not in proven
    )  # fmt: skip
    model = reader()
    model.turned = (n,)
    places, share = torch.zeros(n, dtype=torch.long), torch.zeros(n, dtype=D)
    assert_right(model, torch.randn(n, 5, 3, dtype=D), places, torch.ones(n, dtype=D))
    # No other sample has a gradient, and each of the two has it in the other's row.
    places[a], places[b], share[a], share[b] = b, a, 1, 3
    x = torch.randn(n, n, 3, dtype=D)
    norms = gradient_norms(model, (x, places, share), spread_loss)
    assert relative_error(norms, truth(model, (x, places, share))) < 1e-9


def test_uses_that_no_gradient_reached_are_not_remembered():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.gated = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return self.body(x) + gate[:, None, None] * self.gated(x)

    torch.manual_seed(0)
    model, n = Gated().to(D), 4
    assert_right(model, torch.randn(n, 5, 3, dtype=D), torch.ones(n, dtype=D))
    shut, ajar = torch.zeros(n, dtype=D), torch.tensor([0, 1, 0, 0], dtype=D)
    with mock.patch.object(memories, "PROOF_SHARE", 0.0):
        assert_right(model, torch.randn(n, 6, 3, dtype=D), shut)
        *_, known = memory_of(model)._programs.values()
        assert known.layouts == {0: Layout()}
        for gate in (ajar, shut, torch.ones(n, dtype=D)):
            assert_right(model, torch.randn(n, 6, 3, dtype=D), gate)


class Use:
    """An operator that tells nothing of its layout."""

    layout: Layout | None = None
    dim: int | None = None


def guess_of(gradient: Tensor, n: int) -> FrontGuess:
    guess = FrontGuess(n, [Use()])
    guess.on_gradient(0, gradient, ())
    return guess


def test_which_gradients_tell_where_samples_are():
    assert guess_of(torch.ones(4, 4, 2), 4).is_settled
    assert guess_of(torch.ones(8, 2), 4).is_settled
    assert not guess_of(torch.eye(4), 4).is_settled
    assert not guess_of(torch.eye(4)[..., None].repeat(1, 1, 3), 4).is_settled
    # Of other sizes too: entry (i, 2 i) or (i, 2 i + 1) alone, and then one more.
    two_each = torch.eye(4).repeat_interleave(2, 1)[:, None]
    assert not guess_of(two_each, 4).is_settled
    assert guess_of(two_each + two_each.roll(1, 2), 4).is_settled
    assert guess_of(torch.eye(4) + torch.eye(4).roll(1, 0), 4).is_settled
    # Rows 0 and 3 belong to samples 0 and 1, whether rows of a sample lie together or not.
    assert not guess_of(torch.tensor([[1.0], [0], [0], [1]]), 2).is_settled
    assert guess_of(torch.tensor([[1.0], [1], [0], [1]]), 2).is_settled
    silent = guess_of(torch.zeros(4, 3), 4)
    assert silent.is_settled
    assert silent.layouts == {}


@pytest.mark.parametrize(
    "gradient", [torch.ones(()), torch.ones(6, 4), torch.tensor([[1.0], [0], [1], [1]])]
)
def test_gradients_that_leave_a_guess_without_ground(gradient):
    with pytest.raises(LayoutUnknown):
        guess_of(gradient, 4)
