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

from speed.methods import METHODS
from speed.networks import NETWORKS
from speed.peak import forget_peak, peak


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
    forget_peak(device)
    before = peak(device)
    for part in (parts * 2)[:2]:
        run(part)
    print(json.dumps(peak(device) - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
