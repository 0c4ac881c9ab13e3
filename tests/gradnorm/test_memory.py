"""Scratch memory stays within what is asked for, at any batch size."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from upslope.gradnorm import gradient_norms

MEASURE = """
import resource, sys, torch
from torch import nn
from torch.nn import functional as F
from upslope.gradnorm import gradient_norms
torch.manual_seed(0)
torch.set_num_threads(1)
what, n = sys.argv[1], int(sys.argv[2])
model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
                      nn.Linear(1024, 10)).eval()
x = torch.randn(n, 24, 1024)
loss = lambda out: out.square().sum(dim=(1, 2))
def work(x):
    if what == "plain":
        loss(model(x)).sum().backward()
    else:
        gradient_norms(model, x, loss, max_memory=4 << 20)
work(x[:2])  # what the libraries take once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def peak(what: str, n: int) -> float:
    """MiB beyond the model and its input, in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), what, str(n)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory as Linux counts it")
def test_peak_memory_is_that_of_a_plain_pass_plus_the_bound():
    # One gradient per sample is 8 MiB here: 96 samples would take 770 MiB.
    plain, ours = peak("plain", 96), peak("norms", 96)
    assert ours < plain + 4 + 9 + 32, (plain, ours)  # the bound, a copy of the input, noise


def test_the_bound_does_not_change_the_result():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(), nn.Linear(72, 5)
    ).double()
    x = torch.randn(6, 3, 9, 9).double()
    free = gradient_norms(model, x, "entropy")
    for memory in (1, 1000, 1 << 20):
        assert torch.allclose(
            gradient_norms(model, x, "entropy", max_memory=memory), free, rtol=1e-12
        )
