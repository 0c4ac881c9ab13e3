"""The committee: fresh members, trained on the labels, and their divergence by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from toy import context

from upslope.errors import ModelError
from upslope.pool import Need
from upslope.signals import build
from upslope.signals.committee import FittedCommittee, fresh
from upslope.tasks.classification import Classification


class Fixed(nn.Module):
    def __init__(self, p: Tensor) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return self.p.log().expand(len(x), -1)


def test_divergence_by_hand() -> None:
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.3, 0.7])
    m = (p + q) / 2
    expected = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    committee = FittedCommittee((Fixed(p), Fixed(q)))
    scores = committee.compute(nn.Identity(), Classification(num_classes=2), torch.zeros(3, 2))
    assert torch.allclose(scores, expected.expand(3), atol=1e-6)


def test_members_differ_have_learnt_and_the_model_has_not() -> None:
    ctx = context(labelled=80)
    ctx = type(ctx)(**{**ctx.__dict__, "targets": (torch.arange(80) >= 60).long()})
    before = {k: v.clone() for k, v in ctx.model.state_dict().items()}
    state = torch.get_rng_state()
    signal = build(Need.of("committee", members=2, epochs=40)).fit(ctx)  # type: ignore[attr-defined]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in ctx.model.state_dict().items())
    first, second = (member.state_dict()["1.weight"] for member in signal.members)
    assert not torch.allclose(first, second)
    for member in signal.members:
        assert not member.training
        predicted = member(ctx.dataset.inputs(list(range(120)))).argmax(dim=1)
        assert ((predicted == 1) == (torch.arange(120) >= 60)).float().mean() > 0.95


@pytest.mark.parametrize(("labelled", "steps"), [(1, 3), (64, 3), (65, 3), (66, 6)])
def test_members_pass_over_the_labels_as_often_as_they_are_to(labelled: int, steps: int) -> None:
    progress: list[tuple[int, int]] = []
    ctx = context(labelled=labelled)
    ctx = replace(ctx, progress=lambda done, total: progress.append((done, total)))
    build(Need.of("committee", members=2, epochs=3)).fit(ctx)  # type: ignore[attr-defined]
    assert progress == [(step + 1, 2 * steps) for step in range(2 * steps)]


def test_same_generator_same_committee() -> None:
    scores = []
    for _ in range(2):
        ctx = context(seed=4)
        signal = build(Need.of("committee", epochs=2)).fit(ctx)  # type: ignore[attr-defined]
        scores.append(signal.compute(ctx.model, ctx.task, ctx.dataset.inputs([1, 70])))
    assert torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("labelled", [0, 1])
def test_nothing_or_one_sample_labelled(labelled: int) -> None:
    ctx = context(labelled=labelled)
    signal = build(Need.of("committee", epochs=1)).fit(ctx)  # type: ignore[attr-defined]
    scores = signal.compute(ctx.model, ctx.task, ctx.dataset.inputs([1, 70]))
    assert torch.isfinite(scores).all()
    assert (scores > 0).all()


def test_a_module_that_cannot_start_anew_is_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(ModelError, match="Own"):
        fresh(nn.Sequential(nn.Linear(2, 2), Own()))


def test_attention_starts_anew() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    started = fresh(layer)
    assert isinstance(started, nn.TransformerEncoderLayer)
    before, after = layer.self_attn, started.self_attn
    for name in ("in_proj_weight", "out_proj.weight"):
        assert not torch.equal(before.get_parameter(name), after.get_parameter(name))
        assert float(after.get_parameter(name).detach().std()) > 0.1
