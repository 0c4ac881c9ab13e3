"""What a model keeps between passes: every pass starts from it, and the caller finds it again."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import norms_one_by_one, relative_error
from torch import Tensor, nn
from torch.ao import quantization

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms, samples_that_fit, select
from upslope.gradnorm.core.state import memory_copies
from upslope.gradnorm.core.state.model_state import ModelState

D = torch.float64


def squares(outputs: Tensor) -> Tensor:
    return outputs.square().flatten(1).sum(dim=1)


class Between(nn.Module):
    """Two layers, and between them what a test writes. keep: buffers and attributes."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor], **keep: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.middle = nn.Linear(5, 8), nn.Linear(8, 3), middle
        for name, value in keep.items():
            setattr(self, name, value)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self, self.first(x).tanh()))
        return out


def batch(n: int = 6) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(1), dtype=D)


def right(model: nn.Module, x: Tensor) -> Tensor:
    """The norms of single samples, each from the state that the model has now."""
    rows = [
        norms_one_by_one(copy.deepcopy(model), x[i : i + 1], lambda out, _: squares(out)[0])
        for i in range(len(x))
    ]
    return torch.cat(rows)


def assert_exact_and_unchanged(model: nn.Module, calls: int = 3) -> None:
    x = batch()
    truth, before = right(model, x), copy.deepcopy(model.state_dict())
    own = {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())}
    for _ in range(calls):
        assert relative_error(gradient_norms(model, x, squares), truth) < 1e-9
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name
        now = (*model.named_parameters(), *model.named_buffers())
        assert {name: id(t) for name, t in now} == own


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore::UserWarning:torch.ao.quantization")
def test_observers_of_quantisation_keep_their_numbers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        quantization.QuantStub(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3),
        quantization.DeQuantStub(),
    )  # fmt: skip
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    model = quantization.prepare_qat(model.train())
    model(torch.randn(16, 5))
    model.eval()
    before, x = copy.deepcopy(model.state_dict()), torch.randn(6, 5)
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, x, squares)  # the largest of the batch sets the scale
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def _count_past_the_counter(m: Any, h: Tensor) -> Tensor:
    m.steps.data += 1
    return h * m.steps[0]


def _move_codes(m: Any, h: Tensor) -> Tensor:
    nearest = torch.cdist(h, m.codes).argmin(1)
    chosen = m.codes[nearest]
    with torch.no_grad():
        m.codes.data.index_add_(0, nearest, 0.1 * (h - chosen))
    return h + (chosen - h).detach()


@pytest.mark.parametrize("middle", [_count_past_the_counter, _move_codes])
def test_buffers_that_are_written_past_the_counter_of_versions(middle) -> None:
    torch.manual_seed(0)
    model = Between(middle)
    model.register_buffer("steps", torch.zeros(2, dtype=D))
    model.register_buffer("codes", torch.randn(4, 8, dtype=D))
    assert_exact_and_unchanged(model)


class Writes(nn.Module):
    def __init__(self, steps: Tensor) -> None:
        super().__init__()
        self.register_buffer("steps", steps)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return x


class Reads(nn.Module):
    def __init__(self, steps: Tensor, *, plain: bool = False) -> None:
        super().__init__()
        if plain:
            self.steps = [steps]
        else:
            self.register_buffer("steps", steps)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.steps[0] if isinstance(self.steps, list) else self.steps
        return x * steps


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize(
    ("view", "plain"),
    [(lambda q: q, False), (lambda q: q[:], False), (lambda q: q, True),
     (lambda q: q[2:].view(2, 3)[1, 0], True)],
    ids=["same", "view", "in a list", "view in a list"],
)  # fmt: skip
def test_one_tensor_in_two_modules_stays_one(view, plain, n) -> None:
    steps = torch.zeros(8, dtype=D)
    other = view(steps)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 8), Writes(steps), nn.Tanh(), Reads(other, plain=plain), nn.Linear(8, 3)
    )
    for layer in (model[0], model[4]):  # `double()` would make copies of the buffers
        layer.double()
    x = batch(n)
    # One step, and it shows everywhere.
    plain_pass = nn.Sequential(model[0], nn.Tanh(), model[4])
    truth = norms_one_by_one(plain_pass, x, lambda out, _: squares(out)[0])
    assert relative_error(gradient_norms(model, x, squares), truth) < 1e-9
    assert not steps.any()
    assert model[1].steps is steps
    model(x)
    assert bool((steps == 1).all())
    assert bool((other == 1).all())


def test_a_graph_of_the_caller_outlives_the_call() -> None:
    model = Between(lambda m, h: h * m.steps.add_(1))
    model.register_buffer("steps", torch.ones(8, dtype=D))
    x = batch()[0, :1].requires_grad_()
    loss = (x * model.steps).sum()
    gradient_norms(model, batch(), squares)
    loss.backward()
    assert float(x.grad) == 8  # the sum of the steps as they were when the loss was made


def _noise(m: Any, h: Tensor) -> Tensor:
    m.last.weight.data = m.last.weight.data + 0.1
    return h


def _decay(m: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        m.last.weight.mul_(0.9)
    return h


def _decay_past_the_counter(m: Any, h: Tensor) -> Tensor:
    m.last.weight.data.mul_(0.9)
    return h


def _teacher(m: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        m.teacher.weight.mul_(0.9).add_(m.first.weight[:, :1].T, alpha=0.1)
    return h - h * m.teacher.weight


@pytest.mark.parametrize("middle", [_noise, _decay, _decay_past_the_counter, _teacher])
def test_parameters_that_a_pass_writes(middle) -> None:
    model = Between(middle, teacher=nn.Linear(8, 1).requires_grad_(False))
    assert_exact_and_unchanged(model)


def test_weights_with_noise_are_those_of_one_pass() -> None:
    def noisy(m: Any, h: Tensor) -> Tensor:
        m.last.weight.data = m.last.weight.data + 0.1 * torch.randn_like(m.last.weight)
        return h

    model, x = Between(noisy), batch()
    for seed in range(3):
        own = copy.deepcopy(model)
        torch.manual_seed(seed)
        losses = squares(own(x))
        truth = [
            torch.cat([g.flatten() for g in torch.autograd.grad(
                one, list(own.parameters()), retain_graph=True)]).norm()
            for one in losses
        ]  # fmt: skip
        torch.manual_seed(seed)
        norms = gradient_norms(model, x, squares)
        assert relative_error(norms, torch.stack(truth)) < 1e-9


def test_a_write_that_begins_later_is_refused_once_and_then_put_back() -> None:
    begun = []

    def middle(m: Any, h: Tensor) -> Tensor:
        if begun:
            m.last.weight.data.mul_(0.9)
        return h

    model, x = Between(middle), batch()
    gradient_norms(model, x, squares)
    begun.append(True)
    with pytest.raises(GradientNormError, match=r"`?last\.weight.*written to for the first time"):
        gradient_norms(model, x, squares)
    assert_exact_and_unchanged(model)


def _replaced(m: Any) -> None:
    m.backbone.weight.data = 0.9 * m.backbone.weight.data


def _written_in_one_place(m: Any) -> None:
    m.backbone.weight.data[601, 77] += 1


def _turned(m: Any) -> None:  # the same numbers in other places
    m.backbone.weight.data[[3, 5, 9]] = m.backbone.weight.data[[5, 9, 3]]


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> nn.Linear:
    """A frozen layer that is too large to be copied, as nothing of its size may be."""
    monkeypatch.setattr(memory_copies, "_COPIED_OF_FROZEN", 1 << 20)
    copy_bytes = memory_copies.WholeCopies.__init__

    def copied(self: Any, stretches: Any) -> None:
        assert all(len(s.own) < 1 << 20 for s in stretches) or allows
        copy_bytes(self, stretches)

    allows: list[bool] = []
    monkeypatch.setattr(memory_copies.WholeCopies, "__init__", copied)
    torch.manual_seed(2)
    layer = nn.Linear(256, 1024).requires_grad_(False)
    layer.allow_copies = lambda: allows.append(True)  # type: ignore[assignment]
    return layer


def _through(m: Any, h: Tensor) -> Tensor:
    return h + m.backbone(h.repeat(1, 32))[:, :8]


def test_large_frozen_weights_are_not_copied(backbone: nn.Linear) -> None:
    assert_exact_and_unchanged(Between(_through, backbone=backbone))


@pytest.mark.parametrize("write", [_written_in_one_place, _turned])
def test_a_first_pass_that_writes_large_frozen_weights_is_refused_once(
    backbone: nn.Linear, write: Callable[[Any], None]
) -> None:
    def middle(m: Any, h: Tensor) -> Tensor:
        write(m)
        return _through(m, h)

    model = Between(middle, backbone=backbone)
    backbone.allow_copies()
    with pytest.raises(GradientNormError, match=r"backbone\.weight.*the next call will put it"):
        gradient_norms(model, batch(), squares)
    assert_exact_and_unchanged(model)


def test_large_frozen_weights_that_a_pass_replaces_are_put_back(backbone: nn.Linear) -> None:
    def middle(m: Any, h: Tensor) -> Tensor:
        _replaced(m)
        return _through(m, h)

    backbone.allow_copies()
    assert_exact_and_unchanged(Between(middle, backbone=backbone))


def test_weights_that_samples_write_are_refused_by_name() -> None:
    def middle(m: Any, h: Tensor) -> Tensor:
        with torch.no_grad():
            m.last.weight.mul_(1 + 0.01 * h.mean())
        return h

    model, x = Between(middle), batch()
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        with pytest.raises(GradientNormError):
            gradient_norms(model, x, squares)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_attributes_and_what_lies_in_them_are_put_back() -> None:
    def middle(m: Any, h: Tensor) -> Tensor:
        own = h.detach()
        m.rows.append(own)
        m.recent.append(own)
        m.table["mean"] = own.mean(0)
        m.table["inner"]["count"] += 1
        m.names.add(len(own))
        m.average = 0.9 * m.average + 0.1 * own.mean(0)
        m.total += own.sum(0)
        m.pair[0].add_(own.sum(0))
        m.notes.count += 1
        m.new = own
        return h * (1 + 0.1 * m.calls_so_far())

    model = Between(
        middle, rows=[], recent=deque([1], maxlen=2), table={"inner": {"count": 0}}, names={1},
        average=torch.zeros(8, dtype=D), total=torch.zeros(8, dtype=D),
        pair=(torch.zeros(8, dtype=D), 1), notes=SimpleNamespace(count=0),
    )  # fmt: skip
    model.calls_so_far = lambda: model.notes.count
    average, total, pair = model.average, model.total, model.pair
    gradient_norms(model, batch(), squares)
    assert model.rows == []
    assert model.recent == deque([1])
    assert model.table == {"inner": {"count": 0}}
    assert model.names == {1}
    assert model.average is average
    assert model.total is total
    assert model.pair is pair
    assert not any(tensor.any() for tensor in (average, total, pair[0]))
    assert model.notes.count == 0
    assert not hasattr(model, "new")
    model.calls_so_far = lambda: 1  # of which each pass was the first
    truth = right(model, batch())
    model.calls_so_far = lambda: model.notes.count
    assert relative_error(gradient_norms(model, batch(), squares), truth) < 1e-9


def test_a_recurrent_state_in_an_attribute_is_the_one_before_the_call() -> None:
    def middle(m: Any, h: Tensor) -> Tensor:
        m.state = h.detach().mean() * 0 + m.state + 1
        return h * m.state

    assert_exact_and_unchanged(Between(middle, state=torch.ones((), dtype=D)))


class Centre(nn.Module):
    """A loss with a moving average in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(3, dtype=D))
        self.calls = 0

    def forward(self, outputs: Tensor) -> Tensor:
        self.centre = 0.9 * self.centre + 0.1 * outputs.detach().mean(0)
        self.calls += 1
        return squares(outputs) * self.calls


centre = Centre()


@pytest.mark.parametrize("kind", ["module", "closure", "global", "object", "default", "by name"])
def test_a_loss_that_holds_a_module_finds_its_state_again(kind) -> None:
    own = centre if kind == "global" else Centre()
    holder = SimpleNamespace(part={"loss": own})
    loss = {
        "module": own,
        "closure": lambda out: own(out),
        "global": lambda out: centre(out),
        "object": lambda out: holder.part["loss"](out),
        "default": lambda out, inner=own: inner(out),
        "by name": lambda out, *, inner=own: inner(out),
    }[kind]
    model, x, before = Between(lambda _, h: h), batch(), own.centre
    truth = right(model, x)
    for _ in range(2):
        assert relative_error(gradient_norms(model, x, loss), truth) < 1e-9
        assert own.centre is before
        assert not before.any()
        assert own.calls == 0


def test_hooks_see_the_whole_batch_last() -> None:
    features: dict[str, Tensor] = {}
    model, x = Between(lambda _, h: h), batch()
    model.first.register_forward_hook(lambda m, given, out: features.update(h=out.detach()))
    for _ in range(3):
        features.clear()
        gradient_norms(model, x, squares)
        assert torch.allclose(features["h"], nn.functional.linear(x, *model.first.parameters()))


@pytest.mark.parametrize("module", ["torch.nn.utils.a", "transformers.utils.output_capturing"])
def test_hooks_that_keep_nothing_need_no_pass_of_the_whole_batch(module: str) -> None:
    passes = []
    model, x = Between(lambda _, h: h), batch()

    def hook(_m: Any, given: Any, _out: Any) -> None:
        passes.append(len(given[0]))

    hook.__module__ = module
    model.first.register_forward_hook(hook)
    for _ in range(3):
        passes.clear()
        gradient_norms(model, x, squares, max_memory=1)
    assert passes
    assert max(passes) < len(x)


def test_a_buffer_that_is_read_from_elsewhere_is_right_or_refused() -> None:
    steps = torch.zeros(8, dtype=D)

    def middle(m: Any, h: Tensor) -> Tensor:
        h = h * (1 + steps)  # before it is written
        m.steps += 1
        return h

    model = Between(middle)
    model.register_buffer("steps", steps)
    with pytest.raises(GradientNormError, match=r"'steps'.*read from elsewhere"):
        gradient_norms(model, batch(), squares)
    assert model.steps is steps
    assert not steps.any()


def test_arrays_and_flags_are_put_back() -> None:
    def middle(m: Any, h: Tensor) -> Tensor:
        m.steps += 1
        m.other.requires_grad_(False)
        return h * float(m.steps[0])

    model = Between(middle, steps=np.zeros(2), other=nn.Linear(2, 2))
    steps = model.steps
    truth = right(Between(lambda _, h: h), batch())
    for _ in range(2):
        norms = gradient_norms(model, batch(), squares, parameters=["first", "last"])
        assert relative_error(norms, truth) < 1e-9
        assert model.steps is steps
        assert not steps.any()
        assert model.other.weight.requires_grad


class _Collecting(nn.Module):
    """Installs hooks in its first pass, remembers that it has, and uses what they collect."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.installed = False
        self._collected: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.installed:
            for layer in (self.first, self.second):
                layer.register_forward_hook(lambda _m, _i, out: self._collected.append(out))
            self.installed = True
        self._collected.clear()
        self.second(self.first(x).relu())
        return self.head(sum(self._collected))


def test_hooks_that_a_pass_installs_go_with_what_remembers_them() -> None:
    torch.manual_seed(0)
    model, x = _Collecting(), torch.randn(4, 5)
    twin = copy.deepcopy(model)
    expected = twin(x)
    for _ in range(2):
        norms = gradient_norms(model, x, lambda z: z.square().sum(1))
        for i in range(4):
            twin.zero_grad()
            twin(x[i : i + 1]).square().sum().backward()
            square = sum(float(p.grad.double().square().sum()) for p in twin.parameters())
            assert float(norms[i]) == pytest.approx(square**0.5, rel=1e-5)
        assert not model.installed
        assert not model.first._forward_hooks
    torch.testing.assert_close(model(x), expected)
    gradient_norms(model, x, lambda z: z.square().sum(1))
    assert model.installed
    assert len(model.first._forward_hooks) == len(model.second._forward_hooks) == 1
    torch.testing.assert_close(model(x), expected)


def _hook_once(module: Any, x: Tensor) -> Tensor:
    if not module.done:
        module.first.weight.register_hook(lambda g: g * 0.5)
        module.done = True
    return x


def _parametrize_once(module: Any, x: Tensor) -> Tensor:
    if not module.done:
        nn.utils.parametrize.register_parametrization(module.last, "weight", nn.Tanh())
        module.done = True
    return x


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")  # one at a time, told
def test_a_hook_that_the_first_pass_registers_acts_once_in_each_of_ours() -> None:
    model, x = Between(_hook_once, done=False), batch()
    truth = right(model, x)
    for _ in range(2):
        assert relative_error(gradient_norms(model, x, squares), truth) < 1e-9
        assert not model.done
        assert not model.first.weight._backward_hooks
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(model(x), expected)
    assert len(model.first.weight._backward_hooks or ()) == 1


def test_a_parametrization_that_a_pass_registers_is_taken_back() -> None:
    model, x = Between(_parametrize_once, done=False), batch()
    expected, before, truth = copy.deepcopy(model)(x), type(model.last), right(model, x)
    for _ in range(2):
        assert relative_error(gradient_norms(model, x, squares), truth) < 1e-9
        assert type(model.last) is before
    assert "weight" in dict(model.last.named_parameters())
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    "run",
    [
        lambda model: gradient_norms(model, batch(), squares, parameters="last"),
        lambda model: select(model, "last", batch()),
        lambda model: samples_that_fit(model, batch(), 1 << 20),
    ],
    ids=["norms", "select", "samples that fit"],
)
def test_what_a_pass_writes_is_put_back_in_inference_mode(run: Callable[[nn.Module], Any]) -> None:
    def count(module: Any, x: Tensor) -> Tensor:
        return x * module.passes.add_(1)

    model = Between(count, passes=nn.Buffer(torch.zeros(1)))
    for mode in (torch.inference_mode(), torch.no_grad()):  # which remembers what the first made
        with mode:
            run(model)
        assert float(model.passes) == 0


def test_copies_of_parameters_go_after_the_first_pass() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)).eval()
    state = ModelState(model)
    with state.one_pass(2):
        model(torch.randn(2, 64))
    copies = [s.copy for s in state._stretches if s.copy is not None]
    held = {copy.untyped_storage().data_ptr(): copy.untyped_storage().nbytes() for copy in copies}
    assert len(copies) == len(list(model.buffers()))
    # Two rows of 64 numbers of four bytes, and a count of eight.
    assert sum(held.values()) == 2 * 64 * 4 + 8
