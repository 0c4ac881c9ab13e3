"""A batch in pieces is the batch: same norms, whatever the loss looks at, whatever comes out."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import assert_agrees, norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError
from upslope.gradnorm import (
    expected_gradient_length,
    gradient_norms,
    gradient_sketches,
    label_free,
)
from upslope.gradnorm import supervised as at_labels
from upslope.gradnorm.core.model_io import Batch
from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.uses.tape import ComputeOptions
from upslope.gradnorm.trace import microbatches
from upslope.gradnorm.trace.recording import Recording


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pieces of two samples or three; the sizes of the pieces, as they are started."""
    sizes: list[int] = []
    start = Recording.__init__

    def noted(self: Recording, model: nn.Module, batch: Batch, *rest: Any) -> None:
        sizes.append(batch.n)
        start(self, model, batch, *rest)

    monkeypatch.setattr(microbatches, "_LARGEST", 1)
    monkeypatch.setattr(microbatches, "_BLOCK", 0)
    monkeypatch.setattr(Recording, "__init__", noted)
    return sizes


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2), nn.Flatten(), nn.Linear(16, 3),
    ).double().eval()  # fmt: skip


X = torch.randn(7, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 1])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])
def test_no_piece_is_a_single_sample_unless_all_are(n: int, started: list[int]) -> None:
    assert_agrees(network(), X[:n])
    assert sum(started) == 2 * n  # both norms
    assert min(started) >= min(n, 2)
    assert max(started) <= 3


def supervised(outputs: Any) -> Tensor:
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    return F.cross_entropy(logits, LABELS, reduction="none")


def at_label(outputs: Any, i: int) -> Tensor:
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    return F.cross_entropy(logits, LABELS[i : i + 1])


def test_a_loss_that_holds_the_labels_of_the_batch(started: list[int]) -> None:
    model = network()
    found = gradient_norms(model, X, supervised)
    assert relative_error(found, norms_one_by_one(model, X, at_label)) < 1e-9
    assert len(started) == 3


def test_a_loss_at_known_labels_goes_by_itself_for_each_piece(started: list[int]) -> None:
    seen: list[int] = []

    def criterion(z: Tensor, labels: Tensor, reduction: str) -> Tensor:
        seen.append(len(labels))
        return F.cross_entropy(z, labels, reduction=reduction, label_smoothing=0.1)

    def alone(z: Tensor, i: int) -> Tensor:
        return F.cross_entropy(z, LABELS[i : i + 1], label_smoothing=0.1)

    model = network()
    for _ in range(2):
        norms = gradient_norms(model, X, at_labels(LABELS, criterion))
        assert relative_error(norms, norms_one_by_one(model, X, alone)) < 1e-9
    assert max(seen) == max(started) == 3
    assert len(started) == 6


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("count", [2, 3, 6, 8, 14])
def test_labels_of_another_length_are_refused_though_they_fit_a_piece(count: int) -> None:
    for _ in range(2):
        with pytest.raises(
            (ValueError, GradientNormError), match=r"batch_size|losses|label for each of the 7"
        ):
            gradient_norms(network(), X, at_labels(LABELS.repeat(2)[:count]))


@pytest.mark.usefixtures("started")
def test_labels_that_only_the_criterion_can_read() -> None:
    def criterion(z: Tensor, labels: Any, reduction: str) -> Tensor:
        return F.cross_entropy(z, torch.tensor(labels), reduction=reduction)

    names: Any = LABELS.tolist()
    model = network()
    norms = gradient_norms(model, X, at_labels(names, criterion))
    assert relative_error(norms, norms_one_by_one(model, X, at_label)) < 1e-9


@pytest.mark.usefixtures("started")
def test_a_criterion_that_mixes_the_samples_of_a_piece_is_refused() -> None:
    def against_the_mean(z: Tensor, labels: Tensor, reduction: str) -> Tensor:
        losses = F.cross_entropy(z, labels, reduction=reduction)
        return losses - losses.mean()

    for _ in range(2):
        with pytest.raises(GradientNormError, match="enter the losses of others"):
            gradient_norms(network(), X, at_labels(LABELS, against_the_mean))


@pytest.mark.usefixtures("started")
def test_outputs_as_long_as_the_longest_sample_of_a_piece_meet_labels_of_all() -> None:
    class Trimmed(nn.Module):
        """Tokens up to the last one that any sample has."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4, dtype=torch.float64)
            self.head = nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, ids: Tensor) -> Tensor:
            longest = int((ids > 0).sum(1).max())
            return self.head(self.embed(ids[:, :longest])).transpose(1, 2)

    torch.manual_seed(0)
    model, lengths = Trimmed().eval(), torch.tensor([2, 1, 3, 5, 1, 2, 4])
    ids = torch.randint(1, 9, (7, 5)) * (torch.arange(5) < lengths[:, None])
    labels = torch.randint(0, 3, (7, 5)).masked_fill(ids == 0, -100)

    def criterion(z: Tensor, labels: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(z, labels[:, : z.shape[2]], reduction=reduction).sum(1)

    def alone(z: Tensor, i: int) -> Tensor:
        return F.cross_entropy(z, labels[i : i + 1, : z.shape[2]], reduction="sum")

    norms = gradient_norms(model, ids, at_labels(labels, criterion))
    assert relative_error(norms, norms_one_by_one(model, ids, alone)) < 1e-9


@pytest.mark.parametrize("marked", [True, False])
def test_a_loss_that_is_label_free_sees_a_piece_at_a_time(marked: bool, started: list[int]) -> None:
    seen: list[int] = []

    def loss(outputs: Tensor) -> Tensor:
        seen.append(len(outputs))
        return outputs.square().sum(dim=1)

    model = network()
    found = gradient_norms(model, X, label_free(loss) if marked else loss)
    truth = norms_one_by_one(model, X, lambda z, _: z.square().sum())
    assert relative_error(found, truth) < 1e-9
    assert len(started) == 3
    assert seen
    assert max(seen) == (3 if marked else 7)
    assert marked or seen[0] == 7


@pytest.mark.usefixtures("started")
def test_a_loss_that_looks_at_the_outputs_of_others_is_refused() -> None:
    def against_the_mean(z: Tensor) -> Tensor:
        return (z - z.mean(dim=0)).square().sum(dim=1)

    with pytest.raises(GradientNormError, match="enter the losses of others"):
        gradient_norms(network(), X, against_the_mean)


@pytest.mark.usefixtures("started")
def test_a_loss_that_begins_to_look_at_the_outputs_of_others_is_refused() -> None:
    """It was proven when it did not, and is the same function of an object's."""

    class Criterion:
        weighs = False

        def losses(self, z: Tensor) -> Tensor:
            losses = z.square().sum(dim=1)
            return losses * (losses / losses.mean()).detach() if self.weighs else losses

    model, criterion = network(), Criterion()
    truth = norms_one_by_one(model, X, lambda z, _: criterion.losses(z).sum())
    for _ in range(2):
        assert relative_error(gradient_norms(model, X, criterion.losses), truth) < 1e-9
    criterion.weighs = True
    with pytest.raises(GradientNormError, match="enter the losses of others"):
        gradient_norms(model, X, criterion.losses)


TABLE = torch.ones(7, 7).double().tril() + torch.eye(7).double()

TURNING: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "names": (
        lambda z: torch.roll(z, dims=1, shifts=0), lambda z: torch.roll(z, shifts=1, dims=0)),
    "places": (lambda z: z @ TABLE, lambda z: TABLE @ z),
    "attributes": (lambda z: z.real, lambda z: z.T),
}  # fmt: skip
"""What a loss makes of outputs, each sample's by itself, and the same with others of its batch."""


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("case", TURNING)
def test_a_loss_that_begins_to_look_by_operators_of_the_same_names(case: str) -> None:
    apart, across = TURNING[case]
    turned = [apart]

    def loss(outputs: Tensor) -> Tensor:
        z = F.pad(outputs, (0, len(X) - outputs.shape[1]))
        return (z * turned[0](z.detach())).sum(dim=1)

    model = network().eval()
    for _ in range(2):
        gradient_norms(model, X, loss)
    turned[0] = across
    with pytest.raises(GradientNormError, match="enter the losses of others"):
        gradient_norms(model, X, loss)


@pytest.mark.usefixtures("started")
def test_a_loss_with_a_parameter_of_its_own() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.scale = network(), nn.Parameter(torch.tensor(0.7).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = Scaled().eval()

    def scaled(z: Tensor, _: int = 0) -> Tensor:
        return (z * model.scale).square().sum(dim=1)

    found = gradient_norms(model, X, scaled)
    truth = norms_one_by_one(model, X, lambda z, i: scaled(z, i)[0])
    assert relative_error(found, truth) < 1e-9


class Opened(nn.Module):
    """Logits in a structure, beside what is no tensor of samples."""

    def __init__(self, beside: Any) -> None:
        super().__init__()
        self.body, self.beside = network(), beside

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": self.body(x), "beside": self.beside(x)}


@pytest.mark.parametrize(
    ("beside", "count"),
    [
        (lambda x: None, 3),
        (lambda x: (x.flatten(1), "name"), 3),
        (lambda x: x.sum(), 4),  # one number of all samples: the batch goes whole
        (lambda x: object(), 4),
    ],
)
def test_outputs_are_joined_where_they_can_be(beside: Any, count: int, started: list[int]) -> None:
    model = Opened(beside).eval()
    found = gradient_norms(model, X, supervised)
    assert relative_error(found, norms_one_by_one(model, X, at_label)) < 1e-9
    assert len(started) == count


def test_outputs_that_are_infinite_where_the_loss_does_not_look(started: list[int]) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return F.pad(self.body(x), (0, 1), value=-torch.inf)

    model = Masked().eval()
    truth = norms_one_by_one(model, X, at_label)
    assert relative_error(gradient_norms(model, X, supervised), truth) < 1e-9
    assert len(started) == 3


@pytest.mark.usefixtures("started")
def test_bad_samples_are_named_by_their_place_in_the_batch() -> None:
    x = X.clone()
    x[5, 0, 0, 0] = torch.nan
    for score in (
        lambda: gradient_norms(network(), x, "entropy"),
        lambda: expected_gradient_length(network(), x),
    ):
        with pytest.raises(GradientNormError, match=r"\[5\]"):
            score()


def test_other_scores_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()

    def scores() -> list[Tensor]:
        length = expected_gradient_length(model, X, share=0.8)
        sketches = gradient_sketches(model, X, "entropy", dim=16)
        return [*length, *sketches]

    whole = scores()
    monkeypatch.setattr(microbatches, "_LARGEST", 1)
    monkeypatch.setattr(microbatches, "_BLOCK", 0)
    microbatches._sizes.clear()
    for one, other in zip(whole, scores(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("started")
def test_a_model_in_training_mode_goes_whole(started: list[int]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    gradient_norms(model, torch.randn(6, 3), "entropy")
    assert started == [6]


@pytest.mark.parametrize(
    ("bound", "starts"),
    [
        (4 * 1000 * 20, [0, 16, 32]),  # twenty samples' activations of 1000 floats
        (1, [0, 12, 24, 36]),  # fourteen: as many as the 14,003 weights
    ],
)
def test_the_size_follows_from_the_largest_activation_and_the_weights(
    bound: int, starts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microbatches, "_LARGEST", bound)
    monkeypatch.setattr(microbatches, "_BLOCK", 0)
    model = nn.Sequential(nn.Linear(10, 1000), nn.Tanh(), nn.Linear(1000, 3)).eval()
    assert [
        piece.first
        for piece in microbatches.microbatches(
            Inventory(model), Batch.of(torch.randn(48, 10)), ComputeOptions()
        )
    ] == starts


class Divided(nn.Module):
    """A layer whose weight is divided by a number: more bytes than a sample's activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.layer.weight / self.scale).exp(), self.layer.bias).tanh()


def test_weights_that_are_made_of_parameters_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(microbatches, "_LARGEST", 2 * 8 * 64**2)
    monkeypatch.setattr(microbatches, "_BLOCK", 0)
    monkeypatch.setattr(microbatches, "_AVERAGE", 0)
    model, x = Divided().double(), torch.randn(12, 64, dtype=torch.float64)
    pieces = microbatches.microbatches(Inventory(model), Batch.of(x), ComputeOptions())
    assert [piece.n for piece in pieces] == [12]


def test_a_model_that_refuses_a_single_sample_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microbatches, "_LARGEST", 1)
    monkeypatch.setattr(microbatches, "_BLOCK", 0)

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 1:
                raise ValueError("one sample is too few")
            return self.body(x)

    pieces = microbatches.microbatches(Inventory(Pairs().eval()), Batch.of(X), ComputeOptions())
    assert [piece.first for piece in pieces] == [0]


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("loss", ["entropy", supervised])
def test_inputs_in_a_mapping_that_is_no_dict(loss: Any) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, pixels: Tensor) -> Tensor:
            return self.body(pixels)

    expected = gradient_norms(network(), X, loss)
    found = gradient_norms(Named().eval(), UserDict(pixels=X), loss)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def squares(outputs: Tensor) -> Tensor:
    return outputs.square().flatten(1).sum(dim=1)


@pytest.mark.parametrize("loss", [squares, label_free(squares)], ids=["joined", "piece by piece"])
def test_no_piece_meets_the_buffers_that_another_has_written(loss: Any, started: list[int]) -> None:
    class Scheduled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()
            self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.body(x) * self.calls

    model = Scheduled().eval()
    expected = norms_one_by_one(network(), X, lambda outputs, _: squares(outputs)[0])
    torch.testing.assert_close(gradient_norms(model, X, loss), expected, rtol=1e-9, atol=0)
    assert max(started) == 3
    assert float(model.calls) == 0


@pytest.mark.usefixtures("started")
def test_outputs_padded_to_the_longest_of_each_piece_are_not_joined() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)[:, : int((x[:, :, 0] != 0).sum(dim=1).max())]

    torch.manual_seed(0)
    x = torch.randn(6, 5, 2, dtype=torch.float64)
    x[:2, 3:] = 0  # the first piece is shorter than the others
    lengths = torch.tensor([3, 3, 5, 5, 5, 5])

    def masked(outputs: Tensor) -> Tensor:
        inside = torch.arange(outputs.shape[1]) < lengths[:, None]
        return (outputs.square().sum(dim=2) * inside).sum(dim=1)

    model = Padded()
    expected = []
    for i, length in enumerate(lengths.tolist()):
        own = torch.autograd.grad(model(x[i : i + 1, :length]).square().sum(), model.parameters())  # type: ignore[arg-type]
        expected.append(torch.cat([g.flatten() for g in own]).norm())
    norms = gradient_norms(model, x, masked)
    torch.testing.assert_close(norms, torch.stack(expected), rtol=1e-9, atol=0)


@pytest.mark.usefixtures("started")
def test_a_loss_that_reads_what_the_model_kept_gets_the_whole_batch() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            self.logits = self.body(x)
            return self.logits.softmax(dim=1)

    model = Keeping().eval()

    def loss(outputs: Tensor) -> Tensor:
        return squares(outputs) + squares(model.logits)

    expected = norms_one_by_one(model, X, lambda outputs, _: loss(outputs)[0])
    with pytest.warns(Warning, match="one sample at a time"):
        norms = gradient_norms(model, X, loss)
    torch.testing.assert_close(norms, expected, rtol=1e-9, atol=0)


def test_a_bound_on_memory_cuts_a_batch_in_two() -> None:
    x = torch.randn(20, 2, 6, 6, dtype=torch.float64)
    bounded = microbatches.microbatches(
        Inventory(network()), Batch.of(x), ComputeOptions(scratch=1 << 20)
    )
    assert [piece.first for piece in bounded] == [0, 10]
    whole = microbatches.microbatches(Inventory(network()), Batch.of(x), ComputeOptions())
    assert [piece.first for piece in whole] == [0]
    torch.testing.assert_close(
        gradient_norms(network(), x, "entropy", max_memory=1 << 20),
        gradient_norms(network(), x, "entropy"),
        rtol=1e-10, atol=0,
    )  # fmt: skip
