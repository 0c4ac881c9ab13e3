"""What a network is made of is read off it once, and anew where it is made of something else.

Each change here comes after two calls, when everything is remembered: what was asked of the model
before must not answer for what it is now.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from oracle import norms_one_by_one, relative_error, watched
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.core.state.holders import addresses_of
from upslope.gradnorm.core.state.inventory import Inventory
from upslope.gradnorm.core.state.memory_copies import JointCopy, WholeCopies
from upslope.gradnorm.core.state.restoring import RandomState
from upslope.gradnorm.core.state.state_memory import stretches_of

D = torch.float64


class Net(nn.Module):
    """Ids looked up in a table, a switch of a single number, and a part that occurs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.twice = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.body = nn.Sequential(self.twice, nn.Tanh(), self.twice)
        self.last = nn.Linear(6, 3)
        self.last.bias = self.twice.bias = None  # type: ignore[assignment]
        self.register_buffer("switch", torch.zeros(()))
        self.double().eval()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.body(self.table(ids))
        if bool(self.switch):
            x = x.flip(1) * 2
        out: Tensor = self.last(x)
        return out


def squares(outputs: Tensor) -> Tensor:
    return outputs.square().sum(dim=1)


IDS = torch.tensor([1, 4, 2, 6, 0])


def warm() -> Any:
    model = Net()
    for _ in range(2):
        gradient_norms(model, IDS, squares)
    return model


def test_the_answers_are_those_of_pytorch() -> None:
    model = Net()
    inventory = Inventory(model)
    assert inventory.modules == list(model.modules())
    assert dict(inventory.named_parameters()) == dict(model.named_parameters())
    assert list(map(id, inventory.parameters)) == list(map(id, model.parameters()))
    assert inventory.buffer_ids == {id(model.switch)}
    assert inventory.training == (False,) * 6
    assert [name for name, _ in inventory.places_of_numbers] == ["switch"]
    assert not any((inventory.has_lazy_tensors, inventory.renormalises, inventory.forward_hooks))


def test_a_model_with_a_way_of_its_own_says_what_its_parameters_are() -> None:
    class Some(Net):
        def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            every = super().named_parameters(*args, **kwargs)
            return ((name, p) for name, p in every if name != "last.weight")

    assert [n for n, _ in Inventory(Some()).named_parameters()] == ["table.weight", "twice.weight"]


def _turn_switch(model: Any) -> None:
    model.switch.fill_(1.0)


def _turn_switch_past_the_counter(model: Any) -> None:
    model.switch.data.fill_(1.0)


def _unfreeze_less(model: Any) -> None:
    model.table.weight.requires_grad_(False)


def _add_parameter(model: Any) -> None:
    model.last.bias = nn.Parameter(torch.ones(3, dtype=D))


def _untie(model: Any) -> None:
    model.body[2] = nn.Linear(6, 6).double()


def _take_part_away(model: Any) -> None:
    model.body = nn.Sequential(model.twice)


def _hook_into_new_dict(model: Any) -> None:
    model.twice._forward_hooks = OrderedDict({0: lambda _, __, out: out.sin()})


@pytest.mark.parametrize(
    "change",
    [
        _turn_switch, _turn_switch_past_the_counter, _unfreeze_less, _add_parameter, _untie,
        _take_part_away, _hook_into_new_dict,
    ],
)  # fmt: skip
def test_norms_follow_a_change(change: Callable[[Any], None]) -> None:
    model = warm()
    change(model)
    expected = norms_one_by_one(model, IDS, lambda out, _: squares(out)[0])
    for _ in range(2):
        assert relative_error(gradient_norms(model, IDS, squares), expected) < 1e-9


def _hook_a_parameter(model: Any) -> None:
    model.last.weight.register_hook(lambda g: 2 * g)


def _renormalise(model: Any) -> None:
    model.table.max_norm = 1.0


def _add_lazy_module(model: Any) -> None:
    model.later = nn.LazyLinear(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_hook_a_parameter, r"hooks on their gradients but \['last.weight'\]"),
        (_renormalise, r"`table` has `max_norm=1.0`"),
        (_add_lazy_module, "`later.weight` belongs to a lazy module"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_refusals_follow_a_change(change: Callable[[Any], None], words: str) -> None:
    model = warm()
    change(model)
    for _ in range(2):
        with pytest.raises(GradientNormError, match=words):
            gradient_norms(model, IDS, squares)


@pytest.mark.filterwarnings("ignore:.*one sample at a time")
def test_backward_hooks_are_met_though_the_model_was_without() -> None:
    model = warm()
    model.twice.register_full_backward_hook(lambda _, __, outer: tuple(g / g.norm() for g in outer))
    with watched() as seen:
        gradient_norms(model, IDS, squares)
    assert seen.one_by_one == 1


def test_forward_hooks_see_the_batch_last_though_the_model_was_without() -> None:
    model, sizes = warm(), list[int]()
    model.last.register_forward_hook(lambda _, __, out: sizes.append(len(out)))
    gradient_norms(model, IDS[:4], squares)
    assert sizes[-1] == 4


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64])
def test_draws_from_any_generator_of_numpy_are_seen(kind: Any) -> None:
    usual = np.random.mtrand.get_bit_generator()
    np.random.mtrand.set_bit_generator(kind(3))
    try:
        numbers = RandomState(Inventory(Net()))
        assert not numbers.has_moved()
        drawn = np.random.random()
        assert numbers.has_moved()
        numbers.rewind()
        assert not numbers.has_moved()
        assert np.random.random() == drawn
    finally:
        np.random.mtrand.set_bit_generator(usual)


@pytest.mark.parametrize("draw", [np.random.randn, lambda: random.gauss(0, 1)])
def test_a_draw_of_the_normal_number_that_is_kept_is_seen(draw: Callable[[], float]) -> None:
    draw()  # two are made at once
    numbers, again = RandomState(Inventory(Net())), RandomState(Inventory(Net()))
    assert not numbers.has_moved()
    drawn = draw()
    assert numbers.has_moved()
    numbers.rewind()
    assert not numbers.has_moved()
    with again.replaying():
        assert draw() == drawn
    assert draw() == drawn
    assert draw() != drawn


@pytest.mark.parametrize("draw", [np.random.rand, random.random, np.random.randn])
def test_states_are_read_anew_once_numbers_were_drawn(draw: Callable[[], float]) -> None:
    for _ in range(3):
        numbers = RandomState(Inventory(Net()))
        first, _ = draw(), draw()
        assert numbers.has_moved()
        numbers.rewind()
        assert draw() == first


@pytest.mark.parametrize("turns", [1, 2])
def test_draws_of_all_words_of_a_generator_are_seen(turns: int) -> None:
    """After 624 words, or twice as many, the next one is at the same place."""
    for draw_words in (
        np.random.mtrand.get_bit_generator().random_raw,
        lambda count: random.getrandbits(32 * count),
    ):
        numbers = RandomState(Inventory(Net()))
        draw_words(624 * turns)
        assert numbers.has_moved()


def test_a_seed_is_seen() -> None:
    inventory = Inventory(Net())
    for seed in (np.random.seed, random.seed, torch.manual_seed):
        seed(0)
        numbers = RandomState(inventory)
        seed(0)
        assert not numbers.has_moved()
        seed(1)
        assert numbers.has_moved()


def test_addresses_are_those_of_the_objects() -> None:
    objects = (None, 5, "a", [], torch.ones(2), {}, object(), [])
    assert np.frombuffer(addresses_of(objects), np.uintp).tolist() == list(map(id, objects))
    assert addresses_of(()) == b""
    assert addresses_of(objects) != addresses_of((*objects[:-1], []))


def test_a_joint_copy_tells_which_memory_was_written() -> None:
    tensors = [torch.arange(5.0), torch.arange(7), torch.ones(3, dtype=torch.float16)]
    stretches = stretches_of(tensors)
    joint = JointCopy(stretches, [stretch.own for stretch in stretches])
    assert joint.find_changed() == []
    tensors[1].data[6] = 9
    assert joint.find_changed() == [stretches[1]]
    joint.copy_again()
    assert joint.find_changed() == []


@pytest.mark.parametrize("size", [3, 300_000], ids=["small", "large"])
def test_whole_copies_hold_what_memory_held(size: int) -> None:
    tensors = [torch.arange(float(size)), torch.arange(2)]
    stretches = stretches_of(tensors)
    copies = WholeCopies(stretches)
    tensors[1].data += 5
    copies.copy_again()
    assert copies.are_current()
    tensors[0].data[0] = -0.0
    assert not copies.are_current()
    stretches[0].restore()
    assert copies.are_current()
    assert tensors[1].tolist() == [5, 6]
    assert tensors[0].tolist() == list(range(size))
    copies.let_go()
    assert all(stretch.before is None for stretch in stretches)
