"""Monte-Carlo dropout: measures by hand, and what runs how often."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from upslope.errors import ModelError
from upslope.pool import Need
from upslope.signals import build, mc_dropout
from upslope.signals.mc_dropout import bald, mean_std, variation_ratio
from upslope.tasks.classification import Classification

TASK = Classification(num_classes=3)


class Counted(nn.Identity):
    rows = 0

    def forward(self, input: Tensor) -> Tensor:
        self.rows += len(input)
        return input


class Residual(nn.Module):
    """Dropout inside a branch: the other branch has as many rows as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.dropout(x))


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            Counted(),
            nn.Linear(6, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            Counted(),
            nn.Dropout(0.5),
            Counted(),
            nn.Linear(8, 8),
            nn.Tanh(),
            nn.Dropout(0.25),
            nn.Linear(8, 3),
        ).eval()


def test_measures_by_hand() -> None:
    """Two networks that contradict each other for certain, and two that agree to be unsure."""
    p = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.5, 0.5]]])
    mean = torch.tensor([0.7, 0.3])
    mixed = (
        -(mean * mean.log()).sum()
        - (-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) + math.log(2)) / 2
    )
    assert torch.allclose(bald(p), torch.tensor([math.log(2), 0.0, float(mixed)]), atol=1e-6)
    assert torch.allclose(mc_dropout.MEASURES["entropy"](p)[:2], torch.tensor(math.log(2)))
    assert torch.allclose(variation_ratio(p), torch.tensor([0.5, 0.0, 0.0]))
    assert torch.allclose(mean_std(p), torch.tensor([0.5, 0.0, 0.2]), atol=1e-6)


@pytest.mark.parametrize("gap", [0.0, 8.0, 20.0, 60.0])
def test_measures_keep_their_digits_where_passes_agree_or_are_sure(gap: float) -> None:
    """Against logits in double precision, whose posteriors are rounded for the measures alone."""
    z = 0.01 * torch.randn(50, 20, 4, generator=torch.Generator().manual_seed(0)).double()
    z[:, :, 2] += gap
    others = z.softmax(dim=2)[:, :, [0, 1, 3]]
    rest = others.sum(dim=2)
    of_others = (others * (others / others.mean(dim=1, keepdim=True)).log()).sum(dim=2)
    of_first = (1 - rest) * (torch.log1p(-rest) - torch.log1p(-rest.mean(dim=1, keepdim=True)))
    expected = (of_others + of_first).mean(dim=1).float()
    torch.testing.assert_close(bald(z.softmax(dim=2).float()), expected, rtol=2e-3, atol=0)
    deviations = torch.cat([others, rest[:, :, None]], dim=2).std(dim=1, correction=0)
    torch.testing.assert_close(
        mean_std(z.softmax(dim=2).float()), deviations.mean(dim=1).float(), rtol=1e-4, atol=0
    )


def test_measures_of_a_dense_task_are_those_of_each_position() -> None:
    p = torch.randn(2, 5, 3, 4, 4).softmax(dim=2)
    for measure in mc_dropout.MEASURES.values():
        assert torch.allclose(measure(p)[:, 1, 2], measure(p[..., 1, 2]), atol=1e-6)


def test_passes_are_those_of_networks_with_units_dropped() -> None:
    """Against T explicit networks, built by masking the inputs of the layers behind dropout."""
    model, x = network(), torch.randn(5, 6)
    p = build(Need.of("mc-posteriors", passes=7)).compute(model, TASK, x)
    assert p.shape == (5, 7, 3)
    first = torch.rand(7, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    second = torch.rand(7, 8, generator=torch.Generator().manual_seed(7919)) < 0.75
    for t in range(7):
        h = model[:5](x) * first[t] / 0.5
        h = model[7:9](h) * second[t] / 0.75
        assert torch.allclose(p[:, t], model[10](h).softmax(dim=1), atol=1e-6)


def test_mean_over_passes_is_dropouts_own() -> None:
    model, x = network(), torch.randn(4, 6)
    ours = build(Need.of("mc-posteriors", passes=4000)).compute(model, TASK, x).mean(dim=1)
    for m in model:
        m.train(isinstance(m, nn.Dropout))
    with torch.no_grad():
        theirs = model(x.repeat_interleave(4000, dim=0)).softmax(dim=1)
    assert torch.allclose(ours, theirs.unflatten(0, (4, 4000)).mean(dim=1), atol=0.02)


def test_runs_once_before_the_first_dropout_and_t_times_behind() -> None:
    model = network()
    build(Need.of("mc-dropout", passes=50)).compute(model, TASK, torch.randn(8, 6))
    counted = [m for m in model if isinstance(m, Counted)]
    assert [m.rows for m in counted] == [8, 8, 400]


def test_a_score_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), torch.randn(9, 6)
    signal = build(Need.of("mc-dropout", passes=20))
    whole = signal.compute(model, TASK, x)
    parts = torch.cat([signal.compute(model, TASK, part) for part in x.split(2)])
    assert torch.allclose(whole, parts, atol=1e-6)
    monkeypatch.setattr(mc_dropout, "ROWS", 60)
    assert torch.allclose(whole, signal.compute(model, TASK, x), atol=1e-6)


@pytest.mark.parametrize("n", [1, 4])
def test_dropout_in_a_branch_costs_whole_forwards_and_is_right(n: int) -> None:
    model, x = Residual().eval(), torch.randn(n, 6)
    p = build(Need.of("mc-posteriors", passes=5)).compute(model, TASK, x)
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    for t in range(5):
        assert torch.allclose(p[:, t], model.head(x + x * mask[t] / 0.5).softmax(dim=1), atol=1e-6)


def test_whole_channels_are_dropped_where_the_layer_does() -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Dropout2d(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model[1].register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    build(Need.of("mc-posteriors", passes=8)).compute(model, TASK, torch.ones(2, 3, 4, 4))
    assert seen[0].shape == (16, 3, 4, 4)
    assert set(seen[0].flatten().tolist()) == {0.0, 2.0}
    assert (seen[0].std(dim=(2, 3)) == 0).all()


def test_leaves_model_mode_hooks_and_generator_alone() -> None:
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    build(Need.of("mc-dropout")).compute(model, TASK, torch.zeros(3, 6))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(m.training or m._forward_hooks for m in model.modules())


def test_a_network_without_dropout_is_refused() -> None:
    with pytest.raises(ModelError, match="Build the network with dropout"):
        build(Need.of("mc-dropout")).compute(
            nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.0)).eval(), TASK, torch.zeros(2, 6)
        )


class Sequences(nn.Module):
    """Dropout at tensors (steps, n, 6), as `nn.TransformerEncoder` has them by default."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.25)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.transpose(0, 1)).tanh()).mean(dim=0))


class Patches(Sequences):
    """Dropout at tensors (n steps, 6), of which each sample has several rows."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.second(self.first(x.flatten(0, 1)).tanh())
        return self.head(rows.unflatten(0, (len(x), -1)).mean(dim=1))


class Plain(Sequences):
    """Dropout at tensors (n, steps, 6)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).tanh()).mean(dim=1))


@pytest.mark.parametrize("kind", [Sequences, Patches, Plain])
@pytest.mark.parametrize("steps", [4, 5, 8, 20])  # as many as samples, passes and rows among them
@pytest.mark.parametrize("n", [1, 5])
def test_each_pass_drops_the_same_of_every_sample_wherever_samples_are(
    kind: type[Sequences], steps: int, n: int
) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(n, steps, 6)
    p = build(Need.of("mc-posteriors", passes=4)).compute(model, TASK, x)
    shape = (4, steps, 6)
    first = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    second = torch.rand(shape, generator=torch.Generator().manual_seed(7919)) < 0.75
    for t in range(4):
        h = (x * first[t] / 0.5).tanh() * second[t] / 0.75
        assert torch.allclose(p[:, t], model.head(h.mean(dim=1)).softmax(dim=1), atol=1e-6)


@pytest.mark.filterwarnings("ignore:dropout2d:UserWarning")
def test_dropout_of_channels_drops_what_the_layer_does_without_positions() -> None:
    """`nn.Dropout2d` takes (n, c, length) and (n, c) as well."""
    for shape in ((3, 4), (3, 4, 5)):
        seen: list[Tensor] = []
        model = nn.Sequential(nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(20 if shape[2:] else 4, 3))
        model[1].register_forward_hook(lambda _m, args, _out, seen=seen: seen.append(args[0]))
        build(Need.of("mc-dropout", passes=8)).compute(model.eval(), TASK, torch.ones(shape))
        dropped = seen[-1].reshape(24, 4, -1)
        assert set(dropped.flatten().tolist()) == {0.0, 2.0}
        assert torch.equal(dropped, dropped[:, :, :1].expand_as(dropped))


def test_a_network_whose_dropout_layer_does_not_run_is_refused() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.head = nn.Dropout(0.5), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.dropout(x, self.dropout.p, self.training))

    with pytest.raises(ModelError, match=r"Call the nn\.Dropout module itself"):
        build(Need.of("mc-dropout")).compute(Functional().eval(), TASK, torch.zeros(2, 6))
