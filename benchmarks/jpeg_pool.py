"""Scoring a folder of many JPEGs: memory over time, samples per second, the decoder's share.

    python benchmarks/jpeg_pool.py [--count 50000] [--decoders 0] [--folder jpegs]

Makes a folder of 224x224 JPEGs (smooth random fields, each file another), scores all of it as
`upslope score` does, with the entropy's gradient norm of a network of two strided convolutions, so
that decoding is what counts, and removes it again; a folder that you name is kept, and used again.
Resident memory is that of this process and of those that decode, sampled twice a second.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import nn

from upslope import datasets, models, tasks
from upslope.datasets.encoded import EncodedDataset
from upslope.images import Pixels
from upslope.progress import Progress
from upslope.scoring import score_to_file
from upslope.strategies import build

SIZE, BASES, IN_A_FOLDER, PROBE = 224, 300, 1000, 2000


def main() -> None:
    """Generate, measure the parts, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--decoders", type=int, default=0, help="processes; 0: threads")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--model", help="another network: a name of `upslope list models`")
    parser.add_argument("--score", default="entropy-gradnorm")
    parser.add_argument("--folder", type=Path, help="to make and keep; a temporary one if none")
    options = parser.parse_args()
    if options.folder is None:
        with tempfile.TemporaryDirectory(prefix="jpegs-") as temporary:
            generate(Path(temporary), options.count)
            measure(Path(temporary), options)
    else:
        if not options.folder.exists():
            options.folder.mkdir(parents=True)
            generate(options.folder, options.count)
        measure(options.folder, options)


def generate(folder: Path, count: int) -> None:
    """Write `count` JPEGs of 224x224 in folders of 1,000."""
    rng = np.random.default_rng(0)
    bases = []
    for _ in range(BASES):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        field_ = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        bases.append(np.clip(field_ + rng.normal(0, 4, field_.shape), 0, 255).astype(np.uint8))
    for i in range(count):
        base = np.roll(bases[i % BASES], tuple(rng.integers(0, SIZE, 2)), axis=(0, 1))
        path = folder / f"{i // IN_A_FOLDER:03d}" / f"{i:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(base).save(path, quality=85)


_lock = threading.Lock()
_decoding = 0.0


class Timed(EncodedDataset):
    """Counts the processor time of the threads that decode."""

    def image(self, position: int) -> Pixels:
        global _decoding
        start = time.thread_time()
        pixels = super().image(position)
        with _lock:
            _decoding += time.thread_time() - start
        return pixels


@dataclass
class Memory:
    """The resident memory of this process and its children, sampled in a thread."""

    done: int = 0
    peaks: dict[int, float] = field(default_factory=dict)
    """Tenth of the work -> highest MiB in it."""
    total: int = 1
    running: bool = True

    def __call__(self, progress: Progress) -> None:
        if progress.phase == "score":
            self.done = progress.done

    def sample(self) -> None:
        this = psutil.Process()
        while self.running:
            tenth = min(9, 10 * self.done // self.total)
            self.peaks[tenth] = max(self.peaks.get(tenth, 0.0), resident(this) / 2**20)
            time.sleep(0.5)


def tiny() -> nn.Module:
    """Ten classes from 3x224x224 by two strided convolutions: 6,810 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


def resident(process: psutil.Process) -> int:
    """Bytes of a process and its children."""
    found = 0
    for one in (process, *process.children(recursive=True)):
        try:
            found += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return found


def seconds_of_children() -> float:
    return sum(sum(c.cpu_times()[:2]) for c in psutil.Process().children(recursive=True))


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Score, with the parts alone before it."""
    pool = datasets.load_to_score("folder", folder, memory=0, decoders=options.decoders)
    assert isinstance(pool, EncodedDataset)
    pool = Timed(**{k: getattr(pool, k) for k in EncodedDataset.__dataclass_fields__})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        named = {"num_classes": 10, "input_shape": pool.input_shape}
        model = (models.build(options.model, **named) if options.model else tiny()).eval()
    size = sum((folder / id_).stat().st_size for id_ in pool.ids) / len(pool) / 1024
    print(f"{len(pool):,} JPEGs, {size:.1f} KiB each, {torch.get_num_threads()} threads of torch")
    mean, std = datasets.statistics(pool)
    task = tasks.build("classification", num_classes=10, mean=mean, std=std)

    probe = min(PROBE, len(pool))
    for processes in sorted({0, 2, options.decoders}):
        reader = replace(pool, decoders=processes)
        reader.inputs(range(8))  # starts the processes
        start = time.perf_counter()
        for i in range(0, probe, options.batch):
            reader.inputs(range(i, min(i + options.batch, probe)))
        kind = f"{processes} processes" if processes else f"{pool.threads()} threads"
        print(f"decoding alone, {kind}: {probe / (time.perf_counter() - start):.0f} samples/s",
              flush=True)  # fmt: skip

    global _decoding
    _decoding = 0.0
    memory = Memory(total=len(pool))
    sampler = threading.Thread(target=memory.sample, daemon=True)
    before = time.process_time(), seconds_of_children()
    start = time.perf_counter()
    sampler.start()
    written = folder / "scores.parquet"
    score_to_file(
        written,
        {options.score: build(options.score)},  # type: ignore[dict-item]
        model=model,
        task=task,
        dataset=pool,
        device=torch.device("cpu"),
        batch_size=options.batch,
        observer=memory,
    )
    written.unlink()
    seconds = time.perf_counter() - start
    own, children = time.process_time() - before[0], seconds_of_children() - before[1]
    memory.running = False
    sampler.join()
    decoding = children if options.decoders else _decoding
    speed = len(pool) / seconds
    print(f"{options.score}, {options.model or 'tiny'}: {speed:.0f} samples/s, {seconds:.0f} s")
    print(f"processor time: {own + children:.0f} s, of it decoding {decoding:.0f} s, "
          f"{decoding / (own + children):.0%}")  # fmt: skip
    print("peak resident MiB in each tenth of the pool:")
    print(" ".join(f"{memory.peaks.get(i, float('nan')):.0f}" for i in range(10)))


if __name__ == "__main__":
    main()
