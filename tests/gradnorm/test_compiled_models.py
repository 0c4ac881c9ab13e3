"""What `torch.compile` has compiled is differentiated as it was written, model or loss."""

from __future__ import annotations

import pytest
import torch
from oracle import norms_one_by_one
from test_uses_of_parameters import Functional
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms


def squares(outputs: Tensor) -> Tensor:
    return outputs.square().sum(dim=1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize("n", [1, 4])
def test_a_compiled_model_answers_batches_of_every_shape(n: int) -> None:
    plain = network()
    compiled = torch.compile(plain, backend="aot_eager")
    compiled(torch.randn(2, 5, dtype=torch.float64)).sum().backward()
    for size in (n, n + 2, n):
        x = torch.randn(size, 5, dtype=torch.float64)
        expected = norms_one_by_one(plain, x, lambda outputs, _: squares(outputs)[0])
        torch.testing.assert_close(gradient_norms(compiled, x, squares), expected)


def test_a_compiled_loss_is_the_loss() -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    compiled = torch.compile(squares, backend="eager")
    expected = gradient_norms(network(), x, squares)
    torch.testing.assert_close(gradient_norms(network(), x, compiled), expected)


def test_the_caller_still_runs_the_compiled_form() -> None:
    runs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        runs.append(graph)
        return graph.forward

    compiled = torch.compile(network(), backend=backend)
    x = torch.randn(4, 5, dtype=torch.float64)
    gradient_norms(compiled, x, squares)
    assert not runs
    compiled(x)
    assert len(runs) == 1


@pytest.mark.filterwarnings("ignore")
def test_branches_that_torch_compiles_are_refused() -> None:
    def branch(m: nn.Module, x: Tensor) -> Tensor:
        return torch.cond(torch.tensor(True), lambda t: torch.tanh(m.a(t)), lambda t: m.a(t), (x,))

    model = Functional(branch).double()
    model.a = nn.Linear(5, 3).double()
    x = torch.randn(2, 5, dtype=torch.float64)
    branch(model, x)  # the compiler is there from now on
    with pytest.raises(GradientNormError, match="`cond` compiles the functions"):
        gradient_norms(model, x, squares)
