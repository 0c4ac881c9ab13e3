"""Which of two forms of one computation is the faster, found by running both.

For forms that a compiler makes: what they gain depends on the processor more than on shapes. It is
measured once for each shape and remembered while the process lives. Forms that race must agree to
rounding; what has to be the same bit for bit in another process is chosen by `costs` instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping

import torch
from torch import Tensor

_won: dict[Hashable, str] = {}
_AHEAD = 0.9
"""The share of the first form's time in which another must run: among other work all are slower."""


def fastest(key: Hashable, forms: Mapping[str, Callable[[], Tensor]]) -> Tensor:
    """The result of the form that was the fastest when this key came for the first time.

    The first is the ordinary one, and stays where no other is clearly faster.
    """
    key = (key, torch.get_num_threads())
    if key not in _won:
        times = {name: _seconds(form) for name, form in forms.items()}
        times[next(iter(forms))] *= _AHEAD
        _won[key] = min(times, key=times.__getitem__)
    return forms[_won[key]]()


def _seconds(form: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(4):  # the first compiles
        start = time.perf_counter()
        form()
        times.append(time.perf_counter() - start)
    return min(times[1:])
