"""DCoM over the cells of a pool, against its rule written out with distances of cells alone."""

from __future__ import annotations

import pytest
import torch
from test_two_stage import Pool, choose

from upslope.errors import SelectionError
from upslope.strategies import build
from upslope.strategies.cell_search import PROBES
from upslope.strategies.cells import Cells, divide
from upslope.strategies.dcom import RESOLUTION, DCoM, competence
from upslope.strategies.two_stage import select_in_cells

CELL = 60


def cells_of(pool: Pool) -> Cells:
    unit = torch.nn.functional.normalize(pool.signals["features"], dim=1)
    rng = torch.Generator().manual_seed(2)
    blocks = [(s, unit[s : s + 100]) for s in range(0, len(pool), 100)]
    return divide(lambda p: unit[torch.as_tensor(p)], lambda: blocks, len(pool), CELL, rng)


def scaled(values: torch.Tensor) -> torch.Tensor:
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else values * 0


def follow(
    strategy: DCoM, pool: Pool, chosen: list[int], labels: dict[int, int], passed: set[int]
) -> tuple[list[float], float]:
    """By how much each choice fell short of the largest mixture, and the coverage before them.

    Every distance, and who sees whom, as matrices.
    """
    cells, n = cells_of(pool), len(pool)
    home = torch.empty(n, dtype=torch.int64)
    for number, members in enumerate(cells.members):
        home[torch.from_numpy(members)] = number
    shown_to = torch.zeros(len(cells.members), len(cells.members), dtype=torch.bool)
    for number in range(len(cells.members)):
        shown_to[number, cells.neighbours(number, PROBES)] = True
    x = torch.nn.functional.normalize(pool.signals["features"].double(), dim=1)
    p = pool.signals["probabilities"].double()
    distance = torch.cdist(x, x)
    predicted = p.argmax(dim=1)
    counts_at_all = torch.ones(n, dtype=torch.bool)
    counts_at_all[list(passed)] = False
    known = sorted(labels)
    # Which samples each labelled one may reach.
    sees = torch.stack([shown_to[home, home[j]] & counts_at_all for j in known]) if known else None

    def covered_by(radii: list[float]) -> torch.Tensor:
        result = torch.zeros(n, dtype=torch.bool)
        for k, j in enumerate(known):
            result |= sees[k] & (distance[j] < radii[k])  # type: ignore[index]
        result[known] = True
        return result

    def share(covered: torch.Tensor) -> float:
        return float(covered[counts_at_all].double().mean())

    threshold = 0.2 * share(covered_by([strategy.delta] * len(known))) + 0.4
    radii = []
    for k, j in enumerate(known):
        low, high = 0.0, strategy.delta
        while high - low > RESOLUTION:
            middle = (low + high) / 2
            inside = sees[k] & (distance[j] < middle)  # type: ignore[index]
            pure = int((predicted[inside] == labels[j]).sum()) >= threshold * int(inside.sum())
            low, high = (middle, high) if pure else (low, middle)
        radii.append((low + high) / 2)
    covered = covered_by(radii)
    radius = sum(radii) / len(radii) if radii else strategy.delta
    weight = competence(share(covered), strategy.slope, strategy.centre)
    free = torch.ones(n, dtype=torch.bool)
    free[[*known, *passed]] = False
    candidates = [int(i) for members in cells.members for i in members if free[i]]
    top = p[candidates].topk(2, dim=1).values
    unsure = scaled(1 - top[:, 0] + top[:, 1])
    same = home[:, None] == home
    short: list[float] = []
    taken = torch.zeros(n, dtype=torch.bool)
    for position in chosen:
        counts = ((distance < radius) & same & ((free | taken) & ~covered))[candidates].sum(dim=1)
        mixture = weight * unsure + (1 - weight) * scaled(counts.double())
        mixture[[k for k, i in enumerate(candidates) if not free[i]]] = -torch.inf
        short.append(float(mixture.max() - mixture[candidates.index(position)]))
        free[position], taken[position] = False, True
        covered |= (distance[position] < radius) & same[position]
    return short, share(covered_by(radii))


@pytest.mark.parametrize("known", [0, 1, 40])
@pytest.mark.parametrize("delta", [0.3, 0.75])
def test_is_the_rule_written_out(known: int, delta: float) -> None:
    strategy = DCoM(delta=delta, centre=0.4, slope=6.0)
    pool = Pool(500)
    labelled = list(range(3, 500, 500 // known))[:known] if known else []
    labels = pool.labels(labelled)
    labels[5:8] = -1
    passed = {i for i, label in zip(labelled, labels.tolist(), strict=True) if label < 0}
    answers = {i: k for i, k in zip(labelled, labels.tolist(), strict=True) if k >= 0}
    selection = select_in_cells(
        strategy, pool, 90, torch.Generator().manual_seed(2),
        labelled=labelled, labels=labels, cell=CELL,
    )  # fmt: skip
    chosen = [int(i) for i in selection.ids]
    short, coverage = follow(strategy, pool, chosen, answers, passed)
    assert max(short) < 1e-6  # mixtures are of single precision
    assert selection.notes["coverage"] == pytest.approx(coverage)
    assert selection.notes["cells"] > 5


def test_the_whole_pool_may_be_asked() -> None:
    assert sorted(choose("dcom", Pool(300), 300, cell=40)) == list(range(300))


def test_labelled_samples_without_classes_are_refused() -> None:
    with pytest.raises(SelectionError, match="one class for each of the 2 labelled"):
        select_in_cells(build("dcom"), Pool(300), 3, torch.Generator(), labelled=[1, 2], cell=40)


@pytest.mark.parametrize("known", [0, 100])
def test_covers_nearly_as_much_as_the_exact_form(known: int) -> None:
    pool = Pool(3000)
    labelled = range(0, 3000, 30)[:known]
    strategy = DCoM(delta=0.4)
    free = [i for i in range(3000) if i not in labelled]
    view = pool.view("dcom", labelled)
    exact = strategy.select(view, 60, torch.Generator())
    chosen = select_in_cells(
        strategy, pool, 60, torch.Generator().manual_seed(2),
        labelled=labelled, labels=pool.labels(labelled), cell=300,
    )  # fmt: skip
    x = torch.nn.functional.normalize(pool.signals["features"], dim=1)

    def covered(ids: tuple[str, ...]) -> float:
        centres = x[[*labelled, *(int(i) for i in ids)]]
        return float(
            (torch.cdist(x[free], centres).amin(dim=1) < exact.notes["radius"]).float().mean()
        )

    assert covered(chosen.ids) >= 0.97 * covered(exact.ids)
    assert chosen.notes["coverage"] == pytest.approx(exact.notes["coverage"], abs=0.02)
