"""Gradient norms against one-sample autograd in float64 on the same device."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from on_gpu.summary import Record, write
from speed.networks import NETWORKS, Network
from upslope import models
from upslope.errors import GradientNormError
from upslope.gradnorm import (
    entropy,
    expected_gradient_length,
    gradient_inner_products,
    gradient_norms,
    gradient_sketches,
)

SMALL = {
    "cnn-fast": (3, 32, 32),
    "cnn-small": (3, 32, 32),
    "resnet-small": (3, 32, 32),
    "dilated-small": (3, 32, 32),
    "resnet-small-3d": (1, 16, 16, 16),
    "mlp": (20,),
}
ARCHITECTURES = frozenset(
    (
        "albert", "bert", "distilbert", "electra", "gpt2", "llama", "mistral", "roberta", "xlnet",
        "deberta-v2", "mixtral", "beit", "convnext", "deit", "dinov2", "mobilenet_v2", "regnet",
        "resnet", "segformer", "swin", "vit",
    )
)  # fmt: skip
"""Of `transformers`, where it is installed: tiny, from tests/gradnorm/campaign/hugging_face.py."""
FLOAT64, FLOAT32 = 1e-8, 1e-3
"""Largest relative errors that count as exact; float32 may have ten times those of the loop."""


def cases(dry: bool) -> Iterator[tuple[str, Callable[[], nn.Module], Callable[[int], Any], Any]]:
    """(name, factory, draws n samples, loss), benchmark networks first."""
    for name, network in NETWORKS.items():
        if not dry or name in ("bert", "gru"):
            yield name, network.model, network.inputs, "entropy"
    for name, shape in SMALL.items():
        yield name, lambda n=name, s=shape: settled(n, s), drawer(shape), "entropy"
    for case in architectures()[: 3 if dry else None]:
        yield case.title, case.build, lambda n, c=case: c.draw(n, 1).inputs, case.loss


def settled(name: str, shape: tuple[int, ...]) -> nn.Module:
    """A network of ours with statistics of batch normalisation that are neither 0 nor 1."""
    network = Network(name, lambda: models.build(name, num_classes=10, input_shape=shape), shape, 8)
    return network.model()


def drawer(shape: tuple[int, ...]) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


def architectures() -> list[Any]:
    try:
        from campaign.registry import cases as cases_of
    except ImportError:
        return []
    wanted = ARCHITECTURES
    return [
        case
        for case in cases_of("transformers")
        if len(words := case.name.split()) == 2 and words[1] in wanted
    ]


def move(tree: Any, device: str, dtype: torch.dtype | None = None) -> Any:
    def one(t: Tensor) -> Tensor:
        t = t.to(device)
        return t.to(dtype) if dtype and t.is_floating_point() else t

    return torch.utils._pytree.tree_map_only(Tensor, one, tree)


def take(tree: Any, i: int) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t[i : i + 1], tree)


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def one_by_one(model: nn.Module, inputs: Any, n: int, loss: Any) -> list[list[Tensor]]:
    """Each sample's gradient by ordinary autograd, one tensor a trainable parameter."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    # cuDNN's recurrent layers have no backward pass in evaluation mode.
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    rows = []
    for i in range(n):
        with torch.backends.cudnn.flags(enabled=not recurrent, allow_tf32=False):
            value = loss(call(model, take(inputs, i))).sum()
            found = torch.autograd.grad(value, parameters, allow_unused=True)
        rows.append(
            [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(parameters, found, strict=True)
            ]
        )
    return rows


def lengths(rows: list[list[Tensor]]) -> dict[str, Tensor]:
    squares = torch.stack([torch.stack([g.double().square().sum() for g in row]) for row in rows])
    return {"global": squares.sum(dim=1).sqrt(), "tensor-sum": squares.sqrt().sum(dim=1)}


def worst(values: Tensor, truth: Tensor) -> float:
    """The largest relative difference, to the largest norm of the batch where one is tiny."""
    floor = 1e-7 * truth.abs().max()
    return float(((values.double() - truth).abs() / truth.abs().clamp_min(floor)).max())


def exactness(options: argparse.Namespace) -> None:
    device, began = options.device, time.monotonic()
    records: list[Record] = []
    not_reached = []
    for name, make, draw, loss in cases(options.dry):
        if time.monotonic() - began > options.seconds:
            not_reached.append(name)
            continue
        start = time.monotonic()
        try:
            record = try_network(make, draw, loss, device, 3 if options.dry else 6)
        except Exception as error:  # told as what it is, with the rest of the campaign unharmed
            record = {"outcome": "crashed", "why": f"{type(error).__name__}: {error}"[:300]}
        records.append({"name": name, **record, "seconds": time.monotonic() - start})
        print(json.dumps(records[-1]), flush=True)
    counts = Counter(record["outcome"] for record in records)
    write(options, {"counts": counts, "not_reached": not_reached, "networks": records})


def try_network(
    make: Callable[[], nn.Module], draw: Callable[[int], Any], loss: Any, device: str, n: int
) -> Record:
    inputs = draw(n)
    model = make().to(device).double().eval()
    wide = move(inputs, device, torch.float64)
    name = loss if isinstance(loss, str) else None
    pointwise = entropy if name == "entropy" else loss
    rows = one_by_one(model, wide, n, pointwise)
    truth = lengths(rows)
    record: Record = {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            record["float64"] = {
                norm: worst(gradient_norms(model, wide, loss, norm=norm), t)
                for norm, t in truth.items()
            }
        except GradientNormError as error:
            return {"outcome": "refused", "why": str(error)[:300]}
    record["warnings"] = sorted({str(w.message)[:160] for w in told})
    record |= others(model, wide, rows, truth["global"], loss, name)
    narrow_model = make().to(device).float().eval()
    narrow = move(inputs, device, torch.float32)
    loop = lengths(one_by_one(narrow_model, narrow, n, pointwise))
    record["float32_loop"] = {norm: worst(loop[norm], t) for norm, t in truth.items()}
    for title, tf32, dtype in (
        ("float32", False, None),
        ("tf32", True, None),
        ("bfloat16", False, torch.bfloat16),
    ):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        try:
            record[title] = {
                norm: worst(gradient_norms(narrow_model, narrow, loss, norm=norm, dtype=dtype), t)
                for norm, t in truth.items()
            }
        except GradientNormError as error:
            record[title] = {"refused": str(error)[:200]}
        finally:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    allowed = {k: max(FLOAT32, 10 * v) for k, v in record["float32_loop"].items()}
    right = all(v <= FLOAT64 for v in record["float64"].values()) and all(
        record["float32"].get(k, 0.0) <= v for k, v in allowed.items()
    )
    right = right and all(v <= FLOAT64 for v in record["others"].values())
    slow = any("one sample at a time" in w for w in record["warnings"])
    record["outcome"] = "wrong" if not right else "slow" if slow else "exact"
    return record


def others(
    model: nn.Module,
    x: Any,
    rows: list[list[Tensor]],
    truth: Tensor,
    loss: Any,
    name: str | None,
) -> Record:
    """Largest relative errors in float64 of what is computed beside norms."""
    found: dict[str, float] = {}
    refused: dict[str, str] = {}
    names = [k for k, p in model.named_parameters() if p.requires_grad]
    rng = torch.Generator().manual_seed(3)
    direction = {
        k: torch.randn(g.shape, generator=rng).to(g) for k, g in zip(names, rows[0], strict=True)
    }

    def inner() -> None:
        vectors = torch.stack([direction[k].norm() for k in names]).norm()
        expected = torch.stack(
            [sum((g * direction[k]).sum() for k, g in zip(names, row, strict=True)) for row in rows]
        )
        got = gradient_inner_products(model, x, loss, direction)
        found["inner_products"] = float(((got - expected).abs() / (truth * vectors)).max())

    def sketches() -> None:
        got = gradient_sketches(model, x, loss, dim=64)
        found["sketch_norms"] = worst(got.norms, truth)
        there = torch.device(next(model.parameters()).device)
        try:  # the hashes are the CPU's, and must mean the same on every device
            two = move(torch.utils._pytree.tree_map_only(Tensor, lambda t: t[:2], x), "cpu")
            on_cpu = gradient_sketches(model.cpu(), two, loss, dim=64).vectors
        finally:
            model.to(there)
        difference = (got.vectors[:2].cpu() - on_cpu).norm(dim=1)
        found["sketches_against_cpu"] = float((difference / on_cpu.norm(dim=1)).max())

    def lengths_by_class() -> None:
        part = x[:2]
        total = {"mean": [], "rms": []}
        for i in range(2):
            p = model(part[i : i + 1]).detach().softmax(dim=1)
            if p.ndim > 2 or p.shape[1] > 10:
                return
            squares = torch.stack(
                [
                    lengths(
                        one_by_one(
                            model,
                            part[i : i + 1],
                            1,
                            lambda z, c=c: F.cross_entropy(
                                z, torch.tensor([c], device=z.device), reduction="none"
                            ),
                        )
                    )["global"][0]
                    for c in range(p.shape[1])
                ]
            )
            total["mean"].append((p[0] * squares).sum())
            total["rms"].append((p[0] * squares.square()).sum().sqrt())
        for kind, values in total.items():
            got = expected_gradient_length(model, part, kind=kind).scores
            title = "expected_length" if kind == "mean" else "fisher_trace_root"
            found[title] = worst(got, torch.stack(values))

    jobs = [inner, sketches]
    if name == "entropy":
        found["expected_loss"] = worst(gradient_norms(model, x, "expected"), truth)
        if isinstance(x, Tensor):
            jobs.append(lengths_by_class)
    for job in jobs:
        try:
            job()
        except GradientNormError as error:
            refused[job.__name__] = str(error)[:200]
    return {"others": found, "others_refused": refused}
