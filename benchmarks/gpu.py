"""The engine and the fast recipe on a GPU, in minutes: three measurements, a JSON summary each.

    python benchmarks/gpu.py exactness --out out --seconds 110
    python benchmarks/gpu.py speed --out out --seconds 110
    python benchmarks/gpu.py panel --data cifar10.npz --out out --seconds 300

exactness: gradient norms of the benchmark networks and of small ones, in both forms, float64,
float32 with TF32 off and on, and bfloat16, against one-sample autograd in float64 on the same
device; inner products, sketches, expected lengths and their squares (the trace of the Fisher
information). speed: scoring against a plain training step of the same batch, interleaved, medians
of CUDA events. panel: ten strategies on CIFAR-10 by `training.recipe: fast`, as many seeds as there
are workers; it is cut off after `--seconds`, and what is finished by then is told.

`--dry` makes everything tiny, for a CPU. What is not reached in the time is named, never left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "gradnorm"), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from speed.networks import NETWORKS, Network  # noqa: E402
from upslope import datasets, models, tasks  # noqa: E402
from upslope.comparison import compare, read_comparison  # noqa: E402
from upslope.errors import GradientNormError  # noqa: E402
from upslope.experiment import ExperimentSettings  # noqa: E402
from upslope.gradnorm import (  # noqa: E402
    entropy,
    expected_gradient_length,
    gradient_inner_products,
    gradient_norms,
    gradient_sketches,
)
from upslope.strategies import build  # noqa: E402
from upslope.training import TrainingSettings  # noqa: E402

Record = dict[str, Any]
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("exactness", "speed", "panel", "panel-run"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as .npz (panel); digits without it")
    parser.add_argument("--runs", type=Path, help="folder of the runs (panel); <out>/runs")
    parser.add_argument("--workers", type=int, default=6, help="seeds, a process each (panel)")
    parser.add_argument("--channels", default="64,256,256")
    parser.add_argument("--passes", type=int, default=100_000)
    parser.add_argument("--cycles", type=int, default=6)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    options.runs = options.runs or options.out / "runs"
    warnings.simplefilter("ignore")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    {"exactness": exactness, "speed": speed, "panel": panel, "panel-run": run_panel}[options.what](
        options
    )


def write(options: argparse.Namespace, summary: Record) -> None:
    """Write the summary of one measurement, with the machine."""
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    machine = {"device": name, "torch": torch.__version__, "dry": options.dry}
    path = options.out / f"{options.what}.json"
    path.write_text(json.dumps({**machine, **summary}, indent=1), encoding="utf-8")
    print(f"wrote {path}", flush=True)


# --- exactness ---


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


# --- speed ---


def speed(options: argparse.Namespace) -> None:
    device, began = options.device, time.monotonic()
    chosen = {k: v for k, v in NETWORKS.items() if not options.dry or k in ("bert", "gru")}
    each = options.seconds / len(chosen)
    records, not_reached = [], []
    for name, network in chosen.items():
        if time.monotonic() - began > options.seconds:
            not_reached.append(name)
            continue
        for tf32 in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            batch = 4 if options.dry else 4 * network.batch
            record = {"name": name, "tf32": tf32, "batch": batch}
            try:
                record |= time_network(network, batch, device, each / 2)
            except Exception as error:  # one network's failure is told, and the others measured
                record["failed"] = f"{type(error).__name__}: {error}"[:300]
            records.append(record)
            print(json.dumps(record), flush=True)
    write(options, {"not_reached": not_reached, "networks": records})


def time_network(network: Network, batch: int, device: str, seconds: float) -> Record:
    """Median milliseconds of a training step and of scoring the same batch, in turns."""
    x = network.inputs(batch, device)
    scored, trained = network.model(device), network.model(device).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-6, momentum=0.9)
    with torch.no_grad():
        targets = scored(x).argmax(dim=1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(trained(x), targets).backward()
        optimizer.step()

    def score(**kinds: Any) -> Callable[[], Any]:
        return lambda: gradient_norms(scored, x, "entropy", **kinds)

    ways = {
        "step": step,
        "global": score(norm="global"),
        "tensor-sum": score(norm="tensor-sum"),
        "bfloat16": score(dtype=torch.bfloat16),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    deadline = time.monotonic() + seconds
    for _ in range(2):  # the first batches learn the layout and are proven
        for way in ways.values():
            way()
    while not times["bfloat16"] or (time.monotonic() < deadline and len(times["step"]) < 60):
        for name, way in ways.items():
            times[name].append(milliseconds(way, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {f"{n}_over_step": medians[n] / medians["step"] for n in ways if n != "step"}
    return {"rounds": len(times["step"]), "ms": medians, **ratios}


def milliseconds(way: Callable[[], Any], device: str) -> float:
    if device != "cuda":
        start = time.perf_counter()
        way()
        return 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    way()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)


# --- panel ---


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


if __name__ == "__main__":
    main()
