"""The engine and the fast recipe on a GPU, in minutes: four measurements, a JSON summary each.

    python benchmarks/gpu.py exactness --out out --seconds 110
    python benchmarks/gpu.py speed --out out --seconds 110
    python benchmarks/gpu.py rivals --out out --seconds 200
    python benchmarks/gpu.py panel --data cifar10.npz --out out --seconds 300

exactness: gradient norms of the benchmark networks and of small ones, in both forms, float64,
float32 with TF32 off and on, and bfloat16, against one-sample autograd in float64 on the same
device; inner products, sketches, expected lengths and their squares (the trace of the Fisher
information). speed: scoring against a plain training step of the same batch, interleaved, medians
of CUDA events. rivals: ResNet-18 in CIFAR's form and a ViT in batches of 256 to 2,048, in float32
and bfloat16, beside plain passes, `torch.func.vmap` and the one-sample loop. panel: ten strategies
on CIFAR-10 by `training.recipe: fast`, as many seeds as there are workers; it is cut off after
`--seconds`, and what is finished by then is told.

`--dry` makes everything tiny, for a CPU. What is not reached in the time is named, never left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests" / "gradnorm"), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

from on_gpu.exactness import exactness  # noqa: E402
from on_gpu.panel import panel, run_panel  # noqa: E402
from on_gpu.rivals import rivals  # noqa: E402
from on_gpu.speed import speed  # noqa: E402

COMMANDS = {
    "exactness": exactness,
    "speed": speed,
    "rivals": rivals,
    "panel": panel,
    "panel-run": run_panel,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=tuple(COMMANDS))
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
    COMMANDS[options.what](options)


if __name__ == "__main__":
    main()
