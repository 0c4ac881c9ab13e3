"""What a router decides for all samples steers none otherwise, or the batch is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import TOLERANCE, count_refused, norms_one_by_one, relative_error
from torch import Tensor, nn

from short_forms import mark_rest_long
from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.model_io import Batch
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.trace.memory import Memory

Choose = Callable[[Tensor], Tensor]
Ask = Callable[[Tensor], bool]

CHOICES: dict[str, Choose] = {
    "argmax": lambda shares: shares.argmax(dim=-1),
    "max": lambda shares: shares.max(-1)[1],
    "topk": lambda shares: shares.topk(1)[1].flatten(),
}

QUESTIONS: dict[str, Ask] = {
    "any": lambda mask: mask.any(),
    "a number": lambda mask: mask.any().item(),
    "more than none": lambda mask: mask.sum() > 0,
    "a count": lambda mask: bool(mask.sum()),
    "none at all": lambda mask: mask.sum().ne(0),
}


class Asked(nn.Module):
    """Experts that run where a question about their rows is answered by yes.

    scale: of the outputs, for each expert that does not.
    """

    def __init__(self, choose: Choose, ask: Ask, scale: float = 1.0, experts: int = 3) -> None:
        super().__init__()
        self.first, self.router = nn.Linear(4, 4), nn.Linear(4, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)) for _ in range(experts)
        )
        self.last = nn.Linear(4, 3)
        self.choose, self.ask, self.scale = choose, ask, scale
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:  # (n, t, 4)
        rows = torch.tanh(self.first(x)).reshape(-1, 4)
        shares = self.router(rows).softmax(dim=-1)
        which, out, scale = self.choose(shares), torch.zeros_like(rows), 1.0
        for number, expert in enumerate(self.experts):
            mask = which == number
            if self.ask(mask):
                out[mask] = expert(rows[mask]) * shares[mask][:, number, None]
            else:
                scale *= self.scale
        return self.last((rows + out).reshape(x.shape).mean(dim=1)) * scale


def batches(count: int, n: int, t: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, t, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("choice", mark_rest_long(list(CHOICES), 1))
@pytest.mark.parametrize("question", mark_rest_long(list(QUESTIONS), 2))
def test_what_was_decided_for_one_sample_is_not_tried_again(monkeypatch, choice, question):
    monkeypatch.setattr(Memory, "draw_proof", lambda _: False)
    torch.manual_seed(0)
    model, passes = Asked(CHOICES[choice], QUESTIONS[question]), list[int]()
    run_plain = BatchRun.run_plain
    monkeypatch.setattr(
        BatchRun, "run_plain", lambda *a, **k: passes.append(1) or run_plain(*a, **k)
    )
    counts = []
    for x in batches(30, 6, 3):
        truth = norms_one_by_one(model, x)
        passes.clear()
        assert relative_error(gradient_norms(model, x, "entropy"), truth) < TOLERANCE
        counts.append(len(passes))
    # There are seven ways of one sample, and batches in which an expert has no row are few.
    assert counts[-10:].count(0) >= 8


@pytest.mark.parametrize("question", mark_rest_long(list(QUESTIONS), 2))
@pytest.mark.parametrize("n", [2, 3, 6])
def test_experts_that_are_left_out_for_one_sample_alone_are_refused_where_it_matters(question, n):
    torch.manual_seed(0)
    model = Asked(CHOICES["argmax"], QUESTIONS[question], scale=1.5)
    assert count_refused(model, batches(12, n, 3, seed=n)) > 0


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_count_that_samples_reach_together_alone_is_refused(n):
    torch.manual_seed(0)
    model = Asked(CHOICES["argmax"], lambda mask: mask.sum() > 3, scale=1.5)
    assert count_refused(model, batches(12, n, 3, seed=n)) > 0


class Gated(Asked):
    """Adds a gate that is zero as many times as there are experts with rows."""

    def __init__(self) -> None:
        super().__init__(CHOICES["argmax"], QUESTIONS["any"])
        self.gate = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        which = self.choose(self.router(torch.tanh(self.first(x)).reshape(-1, 4)))
        return super().forward(x + sum(bool((which == k).any()) for k in range(3)) * self.gate)


@pytest.mark.parametrize("n", [2, 5])
def test_a_decision_that_shows_in_gradients_alone_is_refused(n):
    torch.manual_seed(0)
    (x,) = batches(1, n, 2)
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(Gated(), x, "entropy")


def test_what_a_proof_has_run_alone_is_not_run_alone_again(monkeypatch):
    torch.manual_seed(0)
    model, sizes = Asked(CHOICES["argmax"], lambda mask: any(mask.tolist())), list[int]()
    run_plain = BatchRun.run_plain

    def watched(self: BatchRun, batch: Batch, **options: Any) -> Any:
        sizes.append(batch.n)
        return run_plain(self, batch, **options)

    monkeypatch.setattr(BatchRun, "run_plain", watched)
    (x,) = batches(1, 6, 3)
    truth = norms_one_by_one(model, x)
    assert relative_error(gradient_norms(model, x, "entropy"), truth) < TOLERANCE
    assert sizes.count(1) == 7  # once each, and the one whose gradient is formed alone


class Prototypes(Asked):
    """Beside the outputs, a table that all samples share."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), torch.arange(12.0, dtype=torch.float64).reshape(4, 3).sin()


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_table_as_long_as_the_batch_is_no_output_of_other_samples(question):
    torch.manual_seed(0)
    model = Prototypes(CHOICES["argmax"], QUESTIONS[question])

    def distance(outputs: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cdist(*outputs)[:, 0]

    for x in batches(5, 4, 2):
        rows = [torch.autograd.grad(distance(model(x[i : i + 1])).sum(), list(model.parameters()),
                                    allow_unused=True) for i in range(4)]  # fmt: skip
        truth = [sum(g.square().sum() for g in row if g is not None).sqrt() for row in rows]
        found = gradient_norms(model, x, distance)
        assert relative_error(found, torch.stack(truth)) < TOLERANCE
