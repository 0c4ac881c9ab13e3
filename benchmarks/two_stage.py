"""Time, memory and quality of selection in two stages, from a store of signals on the disk.

    python benchmarks/two_stage.py --candidates 50000 --budget 500 --exact
    python benchmarks/two_stage.py --candidates 1000000 --budget 10000

Each is chosen as `upslope select` does, from a folder as `upslope score` leaves it; with --exact
also from signals in memory. The pool is made up: features of `--features` numbers in clusters of
unequal size and spread, posteriors of ten classes that belong to them. With --labelled, so many
samples drawn at random have labels, which are drawn from their posteriors. Each strategy runs in a
process of its own with one thread. CPU s is processor time; memory is the peak of what the process
holds of its own (RssAnon): pages of the store that are mapped can be dropped at any time, and are
not counted.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from torch import Tensor

from upslope import strategies
from upslope.cli.select_scored import select_scored
from upslope.files import write_digested_json
from upslope.pool import Need, PoolView
from upslope.scoring.shards import RECORD as POOL
from upslope.scoring.shards import TABLE
from upslope.signal_store import RECORD, SignalStore, StoreWriter, plain_need
from upslope.strategies.two_stage import TWO_STAGE

CLASSES, CLUSTERS, ROWS = 10, 500, 4096
OPTIONS: dict[str, dict[str, float | str]] = {
    "u-herding": {"temperature": 1},  # one that is fitted would need labels
    "gradnorm-diverse": {"loss": "likely-label"},  # whose sketch is stored for LCMD
}
FEATURES, POSTERIORS = Need.of("features"), Need.of("probabilities")
SIGNALS, SCORED = "signals", ("margin", "entropy", "least-confidence")
NAMES = [f"class {i}" for i in range(CLASSES)]
JUDGED = 100_000
"""Samples up to which quality is computed."""


def parts(count: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (features, posteriors) of the pool, some rows at a time, the same on every call."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(CLUSTERS, width, generator=rng)
    weights = torch.rand(CLUSTERS, generator=rng) ** 3
    spread = 0.2 + 0.6 * torch.rand(CLUSTERS, generator=rng)
    head = 3 * torch.randn(width, CLASSES, generator=rng) / width**0.5
    for start in range(0, count, ROWS):
        of = torch.multinomial(weights, min(ROWS, count - start), True, generator=rng)
        noise = torch.randn(len(of), width, generator=rng) * spread[of, None]
        x = (centres[of] + noise).relu()
        yield x, (x @ head).softmax(dim=1)


def write_store(folder: Path, count: int, width: int) -> None:
    """Write the pool as a store of one shard, in half precision."""
    writer, sketch, changes = StoreWriter(folder / SIGNALS, "float16"), _sketch(), _changes()
    rng = torch.Generator().manual_seed(3)
    ids: list[str] = []
    scores: list[Tensor] = []
    blocks = []
    for number, (x, p) in enumerate(parts(count, width)):
        start = number * ROWS
        of_part = [f"{i:09d}" for i in range(start, start + len(x))]
        # Uncertain samples change their prediction more often when features are dropped.
        unsure = 2 * (1 - p.amax(dim=1, keepdim=True)).expand(-1, 3)
        dropped = torch.bernoulli(unsure.clamp(max=1), generator=rng).sum(dim=1)
        for need, values in ((FEATURES, x), (POSTERIORS, p), (sketch, x), (changes, dropped)):
            writer.write(need, "made-up", start, of_part, values)
        ids += of_part
        blocks.append((start, len(x)))
        top = p.topk(2, dim=1).values
        entropies = -torch.special.xlogy(p, p).sum(dim=1)
        scores.append(torch.stack([top[:, 1] - top[:, 0], entropies, -top[:, 0]], dim=1))
    writer.finish("made-up", ids, blocks)
    shapes: tuple[tuple[Need, list[int]], ...] = (
        (FEATURES, [width]),
        (POSTERIORS, [CLASSES]),
        (sketch, [width]),
        (changes, []),
    )
    record = {
        "precision": "float16",
        "signals": [{"need": plain_need(n), "shape": w} for n, w in shapes],
        "shards": ["made-up"],
    }
    write_digested_json(folder / SIGNALS / RECORD, record)
    columns = dict(zip(SCORED, torch.cat(scores).T.double().numpy(), strict=True))
    table = pa.table({"shard": ["made-up"] * count, "id": ids, **columns})
    pq.write_table(table, folder / TABLE)


def write_labels(folder: Path, count: int) -> Path:
    """Return a sheet of labels, written if it is not there: of `count` samples of the pool."""
    sheet = Path(f"{folder}-{count}-labelled.csv")
    store = SignalStore(folder / SIGNALS)
    rng = torch.Generator().manual_seed(4)
    positions = torch.randperm(len(store), generator=rng)[:count].sort().values.tolist()
    p = store.rows(POSTERIORS, positions).float()
    labels = torch.multinomial(p, 1, generator=rng)[:, 0].tolist()
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label"])
        writer.writerows(zip(store.ids(positions), map(NAMES.__getitem__, labels), strict=True))
    write_digested_json(folder / POOL, {"classes": NAMES})
    return sheet


def read_labels(sheet: Path | None) -> dict[int, int]:
    """Return position -> class of what a sheet labels."""
    if sheet is None:
        return {}
    with sheet.open(encoding="utf-8", newline="") as file:
        return {int(row["id"]): NAMES.index(row["label"]) for row in csv.DictReader(file)}


def _changes() -> Need:
    return strategies.build("dropquery").needs[1]


def _sketch() -> Need:
    (need,) = strategies.build("lcmd").needs
    return Need(need.name, need.options)


def quality(
    name: str, store: SignalStore, ids: list[str], labelled: dict[int, int]
) -> dict[str, float]:
    """Return what the strategy makes large or small, of the whole pool."""
    x = torch.cat([block.float() for _, block in store.blocks(FEATURES)])
    chosen = torch.tensor([*(int(i) for i in ids), *labelled])
    if name == "bait":
        from upslope.posterior import in_double
        from upslope.strategies.information import information

        p = in_double(torch.cat([block for _, block in store.blocks(POSTERIORS)]))
        known = information(p[chosen], x[chosen].double())
        matrix = known + 0.01 * torch.eye(len(known), dtype=known.dtype)
        return {"trace": float(torch.linalg.solve(matrix, information(p, x.double())).trace())}
    if name == "badge":
        p = torch.cat([block.float() for _, block in store.blocks(POSTERIORS)])
        a = p - torch.nn.functional.one_hot(p.argmax(dim=1), p.shape[1])
        norms = a.square().sum(dim=1) * x.square().sum(dim=1)
        nearest = torch.full_like(norms, torch.inf)
        for part in torch.split(chosen, 256):
            inner = (a @ a[part].T) * (x @ x[part].T)
            squared = norms[:, None] + norms[part] - 2 * inner
            nearest = torch.minimum(nearest, squared.clamp(min=0).amin(dim=1))
        return {"mean squared distance": float(nearest.mean())}
    if name not in ("core-set", "lcmd"):
        x = torch.nn.functional.normalize(x, dim=1)
    squared = torch.cat([torch.cdist(b, x[chosen]).amin(dim=1) for b in torch.split(x, ROWS)]) ** 2
    if name == "core-set":
        return {"radius": float(squared.max().sqrt())}
    if name == "lcmd":
        return {"mean squared distance": float(squared.mean())}
    covered = {"covered": float((squared <= 0.75**2).float().mean())}
    if name == "prob-cover":
        return covered
    if name == "dcom":
        top = store.rows(POSTERIORS, [int(i) for i in ids]).float().topk(2, dim=1).values
        unsure = float((1 - top[:, 0] + top[:, 1]).mean())
        return covered | {"cosine": float((1 - squared / 2).mean()), "uncertainty": unsure}
    if name in ("max-herding", "u-herding"):
        return {"coverage": float((-squared).exp().mean())}
    return {"coverage": float((1 - squared / 2).clamp(min=0).mean())}


class Watch(threading.Thread):
    """Sample the memory that this process holds of its own."""

    def __init__(self, every: float = 0.05) -> None:
        """every: seconds between looks."""
        super().__init__(daemon=True)
        self.peak, self.over, self.every = 0, False, every

    def run(self) -> None:
        while not self.over:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)
            time.sleep(self.every)


def measure(
    name: str, folder: Path, budget: int, exact: bool, judged: bool, answers: Path | None
) -> dict[str, object]:
    """Select once, and return processor seconds, peak bytes, and the quality.

    answers: the sheet of labels.
    """
    torch.set_num_threads(1)
    watch = Watch()
    began, clock = time.process_time(), time.monotonic()
    watch.start()
    store = SignalStore(folder / SIGNALS)
    if exact:
        strategy = strategies.build(name, **OPTIONS.get(name, {}))
        rng = torch.Generator().manual_seed(1)
        labels = read_labels(answers)
        free = sorted(set(range(len(store))) - labels.keys())
        signals = {
            n: torch.cat([b.float() for _, b in store.blocks(Need(n.name, n.options))])
            for n in strategy.needs
        }
        view = PoolView(
            store.ids(free),
            {n: values[free] if labels else values for n, values in signals.items()},
            store.ids(list(labels)),
            {n: values[list(labels)] for n, values in signals.items() if n.labelled},
            torch.tensor(list(labels.values()), dtype=torch.int64),
        )
        ids = list(strategy.select(view, budget, rng).ids)
    else:
        sheet = Path(f"{folder}-{name}.csv")
        text = json.dumps({"name": name, **OPTIONS[name]}) if name in OPTIONS else name
        select_scored(folder, text, budget, 1, answers, sheet)
        with sheet.open(encoding="utf-8", newline="") as file:
            ids = [row["id"] for row in csv.DictReader(file)]
        sheet.unlink()
    watch.over = True
    seconds = time.process_time() - began
    wall = time.monotonic() - clock
    figures: dict[str, object] = {"seconds": seconds, "wall": wall, "bytes": watch.peak}
    return figures | (quality(name, store, ids, read_labels(answers)) if judged else {})


def main(
    candidates: Annotated[int, typer.Option(min=1)] = 50_000,
    features: Annotated[int, typer.Option(min=1)] = 256,
    budget: Annotated[int, typer.Option(min=1)] = 500,
    labelled: Annotated[int, typer.Option(min=0, help="Samples that have labels.")] = 0,
    names: Annotated[str, typer.Option(help="Strategies, with commas between.")] = "all",
    exact: Annotated[bool, typer.Option("--exact", help="Measure the exact form too.")] = False,
    folder: Annotated[Path, typer.Option(help="Where the store is kept.")] = Path("made-up"),
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure strategies that choose in two stages, each in a process of its own."""
    place = folder / f"{candidates}x{features}"
    judged = candidates <= JUDGED
    if one:
        name, form = one.split(",")
        answers = write_labels(place, labelled) if labelled else None
        print(json.dumps(measure(name, place, budget, form == "exact", judged, answers)))
        return
    every_name = (*TWO_STAGE, *SCORED)
    chosen_names = every_name if names == "all" else tuple(names.split(","))
    for name in chosen_names:
        if name not in every_name:
            expected = f"expected strategies among {', '.join(every_name)} but got {name!r}"
            raise typer.BadParameter(expected, param_hint="--names")
    if not (place / TABLE).is_file():
        write_store(place, candidates, features)
    print("| strategy | form | CPU s | wall s | GiB | quality |", flush=True)
    print("| --- | --- | --: | --: | --: | --- |", flush=True)
    for name in chosen_names:
        for form in (["exact"] if exact and name not in SCORED else []) + ["selected"]:
            command = [sys.executable, __file__, "--candidates", str(candidates), "--features",
                       str(features), "--budget", str(budget), "--folder", str(folder),
                       "--labelled", str(labelled), "--one", f"{name},{form}"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"| {name} | {form} | failed: {done.stderr.strip().splitlines()[-1]} |")
                continue
            row = json.loads(done.stdout.strip().splitlines()[-1])
            seconds, wall, held = (row.pop(key) for key in ("seconds", "wall", "bytes"))
            judged_by = ", ".join(f"{key} {value:.4g}" for key, value in row.items())
            figures = f"{seconds:.1f} | {wall:.0f} | {held / 2**30:.2f}"
            print(f"| {name} | {form} | {figures} | {judged_by} |")
            sys.stdout.flush()


if __name__ == "__main__":
    typer.run(main)
