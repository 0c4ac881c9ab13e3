"""What more processes give: samples scored per second by one and by two, with one thread each.

    pip install 'upslope[ray]'
    python benchmarks/engines.py ray --rounds 7          # workers of Ray
    python benchmarks/engines.py torchrun --rounds 7     # processes of torchrun, started anew
    python benchmarks/engines.py plain --rounds 7        # two programs side by side: the ceiling

A pool of made-up images is scored for entropy-gradnorm by resnet-small, where the computation is
nearly all there is to do. Rounds are interleaved: this process alone, one worker, two workers, and
again. Figures are medians over rounds, of ratios within a round; what starts before the first batch
(Ray, torchrun, imports) is told apart. Scores are compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))
os.environ["PYTHONPATH"] = os.pathsep.join(  # of the workers
    [str(ROOT / "src"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from upslope import models, strategies, tasks  # noqa: E402
from upslope.distributed.ranks import joined  # noqa: E402
from upslope.distributed.ray_engine import RayEngine  # noqa: E402
from upslope.scoring import compute_signals  # noqa: E402
from upslope.seeds import global_generator  # noqa: E402

CPU = torch.device("cpu")
BATCH = 64


class Images:
    """Made-up images of 3 x 32 x 32, equal in every process."""

    name, classes, input_shape, resident = "images", tuple("0123456789"), (3, 32, 32), True

    def __init__(self, n: int) -> None:
        self.ids = [f"{i:06d}" for i in range(n)]
        rng = torch.Generator().manual_seed(0)
        self._images = torch.randint(0, 256, (n, 3, 32, 32), generator=rng, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.ids)

    def inputs(self, indices: Any) -> Tensor:
        return self._images[torch.as_tensor(list(indices))]

    def targets(self, indices: Any) -> Tensor:
        return torch.zeros(len(indices), dtype=torch.int64)


def network() -> Any:
    with global_generator(0, device=CPU):
        return models.build("resnet-small", num_classes=10, input_shape=(3, 32, 32)).eval()


def score(pool: Images) -> tuple[float, Tensor]:
    """Return (seconds, scores) of the pool, computed by the engine in use."""
    task = tasks.build("classification", num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
    needs, model = strategies.build("entropy-gradnorm").needs, network()
    started = time.perf_counter()
    table = compute_signals(
        needs, model, task, pool, range(len(pool)), device=CPU, seed=0, batch_size=BATCH
    )
    return time.perf_counter() - started, table.signals[needs[0]]


def by_ray(n: int, rounds: int) -> dict[str, Any]:
    """Measure workers of Ray that are there already: one cluster, an engine of one and of two."""
    pool, seconds, scores = Images(n), {"alone": [], "1": [], "2": []}, []
    begun = time.perf_counter()
    with RayEngine.started(3, threads=1):
        start = time.perf_counter() - begun
        one, two = RayEngine(1), RayEngine(2)
        with one.together({"pool": pool}, CPU, network), two.together({"pool": pool}, CPU, network):
            ways = {"alone": None, "1": one, "2": two}
            for number in range(rounds + 1):  # the first starts the workers, and does not count
                for name, engine in ways.items():
                    taken, values = score_with(engine, pool)
                    scores.append(values)
                    if number:
                        seconds[name].append(taken)
    return {"start": start, "seconds": seconds, "equal": all(equal(scores))}


def score_with(engine: RayEngine | None, pool: Images) -> tuple[float, Tensor]:
    from upslope.distributed.engine import using

    with using(engine):
        return score(pool)


def by_torchrun(n: int, rounds: int) -> dict[str, Any]:
    """Measure processes of torchrun, started anew for each figure; starting is not counted."""
    seconds: dict[str, list[float]] = {"alone": [], "1": [], "2": []}
    scores = []
    begun = time.perf_counter()
    for number in range(rounds):
        for name in seconds:
            size = 2 if name == "2" else 1
            command = [
                sys.executable, "-m", "torch.distributed.run", "--standalone",
                f"--nproc-per-node={size}", __file__, "rank", "--samples", str(n),
            ]  # fmt: skip
            if name == "alone":
                command = [sys.executable, __file__, "rank", "--samples", str(n)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            taken, values = json.loads(done.stdout.splitlines()[-1])
            seconds[name].append(taken)
            scores.append(torch.tensor(values, dtype=torch.float64))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    start = time.perf_counter() - begun - sum(map(sum, seconds.values()))
    return {
        "start": start / (3 * rounds),
        "seconds": seconds,
        "equal": all(equal(scores)),
    }


def by_plain(n: int, rounds: int) -> None:
    """Tell what two programs side by side score beside one: no engine can do more."""
    command = [sys.executable, __file__, "rank", "--samples", str(n)]
    shares = []
    for _ in range(rounds):
        slowest = []
        for count in (1, 2):
            running = [
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)
            ]
            told = [process.communicate()[0].splitlines()[-1] for process in running]
            slowest.append(max(json.loads(line)[0] for line in told))
        shares.append(slowest[0] / slowest[1])
    shown = ", ".join(f"{share:.2f}" for share in sorted(shares))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, one thread each")
    print(f"two programs are {statistics.median(shares):.2f} of twice one ({shown})")


def be_rank(n: int) -> None:
    """Be a process of torchrun, or one alone; rank 0 prints seconds and scores."""
    pool = Images(n)
    with joined("cpu") as ranks:
        together = ranks.together({"pool": pool}, CPU, network) if ranks else nullcontext(True)
        with together as leads:
            if leads:
                score(Images(BATCH * 2))  # the first batches set things up
                taken, values = score(pool)
                print(json.dumps([taken, values.tolist()]))


def equal(scores: list[Tensor]) -> list[bool]:
    return [torch.equal(values, scores[0]) for values in scores]


def tell(n: int, found: dict[str, Any]) -> None:
    seconds = found["seconds"]
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, one thread each")
    print(f"start {found['start']:.1f} s; scores equal to the bit: {found['equal']}")
    for name, taken in seconds.items():
        who = "this process alone" if name == "alone" else f"{name} of them"
        print(f"{who:20} {n / statistics.median(taken):8.1f} samples/s, {len(taken)} rounds")
    for name, of in (("1", "alone"), ("2", "1")):
        ratios = [b / a for a, b in zip(seconds[name], seconds[of], strict=True)]
        shown = ", ".join(f"{r:.2f}" for r in sorted(ratios))
        print(f"{name} against {of}: median ratio {statistics.median(ratios):.2f} ({shown})")
    share = [b / a / 2 for a, b in zip(seconds["2"], seconds["1"], strict=True)]
    print(f"two are {statistics.median(share):.2f} of twice one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=["ray", "torchrun", "plain", "rank"])
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.engine == "rank":
        be_rank(options.samples)
        return
    if options.engine == "plain":
        by_plain(options.samples, options.rounds)
        return
    measure = by_ray if options.engine == "ray" else by_torchrun
    tell(options.samples, measure(options.samples, options.rounds))


if __name__ == "__main__":
    main()
