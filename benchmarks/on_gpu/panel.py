"""Strategies on CIFAR-10 by the fast recipe, as many seeds as there are workers."""

from __future__ import annotations

import argparse
import math
import signal
import statistics
import subprocess
import sys
import time

from torch import nn

from on_gpu.summary import Record, write
from upslope import datasets, models, tasks
from upslope.comparison import compare, read_comparison
from upslope.experiment import ExperimentSettings
from upslope.strategies import build
from upslope.training import TrainingSettings

PANEL: dict[str, Record] = {
    **{
        name: {"name": name}
        for name in (
            "random", "margin", "entropy", "core-set", "core-gcn", "badge", "ll4al", "u-herding",
        )
    },
    "entropy-gradnorm": {"name": "entropy-gradnorm"},
    # By the global norm this is entropy-gradnorm, number for number; the authors' code sums.
    "expected-gradnorm-tensor-sum": {"name": "expected-gradnorm", "norm": "tensor-sum"},
}  # fmt: skip
"""Without vaal and sraal, whose networks of their own take longer than all else together."""


def panel(options: argparse.Namespace) -> None:
    """Run the panel in a process of its own until the time is over, and sum up what is there."""
    began = time.monotonic()
    command = [sys.executable, *sys.argv]
    command[command.index("panel")] = "panel-run"
    process = subprocess.Popen(command)
    try:
        code: int | str = process.wait(timeout=options.seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        code = "cut off"
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
    curves: Record = {}
    sizes: Record = {}
    for name, runs in read_comparison(options.runs).runs.items():
        points: dict[int, list[float]] = {}
        rows = []
        for run in runs:
            sizes = {key: run.info[key] for key in ("pool", "test")}
            for cycle in run.cycles:
                points.setdefault(cycle.n_labelled, []).append(cycle.metrics["accuracy"])
                rows.append([run.seed, cycle.n_labelled, cycle.metrics["accuracy"]])
        curves[name] = {"seed_labels_accuracy": rows, "points": summed(points)}
    seconds = time.monotonic() - began
    head = {"ended": code, "seconds": seconds, **sizes, **settings_of(options)}
    write(options, {**head, "strategies": curves})
    for name, curve in curves.items():
        print(name, curve["points"], flush=True)


def summed(points: dict[int, list[float]]) -> Record:
    return {
        str(labels): {
            "seeds": len(values),
            "mean": statistics.fmean(values),
            "se": statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
        }
        for labels, values in sorted(points.items())
    }


def settings_of(options: argparse.Namespace) -> Record:
    keys = ("passes", "channels", "cycles", "workers")
    return {"settings": {key: getattr(options, key) for key in keys}}


def run_panel(options: argparse.Namespace) -> None:
    """Three budget points of all strategies and seeds first, then the rest."""
    splits = datasets.load("npz", options.data) if options.data else datasets.load("digits")
    real = options.data is not None and not options.dry
    mean, std = datasets.statistics(splits.pool)
    shape = tuple(splits.pool.input_shape)
    colour = {"augmentation": "flip-crop", "pad": 2, "views": "flip"} if shape[0] == 3 else {}
    task = tasks.build("classification", num_classes=10, mean=mean, std=std, **colour)
    widths = tuple(map(int, options.channels.split(","))) if real else (4, 4, 4)
    on_gpu = options.device == "cuda"
    training = TrainingSettings.from_recipe(
        "fast",
        sample_passes=options.passes if real else 200,
        autocast="bf16" if on_gpu else None,
        **({} if shape[1] >= 17 else {"whitening": False}),
    )
    for cycles in sorted({min(3, options.cycles), options.cycles}):
        compare(
            options.runs,
            strategies={label: build(**options) for label, options in PANEL.items()},
            seeds=range(options.workers),
            splits=splits,
            task=task,
            model=Factory("cnn-fast" if shape[1] >= 17 else "cnn-small", shape, widths),
            settings=ExperimentSettings(
                initial=1000 if real else 20,
                budget=1000 if real else 10,
                cycles=cycles,
                candidates="10x",
                score_batch=1000,
            ),
            training=training,
            device=options.device,
            workers=options.workers if real else 1,
            progress=False,
        )


class Factory:
    """Builds the network; unlike a nested function it travels to worker processes."""

    def __init__(self, name: str, shape: tuple[int, ...], widths: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape
        self.options = {"channels": widths} if name == "cnn-fast" else {}

    def __call__(self) -> nn.Module:
        return models.build(self.name, num_classes=10, input_shape=self.shape, **self.options)
