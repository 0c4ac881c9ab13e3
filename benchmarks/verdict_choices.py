"""Which samples each strategy takes first, as the posterior shows them: why a score helps or hurts.

    python benchmarks/verdict_choices.py --features features --out results/verdict/choices.md

For each low cell of `benchmarks/verdict.py` and each of `--seeds` seeds, the linear head is trained
on 20 random labels, and every strategy takes 20 of 1,500 candidates. Of these the table has:
the mean largest probability; the share that the head is right about already; how many of the ten
classes are among them; and the cosine to the nearest other sample taken, high for near-copies.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from upslope import datasets, query, tasks  # noqa: E402
from upslope.training import train  # noqa: E402
from verdict_cells import CELLS, HEAD  # noqa: E402

STRATEGIES: dict[str, dict[str, Any]] = {
    "random": {"name": "random"},
    "margin": {"name": "margin"},
    "entropy-gradnorm": {"name": "entropy-gradnorm"},
    "egl": {"name": "egl"},
    "badge": {"name": "badge"},
    "binary-bait": {"name": "binary-bait"},
    "u-herding, temperature 1": {"name": "u-herding", "temperature": 1},
}
LABELS, CANDIDATES = 20, 1500


def rows_of(splits: Any, seed: int) -> dict[str, list[float]]:
    """Return the four figures of each strategy under one seed."""
    pool, classes = splits.pool, len(splits.pool.classes)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed)).tolist()
    torch.manual_seed(seed)
    model = nn.Linear(pool.input_shape[0], classes)
    task = tasks.build("classification", num_classes=classes)
    train(model, task, pool, order[:LABELS], HEAD, seed=seed, device=torch.device("cpu"))
    x, y = pool.inputs(range(len(pool))), pool.targets(range(len(pool)))
    with torch.no_grad():
        p = model.eval()(x).softmax(dim=1)
    labelled = {i: int(y[i]) for i in order[:LABELS]}
    found = {}
    for label, strategy in STRATEGIES.items():
        chosen = query(
            model, pool, LABELS, strategy, labelled=labelled, task=task, seed=seed,
            candidates=CANDIDATES, progress=False,
        )  # fmt: skip
        rows = torch.tensor(chosen.positions)
        found[label] = [
            float(p[rows].amax(dim=1).mean()),
            float((p[rows].argmax(dim=1) == y[rows]).float().mean()),
            float(len(y[rows].unique())),
            float(_nearest(x[rows])),
        ]
    return found


def _nearest(x: Tensor) -> Tensor:
    unit = F.normalize(x, dim=1)
    return (unit @ unit.T).fill_diagonal_(-1).amax(dim=1).mean()


def main() -> None:
    """Let every strategy choose in every low cell, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, default=Path("features"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("results/verdict/choices.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# What each strategy takes first",
        "",
        f"Made by `python benchmarks/verdict_choices.py`: {LABELS} of {CANDIDATES:,} candidates, "
        f"by a head trained on {LABELS} random labels, mean of {options.seeds} seeds.",
    ]
    for name in (name for name in CELLS if name.endswith("-low")):
        splits = datasets.load("npz", options.features / f"{CELLS[name].data}.npz")
        seeds = [rows_of(splits, seed) for seed in range(options.seeds)]
        lines += [
            "",
            f"## {name}",
            "",
            "| strategy | mean largest probability | right already | classes of 10 | nearest "
            "cosine |",
            "| --- | --- | --- | --- | --- |",
        ]
        for label in STRATEGIES:
            mean = torch.tensor([row[label] for row in seeds]).mean(dim=0).tolist()
            top, right, classes, cosine = mean
            lines.append(f"| {label} | {top:.2f} | {right:.2f} | {classes:.1f} | {cosine:.2f} |")
        print(name, flush=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
