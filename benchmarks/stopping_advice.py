"""Whether the advice of `upslope label` holds: predicted gain, saving, and when labels hardly pay.

    python benchmarks/stopping_advice.py [--data signs,cifar10,sst2] [--seeds 10] [--labels 400]

A simulated person answers as in a project with a control slice of 20%. At 50, 100, 200, 300 and
400 training labels the advice is computed from what the project knows, and compared with the truth
on samples that the project does not have: the gain of the next 50 labels, and the labels that the
strategy and random labels need for one accuracy. Prints, per data set, the share of intervals that
hold the truth.
"""

from __future__ import annotations

import argparse
import io
import math
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from upslope.labelling.advice import MORE, Advice, advise
from upslope.labelling.events import fold
from upslope.labelling.features import (
    NETWORK_SIDE,
    SIDE,
    image_statistics,
    network_features,
    row_features,
    standardise,
)
from upslope.labelling.learner import Learner
from upslope.labelling.queue import Queue
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import LabelState
from upslope.ledger import Event

TEST, EVERY, POINTS = 1000, 10, (50, 100, 200, 300, 400)
ROOT = Path(os.environ.get("UPSLOPE_DATA", "."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="signs,cifar10,sst2")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--cache", type=Path, default=Path("runs/stopping-advice"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    points = [p for p in POINTS if p <= options.labels]
    for name in options.data.split(","):
        features, labels = cached(options.cache, name)
        rows = [
            r for seed in range(options.seeds) for r in simulate(features, labels, seed, points)
        ]
        report(name, rows, points)


def cached(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) features and (n,) labels of a data set."""
    path = folder / f"{name}.npz"
    if not path.is_file():
        features, labels = {"signs": signs, "cifar10": cifar10, "sst2": sst2}[name]()
        np.savez(path, features=standardise(features), labels=labels)
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["features"], arrays["labels"]


def image_features(sources: list[io.BytesIO | Path]) -> np.ndarray:
    from PIL import Image

    network, parts = network_features(NETWORK_SIDE), []
    for start in range(0, len(sources), 64):
        images = [Image.open(s).convert("RGB") for s in sources[start : start + 64]]
        stacks = [
            np.stack([np.asarray(i.resize((side, side))).transpose(2, 0, 1) for i in images])
            for side in (SIDE, NETWORK_SIDE)
        ]
        parts.append(np.concatenate((image_statistics(stacks[0]), network(stacks[1])), axis=1))
    return np.concatenate(parts)


def signs() -> tuple[np.ndarray, np.ndarray]:
    files = sorted((ROOT / "sign-digits").glob("?/*.JPG"))
    return image_features(list(files)), np.array([int(f.parent.name) for f in files])


def cifar10() -> tuple[np.ndarray, np.ndarray]:
    from pyarrow import parquet

    file = sorted((ROOT / "cifar10").glob("train-*.parquet"))[0]
    table = parquet.read_table(file).slice(0, 3000)
    pictures = [io.BytesIO(image["bytes"]) for image in table["img"].to_pylist()]
    return image_features(pictures), np.array(table["label"].to_pylist())


def sst2() -> tuple[np.ndarray, np.ndarray]:
    lines = (ROOT / "sst2" / "train.tsv").read_text("utf-8").splitlines()[:4000]
    pairs = [line.rsplit("\t", 1) for line in lines]
    return row_features([{"text": text} for text, _ in pairs])[0], np.array(
        [int(k) for _, k in pairs]
    )


def simulate(
    features: np.ndarray, labels: np.ndarray, seed: int, points: list[int]
) -> list[tuple[int, Advice, float, float, float]]:
    """(labels, advice, true gain of the next labels, true accuracy, true labels needed by the
    strategy for what random labels reach) at each point."""
    order = np.random.default_rng(seed).permutation(len(labels))
    test, pool = order[:TEST], np.sort(order[TEST:])
    classes = tuple(str(k) for k in range(int(labels.max()) + 1))
    ids = [f"s{i:05d}" for i in pool]
    truth = {f"s{i:05d}": int(labels[i]) for i in range(len(labels))}
    settings = ProjectSettings("simulated", classes, seed=seed)
    queue = Queue(ids, settings)
    learner = Learner(settings, ids, queue, features[pool], "given")
    every = [f"s{i:05d}" for i in range(len(labels))]
    tester = Learner(settings, every, queue, features, "given")
    tested = {f"s{i:05d}": truth[f"s{i:05d}"] for i in test}

    def accuracy(names: list[str]) -> float:
        return float(np.mean(tester.agreement({i: truth[i] for i in names}, tested)))

    state, ranking = LabelState(), learner.rank(LabelState())
    states: dict[int, LabelState] = {}
    asked: list[str] = []
    while len(asked) < points[-1] + MORE:
        (question,) = queue.upcoming(state, ranking, "person", 1)
        body = {
            "labels": {question.id: truth[question.id]},
            "author": "person",
            "slice": question.slice,
        }
        state = fold([Event("labelled", 0, body)], state)
        if question.slice == "control":
            continue
        asked.append(question.id)
        if len(asked) in points:
            states[len(asked)] = state
        if len(asked) % EVERY == 0:
            ranking = learner.rank(state)
    shuffled = np.random.default_rng(seed + 1000).permutation(np.array(ids)).tolist()
    rows = []
    for n, then in states.items():
        advice = advise(learner, then)
        if advice is None:
            continue
        now = accuracy(asked[:n])
        needed = math.nan
        if advice.saving is not None:
            k = advice.saving.random_labels
            # The mean of ten draws of k labels: what random labels give, not one draw of them.
            goal = np.mean([accuracy(shuffled[j * k : (j + 1) * k]) for j in range(10)])
            grid = range(5, min(n, 2 * k) + 1, max(1, k // 8))
            needed = next((float(s) for s in grid if accuracy(asked[:s]) >= goal), math.inf)
        rows.append((n, advice, accuracy(asked[: n + MORE]) - now, now, needed))
    return rows


def report(
    name: str, rows: list[tuple[int, Advice, float, float, float]], points: list[int]
) -> None:
    print(f"\n{name}: {len(rows)} pieces of advice")
    by_point = defaultdict(list)
    for row in rows:
        by_point[row[0]].append(row)
    mean_gain = {n: float(np.mean([r[2] for r in by_point[n]])) for n in by_point}
    print(
        "labels  accuracy  true gain  predicted  interval        holds mean  holds own  hardly"
        "  saving  true  holds"
    )
    for n in points:
        part = by_point[n]
        if not part:
            continue
        gains = [r[1].gain for r in part]
        mean = mean_gain[n]
        holds = np.mean([g.low <= mean <= g.high for g in gains])
        own = np.mean([g.low <= r[2] <= g.high for g, r in zip(gains, part, strict=True)])
        hardly = sum(r[1].hardly_pays for r in part)
        savings = [(r[1].saving, r[4]) for r in part if r[1].saving is not None]
        hold = [s.needed_low <= t <= s.needed_high for s, t in savings]
        shares = np.median([s.share for s, _ in savings])
        true = np.median([1 - t / s.random_labels for s, t in savings])
        print(
            f"{n:6} {100 * np.mean([r[3] for r in part]):9.1f} {100 * mean:10.2f} "
            f"{100 * np.mean([g.value for g in gains]):10.2f}  "
            f"{100 * np.mean([g.low for g in gains]):5.2f} to "
            f"{100 * np.mean([g.high for g in gains]):5.2f} "
            f"{holds:11.2f} {own:10.2f} {hardly:7} {shares:7.2f} {true:5.2f} {np.mean(hold):6.2f}",
            flush=True,
        )
    said = [r for r in rows if r[1].hardly_pays]
    if said:
        print(
            f"said to hardly pay: {len(said)} times; the next {MORE} labels then brought "
            f"{100 * np.mean([r[2] for r in said]):.2f} points on average, "
            f"{100 * max(r[2] for r in said):.2f} at most"
        )


if __name__ == "__main__":
    main()
