"""What agreement costs and brings: the real people of CIFAR-10N, replayed at equal hours.

    python benchmarks/replay_people.py [--seeds 5] [--answers 300,600,900] [--images 3000]

Three people have answered every image, each rightly for about 82 of 100. With so many answers in
all, an image may be answered by one of them, by two or by three: fewer images, better labels.
Answers are merged by Dawid and Skene. Images are asked in the order of `upslope label`; accuracy is
on 1,000 others with their true classes. Prints, for one, two and three people an image, the share
of wrong labels, the agreement (Cohen's kappa of the first two) and the accuracy, mean and Student's
t interval over the seeds.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from stopping_advice import cached
from upslope.evaluation import cohen_kappa, mean_interval
from upslope.labelling.events import fold
from upslope.labelling.learner import Learner
from upslope.labelling.people import merge_answers
from upslope.labelling.queue import Queue
from upslope.labelling.settings import ProjectSettings
from upslope.labelling.state import LabelState
from upslope.ledger import Event

TEST, EVERY = 1000, 20
ROOT = Path(os.environ.get("UPSLOPE_DATA", "."))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--answers", default="300,600,900")
    parser.add_argument("--cache", type=Path, default=Path("runs/stopping-advice"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    features, truth = cached(options.cache, "cifar10")
    with np.load(ROOT / "cifar10n" / "cifar10n.npz", allow_pickle=False) as arrays:
        assert (arrays["clean_label"][: len(truth)] == truth).all()
        answers = np.stack([arrays[f"random_label{k}"][: len(truth)] for k in (1, 2, 3)])
    budgets = [int(b) for b in options.answers.split(",")]
    print("people  answers  images  wrong  kappa  accuracy")
    for people in (1, 2, 3):
        runs = [replay(features, truth, answers, people, s, budgets) for s in range(options.seeds)]
        for i, budget in enumerate(budgets):
            wrong, kappa, accuracy = np.array([run[i] for run in runs]).T
            interval = mean_interval(accuracy)
            half = float(interval.high - interval.mean)
            print(
                f"{people:6} {budget:8} {budget // people:7} {100 * wrong.mean():5.1f}% "
                f"{kappa.mean():6.2f} {100 * accuracy.mean():6.1f} ±{100 * half:.1f}",
                flush=True,
            )


def replay(
    features: np.ndarray,
    truth: np.ndarray,
    answers: np.ndarray,
    people: int,
    seed: int,
    budgets: list[int],
) -> list[tuple[float, float, float]]:
    """(share of wrong labels, kappa, accuracy) at each number of answers."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(truth))
    test, pool = order[:TEST], np.sort(order[TEST:])
    who = rng.permutation(3)[:people]
    ids = [f"s{i:05d}" for i in pool]
    classes = tuple(str(k) for k in range(10))
    settings = ProjectSettings("replayed", classes, control=0.0, seed=seed)
    queue = Queue(ids, settings)
    learner = Learner(settings, ids, queue, features[pool], "given")
    state = LabelState()
    ranking = learner.rank(state)
    results = []
    for done in range(1, max(budgets) // people + 1):
        (question,) = queue.upcoming(state, ranking, "nobody", 1)
        row = int(question.id[1:])
        events = [
            Event(
                "labelled",
                0,
                {"labels": {question.id: int(answers[w, row])}, "author": f"person {w}"},
            )
            for w in who
        ]
        state = fold(events, state)
        if done % EVERY == 0:
            ranking = learner.rank(state)
        if done in {budget // people for budget in budgets}:
            results.append(measure(state, learner, features[test], truth, test, who))
    return results


def measure(
    state: LabelState,
    learner: Learner,
    features: np.ndarray,
    truth: np.ndarray,
    test: np.ndarray,
    who: np.ndarray,
) -> tuple[float, float, float]:
    method = "majority" if len(who) == 1 else "dawid-skene"
    labels = merge_answers(state, learner.settings.classes, method)  # type: ignore[arg-type]
    wrong = float(np.mean([k != truth[int(id_[1:])] for id_, k in labels.items()]))
    kappa = float("nan")
    if len(who) > 1:
        first, second = (
            [by_author[f"person {w}"].label for by_author in state.answers.values()]
            for w in who[:2]
        )
        kappa = cohen_kappa(first, second)
    merged = fold([Event("labelled", 0, {"labels": labels, "author": "merged"})])
    fitted = learner.final_model(merged)
    assert fitted is not None
    p = learner.apply(fitted[0], features)
    return wrong, kappa, float((p.argmax(axis=1) == truth[test]).mean())


if __name__ == "__main__":
    main()
