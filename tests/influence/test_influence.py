from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from small_problems import MODELS, Data, Explicit, altered, problem, relative
from test_solvers import exact_solution, positive
from torch import Tensor, nn
from torch.nn import functional as F

from short_forms import mark_rest_long
from upslope.errors import InfluenceError
from upslope.influence import (
    EKFAC,
    ConjugateGradients,
    Curvature,
    LeaveOneOut,
    Lissa,
    entropy_loss,
    influence_on_test_loss,
    leave_one_out,
)


@pytest.mark.parametrize("name", mark_rest_long(MODELS, 2))
@pytest.mark.parametrize("loss", ["label", "entropy"])
def test_influences_are_those_of_the_explicit_matrix(name: str, loss: str) -> None:
    """Eq. 2, with the 1/n of the training set, a sum over the test set, and its sign."""
    model, train = problem(name)
    test, candidates = problem(name, 11, seed=3)[1], problem(name, 14, seed=4)[1]
    matrix = Explicit(model, train).hessian()
    damping = positive(matrix)
    s = exact_solution(matrix, Explicit(model, test).gradients(loss).sum(0), damping)
    exact = Explicit(model, candidates).gradients(loss) @ s / 23
    solver = ConjugateGradients(damping=damping, tolerance=1e-10)
    found = influence_on_test_loss(Curvature(model, train), test, candidates, loss, solver=solver)
    assert relative(found.values, exact) < 1e-6
    assert relative(found.solve.vector, s) < 1e-6
    assert (found.samples, found.test_samples) == (23, 11)


def test_float32_differs_by_rounding() -> None:
    model, train = problem("convolutional")
    test = problem("convolutional", 11, seed=3)[1]
    solver = ConjugateGradients(damping=0.3, tolerance=1e-5)
    exact = influence_on_test_loss(Curvature(model, train), test, test, solver=solver).values
    single = Curvature(model.float(), [(x.float(), y) for x, y in train])
    found = influence_on_test_loss(single, test, test, solver=solver).values
    assert found.dtype == torch.float32
    assert relative(found.double(), exact) < 1e-3


def test_negative_curvature_and_divergence_are_errors() -> None:
    model, data = problem("perceptron")
    curvature = Curvature(model, data)
    with pytest.raises(InfluenceError, match=r"reports negative curvature .* damping above"):
        influence_on_test_loss(curvature, data, data, solver=ConjugateGradients())
    with pytest.raises(InfluenceError, match=r"reports diverged .* raise `scale`"):
        influence_on_test_loss(curvature, data, data, solver=Lissa(scale=0.1))


def test_a_candidate_that_is_not_finite_is_named() -> None:
    model, data = problem("perceptron")
    curvature, solver = Curvature(model, data, kind="fisher"), ConjugateGradients(damping=1)
    spoiled = altered(data, 11, value=torch.nan)
    with pytest.raises(InfluenceError, match="1 of 23 candidates, the first at index 11"):
        influence_on_test_loss(curvature, data, spoiled, solver=solver)
    with pytest.raises(InfluenceError, match="that of sample 11 of `test` is nan"):
        influence_on_test_loss(curvature, spoiled, data, solver=solver)


@pytest.mark.parametrize("which", ["test", "candidates"])
def test_samples_that_cannot_be_taken_are_named(which: str) -> None:
    model, data = problem("perceptron")
    curvature, solver = Curvature(model, data, kind="fisher"), ConjugateGradients(damping=1)

    def asked(wrong: Data) -> None:
        given = {"test": data, "candidates": data, which: wrong}
        influence_on_test_loss(curvature, **given, solver=solver)

    with pytest.raises(
        InfluenceError, match=f"`{which}` .* sample 9 on.* Target 4 is out of bound"
    ):
        asked(altered(data, 11, label=4))
    with pytest.raises(InfluenceError, match=f"`{which}` .* sample 0 on, inputs .9, 3. float64"):
        asked([(x[:, :3], y) for x, y in data])
    with pytest.raises(InfluenceError, match=f"`{which}` to have at least one batch but got none"):
        asked([])
    with pytest.raises(InfluenceError, match=f"`{which}` to have at least one sample but got"):
        asked([(data[0][0][:0], data[0][1][:0])])


def test_unlabelled_candidates_by_a_loss_without_targets() -> None:
    model, data = problem("perceptron")
    curvature, solver = Curvature(model, data, kind="fisher"), ConjugateGradients(damping=0.1)
    unlabelled = [(x, None) for x, _ in data]
    by_function = influence_on_test_loss(curvature, data, unlabelled, entropy_loss, solver=solver)
    by_name = influence_on_test_loss(curvature, data, data, "entropy", solver=solver)
    assert torch.equal(by_function.values, by_name.values)


# Logistic regression with an L2 penalty on images of digits: convex, so there is a truth.
WEIGHT_DECAY = 0.01


@pytest.fixture(scope="module")
def digits() -> tuple[Data, Data]:
    images, labels = load_digits(n_class=5, return_X_y=True)
    x = torch.from_numpy(images)[:, ::2] / 16  # (n, 32)
    y = torch.from_numpy(labels).long()
    # A tenth of the training labels are wrong, so that some samples harm.
    y[:15] = (y[:15] + 1) % 5
    return [(x[:150], y[:150])], [(x[300:700], y[300:700])]


@pytest.fixture(scope="module")
def truth(digits: tuple[Data, Data]) -> LeaveOneOut:
    torch.manual_seed(0)
    return leave_one_out(nn.Linear(32, 5), *digits, weight_decay=WEIGHT_DECAY)


def test_the_minimum_is_that_of_another_optimiser(
    digits: tuple[Data, Data], truth: LeaveOneOut
) -> None:
    (x, y), (test_x, test_y) = digits[0][0], digits[1][0]
    ones = torch.ones(len(x), 1, dtype=torch.float64)

    def fitted(keep: torch.Tensor) -> torch.Tensor:
        # The bias is penalised too, as one more input; C is 1 / (weight_decay * n).
        other = LogisticRegression(
            C=1 / (WEIGHT_DECAY * len(x)), fit_intercept=False, tol=1e-10, max_iter=5000
        )
        other.fit(torch.cat([x, ones], 1)[keep].numpy(), y[keep].numpy())
        return torch.from_numpy(other.coef_)

    def loss(weights: torch.Tensor) -> float:
        logits = torch.cat([test_x, ones[:1].expand(len(test_x), 1)], 1) @ weights.T
        return float(nn.functional.cross_entropy(logits, test_y, reduction="sum"))

    everything = torch.arange(len(x))
    ours = torch.cat([truth.model.weight, truth.model.bias[:, None]], 1).detach()
    assert relative(ours, fitted(everything)) < 1e-5
    assert truth.largest_gradient <= 1e-10
    for i in (0, 77):
        change = loss(fitted(everything[everything != i])) - loss(fitted(everything))
        assert float(truth.changes[i]) == pytest.approx(change, rel=1e-3, abs=1e-4)


def test_influence_is_leave_one_out_retraining(
    digits: tuple[Data, Data], truth: LeaveOneOut
) -> None:
    train, test = digits
    found = influence_on_test_loss(
        Curvature(truth.model, train),
        test,
        train,
        solver=ConjugateGradients(damping=WEIGHT_DECAY, tolerance=1e-9),
    )
    assert found.solve.converged
    assert pearsonr(found.values, truth.changes)[0] > 0.99
    assert spearmanr(found.values, truth.changes)[0] > 0.99
    # The scale too, not only the order.
    slope = float((found.values @ truth.changes) / (found.values @ found.values))
    assert 0.9 < slope < 1.2
    assert float(truth.changes[:15].mean()) < 0 < float(truth.changes[15:].mean())


@pytest.mark.parametrize(
    ("load", "classes", "weight_decay"), [(load_wine, 3, 0.03), (load_breast_cancer, 2, 0.1)]
)
def test_influence_is_leave_one_out_retraining_on_other_data(
    load: Callable[..., Any], classes: int, weight_decay: float
) -> None:
    """Measured: 0.996 and 0.992; weaker penalties give less, see the page on influence."""
    values, labels = load(return_X_y=True)
    x, y = torch.from_numpy(values), torch.from_numpy(labels).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = ((x - x.mean(0)) / x.std(0))[order], y[order]
    n = 100 if classes == 3 else 200
    train, test = [(x[:n], y[:n])], [(x[n:], y[n:])]
    torch.manual_seed(0)
    exact = leave_one_out(
        nn.Linear(x.shape[1], classes),
        train,
        test,
        weight_decay=weight_decay,
        removed=range(0, n, 2),
    )
    solver = ConjugateGradients(damping=weight_decay, tolerance=1e-9)
    found = influence_on_test_loss(Curvature(exact.model, train), test, train, solver=solver)
    assert pearsonr(found.values[::2], exact.changes)[0] > 0.99


def test_leave_one_out_of_a_sample_that_carries_the_hessian() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(30, 4, dtype=torch.float64), torch.randint(0, 3, (30,))
    x[2] *= 40
    train, weight_decay = [(x[:7], y[:7]), (x[7:], y[7:])], 1e-3
    few = leave_one_out(
        nn.Linear(4, 3), train, [(x, y)], weight_decay=weight_decay, removed=[1, 2, 20]
    )
    shares = torch.ones(4, 30, dtype=torch.float64)
    shares[range(1, 4), [1, 2, 20]] = 0
    whole, *totals = (_total_at_minimum(x, y, share, weight_decay) for share in shares)
    torch.testing.assert_close(few.changes, torch.stack(totals) - whole)


def _total_at_minimum(x: Tensor, y: Tensor, shares: Tensor, weight_decay: float) -> Tensor:
    """Return the sum of all cross-entropies where their weighted mean, penalised, is minimal."""

    def losses(theta: Tensor) -> Tensor:
        z = x @ theta[:12].view(3, 4).T + theta[12:]
        return F.cross_entropy(z, y, reduction="none")

    def loss(theta: Tensor) -> Tensor:
        return (shares * losses(theta)).mean() + weight_decay / 2 * theta.square().sum()

    theta = torch.zeros(15, dtype=torch.float64)
    for _ in range(60):  # damped, so that no step is too long
        gradient = torch.autograd.functional.jacobian(loss, theta)
        step = torch.linalg.solve(torch.autograd.functional.hessian(loss, theta), gradient)
        theta = theta - step / max(1.0, float((gradient @ step).sqrt()))
    return losses(theta).sum()


def test_ekfac_orders_the_samples_much_as_the_hessian(
    digits: tuple[Data, Data], truth: LeaveOneOut
) -> None:
    train, test = digits
    curvature = Curvature(truth.model, train)
    found = influence_on_test_loss(
        curvature, test, train, solver=EKFAC(curvature).solver(WEIGHT_DECAY)
    )
    assert found.solve.status == "approximate"
    assert spearmanr(found.values, truth.changes)[0] > 0.8


def test_wrong_arguments_of_leave_one_out_are_named(digits: tuple[Data, Data]) -> None:
    train, test = digits
    with pytest.raises(InfluenceError, match="`weight_decay` to be positive but got 0"):
        leave_one_out(nn.Linear(32, 5), train, test, weight_decay=0)
    with pytest.raises(InfluenceError, match=r"indices below 150, .* but got 150"):
        leave_one_out(nn.Linear(32, 5), train, test, weight_decay=0.1, removed=[150])
    with pytest.raises(InfluenceError, match="that of sample 5 of `test` is nan"):
        leave_one_out(nn.Linear(32, 5), train, altered(test, 5, value=torch.nan), weight_decay=0.1)
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Linear(32, 4), nn.Tanh(), nn.Linear(4, 5))
    with pytest.raises(InfluenceError, match="Expected a convex training loss"):
        leave_one_out(deep, train, test, weight_decay=1e-4, removed=[0])
