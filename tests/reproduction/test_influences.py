"""What the tables measure, against loops over samples and an explicit matrix in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import DataError, InfluenceError
from upslope.influence import EKFAC, ConjugateGradients, Curvature, Solver
from upslope.reproduction.metrics.influences import figure_3_terms, influences, influences_by_loss
from upslope.reproduction.metrics.norms import label_norms, scheme_norms
from upslope.tasks import Classification

CPU = torch.device("cpu")
DAMPING = 0.05
Scheme = Literal["label", "entropy", "expected"]


@dataclass
class Images:
    """Random uint8 images (2, 6, 6) of three classes, and what was read of them."""

    n: int
    seed: int
    resident: bool = True
    name: str = "images"
    classes: tuple[str, ...] = ("a", "b", "c")
    input_shape: tuple[int, ...] = (2, 6, 6)
    labelled: bool = True
    most_read: int = 0
    ids: Sequence[str] = field(default_factory=tuple)

    def __len__(self) -> int:
        return self.n

    def _rng(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def inputs(self, indices: Sequence[int]) -> Tensor:
        self.most_read = max(self.most_read, len(indices))
        images = torch.randint(0, 256, (self.n, 2, 6, 6), generator=self._rng(), dtype=torch.uint8)
        return images[torch.as_tensor(indices)]

    def targets(self, indices: Sequence[int]) -> Tensor:
        if not self.labelled:
            raise DataError("Expected labels but nobody knows them.")
        return torch.randint(0, 3, (self.n,), generator=self._rng())[torch.as_tensor(indices)]


TASK = Classification(3, mean=(0.4, 0.5), std=(0.2, 0.3), label_smoothing=0.1)
POOL, TEST = Images(60, 0), Images(31, 1)
TRAIN_AT, TEST_AT, CANDIDATES_AT = list(range(3, 40, 2)), list(range(0, 31, 2)), [41, 7, 58, 50, 44]
TRAIN = (POOL, TRAIN_AT, POOL.targets(TRAIN_AT))
TESTED = (TEST, TEST_AT, TEST.targets(TEST_AT))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Tanh(), nn.Linear(3, 3))


def convolutional() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    model(torch.randn(32, 2, 6, 6) * 2 + 1)  # statistics that are not 0 and 1
    return model


BUILD: dict[str, Callable[[], nn.Module]] = {
    "perceptron": perceptron,
    "convolutional": convolutional,
}


def built(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return BUILD[name]().double()


@pytest.fixture(params=list(BUILD))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prepared(dataset: Images, indices: Sequence[int]) -> Tensor:
    return TASK.prepare(dataset.inputs(indices)).double()


def loss_of(kind: str, z: Tensor, y: Tensor) -> Tensor:
    """Of one sample: z (3,)."""
    log_p = z.log_softmax(0)
    if kind == "label":
        return -0.9 * log_p[y] - 0.1 * log_p.mean()
    return -(log_p.exp() * log_p).sum()


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    model.eval()
    yield
    model.train()


def gradients(model: nn.Module, dataset: Images, indices: Sequence[int], kind: str) -> list[Any]:
    """One sample, one backward pass: a list of tensors for each."""
    found = []
    with evaluated(model):
        for x, y in zip(prepared(dataset, indices), dataset.targets(indices), strict=True):
            loss = loss_of(kind, model(x[None])[0], y)
            found.append(torch.autograd.grad(loss, list(model.parameters())))
    return found


def rows(model: nn.Module, dataset: Images, indices: Sequence[int], kind: str) -> Tensor:
    found = gradients(model, dataset, indices, kind)
    return torch.stack([torch.cat([g.flatten() for g in one]) for one in found])


def gauss_newton(model: nn.Module) -> Tensor:
    """(1/n) sum J^T (diag p - p p^T) J; smoothing shifts the loss's slope, not its curvature."""
    parameters = list(model.parameters())
    size = sum(p.numel() for p in parameters)
    total = torch.zeros(size, size, dtype=torch.float64)
    with evaluated(model):
        for x in prepared(POOL, TRAIN_AT):
            z = model(x[None])[0]
            grads = [torch.autograd.grad(zi, parameters, retain_graph=True) for zi in z]
            j = torch.stack([torch.cat([g.flatten() for g in one]) for one in grads])
            p = z.detach().softmax(0)
            total += j.T @ (p.diag() - p.outer(p)) @ j
    return total / len(TRAIN_AT)


def direction(model: nn.Module, kind: str) -> Tensor:
    b = rows(model, TEST, TEST_AT, kind).sum(0)
    h = gauss_newton(model)
    return torch.linalg.solve(h + DAMPING * torch.eye(len(h), dtype=h.dtype), b)


def exact(_: Curvature, damping: float) -> Solver:
    return ConjugateGradients(damping, tolerance=1e-11)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-8) -> bool:
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


# Norms


@pytest.mark.parametrize("norm", ["global", "tensor-sum"])
@pytest.mark.parametrize("kind", ["label", "entropy", "expected"])
def test_norms_are_those_of_one_backward_a_sample(name: str, kind: Any, norm: Any) -> None:
    model = built(name).float()
    if kind == "label":
        targets = POOL.targets(CANDIDATES_AT)
        found = label_norms(
            model, TASK, POOL, CANDIDATES_AT, targets, device=CPU, batch_size=2, norm=norm
        )
    else:
        found = scheme_norms(
            model, TASK, POOL, CANDIDATES_AT, kind, norm=norm, device=CPU, batch_size=2
        )
    per_tensor = [
        torch.stack([g.norm() for g in one])
        for one in gradients(model.double(), POOL, CANDIDATES_AT, kind)
    ]
    exact_norms = [t.norm() if norm == "global" else t.sum() for t in per_tensor]
    assert close(found, torch.stack(exact_norms), 1e-5)


# Eq. 3


@pytest.mark.parametrize("scheme", ["label", "entropy", "expected"])
def test_influences_are_eq_3(name: str, scheme: Any) -> None:
    model = built(name)
    found = influences(
        model,
        TASK,
        TRAIN,
        TESTED,
        (POOL, CANDIDATES_AT),
        scheme,
        damping=DAMPING,
        device=CPU,
        batch_size=4,
        solver=exact,
    )
    candidates = rows(model, POOL, CANDIDATES_AT, scheme)
    assert close(found.values, candidates @ direction(model, "label") / len(TRAIN_AT), 1e-8)
    assert (found.samples, found.test_samples) == (len(TRAIN_AT), len(TEST_AT))


def test_losses_of_the_candidates_share_a_solve() -> None:
    model = built("convolutional").float()
    common: dict[str, Any] = {"damping": DAMPING, "device": CPU, "batch_size": 7}
    where: Any = (model, TASK, TRAIN, TESTED, (POOL, CANDIDATES_AT))
    together = influences_by_loss(*where, ("label", "entropy"), **common)
    assert together["label"].solve is together["entropy"].solve
    for scheme, found in together.items():
        assert torch.equal(found.values, influences(*where, scheme, **common).values)  # type: ignore[arg-type]


def test_a_float32_model_is_computed_in_float64_where_asked_and_left_as_it_was(name: str) -> None:
    model = built(name).float().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    common: dict[str, Any] = {"damping": DAMPING, "device": CPU, "batch_size": 7}
    in_double = influences(
        model,
        TASK,
        TRAIN,
        TESTED,
        (POOL, CANDIDATES_AT),
        "label",
        solver=exact,
        dtype=torch.float64,
        **common,
    )
    by_default = influences(model, TASK, TRAIN, TESTED, (POOL, CANDIDATES_AT), "label", **common)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert by_default.values.dtype == torch.float32
    assert by_default.solve.converged
    assert by_default.solve.residual <= 1e-3
    candidates = rows(model.double(), POOL, CANDIDATES_AT, "label")
    exact_values = candidates @ direction(model, "label") / len(TRAIN_AT)
    assert close(in_double.values, exact_values)
    assert close(by_default.values.double(), exact_values, 1e-2)


def test_any_solver_that_is_made_from_the_curvature() -> None:
    model = built("perceptron")
    found = influences(
        model,
        TASK,
        TRAIN,
        TESTED,
        (POOL, CANDIDATES_AT),
        "label",
        damping=DAMPING,
        device=CPU,
        batch_size=8,
        solver=lambda curvature, damping: EKFAC(curvature).solver(damping),
    )
    assert found.solve.status == "approximate"
    candidates = rows(model, POOL, CANDIDATES_AT, "label")
    both = torch.stack([found.values, candidates @ direction(model, "label")])
    assert torch.corrcoef(both)[0, 1] > 0.9


# Figure 3


@pytest.mark.parametrize("scheme", ["entropy", "expected"])
def test_figure_3_takes_the_loss_of_the_scheme_everywhere_but_in_h(name: str, scheme: Any) -> None:
    earlier, later = built(name, 1), built(name, 0)
    found = figure_3_terms(
        earlier,
        later,
        TASK,
        TRAIN,
        TESTED,
        (POOL, CANDIDATES_AT),
        scheme,
        damping=DAMPING,
        device=CPU,
        batch_size=4,
        solver=exact,
    )
    s = direction(later, scheme)
    now, before = (rows(m, POOL, CANDIDATES_AT, scheme) for m in (later, earlier))
    assert close(found.target, now @ s)
    assert close(found.approx_1, (now @ s).abs())
    assert close(found.approx_2, now.norm(dim=1) * s.norm())
    assert close(found.approx_3, before.norm(dim=1) * s.norm())


def test_no_label_of_a_candidate_is_read_but_for_the_label_loss() -> None:
    model, hidden = built("perceptron").float(), Images(60, 0, labelled=False)
    common: dict[str, Any] = {"damping": DAMPING, "device": CPU, "batch_size": 8}
    candidates = (hidden, CANDIDATES_AT)
    influences(model, TASK, TRAIN, TESTED, candidates, "entropy", **common)
    figure_3_terms(model, model, TASK, TRAIN, TESTED, candidates, "entropy", **common)
    scheme_norms(model, TASK, hidden, CANDIDATES_AT, "entropy", device=CPU, batch_size=8)
    with pytest.raises(DataError, match="nobody knows"):
        influences(model, TASK, TRAIN, TESTED, candidates, "label", **common)


def test_what_does_not_fit_in_memory_is_read_in_batches() -> None:
    model, large = built("perceptron").float(), Images(60, 0, resident=False)
    train = (large, TRAIN_AT, large.targets(TRAIN_AT))
    common: dict[str, Any] = {"damping": DAMPING, "device": CPU, "batch_size": 4}
    found = influences(model, TASK, train, TESTED, (large, CANDIDATES_AT), "label", **common)
    figure_3_terms(model, model, TASK, train, TESTED, (large, CANDIDATES_AT), "entropy", **common)
    label_norms(model, TASK, large, TRAIN_AT, train[2], device=CPU, batch_size=4)
    scheme_norms(model, TASK, large, TRAIN_AT, "entropy", device=CPU, batch_size=4)
    assert large.most_read == 4
    kept = influences(model, TASK, TRAIN, TESTED, (POOL, CANDIDATES_AT), "label", **common)
    assert torch.equal(found.values, kept.values)


# What cannot be computed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"damping": 0.0}, "`damping` above 0 but got 0.0"),
        ({"damping": -1e-3}, "`damping` above 0 but got -0.001"),
        ({"scheme": "egl"}, "but got 'egl'"),
        ({"candidates": (POOL, [])}, "`candidates` to have at least one sample"),
        ({"train": (POOL, [], torch.empty(0))}, "`train` to have at least one sample"),
        ({"test": (TEST, [], torch.empty(0))}, "`test` to have at least one sample"),
        ({"test": (TEST, [1, 2], torch.zeros(3))}, "each of the 2 samples of `test` but got 3"),
    ],
)
@pytest.mark.parametrize("of", ["influences", "figure 3"])
def test_influences_that_are_not_defined(of: str, change: dict[str, Any], message: str) -> None:
    model = built("perceptron")
    given: dict[str, Any] = {
        "train": TRAIN,
        "test": TESTED,
        "candidates": (POOL, CANDIDATES_AT),
        "scheme": "entropy",
        "damping": DAMPING,
        "device": CPU,
        "batch_size": 8,
        **change,
    }
    models = (model,) if of == "influences" else (model, model)
    measure: Any = influences if of == "influences" else figure_3_terms
    with pytest.raises(InfluenceError, match=message):
        measure(*models, TASK, **given)


def test_figure_3_has_no_label_loss() -> None:
    model: Any = built("perceptron")
    wrong: Any = "label"
    with pytest.raises(InfluenceError, match="but got 'label'"):
        figure_3_terms(
            model,
            model,
            TASK,
            TRAIN,
            TESTED,
            (POOL, CANDIDATES_AT),
            wrong,
            damping=DAMPING,
            device=CPU,
            batch_size=8,
        )


def test_norms_of_nothing() -> None:
    with pytest.raises(InfluenceError, match="at least one sample"):
        scheme_norms(built("perceptron"), TASK, POOL, [], "entropy", device=CPU, batch_size=8)


def test_smoothing_leaves_the_curvature_as_it_is() -> None:
    """What the oracle's Gauss-Newton matrix relies on."""
    z = torch.randn(3, dtype=torch.float64)
    h = torch.autograd.functional.hessian(lambda t: loss_of("label", t, torch.tensor(1)), z)
    p = z.softmax(0)
    assert close(h, p.diag() - p.outer(p))
    smoothed = F.cross_entropy(z[None], torch.tensor([1]), label_smoothing=0.1)
    assert float(smoothed) == pytest.approx(float(loss_of("label", z, torch.tensor(1))))
