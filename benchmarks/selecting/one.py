"""One strategy selects once, in this process.

python -m selecting.one STRATEGY CANDIDATES LABELLED FEATURES CLASSES BUDGET THREADS SECONDS

prints JSON. SECONDS is the most processor time that it may take; the system then ends it. Not the
time on the clock, of which a busy machine takes its share.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress

import torch

from selecting.pool import Size, made_up
from speed.peak import peak
from upslope.strategies import build


def main(name: str, *numbers: str) -> None:
    """Seconds of the selection alone, and the peak memory of the process, the pool included."""
    candidates, labelled, features, classes, budget, threads, seconds = map(int, numbers)
    torch.set_num_threads(threads)
    strategy = build(name)
    pool = made_up(strategy.needs, Size(candidates, labelled, features, classes))
    limit(seconds)
    rng = torch.Generator().manual_seed(0)
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    chosen = strategy.select(pool, budget, rng)
    taken = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_bytes": peak(),
        "peak_before_bytes": before,
        "notes": dict(chosen.notes),
    }
    if len(set(chosen.ids)) != budget:
        raise SystemExit(f"Expected {budget} distinct ids but got {len(set(chosen.ids))}.")
    print(json.dumps(taken))


def limit(seconds: int) -> None:
    """End this process after so much more processor time, where the system can."""
    with suppress(ImportError):  # Windows
        import resource

        end = int(time.process_time()) + seconds
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (end, most))


if __name__ == "__main__":
    main(*sys.argv[1:])
