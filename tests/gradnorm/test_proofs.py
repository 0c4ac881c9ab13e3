"""Nothing is wrong without a word: what the proofs catch, what they refuse, what they tell."""

from __future__ import annotations

import copy
import gc
import weakref
from unittest import mock

import pytest
import torch
from oracle import norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from short_forms import mark_rest_long
from upslope.errors import GradientNormError, GradientNormWarning
from upslope.gradnorm import explain, gradient_norms, samples_that_fit, select
from upslope.gradnorm.core.layouts.layout import Layout
from upslope.gradnorm.kernels.linear import Linear
from upslope.gradnorm.trace import memory as memories
from upslope.gradnorm.trace import recording
from upslope.gradnorm.trace.memory import memory_of

D = torch.float64


def spread_loss(z: Tensor) -> Tensor:
    """A loss per sample whose gradient is zero nowhere."""
    z = z.flatten(1)
    mix = torch.randn(z.shape[1], generator=torch.Generator().manual_seed(7), dtype=z.dtype)
    return torch.tanh(z) @ mix + 0.5 * (z * z).mean(1)


def truth(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return norms_one_by_one(model, inputs, lambda z, _: spread_loss(z)[0])


class Encoder(nn.Module):
    """nn.TransformerEncoder, read at one token of each sample."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True)
        self.embed, self.body = nn.Linear(5, 8), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        tokens = self.body(self.embed(x))
        return self.head(tokens[torch.arange(len(x)), lengths - 1])


@pytest.mark.parametrize(
    ("n", "steps"),
    mark_rest_long([(2, 4), (4, 4), (4, 8)], 3),
)
def test_tokens_that_leave_layouts_in_doubt(n, steps):
    for seed in range(8):
        torch.manual_seed(seed)
        model = Encoder().to(D).eval()
        for _ in range(2):  # the second batch goes by what the first has shown
            x = torch.randn(n, steps, 5, dtype=D), torch.randint(1, steps + 1, (n,))
            assert relative_error(gradient_norms(model, x, spread_loss), truth(model, x)) < 1e-9


def test_a_loss_that_most_samples_satisfy():
    for seed in range(5):
        torch.manual_seed(seed)
        model, live = Encoder().to(D).eval(), torch.zeros(8, dtype=D)
        live[torch.randperm(8)[:2]] = 1
        x = torch.randn(8, 8, 5, dtype=D), torch.ones(8, dtype=torch.long)
        norms = gradient_norms(model, x, lambda z, live=live: spread_loss(z) * live)
        torch.testing.assert_close(norms, truth(model, x) * live, rtol=1e-9, atol=1e-12)


class Field(nn.Module):
    """A force: the model differentiates itself."""

    def __init__(self, grad: bool) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))
        self.grad = grad

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.grad or torch.is_grad_enabled()):
            x = x.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return -force


class Implicit(nn.Module):
    """A fixed point whose hook runs backward passes inside the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.u, self.out = nn.Linear(6, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        u = self.u(x)

        def step(z: Tensor) -> Tensor:
            return torch.tanh(0.3 * self.w(z) + u)

        z = torch.zeros_like(u)
        with torch.no_grad():
            for _ in range(40):
                z = step(z)
        z = step(z)
        start = z.detach().clone().requires_grad_()
        again = step(start)

        def solve(g: Tensor) -> Tensor:
            v = g
            for _ in range(40):
                v = torch.autograd.grad(again, start, v, retain_graph=True)[0] + g
            return v

        if z.requires_grad:
            z.register_hook(solve)
        return self.out(z)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("build", [lambda: Field(False), lambda: Field(True), Implicit])
def test_models_that_differentiate_themselves_are_exact_and_told(build, n):
    torch.manual_seed(0)
    model, x = build().to(D), torch.randn(n, 5, dtype=D)
    with pytest.warns(GradientNormWarning, match="one sample at a time"):
        norms = gradient_norms(model, x, spread_loss)
    assert relative_error(norms, truth(model, x)) < 1e-9
    assert explain(model, x).path == "one by one"


@pytest.mark.parametrize("n", [1, 2, 4])
def test_buffers_move_as_in_a_single_pass(n):
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(5, 3)
            self.register_buffer("step", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.step += 1
            return self.body(x) * (1 + self.step)

    torch.manual_seed(0)
    model, x = Counting().to(D).eval(), torch.randn(n, 5, dtype=D)
    own = model.step
    expected = torch.cat([truth(copy.deepcopy(model), row[None]) for row in x])
    assert relative_error(gradient_norms(model, x, spread_loss), expected) < 1e-9
    assert model.step is own
    assert own == 0


def test_a_model_cut_off_from_autograd_is_refused():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    for n in (1, 5):
        with pytest.raises(GradientNormError, match=r"cut off from autograd"):
            gradient_norms(Wrapped(), torch.randn(n, 4), "entropy")


def test_zeros_alone_are_told():
    def kept(z: Tensor) -> Tensor:
        return (z[:, 0] - 100).clamp_min(0)  # a margin that every sample keeps

    with pytest.warns(GradientNormWarning, match="all 5 samples are exactly zero"):
        assert not gradient_norms(nn.Linear(4, 3), torch.randn(5, 4), kept).any()


MIXING = {
    "mean": lambda z: z - z.mean(0),
    "mean without gradient": lambda z: z - z.mean(0).detach(),
    "gradient of the mean alone": lambda z: z + z.mean(0) - z.mean(0).detach(),
    "last looks at first": lambda z: torch.cat([z[:-1], z[-1:] + z[:1]]),
    "second at third": lambda z: torch.cat([z[:1], z[1:2] * z[2:3].sigmoid(), z[2:]]),
    "a thousandth of the neighbour": lambda z: z + 1e-3 * z.roll(1, 0),
    "sorted and not put back": lambda z: z[z.detach()[:, 0].argsort()],
    "scaled by the count": lambda z: z * len(z),
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("how", MIXING)
def test_models_that_mix_samples_are_refused(how, place):
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x)
            z = torch.tanh(MIXING[how](z) if place == 0 else z)
            z = self.second(z)
            return MIXING[how](z) if place == 1 else z

    for seed in range(3):
        torch.manual_seed(seed)
        model, x = Mixing().to(D), torch.randn(4, 4, dtype=D)
        if how.startswith("sorted"):  # an order that is none would be right
            x = x[torch.tensor([1, 0, 3, 2])]
            z = model.first(x)
            z = torch.tanh(z) if place else z
            z = model.second(z) if place else z
            if bool((z[:, 0].argsort() == torch.arange(4)).all()):
                continue
        for _ in range(2):
            with pytest.raises(GradientNormError, match=r"mixes samples|enter the losses"):
                gradient_norms(model, x, spread_loss)


def test_a_model_that_starts_to_mix_is_refused_when_it_does():
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.body(x)
            return z - z.mean(0) if bool(x.max() > 10) else z

    torch.manual_seed(0)
    model, x = Sometimes().to(D), torch.randn(4, 4, dtype=D)
    for _ in range(2):
        assert relative_error(gradient_norms(model, x, spread_loss), truth(model, x)) < 1e-9
    x[2, 1] = 11
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, spread_loss)


LOSSES = {
    "contrastive": lambda z: F.cross_entropy(
        F.normalize(z) @ F.normalize(z).T, torch.arange(len(z)).roll(1), reduction="none"
    ),
    "weights made of the batch": lambda z: spread_loss(z) * (z.detach().std(0).sum()),
    "half of the batch alone": lambda z: spread_loss(z) * (z[:, 0] > z[:, 0].median()),
    "divided by the number of samples": lambda z: spread_loss(z) / len(z),
    "last looks at first": lambda z: spread_loss(torch.cat([z[:-1], z[-1:] + z[:1]])),
}


@pytest.mark.parametrize("how", LOSSES)
def test_losses_that_mix_samples_are_refused(how):
    torch.manual_seed(0)
    with pytest.raises(GradientNormError, match="enter the losses of others"):
        gradient_norms(nn.Linear(4, 8).to(D), torch.randn(6, 4, dtype=D), LOSSES[how])


def test_outputs_that_the_loss_does_not_look_at_may_mix():
    class Pairs(nn.Module):
        """Also puts out the table of similarities of all pairs."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(5, 6)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            a, b = self.a(x), self.b(x)
            return {"embeds": a, "logits_per_image": a @ b.T}

    torch.manual_seed(0)
    model, x = Pairs().to(D), torch.randn(4, 5, dtype=D)
    norms = gradient_norms(model, x, lambda out: spread_loss(out["embeds"]))
    expected = norms_one_by_one(model, x, lambda out, _: spread_loss(out["embeds"])[0])
    assert relative_error(norms, expected) < 1e-9
    with pytest.raises(GradientNormError):
        gradient_norms(model, x, lambda out: spread_loss(out["logits_per_image"]))


@pytest.mark.parametrize("n", [3, 4, 5])
def test_inputs_that_all_samples_share_may_be_as_long_as_the_batch(n):
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
            return self.out(self.attend(x, x, x, attn_mask=mask)[0].mean(1)) * weights

    torch.manual_seed(0)
    model = Weighted().to(D).eval()
    x, mask, weights = torch.randn(n, 5, 8, dtype=D), torch.randn(5, 5, dtype=D), torch.rand(3)
    norms = gradient_norms(model, (x, mask, weights.to(D)), spread_loss)
    rows = [spread_loss(model(row[None], mask, weights.to(D)))[0] for row in x]
    gradients = (torch.autograd.grad(row, list(model.parameters())) for row in rows)
    expected = torch.stack([torch.cat([g.flatten() for g in own]).norm() for own in gradients])
    assert relative_error(norms, expected) < 1e-9


def test_a_kernel_that_is_wrong_is_noticed_and_said():
    """Every part of a kernel: its output, what it hands on, its gradients, its norms."""
    for name in ("forward", "input_gradients", "weight_gradients"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(D)
        x, right = torch.randn(6, 4, dtype=D), getattr(Linear, name)

        def wrong(self, *args, right=right, name=name, **options):
            out = right(self, *args, **options)
            if name == "weight_gradients":
                return ((w, type(p)(*(2 * v for v in vars(p).values() if v is not None)))
                        for w, p in out)  # fmt: skip
            return tuple(1.01 * o for o in out) if isinstance(out, tuple) else 1.01 * out

        with (
            mock.patch.object(Linear, name, wrong),
            pytest.warns(GradientNormWarning, match=r"another|not those"),
        ):
            norms = gradient_norms(model, x, spread_loss)
        assert relative_error(norms, truth(model, x)) < 1e-9


@pytest.mark.parametrize("n", [1, 6])
def test_a_norm_that_is_wrong_is_noticed_and_said(n):
    from upslope.gradnorm.core.gradients.per_sample_gradients import OuterProducts

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(D)
    x, right = torch.randn(n, 4, dtype=D), OuterProducts.squared_norms
    with (
        mock.patch.object(
            OuterProducts, "squared_norms", lambda self, scratch: 1.1 * right(self, scratch)
        ),
        pytest.warns(GradientNormWarning, match="another norm"),
    ):
        norms = gradient_norms(model, x, spread_loss)
    assert relative_error(norms, truth(model, x)) < 1e-9


def test_what_was_remembered_wrongly_is_forgotten():
    torch.manual_seed(0)
    model = Encoder().to(D).eval()
    x = torch.randn(4, 4, 5, dtype=D), torch.tensor([1, 4, 2, 3])
    expected = truth(model, x)
    gradient_norms(model, x, spread_loss)
    memory = memory_of(model)
    for known in memory._programs.values():
        known.layouts = {index: Layout(0) for index in known.layouts}
    with mock.patch.object(memories, "PROOF_SHARE", 1.0):
        assert relative_error(gradient_norms(model, x, spread_loss), expected) < 1e-9
    assert any(at.dim == 1 for k in memory._programs.values() for at in k.layouts.values())


def test_only_programs_that_were_proven_go_unproven():
    class Rolling(nn.Module):
        """Turns its samples' order by Python alone, and turns it back."""

        by = 0

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            order = torch.arange(len(x)).roll(self.by)
            return self.body(x[order])[order.argsort()]

    torch.manual_seed(0)
    model, x = Rolling().to(D), torch.randn(4, 4, dtype=D)
    proofs: list[bool] = []

    def noting(proven, reduce):
        def noted(*args, **kwargs):
            proofs.append(proven)
            return reduce(*args, **kwargs)

        return noted

    with (
        mock.patch.object(recording, "reduce_proven", noting(True, recording.reduce_proven)),
        mock.patch.object(recording, "reduce_unproven", noting(False, recording.reduce_unproven)),
        mock.patch.object(memories, "PROOF_SHARE", 0.0),
    ):
        for model.by in (0, 0, 1, 1, 0):
            assert relative_error(gradient_norms(model, x, spread_loss), truth(model, x)) < 1e-9
    proven = [p for p in proofs if p]
    assert len(proven) >= 2
    assert proofs[-1] is False


def test_last_is_the_module_that_the_output_went_through_last():
    class Odd(nn.Module):
        """Registered in another order than it runs, with a table of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(4, 3), nn.Linear(4, 4)
            self.shift = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.body(x + self.shift)))

    model, x = Odd(), torch.randn(5, 4)
    assert set(select(model, "last", x)) == {"head.weight", "head.bias"}
    expected = gradient_norms(model, x, "entropy", parameters="head")
    assert torch.equal(gradient_norms(model, x, "entropy", parameters="last"), expected)


@pytest.mark.parametrize("n", mark_rest_long([2, 1, 4], 3))
def test_nothing_outlives_the_call(n):
    def freed(score) -> bool:
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 3))
        score(model.eval(), torch.randn(n, 8))
        weight = weakref.ref(model[0].weight)
        del model
        gc.collect()
        return weight() is None

    assert freed(lambda model, x: gradient_norms(model, x, "entropy"))
    assert freed(samples_that_fit)
    assert freed(explain) or n == 1


def test_reentrant_checkpoints_are_exact_and_leave_gradients_alone():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.second, self.first(x), use_reentrant=True)

    torch.manual_seed(0)
    model, x = Checkpointed().to(D), torch.randn(3, 5, dtype=D)
    plain = nn.Sequential(model.first, model.second)
    model.first.weight.grad = before = torch.ones_like(model.first.weight)
    assert relative_error(gradient_norms(model, x, spread_loss), truth(plain, x)) < 1e-9
    assert model.first.weight.grad is before
    assert bool((before == 1).all())
    assert model.second.weight.grad is None


def test_autocast_inside_the_model_is_no_mixing():
    class Auto(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.body(x).float()

    for seed in range(6):
        torch.manual_seed(seed)
        model, x = Auto(), torch.randn(5, 2, 6, 6)
        norms = gradient_norms(model, x, spread_loss)
        expected = norms_one_by_one(model.body.float(), x, lambda z, _: spread_loss(z)[0])
        assert relative_error(norms, expected) < 0.1


def test_kinks_within_rounding_are_settled_in_float64():
    """Activations that float32 rounds to either side of zero move gradients, and mean nothing."""

    class Kinked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = self.first(x)
            # Where products are summed in another order, differences of equal numbers change sign.
            return self.second(
                torch.relu(z - F.linear(x.flip(1), self.first.weight.flip(1)) + 1e-8)
            )

    torch.manual_seed(0)
    model = Kinked()
    nn.init.zeros_(model.first.bias)
    assert torch.isfinite(gradient_norms(model, torch.randn(16, 64), spread_loss)).all()


SORTED = {
    "gather": lambda z, order: z.gather(0, order[:, None].expand_as(z)),
    "take_along_dim": lambda z, order: torch.take_along_dim(z, order[:, None], 0),
    "index_copy": lambda z, order: torch.zeros_like(z).index_copy(0, order.argsort(), z),
    "scatter": lambda z, order: torch.zeros_like(z).scatter(
        0, order.argsort()[:, None].expand_as(z), z
    ),
    "embedding": lambda z, order: F.embedding(order, z),
}


@pytest.mark.parametrize("how", SORTED)
def test_samples_that_are_sorted_and_put_back_after_a_batch_in_order(how):
    class Sorting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            order = x[:, 0].argsort()
            z = self.second(torch.tanh(SORTED[how](self.first(x), order)))
            return SORTED[how](z, order.argsort())

    torch.manual_seed(0)
    model, x = Sorting().to(D).eval(), torch.randn(4, 4, dtype=D)
    x = x[x[:, 0].argsort()]
    for batch in (x, x.flip(0), x[torch.tensor([2, 0, 3, 1])]):
        norms = gradient_norms(model, batch, spread_loss)
        assert relative_error(norms, truth(model, batch)) < 1e-9


def test_losses_of_one_kind_are_proven_each_by_itself():
    class Centred:
        def __init__(self, centred: bool) -> None:
            self.centred = centred

        def __call__(self, z: Tensor) -> Tensor:
            return spread_loss(z - z.mean(0) if self.centred else z)

    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).to(D), torch.randn(4, 4, dtype=D)
    gradient_norms(model, x, Centred(False))
    with pytest.raises(GradientNormError, match="enter the losses of others"):
        gradient_norms(model, x, Centred(True))


def test_losses_that_change_from_call_to_call_are_refused():
    labels = iter([torch.tensor([0, 1, 2, 0]), torch.tensor([2, 2, 1, 1])])
    model, x = nn.Linear(4, 3).to(D), torch.randn(4, 4, dtype=D)
    with pytest.raises(GradientNormError, match="same numbers for the same outputs"):
        gradient_norms(model, x, lambda z: F.cross_entropy(z, next(labels), reduction="none"))


def test_a_loss_may_write_into_the_outputs():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).to(D), torch.randn(4, 4, dtype=D)
    norms = gradient_norms(model, x, lambda z: spread_loss(z.div_(2)))
    expected = norms_one_by_one(model, x, lambda z, _: spread_loss(z / 2)[0])
    assert relative_error(norms, expected) < 1e-9


def test_a_layer_put_into_training_mode_is_another_program():
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0) if self.training else x

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Norm(), nn.Linear(4, 3)).to(D).eval()
    x = torch.randn(4, 4, dtype=D)
    assert relative_error(gradient_norms(model, x, spread_loss), truth(model, x)) < 1e-9
    model[1].train()
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, spread_loss)
