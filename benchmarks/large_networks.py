"""One training step and exact scores of the large networks of the paper, at their full sizes.

    python benchmarks/large_networks.py              all three, each in a process of its own
    python benchmarks/large_networks.py vgg16

For each: an SGD step on two random samples, then the gradient norm of the entropy of both, by the
engine and by the one-sample loop of ordinary autograd, in float32 and once more in float64. It
prints a row of a table: processor seconds (summed over threads) and peak memory of the process
(Linux) in float32, and the largest relative difference between engine and loop in float64. It fails
where that is above 1e-9. The engine learns a model's layout on its first batch; the next is shown.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upslope import gradient_norms, models, tasks

TOLERANCE = 1e-9
SAMPLES = 2


@dataclass(frozen=True)
class Case:
    model: str
    task: str
    classes: int
    shape: tuple[int, ...]


CASES = {
    "drn-d-22": Case("drn-d-22", "segmentation", 19, (3, 688, 688)),
    "vgg16": Case("vgg16", "classification", 1000, (3, 224, 224)),
    "resnet18-3d": Case("resnet18-3d", "classification", 50, (1, 32, 32, 32)),
}
HEADER = (
    "| network | input | parameters | training step | engine, first batch | engine, next batch "
    "| one-sample loop | difference |\n| --- | --- | --: | --: | --: | --: | --: | --: |"
)


def main(names: list[str]) -> None:
    for name in names:
        if name not in CASES:
            raise SystemExit(f"Expected one of {', '.join(CASES)} but got {name!r}.")
    if len(names) == 1:
        print(row(CASES[names[0]]), flush=True)
        return
    print(HEADER, flush=True)
    for name in names or CASES:  # a process each: the memory of one is not the next one's
        subprocess.run([sys.executable, __file__, name], check=True)


def row(case: Case) -> str:
    torch.manual_seed(0)
    model = models.build(case.model, num_classes=case.classes, input_shape=case.shape)
    task = tasks.build(case.task, num_classes=case.classes)
    inputs = torch.randn(SAMPLES, *case.shape)
    places = case.shape[1:] if case.task == "segmentation" else ()
    targets = torch.randint(case.classes, (SAMPLES, *places))

    step = measured(lambda: train_step(model, task, inputs, targets))
    model.eval()
    first, following = (
        measured(lambda: gradient_norms(model, inputs, "entropy")) for _ in range(2)
    )
    loop = measured(lambda: one_by_one(model, task, inputs))
    model, inputs = model.double(), inputs.double()
    truth = one_by_one(model, task, inputs)
    difference = float(((gradient_norms(model, inputs, "entropy") - truth) / truth).abs().max())
    if not difference < TOLERANCE:
        raise SystemExit(f"{case.model}: expected to agree to {TOLERANCE:g} but got {difference}.")
    size = "x".join(str(side) for side in case.shape)
    count = sum(p.numel() for p in model.parameters())
    figures = f"{step} | {first} | {following} | {loop} | {difference:.0e}"
    return f"| {case.model} | {size} | {count:,} | {figures} |"


def train_step(model: nn.Module, task: Any, inputs: Tensor, targets: Tensor) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    task.losses(model(inputs), targets).mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def one_by_one(model: nn.Module, task: Any, inputs: Tensor) -> Tensor:
    parameters = list(model.parameters())
    norms = []
    for sample in inputs:
        p = task.logits(model(sample[None])).softmax(dim=1)
        entropy = torch.special.entr(p).sum(dim=1).mean()
        gradients = torch.autograd.grad(entropy, parameters)
        norms.append(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
    return torch.stack(norms).detach()


@dataclass(frozen=True)
class Measured:
    value: Any
    seconds: float
    peak: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.peak:.1f} GiB"


def measured(function: Callable[[], Any]) -> Measured:
    """What it returns, its seconds, and the most memory that the process held while it ran."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    start = time.process_time()
    value = function()
    seconds = time.process_time() - start
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return Measured(value, seconds, int(peak.split()[1]) / 2**20)


if __name__ == "__main__":
    main(sys.argv[1:])
