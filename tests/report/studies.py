"""Studies made up for tests: curves with known offsets, no run directory needed."""

from __future__ import annotations

import numpy as np

from upslope.report.study import Run, Study

BUDGETS = (180, 270, 360, 450, 540, 630, 720)


def made_up(offsets: dict[str, float], seeds: int = 5, noise: float = 0.004) -> Study:
    """One run per strategy and seed: a common rising curve plus an offset plus noise."""
    base = 0.93 - 0.35 * np.exp(-np.asarray(BUDGETS) / 220)
    runs = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        shared = rng.normal(0, 0.01)
        for name, offset in offsets.items():
            grown = offset * np.linspace(0, 1, len(BUDGETS))
            scores = base + shared + grown + rng.normal(0, noise, len(BUDGETS))
            runs.append(
                Run(
                    strategy=name,
                    seed=seed,
                    budgets=BUDGETS,
                    scores=tuple(scores.tolist()),
                    cycles=7,
                    training_seconds=12.0 + seed,
                    selecting_seconds=0.0 if name == "random" else 0.8,
                    ceiling=0.97,
                )
            )
    return Study(tuple(runs), metric="accuracy", pool_size=1797)
