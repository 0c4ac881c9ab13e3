"""What the order of questions brings: a simulated person labels photographs from nothing.

    python benchmarks/simulated_person.py [--strategies margin,random] [--seeds 10] [--labels 300]

For each seed 500 photographs are set apart to test on; the others are asked as `upslope label` asks
them, with a new ranking every 10 answers, and answered rightly. Prints the mean test accuracy after
so many labels, with Student's t interval over the seeds, the paired difference from the last
strategy, and the minutes that the labels take at the pace of the people of CIFAR-10N, where that is
at hand.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import numpy as np
import torch

from upslope.evaluation import mean_interval
from upslope.labelling.events import fold
from upslope.labelling.extraction import take_features
from upslope.labelling.learner import Learner
from upslope.labelling.queue import Queue
from upslope.labelling.samples import open_samples
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import LabelState
from upslope.ledger import Event

TEST, EVERY, POINTS = 500, 10, (20, 30, 50, 100, 150, 200, 300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategies", default="margin,random")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--cache", type=Path, default=Path("runs/simulated-person"))
    data = Path(os.environ.get("UPSLOPE_DATA", ".")) / "sign-digits"
    parser.add_argument("--data", type=Path, default=data)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    classes = tuple(sorted(path.name for path in options.data.iterdir() if path.is_dir()))
    samples = open_samples(str(options.data), classes)
    labels = np.array([classes.index(samples.labels[id_]) for id_ in samples.ids])
    *_, features = take_features(options.cache, samples)
    print(f"features: {features.method}")
    points = [p for p in POINTS if p <= options.labels]
    print("labels     ", *(f"{p:>12}" for p in points))
    seconds = pace(options.data.parent / "cifar10n" / "workers.csv")
    if seconds is not None:
        print("minutes    ", *(f"{p * seconds / 60:>12.1f}" for p in points))
    all_curves = {}
    for strategy in options.strategies.split(","):
        curves = [
            curve(features.values, labels, classes, strategy, seed, points)
            for seed in range(options.seeds)
        ]
        all_curves[strategy] = np.array(curves)
        show(strategy, all_curves[strategy])
    *others, last = all_curves
    for strategy in others:
        show(f"- {last}", all_curves[strategy] - all_curves[last])


def pace(workers: Path) -> float | None:
    """Median seconds per label of the people of CIFAR-10N, who labelled ten images at a time."""
    if not workers.is_file():
        return None
    with workers.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if "time" in name.lower() or "second" in name.lower()]
    return float(np.median([float(row[name]) for row in rows for name in columns])) / 10


def show(title: str, curves: np.ndarray) -> None:
    """Print means with intervals. curves: (seeds, points)."""
    interval = mean_interval(curves)
    cells = [
        f"{100 * m:6.1f} ±{100 * (h - m):4.1f}"
        for m, h in zip(interval.mean, interval.high, strict=True)
    ]
    print(f"{title:11}", *(f"{cell:>12}" for cell in cells), flush=True)


def curve(
    features: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    strategy: str,
    seed: int,
    points: list[int],
) -> list[float]:
    """Test accuracy after so many labels."""
    order = np.random.default_rng(seed).permutation(len(labels))
    test, pool = order[:TEST], np.sort(order[TEST:])
    ids = [f"s{i:05d}" for i in pool]
    settings = ProjectSettings("simulated", classes, strategy=strategy, control=0.0, seed=seed)
    queue = Queue(ids, settings)
    learner = Learner(settings, ids, queue, features[pool], "given")
    tester = Learner(settings, [str(i) for i in range(len(labels))], queue, features, "given")
    state, accuracy = LabelState(), []
    ranking = None if strategy == "random" else learner.rank(state)
    for done in range(1, points[-1] + 1):
        (question,) = queue.upcoming(state, ranking, "person", 1)
        row = int(question.id[1:])
        body = {"labels": {question.id: int(labels[row])}, "author": "person", "slice": "x"}
        state = fold([Event("labelled", 0, body)], state)
        if done % EVERY == 0 and strategy != "random":  # in the order of the queue, by chance
            ranking = learner.rank(state)
        if done in points:
            named = {str(int(i[1:])): labels[int(i[1:])] for i in state.answers}
            body = {"labels": {i: int(k) for i, k in named.items()}, "author": "p", "slice": "x"}
            result = tester.probabilities(fold([Event("labelled", 0, body)]))
            assert result is not None
            accuracy.append(float((result[0][test].argmax(axis=1) == labels[test]).mean()))
    return accuracy


if __name__ == "__main__":
    main()
