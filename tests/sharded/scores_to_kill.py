"""Scores and signals of a pool by a process of its own, for the test that kills it; no test."""

import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    from test_score_shards import scorer

    from upslope.scoring import score_pool

    torch.set_num_threads(1)
    ready = scorer(Path(sys.argv[1]), Path(sys.argv[2]), names=("margin", "bald"))
    score_pool(ready, observer=lambda p: print(p.done, p.total, flush=True))
