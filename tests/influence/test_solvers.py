from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_problems import MODELS, Explicit, problem, relative
from torch import Tensor, nn

from short_forms import mark_rest_long
from upslope.errors import InfluenceError
from upslope.influence import ConjugateGradients, Curvature, Lissa


def right_side(size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def exact_solution(matrix: Tensor, b: Tensor, damping: float) -> Tensor:
    return torch.linalg.solve(matrix + damping * torch.eye(len(b), dtype=b.dtype), b)


def positive(matrix: Tensor) -> float:
    """A damping that makes the matrix positive definite."""
    return max(0.0, -float(torch.linalg.eigvalsh(matrix)[0])) + 0.05


@pytest.mark.parametrize("name", mark_rest_long(MODELS, 2))
@pytest.mark.parametrize("kind", ["hessian", "gauss-newton", "empirical-fisher"])
def test_conjugate_gradients_solve_as_the_explicit_matrix(name: str, kind: str) -> None:
    model, data = problem(name)
    oracle = Explicit(model, data)
    matrix = {
        "hessian": oracle.hessian,
        "gauss-newton": oracle.gauss_newton,
        "empirical-fisher": oracle.empirical_fisher,
    }[kind]()
    curvature = Curvature(model, data, kind=kind)
    b, damping = right_side(curvature.size), positive(matrix)
    solve = ConjugateGradients(damping=damping, tolerance=1e-10)(curvature, b)
    exact = exact_solution(matrix, b, damping)
    assert solve.converged
    assert relative(solve.vector, exact) < 1e-6
    left = b - matrix @ solve.vector - damping * solve.vector
    assert solve.residual == pytest.approx(float(left.norm() / b.norm()), rel=1e-3, abs=1e-13)
    assert solve.residual <= 1e-10


def test_preconditioners_change_the_way_and_not_the_end() -> None:
    """Least squares on inputs of very different scale: what a diagonal is for."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1500, 60, generator=rng, dtype=torch.float64) * torch.logspace(-2, 1, 60)
    model = nn.Linear(60, 1, bias=False).double()
    curvature = Curvature(model, [(x, x[:, 0])], lambda z, y: (z[:, 0] - y).square())
    b = right_side(curvature.size)
    inverse = torch.linalg.inv(2 * x.T @ x / len(x) + 1e-4 * torch.eye(len(b)))
    plain = ConjugateGradients(damping=1e-4, tolerance=1e-9)
    jacobi = replace(plain, preconditioner="jacobi")
    perfect = replace(plain, preconditioner=lambda r: inverse @ r)
    solves = [solver(curvature, b) for solver in (plain, jacobi, perfect)]
    assert all(solve.converged for solve in solves)
    assert all(relative(solve.vector, inverse @ b) < 1e-6 for solve in solves)
    without, diagonal, exact = (solve.iterations for solve in solves)
    assert exact <= 2 < diagonal < without / 2


def test_negative_curvature_is_found_and_said() -> None:
    model, data = problem("perceptron")
    matrix = Explicit(model, data).hessian()
    lowest = float(torch.linalg.eigvalsh(matrix)[0])
    assert lowest < 0
    solve = ConjugateGradients()(Curvature(model, data), right_side(len(matrix)))
    assert solve.status == "negative curvature"
    assert not solve.converged
    # The direction met bounds the lowest eigenvalue from above.
    bound = float(solve.detail.split("at most ")[1].split(":")[0])
    assert lowest <= bound <= 0
    assert "damping above" in solve.detail


def test_what_stops_it() -> None:
    model, data = problem("perceptron")
    curvature = Curvature(model, data, kind="gauss-newton")
    b = right_side(curvature.size)
    short = ConjugateGradients(damping=1e-3, max_iterations=3)(curvature, b)
    assert (short.status, short.iterations) == ("iteration limit", 3)
    assert short.residual > 1e-6
    single = Curvature(model.float(), [(x.float(), y) for x, y in data], kind="gauss-newton")
    stuck = ConjugateGradients(damping=1e-3, tolerance=1e-12)(single, b.float())
    assert stuck.status == "stagnated"
    assert stuck.residual < 1e-3
    assert "float64" in stuck.detail
    nothing = ConjugateGradients()(curvature, torch.zeros_like(b))
    assert nothing.converged
    assert not nothing.vector.any()


def test_lissa_nears_conjugate_gradients() -> None:
    model, data = problem("perceptron")
    curvature = Curvature(model, data, kind="gauss-newton")
    b = right_side(curvature.size)
    exact = ConjugateGradients(damping=0.2, tolerance=1e-10)(curvature, b).vector
    top = max(
        float(torch.linalg.eigvalsh(Curvature(model, [batch], kind="gauss-newton").matrix())[-1])
        for batch in data
    )
    whole = [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    one_batch = Curvature(model, whole, kind="gauss-newton")
    full = Lissa(damping=0.2, scale=1.1 * top + 0.2, depth=150)(one_batch, b)
    assert full.converged
    assert relative(full.vector, exact) < 1e-5
    drawn = [Lissa(damping=0.2, scale=5 * top, depth=150, repeats=r)(curvature, b) for r in (1, 4)]
    errors = [relative(solve.vector, exact) for solve in drawn]
    assert errors[1] < errors[0] < 0.2
    assert drawn[1].iterations == 600


def test_lissa_sees_that_it_diverges() -> None:
    model, data = problem("perceptron")
    curvature = Curvature(model, data)
    for solver in (Lissa(damping=0.01, scale=0.1), Lissa(damping=0.0, scale=0.1)):
        solve = solver(curvature, right_side(curvature.size))
        assert solve.status == "diverged"
        assert solve.iterations < 50
        assert "raise `scale` above 0.1" in solve.detail


def test_wrong_settings_are_named() -> None:
    model, data = problem("perceptron")
    curvature = Curvature(model, data, kind="fisher")
    with pytest.raises(InfluenceError, match=r"`damping` .* but got -1"):
        ConjugateGradients(damping=-1)
    with pytest.raises(InfluenceError, match=r"`damping` .* but got nan"):
        Lissa(damping=float("nan"))
    with pytest.raises(InfluenceError, match="`tolerance` above 0"):
        ConjugateGradients(tolerance=0)
    with pytest.raises(InfluenceError, match="but got 'ilu'"):
        ConjugateGradients(preconditioner="ilu")  # type: ignore[arg-type]
    with pytest.raises(InfluenceError, match="`depth` to be positive but got 0"):
        Lissa(depth=0)
    with pytest.raises(InfluenceError, match=r"`b` of shape \(74,\)"):
        ConjugateGradients()(curvature, torch.ones(5))
    with pytest.raises(InfluenceError, match="positive definite preconditioner"):
        ConjugateGradients(preconditioner=lambda r: -r)(curvature, right_side(74))


def test_a_parameter_that_nothing_depends_on() -> None:
    model, data = problem("perceptron")
    model.register_parameter("idle", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    curvature = Curvature(model, data, kind="fisher")
    solver = ConjugateGradients(damping=0.5, preconditioner="jacobi", tolerance=1e-9)
    b = right_side(curvature.size)
    found = curvature.network.split(solver(curvature, b).vector)["idle"]
    assert torch.allclose(found, curvature.network.split(b)["idle"] / 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "solve", [ConjugateGradients(damping=0.5, tolerance=1e-4), Lissa(0.5, tolerance=0.05)]
)
def test_the_length_of_the_right_side_only_scales_the_solution(
    solve: ConjugateGradients | Lissa, dtype: torch.dtype
) -> None:
    """Beyond the range of its squares it was "converged" with 0, or negative curvature."""
    model, data = problem(next(iter(MODELS)))
    model = model.to(dtype)
    data = [(x.to(dtype), y.to(dtype) if y.is_floating_point() else y) for x, y in data]
    curvature = Curvature(model, data, kind="gauss-newton")
    b = right_side(curvature.size).to(dtype)
    of_one = solve(curvature, b)
    assert of_one.converged
    for exponent in (-100, -60, 60, 100) if dtype == torch.float32 else (-900, 900):
        scaled = solve(curvature, b * 2.0**exponent)
        assert torch.equal(scaled.vector, of_one.vector * 2.0**exponent)
        assert (scaled.residual, scaled.status) == (of_one.residual, of_one.status)
