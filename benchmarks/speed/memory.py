"""Peak memory of one method, in a process of its own.

    python -m speed.memory NETWORK METHOD BATCH CHUNK DEVICE        prints bytes, as JSON

The process builds the model and the samples and runs nothing, and looks at its peak; it then
takes two chunks and looks again. The difference is what the method needs on top. On CUDA the
peak is the allocator's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from speed.methods import METHODS
from speed.networks import NETWORKS

STATUS = Path("/proc/self/status")


def peak_mib(network: str, method: str, batch: int, chunk: int, device: str) -> float | None:
    """Mebibytes on top of the model and the samples; None where the process fails."""
    command = [sys.executable, "-m", "speed.memory", network, method, str(batch), str(chunk)]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [*command, device],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return None
    used: int = json.loads(done.stdout.splitlines()[-1])
    return used / 2**20


def main(network: str, method: str, batch: str, chunk: str, device: str) -> None:
    """What the process does."""
    warnings.simplefilter("ignore")
    by_name = {m.name: m for m in METHODS}
    parts = NETWORKS[network].inputs(int(batch), device).split(int(chunk))
    run = by_name[method].make(NETWORKS[network], device)
    _forget_peak(device)
    before = _peak(device)
    for part in (parts * 2)[:2]:
        run(part)
    print(json.dumps(_peak(device) - before))


def _peak(device: str) -> int:
    """Bytes at most since the peak was forgotten."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        # Not getrusage: on Linux a process inherits that peak from the one that started it.
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak(device: str) -> None:
    """From here on; where the system has no such thing, building counts as well."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


if __name__ == "__main__":
    main(*sys.argv[1:])
