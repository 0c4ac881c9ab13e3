"""The measures of Tables 1, 2, 4 and 5 and of Figure 3, each a function of one finished run.

Every figure is of one cycle: lists are in the order of cycles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from upslope.datasets.base import Dataset
from upslope.influence import ConjugateGradients, Curvature, Solution, Solver
from upslope.progress import Progress
from upslope.reproduction.measured import Figures
from upslope.reproduction.subject import Subject
from upslope.reproduction.theory import (
    figure_3_terms,
    influences_by_loss,
    label_norms,
    reduced,
    scheme_norms,
    top_overlap,
)
from upslope.seeds import generator

Scheme = Literal["entropy", "expected"]
Norm = Literal["global", "tensor-sum"]


def overlap(subject: Subject) -> Figures:
    """Table 1: of what the strategy chose with T^c, how many are of the K of largest gradient norm.

    The norm is that of the whole gradient, at the known label, among the same candidates.
    """
    found, sizes = [], []
    for cycle in _cycles(subject, subject.cycles):
        candidates = subject.candidates(cycle)
        norms = label_norms(
            subject.model(cycle),
            subject.task,
            subject.pool,
            candidates,
            subject.targets(candidates),
            device=subject.device,
            batch_size=subject.batch,
        )
        chosen = _places(candidates, subject.selected(cycle))
        found.append(top_overlap(norms, chosen, subject.budget))
        sizes.append(len(candidates))
    return {"k": subject.budget, "overlap": found, "candidates": sizes}


def consistency(
    subject: Subject,
    *,
    scheme: Scheme,
    norm: Norm,
    damping: float,
    train: int | None,
    test: int | None,
    tolerance: float,
    iterations: int,
) -> Figures:
    """Table 2: of the K candidates that Eq. 5 selects, how many Eq. 3 selects too, at T^c.

    Both ends in both losses: `by_scheme` and `by_label` are the K of largest norm by the scheme and
    at the known label, each against the K of largest influence at the known label; `all_scheme` has
    the scheme's loss at both ends. residual: of the linear solve.
    """
    columns = ("by_scheme", "by_label", "all_scheme", "residual", "candidates")
    found: dict[str, list[float]] = {name: [] for name in columns}
    for cycle in _cycles(subject, subject.cycles):
        candidates, model = subject.candidates(cycle), subject.model(cycle)
        trained = _part(subject, subject.labelled(cycle), train, "train", cycle)
        tested = _part(subject, list(range(len(subject.test))), test, "test", cycle)
        known = {"device": subject.device, "batch_size": subject.batch}
        solver = _solver(tolerance, iterations)
        solved = influences_by_loss(
            model,
            subject.task,
            _labelled(subject.pool, trained),
            _labelled(subject.test, tested),
            (subject.pool, candidates),
            ("label", scheme),
            damping=damping,
            solver=solver,
            **known,  # type: ignore[arg-type]
        )
        influence = {loss: one.values for loss, one in solved.items()}
        residual = solved["label"].solve.residual
        norms: dict[str, Tensor] = {
            "scheme": scheme_norms(
                model,
                subject.task,
                subject.pool,
                candidates,
                scheme,
                norm=norm,
                **known,  # type: ignore[arg-type]
            ),
            "label": label_norms(
                model,
                subject.task,
                subject.pool,
                candidates,
                subject.targets(candidates),
                **known,  # type: ignore[arg-type]
            ),
        }
        k = subject.budget
        top = {name: values.topk(k).indices.tolist() for name, values in norms.items()}
        found["by_scheme"].append(top_overlap(influence["label"], top["scheme"], k))
        found["by_label"].append(top_overlap(influence["label"], top["label"], k))
        found["all_scheme"].append(top_overlap(influence[scheme], top["scheme"], k))
        found["residual"].append(residual)
        found["candidates"].append(len(candidates))
    return {"k": subject.budget, **found}


def norms_reduced(subject: Subject, *, scheme: Scheme, norm: Norm) -> Figures:
    """Tables 4 and 5: of what was chosen with T^c, how many have no larger norm with T^(c+1).

    random: the same of as many candidates drawn at random that were not chosen.
    """
    chosen_counts, random_counts = [], []
    for cycle in _cycles(subject, subject.cycles - 1):
        chosen = subject.selected(cycle)
        left = sorted(set(subject.candidates(cycle)) - set(chosen))
        rng = generator(subject.seed, "reduced", cycle)
        others = [left[i] for i in torch.randperm(len(left), generator=rng)[: len(chosen)].tolist()]

        def norms(at: int, both: tuple[int, ...] = (*chosen, *others)) -> Tensor:
            return scheme_norms(
                subject.model(at),
                subject.task,
                subject.pool,
                both,
                scheme,
                norm=norm,
                device=subject.device,
                batch_size=subject.batch,
            )

        before, after, k = norms(cycle), norms(cycle + 1), len(chosen)
        chosen_counts.append(reduced(before[:k], after[:k]))
        random_counts.append(reduced(before[k:], after[k:]) / max(1, len(others)))
    return {"k": subject.budget, "reduced": chosen_counts, "random_share": random_counts}


def terms(
    subject: Subject,
    *,
    scheme: Scheme,
    damping: float,
    train: int | None,
    test: int | None,
    candidates: int | None,
    tolerance: float,
    iterations: int,
) -> Figures:
    """Figure 3: the means over the unlabelled of Target and its three bounds, from T^c to T^(c+1).

    Each divided by the number of test samples, as a mean over them.
    """
    found: dict[str, list[float]] = {"residual": [], "reduced_share": []}
    for cycle in _cycles(subject, subject.cycles - 1):
        tested = _part(subject, list(range(len(subject.test))), test, "test", cycle + 1)
        solved = figure_3_terms(
            subject.model(cycle),
            subject.model(cycle + 1),
            subject.task,
            _labelled(
                subject.pool, _part(subject, subject.labelled(cycle + 1), train, "train", cycle + 1)
            ),
            _labelled(subject.test, tested),
            (
                subject.pool,
                _part(subject, subject.unlabelled(cycle + 1), candidates, "candidates", cycle),
            ),
            scheme,
            damping=damping,
            device=subject.device,
            batch_size=subject.batch,
            solver=_solver(tolerance, iterations),
        )
        for name, mean in solved.means().items():
            found.setdefault(name, []).append(mean / len(tested))
        found["residual"].append(solved.solve.residual)
        found["reduced_share"].append(solved.reduced_share())
    return dict(found)


def _cycles(subject: Subject, count: int) -> Iterator[int]:
    """0 .. count - 1, looking out for a request to stop."""
    for cycle in range(count):
        subject.stop.check()
        yield cycle
        subject.observer(
            Progress(
                "cycle", cycle + 1, count, run=f"{subject.name}/seed-{subject.seed}",
                cycle=cycle, cycles=count, labelled=len(subject.labelled(cycle)),
            )
        )  # fmt: skip


def _places(candidates: list[int], selected: list[int]) -> list[int]:
    where = {position: place for place, position in enumerate(candidates)}
    return [where[position] for position in selected]


def _part(
    subject: Subject, positions: list[int], most: int | None, purpose: str, cycle: int
) -> list[int]:
    """At most so many of them, at random."""
    if most is None or most >= len(positions):
        return positions
    rng = generator(subject.seed, "theory", purpose, cycle)
    drawn = torch.randperm(len(positions), generator=rng)[:most].tolist()
    return sorted(positions[i] for i in drawn)


def _labelled(dataset: Dataset, positions: list[int]) -> tuple[Dataset, list[int], Tensor]:
    return dataset, positions, dataset.targets(positions)


def _solver(tolerance: float, iterations: int) -> Callable[[Curvature, float], Solver]:
    """Conjugate gradients that solve the same system once."""
    known: list[tuple[Tensor, Solution]] = []

    def make(_: Curvature, damping: float) -> Solver:
        descend = ConjugateGradients(damping, tolerance=tolerance, max_iterations=iterations)

        def solve(curvature: Curvature, b: Tensor) -> Solution:
            if not known or not torch.equal(known[0][0], b):
                known[:] = [(b, descend(curvature, b))]
            return known[0][1]

        return solve

    return make
