"""What half precision costs: the order of gradient norms on a trained network, beside float32's.

    UPSLOPE_DATA=... python benchmarks/half_precision.py [--train 4000] [--epochs 4] [--pool 2000]

Trains CIFAR ResNet-18 for a few epochs on real CIFAR-10 (without it, a small residual network on
scikit-learn's digits), scores a pool it has not seen in float32, bfloat16 and float16, and prints
time, error, rank correlation, and the share of the top tenth that both choose.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
from scipy.stats import spearmanr
from torch import Tensor

from upslope import datasets, models, tasks
from upslope.gradnorm import gradient_norms
from upslope.training import TrainingSettings, train


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--train", type=int, default=4000, help="samples to train on")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--pool", type=int, default=2000, help="samples to score")
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()

    real = bool(os.environ.get("UPSLOPE_DATA"))
    pool = datasets.load("cifar10" if real else "digits").pool
    name = "resnet18-cifar" if real else "resnet-small"
    classes = len(pool.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build(name, num_classes=classes, input_shape=pool.input_shape)
    mean, std = datasets.statistics(pool)
    task = tasks.build("classification", num_classes=classes, mean=mean, std=std)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0)).tolist()
    seen, unseen = order[: options.train], order[options.train :][: options.pool]
    settings = TrainingSettings(epochs=options.epochs, batch_size=128, lr=0.1, schedule="one-cycle")
    train(model, task, pool, seen, settings, seed=0, device=torch.device("cpu"))

    model.eval()
    inputs = task.prepare(pool.inputs(unseen))
    with torch.no_grad():
        right = (model(inputs[:500]).argmax(dim=1) == pool.targets(unseen[:500])).float().mean()
    print(
        f"{name} after {options.epochs} epochs on {len(seen)}: accuracy {right:.3f} on 500 unseen"
    )
    exact, seconds = scored(model, inputs, options.batch, None)
    print(f"{'type':10} {'samples/s':>9} {'median error':>12} {'rank corr.':>10} {'top tenth':>9}")
    print(f"{'float32':10} {len(exact) / seconds:9.1f}")
    for dtype in (torch.bfloat16, torch.float16):
        half, seconds = scored(model, inputs, options.batch, dtype)
        error = ((half - exact).abs() / exact).median()
        top = len(exact) // 10
        both = set(exact.topk(top).indices.tolist()) & set(half.topk(top).indices.tolist())
        correlation = spearmanr(exact.numpy(), half.numpy()).statistic
        kind = str(dtype).removeprefix("torch.")
        speed, overlap = len(half) / seconds, len(both) / top
        print(f"{kind:10} {speed:9.1f} {error:12.1e} {correlation:10.4f} {overlap:9.3f}")


def scored(
    model: torch.nn.Module, inputs: Tensor, batch: int, dtype: torch.dtype | None
) -> tuple[Tensor, float]:
    """(n,) norms of the entropy's gradient, and seconds without the first batch's preparations."""
    gradient_norms(model, inputs[:batch], "entropy", dtype=dtype)
    start = time.perf_counter()
    norms = [gradient_norms(model, piece, "entropy", dtype=dtype) for piece in inputs.split(batch)]
    return torch.cat(norms), time.perf_counter() - start


if __name__ == "__main__":
    main()
