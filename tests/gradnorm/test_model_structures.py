"""What surrounds the layers: layouts, objects, in-place writes, functions that hide."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from oracle import TOLERANCE, assert_agrees, norms_one_by_one, relative_error, watched
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from upslope.gradnorm import gradient_norms


def test_a_single_sample_and_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    assert_agrees(model, torch.randn(1, 4))
    assert gradient_norms(model, torch.empty(0, 4).double(), "entropy").shape == (0,)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x), inplace=True)
        z = self.b(y.clone())
        z += y
        z.relu_()
        z = self.norm(z).add_(x)
        return self.head(z.tanh_())


def test_activations_and_residuals_in_place():
    torch.manual_seed(0)
    assert_agrees(Residual(), torch.randn(4, 4))


class WritesIntoItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).mul_(3)
        return self.head(x)


@pytest.mark.parametrize("n", [1, 3])
def test_the_input_stays_as_it_was_even_if_the_model_writes_into_it(n):
    torch.manual_seed(0)
    model, x = WritesIntoItsInput(), torch.randn(n, 4, dtype=torch.float64)
    before = x.clone()
    assert_agrees(model, x)
    assert torch.equal(x, before)
    assert vars(x) == {}


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.image = nn.Embedding(5, 4), nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, *, ids: Tensor, image: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        y = self.words(ids).mean(dim=1) * self.image(image).mean(dim=(2, 3)) * scale
        return {"hidden": y, "logits": self.head(y)}


def test_inputs_and_outputs_in_a_dict():
    torch.manual_seed(0)
    inputs = {"ids": torch.randint(0, 5, (3, 6)), "image": torch.randn(3, 1, 5, 5), "scale": 2.0}
    assert_agrees(Dictionary(), inputs)


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class ToObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, shift: tuple[Tensor, Tensor]) -> Output:
        hidden = torch.tanh(self.body(x + shift[0] * shift[1]))
        return Output(self.head(hidden), hidden)


def test_a_nested_tuple_in_and_an_object_out():
    torch.manual_seed(0)
    assert_agrees(ToObject(), (torch.randn(3, 4), (torch.randn(3, 4), torch.randn(3, 4))))


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.conv = (
            nn.Linear(4, 4),
            nn.LayerNorm(4),
            nn.Conv1d(4, 4, 3, padding=1),
        )
        self.shift, self.head = nn.Parameter(torch.randn(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (n, t, 4)
        y = self.norm(torch.tanh(self.body(x.transpose(0, 1))) + self.shift)  # (t, n, 4)
        y = self.conv(y.permute(1, 2, 0)).mean(dim=2)
        return self.head(y)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10])
def test_sequences_first_also_with_as_many_samples_as_steps(n):
    torch.manual_seed(0)
    model = SequenceFirst()
    assert_agrees(model, torch.randn(n, 5, 4))
    assert_agrees(model, torch.randn(n, 2, 4))  # another length, after the places were remembered


class Positions(nn.Module):
    """Positions flattened into the batch, slow or fast."""

    def __init__(self, slow: bool) -> None:
        super().__init__()
        self.body, self.head, self.slow = nn.Linear(4, 5), nn.Linear(5, 3), slow

    def forward(self, x: Tensor) -> Tensor:  # (n, t, 4)
        n, t = x.shape[:2]
        rows = (x.transpose(0, 1) if self.slow else x).reshape(n * t, 4)
        y = torch.tanh(self.body(rows))
        return self.head(y.view(t, n, 5).mean(0) if self.slow else y.view(n, t, 5).mean(1))


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize(("n", "t"), [(3, 4), (4, 4), (2, 6), (6, 2)])
def test_positions_flattened_into_the_batch(n, t, slow):
    torch.manual_seed(0)
    assert_agrees(Positions(slow), torch.randn(n, t, 4))


class LastWord(nn.Module):
    """Takes each sequence at its own length before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.rnn, self.head = (
            nn.Embedding(6, 4),
            nn.GRU(4, 4, batch_first=True),
            nn.Linear(4, 3),
        )

    def forward(self, ids: Tensor) -> Tensor:
        out, _ = self.rnn(self.words(ids))
        return self.head(out[torch.arange(len(ids)), (ids > 0).sum(dim=1) - 1])


def test_the_last_word_of_each_sequence():
    torch.manual_seed(0)
    ids = torch.tensor([[1, 2, 3, 4], [5, 2, 0, 0], [3, 0, 0, 0]])
    assert_agrees(LastWord(), ids)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # (n, t, 4)
        y = torch.tanh(self.body(x.transpose(0, 1)))
        return {"a": self.a(y).mean(dim=0), "b": self.b(y).mean(dim=0)}


def test_a_head_that_an_earlier_loss_left_alone():
    """Its place was not learned then; it must be learned, not assumed, when it is first used."""
    torch.manual_seed(0)
    model = TwoHeads()
    x = torch.randn(3, 3, 4)
    for head in ("a", "b"):
        assert_agrees(model, x, loss=lambda out, head=head: out[head].square().sum(dim=1),
              point_loss=lambda out, _, head=head: out[head].square().sum())  # fmt: skip


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return g * (s + x * s * (1 - s))


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, (g * x).sum(dim=0)


class Hidden(nn.Module):
    def __init__(self, weighted: bool, first: bool) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.w, self.weighted, self.first = nn.Parameter(torch.randn(4)), weighted, first

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.first else self.a(x)
        y = Scale.apply(y, self.w) if self.weighted else Swish.apply(y)
        return self.head(torch.tanh(self.b(y)) + y)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_custom_function_without_parameters_keeps_the_fast_path(n):
    torch.manual_seed(0)
    assert_agrees(Hidden(weighted=False, first=False), torch.randn(n, 4))


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("first", [True, False])
def test_a_custom_function_that_holds_a_parameter_takes_the_exact_slow_path(n, first):
    torch.manual_seed(0)
    assert_agrees(Hidden(weighted=True, first=first), torch.randn(n, 4), path="one by one")


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_custom_function_at_the_input_is_exact(n, weighted):
    torch.manual_seed(0)
    model = Hidden(weighted, first=True).double()
    x = torch.randn(n, 4).double()
    found = gradient_norms(model, x, "entropy")
    assert relative_error(found, norms_one_by_one(model, x)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("n", [1, 3])
def test_torchscript_inside(n, place):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4).double(), nn.Tanh(), nn.Linear(4, 4).double(), nn.Linear(4, 3)]
    layers[place] = torch.jit.script(layers[place])
    model = nn.Sequential(*layers).double()
    x = torch.randn(n, 4).double()
    truth = norms_one_by_one(model, x)
    with watched() as seen:
        found = gradient_norms(model, x, "entropy")
    assert relative_error(found, truth) < TOLERANCE
    assert n == 1 or seen.path == "one by one"


class Forces(nn.Module):
    """Differentiates within its forward pass, as energy models do."""

    def __init__(self) -> None:
        super().__init__()
        self.energy, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        energy = torch.tanh(self.energy(x)).sum()
        return self.head(torch.autograd.grad(energy, x, create_graph=True)[0])


def test_a_model_that_differentiates_itself_takes_the_exact_slow_path():
    torch.manual_seed(0)
    assert_agrees(Forces(), torch.randn(3, 4), path="one by one")


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(lambda y: torch.tanh(self.b(y)), self.a(x), use_reentrant=False)
        return self.c(y)


@pytest.mark.parametrize("n", [3, 4])
def test_checkpoints_take_the_exact_slow_path(n):
    torch.manual_seed(0)
    assert_agrees(Checkpointed(), torch.randn(n, 4), path="one by one")


class WritesThroughAView(nn.Module):
    def __init__(self, through: str) -> None:
        super().__init__()
        self.conv, self.head, self.through = nn.Conv2d(2, 4, 3), nn.Linear(64, 3), through

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        flat = y.view(len(y), -1)
        if self.through == "index":
            flat[:, :9] = 0
        elif self.through == "slice":
            flat[:, :9].mul_(2)
        else:
            flat *= 3
        return self.head(torch.tanh(y.flatten(1)))


@pytest.mark.parametrize("through", ["index", "slice", "whole"])
@pytest.mark.parametrize("n", [1, 3])
def test_writes_through_a_view_of_a_convolutions_output(n, through):
    torch.manual_seed(0)
    model, x = WritesThroughAView(through).double(), torch.randn(n, 2, 6, 6).double()
    found = gradient_norms(model, x, "entropy")
    assert relative_error(found, norms_one_by_one(model, x)) < TOLERANCE


class Mapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(lambda row: torch.tanh(row @ self.w) * row.sum())(x)


def test_a_model_that_uses_vmap():
    torch.manual_seed(0)
    model, x = Mapped().double(), torch.randn(3, 4).double()
    found = gradient_norms(model, x, "entropy")
    assert relative_error(found, norms_one_by_one(model, x)) < TOLERANCE


def test_a_loss_that_uses_parameters_itself():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).double()
    weight = model[0].weight
    assert_agrees(model, torch.randn(3, 4),
          loss=lambda out: (out @ weight).square().sum(dim=1) * weight.norm(),
          point_loss=lambda out, _: (out @ weight).square().sum() * weight.norm())  # fmt: skip


def test_single_precision_agrees_in_the_median():
    torch.manual_seed(0)
    model = SequenceFirst()
    x = torch.randn(8, 5, 4)
    found = gradient_norms(model, x, "entropy")
    truth = norms_one_by_one(model.double(), x.double())
    assert ((found - truth).abs() / truth).median() < 1e-5


class TripledInPlace(torch.autograd.Function):
    """Its backward writes into the gradient that it is given, which others may have been given."""

    @staticmethod
    def forward(_: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: object, g: Tensor) -> Tensor:
        return g.mul_(3)


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("shares", [False, True])
def test_a_function_that_writes_into_its_gradient(shares: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.second(x))
            tripled = TripledInPlace.apply(y)
            return self.first(x) + tripled if shares else TripledInPlace.apply(self.first(y))

    torch.manual_seed(0)
    model = Net().double()
    for _ in range(4):
        x = torch.randn(5, 6, dtype=torch.float64)
        found = gradient_norms(model, x, lambda y: y @ torch.arange(1.0, 7.0).double())
        truth = norms_one_by_one(model, x, lambda y, _: y @ torch.arange(1.0, 7.0).double())
        assert relative_error(found, truth) < TOLERANCE


@pytest.mark.parametrize("labels", [False, True])
def test_a_loss_that_writes_into_its_gradient(labels: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    weights = torch.randn(5 if labels else 1, 4, dtype=torch.float64)

    def loss(y: Tensor) -> Tensor:
        return TripledInPlace.apply((y * weights).square().sum(dim=1))

    found = gradient_norms(model, x, loss)
    expected = norms_one_by_one(
        model, x, lambda y, i: 3 * (y * weights[i if labels else 0]).square().sum()
    )
    assert relative_error(found, expected) < TOLERANCE
