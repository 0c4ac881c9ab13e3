"""The metrics of Tables 1, 2, 4 and 5 and of Figure 3: functions of one finished run.

Artefacts pass them to `measure`. Every number is of one cycle: lists are in the order of cycles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from upslope.influence import ConjugateGradients, Curvature, Solution, Solver
from upslope.progress import Progress
from upslope.reproduction.metrics.influences import figure_3_terms, influences_by_loss
from upslope.reproduction.metrics.metric_cache import Numbers
from upslope.reproduction.metrics.norms import Norm, Scheme, label_norms, scheme_norms
from upslope.reproduction.metrics.overlaps import count_reduced, top_overlap
from upslope.reproduction.metrics.sample_batches import Labelled
from upslope.reproduction.studies.finished_run import FinishedRun
from upslope.seeds import generator


def overlap(run: FinishedRun) -> Numbers:
    """Count, for Table 1, the samples selected with T^c among the K of largest gradient norm.

    The norm is that of the whole gradient, at the true label, over the same candidates.

    Returns: k, overlap (out of k per cycle), candidates (their number per cycle).
    """
    counts, sizes = [], []
    for cycle in _cycles(run, run.cycles):
        candidates = run.candidates(cycle)
        places = {position: place for place, position in enumerate(candidates)}
        positions = [places[position] for position in run.selected_positions(cycle)]
        counts.append(top_overlap(_label_norms(run, cycle, candidates), positions, run.budget))
        sizes.append(len(candidates))
    return {"k": run.budget, "overlap": counts, "candidates": sizes}


def consistency(
    run: FinishedRun,
    *,
    scheme: Scheme,
    norm: Norm,
    damping: float,
    train: int | None,
    test: int | None,
    tolerance: float,
    iterations: int,
) -> Numbers:
    """Count, for Table 2, the candidates that both Eq. 5 and Eq. 3 select at T^c.

    scheme: the paper's loss without labels, "entropy" or "expected". norm: of its gradient.
    damping, train, test, tolerance, iterations: as in `InfluenceOptions`.

    Returns: k; per cycle by_scheme and by_label, how many of the K of largest norm (by the scheme
    and at the true label) are among the K of largest influence at the true label; all_scheme, the
    same with the scheme's loss at both ends; residual, of the linear solve; candidates.
    """
    columns = ("by_scheme", "by_label", "all_scheme", "residual", "candidates")
    numbers: dict[str, list[float]] = {name: [] for name in columns}
    k = run.budget
    for cycle in _cycles(run, run.cycles):
        candidates = run.candidates(cycle)
        influences = influences_by_loss(
            run.model(cycle),
            run.task,
            _train_part(run, cycle, train),
            _test_part(run, cycle, test),
            (run.pool, candidates),
            ("label", scheme),
            damping=damping,
            device=run.device,
            batch_size=run.batch_size,
            solver=_remembering_solver(tolerance, iterations),
        )
        by_scheme = _scheme_norms(run, cycle, candidates, scheme, norm).topk(k).indices.tolist()
        by_label = _label_norms(run, cycle, candidates).topk(k).indices.tolist()
        label = influences["label"]
        numbers["by_scheme"].append(top_overlap(label.values, by_scheme, k))
        numbers["by_label"].append(top_overlap(label.values, by_label, k))
        numbers["all_scheme"].append(top_overlap(influences[scheme].values, by_scheme, k))
        numbers["residual"].append(label.solve.residual)
        numbers["candidates"].append(len(candidates))
    return {"k": k, **numbers}


def norms_reduced(run: FinishedRun, *, scheme: Scheme, norm: Norm) -> Numbers:
    """Count, for Tables 4 and 5, the selected samples whose norm is no larger with T^(c+1).

    scheme: the loss, "entropy" or "expected". norm: of its gradient.

    Returns: k; per cycle but the last reduced, out of the samples selected; random_share, the same
    as a share, of as many candidates drawn at random that were not selected.
    """
    counts, shares = [], []
    for cycle in _cycles(run, run.cycles - 1):
        picks = run.selected_positions(cycle)
        rest = sorted(set(run.candidates(cycle)) - set(picks))
        rng = generator(run.seed, "reduced", cycle)
        order = torch.randperm(len(rest), generator=rng)[: len(picks)].tolist()
        others = [rest[i] for i in order]
        positions, k = [*picks, *others], len(picks)
        before = _scheme_norms(run, cycle, positions, scheme, norm)
        after = _scheme_norms(run, cycle + 1, positions, scheme, norm)
        counts.append(count_reduced(before[:k], after[:k]))
        shares.append(count_reduced(before[k:], after[k:]) / max(1, len(others)))
    return {"k": run.budget, "reduced": counts, "random_share": shares}


def terms(
    run: FinishedRun,
    *,
    scheme: Scheme,
    damping: float,
    train: int | None,
    test: int | None,
    candidates: int | None,
    tolerance: float,
    iterations: int,
) -> Numbers:
    """Compute, for Figure 3, Target and its three bounds, from T^c to T^(c+1).

    scheme: the loss, "entropy" or "expected". Other arguments: as in `InfluenceOptions`.

    Returns: per cycle but the last the four terms, each a mean over unlabelled samples and over
    test samples; residual, of the linear solve; reduced_share, of the unlabelled samples whose norm
    is no larger with T^(c+1).
    """
    numbers: dict[str, list[float]] = {"residual": [], "reduced_share": []}
    for cycle in _cycles(run, run.cycles - 1):
        test_part = _test_part(run, cycle + 1, test)
        bounds = figure_3_terms(
            run.model(cycle),
            run.model(cycle + 1),
            run.task,
            _train_part(run, cycle + 1, train),
            test_part,
            (
                run.pool,
                _draw(run, run.unlabelled(cycle + 1), candidates, "candidates", cycle),
            ),
            scheme,
            damping=damping,
            device=run.device,
            batch_size=run.batch_size,
            solver=_remembering_solver(tolerance, iterations),
        )
        for name, mean in bounds.means().items():
            numbers.setdefault(name, []).append(mean / len(test_part[1]))
        numbers["residual"].append(bounds.solve.residual)
        numbers["reduced_share"].append(bounds.reduced_share())
    return dict(numbers)


def _label_norms(run: FinishedRun, cycle: int, positions: list[int]) -> Tensor:
    return label_norms(
        run.model(cycle),
        run.task,
        run.pool,
        positions,
        run.targets(positions),
        device=run.device,
        batch_size=run.batch_size,
    )


def _scheme_norms(
    run: FinishedRun, cycle: int, positions: Sequence[int], scheme: Scheme, norm: Norm
) -> Tensor:
    return scheme_norms(
        run.model(cycle),
        run.task,
        run.pool,
        positions,
        scheme,
        norm=norm,
        device=run.device,
        batch_size=run.batch_size,
    )


def _cycles(run: FinishedRun, count: int) -> Iterator[int]:
    """Yield 0 to count - 1; before each, end the work if a stop was requested."""
    for cycle in range(count):
        run.stop.check()
        yield cycle
        run.observer(
            Progress(
                "cycle", cycle + 1, count, run=f"{run.name}/seed-{run.seed}",
                cycle=cycle, cycles=count, labelled=len(run.labelled(cycle)),
            )
        )  # fmt: skip


def _train_part(run: FinishedRun, cycle: int, most: int | None) -> Labelled:
    """Return at most so many samples on which T^c was trained, with their targets."""
    positions = _draw(run, run.labelled(cycle), most, "train", cycle)
    return run.pool, positions, run.pool.targets(positions)


def _test_part(run: FinishedRun, cycle: int, most: int | None) -> Labelled:
    """Return at most so many test samples, with their targets."""
    positions = _draw(run, list(range(len(run.test))), most, "test", cycle)
    return run.test, positions, run.test.targets(positions)


def _draw(
    run: FinishedRun, positions: list[int], most: int | None, purpose: str, cycle: int
) -> list[int]:
    """Draw at most so many of the positions at random, in their order."""
    if most is None or most >= len(positions):
        return positions
    rng = generator(run.seed, "theory", purpose, cycle)
    places = torch.randperm(len(positions), generator=rng)[:most].tolist()
    return sorted(positions[i] for i in places)


def _remembering_solver(tolerance: float, iterations: int) -> Callable[[Curvature, float], Solver]:
    """Return what makes a conjugate gradient solver that solves for one right side only once."""
    memory: list[tuple[Tensor, Solution]] = []

    def make(_: Curvature, damping: float) -> Solver:
        descend = ConjugateGradients(damping, tolerance=tolerance, max_iterations=iterations)

        def solve(curvature: Curvature, b: Tensor) -> Solution:
            if not memory or not torch.equal(memory[0][0], b):
                memory[:] = [(b, descend(curvature, b))]
            return memory[0][1]

        return solve

    return make
