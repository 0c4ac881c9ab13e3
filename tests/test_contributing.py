"""The recipes of CONTRIBUTING that are whole modules do what the page says."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from upslope import gradnorm
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.trace import operator_facts
from upslope.pool import PoolView

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def module_that_defines(name: str) -> types.ModuleType:
    """Run the one block that defines a name."""
    blocks = re.findall(r"^```py\w*\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    (code,) = [b for b in blocks if re.search(rf"^(?:def|class) {name}\b", b, re.MULTILINE)]
    module = types.ModuleType(f"contributed_{name}")
    sys.modules[module.__name__] = module  # where dataclasses look annotations up
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    return module


def test_the_strategy_that_chooses_a_batch() -> None:
    strategy = module_that_defines("FirstOfRandomOrder").FirstOfRandomOrder()
    ids = {f"s{i}" for i in range(9)}
    chosen = strategy.select(PoolView(sorted(ids), {}), 4, torch.Generator().manual_seed(0)).ids
    assert len(set(chosen)) == 4
    assert set(chosen) <= ids


def test_the_data_set(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 6, 6), dtype=np.uint8)
    np.save(tmp_path / "two.npy", images)
    np.save(tmp_path / "two-labels.npy", np.arange(12) % 2)
    splits = module_that_defines("load").load(tmp_path / "two.npy")
    assert (len(splits.pool), len(splits.test)) == (9, 3)
    assert splits.pool.inputs([0]).shape == (1, 1, 6, 6)


def test_the_task() -> None:
    task = module_that_defines("AbsoluteRegression").AbsoluteRegression(num_classes=2)
    losses = task.losses(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 1.0]]))
    assert losses.tolist() == [3.5]


@pytest.fixture
def bilinear_rule(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's rule in the table of kernels, for one test."""
    table = {**operator_facts.REGISTRY, "bilinear": module_that_defines("bilinear").bilinear}
    monkeypatch.setattr(operator_facts, "REGISTRY", table)
    operator_facts.operator_of.cache_clear()  # what is known of `F.bilinear` without the rule
    yield
    operator_facts.operator_of.cache_clear()


@pytest.mark.usefixtures("bilinear_rule")
def test_the_kernel() -> None:

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Bilinear(3, 4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x[:, :3], x[:, 3:])

    torch.manual_seed(0)
    model, x = Pairs().double(), torch.randn(6, 7, dtype=torch.float64)
    (use,) = gradnorm.explain(model, x).uses
    assert (use.operator, use.path) == ("linear", "kernel")
    rows = []
    for sample in x:
        loss = gradnorm.entropy(model(sample[None]))[0]
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]).norm())
    torch.testing.assert_close(gradient_norms(model, x, "entropy"), torch.stack(rows))
