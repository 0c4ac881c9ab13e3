"""Calls from several threads, of one model and of several."""

from __future__ import annotations

import threading

import pytest
import torch
from oracle import TOLERANCE, norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.gradnorm import gradient_norms, select


class Counting(nn.Module):
    """Writes into a buffer, and keeps what it has made, in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(4, 6, batch_first=True)
        self.head, self.last = nn.Linear(6, 3), torch.zeros(0)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        self.last = self.body(x)[0]
        return self.head(self.last.mean(dim=1))


@pytest.mark.parametrize("models", [1, 4])
def test_several_threads_at_once(models):
    torch.manual_seed(0)
    every = [Counting().double().eval() for _ in range(models)]
    batches = [[torch.randn(n, 5, 4).double() for n in (2, 3, 4, 3, 2, 4)] for _ in range(4)]
    norms: dict[tuple[int, int], Tensor] = {}
    failures: list[Exception] = []

    def run(thread: int) -> None:
        try:
            for turn, x in enumerate(batches[thread]):
                names = list(select(every[thread % models], "last", x))
                assert names == ["head.weight", "head.bias"]
                norms[thread, turn] = gradient_norms(every[thread % models], x, "entropy")
        except Exception as error:  # told below: one of a thread is told by nobody
            failures.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(model.passes == 0 and model.last.numel() == 0 for model in every)
    for (thread, turn), values in norms.items():
        truth = norms_one_by_one(every[thread % models], batches[thread][turn])
        assert relative_error(values, truth) < TOLERANCE
    assert len(norms) == 24
