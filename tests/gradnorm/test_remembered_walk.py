"""The walk through a model is remembered; a model that has changed is walked anew.

Every pass of the model here writes to all that it keeps, and reads it: were anything left out of
what is put back, the next norms would be others.
"""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from oracle import norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.state import containers
from upslope.gradnorm.core.state.containers import Walk, borrow_walk, return_walk

D = torch.float64


class Counter:
    """An object with a number of passes."""

    def __init__(self, passes: float):
        self.passes = passes


class Inner(nn.Module):
    """A layer that counts its passes in containers of each kind, and scales by the counts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("steps", torch.zeros(2))
        self.seen: list[Any] = [0.0]
        self.notes = {"passes": 0.0}
        self.inside = Counter(0.0)
        self.names = {"a", "b"}
        self.plain = 0.0

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + self.steps[0] + self.seen[-1] + self.notes["passes"] + len(self.seen) / 8
        scale = scale + self.inside.passes + self.plain + len(self.names) / 4
        self.steps += 1
        self.seen.append(1.0)
        self.notes["passes"] += 1
        self.inside.passes += 1
        self.plain += 1
        self.names.add("c")
        out: Tensor = self.linear(x).tanh() * scale
        return out


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.last = Inner(), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.inner(x))
        return out


def squares(outputs: Tensor) -> Tensor:
    return outputs.square().sum(dim=1)


def batch() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=D)


def truth(model: nn.Module, x: Tensor) -> Tensor:
    rows = [
        norms_one_by_one(copy.deepcopy(model), x[i : i + 1], lambda out, _: squares(out)[0])
        for i in range(len(x))
    ]
    return torch.cat(rows)


def kept(model: Any) -> tuple[Any, ...]:
    inner = model.inner
    containers = (list(inner.seen), dict(inner.notes), vars(inner.inside).copy(), set(inner.names))
    return (*containers, inner.plain, inner.steps.tolist(), *map(id, model.parameters()))


def _replace_layer(m: Any) -> None:
    m.last = nn.Linear(6, 2).to(D)


def _add_layer(m: Any) -> None:
    m.last = nn.Sequential(m.last, nn.Tanh(), nn.Linear(3, 4)).to(D)


def _give_other_memory(m: Any) -> None:
    m.inner.linear.weight.data = 2 * m.inner.linear.weight.data


def _turn_in_place(m: Any) -> None:
    m.inner.linear.weight.data = m.inner.linear.weight.data.t()  # the same address


def _train(m: Any) -> None:
    with torch.no_grad():
        for parameter in m.parameters():
            parameter.mul_(0.5)


def _train_past_the_counter(m: Any) -> None:
    for parameter in m.parameters():
        parameter.data.mul_(0.5)


def _set_buffer(m: Any) -> None:
    m.inner.steps = torch.tensor([3.0, 4.0], dtype=D)


def _write_buffer(m: Any) -> None:
    m.inner.steps.data.fill_(0.25)


def _set_containers(m: Any) -> None:
    m.inner.seen, m.inner.notes = [2.0, 3.0], {"passes": 4.0}


def _fill_containers(m: Any) -> None:
    m.inner.seen.append(2.0)
    m.inner.notes["passes"], m.inner.inside.passes = 0.5, 0.75
    m.inner.names.add("d")


def _set_object(m: Any) -> None:
    m.inner.inside = Counter(5.0)


def _set_attributes_of_object(m: Any) -> None:
    m.inner.inside.__dict__ = {"passes": 6.0}


def _set_number(m: Any) -> None:
    m.inner.plain = 7.0


def _freeze(m: Any) -> None:
    m.inner.linear.weight.requires_grad_(False)


def _scale_by_hook(m: Any) -> None:
    m.inner.register_forward_hook(lambda module, _, out: out * (2 + module.plain))


class _Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def _change_class(m: Any) -> None:
    m.last.__class__ = _Doubled


CHANGES = [
    _replace_layer, _add_layer, _give_other_memory, _turn_in_place, _train, _train_past_the_counter,
    _set_buffer, _write_buffer, _set_containers, _fill_containers, _set_object,
    _set_attributes_of_object, _set_number, _freeze, _scale_by_hook, _change_class,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_norms_are_right_after_a_change(change: Callable[[Any], None]) -> None:
    model, x = Outer(), batch()
    for _ in range(2):
        gradient_norms(model, x, squares)
    change(model)
    expected, before = truth(model, x), kept(model)
    for _ in range(3):
        assert relative_error(gradient_norms(model, x, squares), expected) < 1e-9
        assert kept(model) == before


def test_a_walk_is_remembered_until_something_changes() -> None:
    model = Outer()
    walk = borrow_walk(model)
    return_walk(walk)
    again = borrow_walk(model)
    assert again is walk
    assert borrow_walk(model) is not walk  # it is lent
    return_walk(again)
    model.inner.seen.append(1.0)
    assert borrow_walk(model) is not walk


def test_tensors_of_passes_are_not_kept() -> None:
    model: Any = Outer()
    assert Walk(model).may_be_kept()
    model.inner.features = model.inner.linear(batch())
    assert not Walk(model).may_be_kept()


def test_calls_borrow_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Linear(6, 3).to(D), batch()
    gradient_norms(model, x, squares)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a model that has not changed was walked again")

    monkeypatch.setattr(Walk, "__init__", fail)
    gradient_norms(model, x, squares)


@pytest.mark.parametrize("leads_back", [False, True])
def test_models_are_freed(leads_back: bool) -> None:
    model: Any = Outer()
    if leads_back:
        model.inner.parents = [model]
    gradient_norms(model, batch(), squares)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_threads_remember_more_models_than_there_is_room_for() -> None:
    def remember(models: list[nn.Module]) -> None:
        for _ in range(300):
            for model in models:
                return_walk(borrow_walk(model))

    models = [[nn.Linear(1, 1) for _ in range(10)] for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(remember, models))  # raises what a thread has raised
    finally:
        sys.setswitchinterval(interval)
    return_walk(borrow_walk(models[0][0]))
    assert len(containers._walks) <= containers._MOST_WALKS
