"""LSTM, GRU and RNN, whole and as cells, against the oracle."""

from __future__ import annotations

import gc
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import assert_agrees, norms_one_by_one, relative_error, watched
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves

from short_forms import mark_rest_long
from upslope.gradnorm import expected_gradient_length, gradient_norms, torch_faults
from upslope.gradnorm.core import matrix_products
from upslope.gradnorm.core.layouts.layout_probe import LayoutProbe
from upslope.gradnorm.kernels.recurrent import lstm
from upslope.gradnorm.kernels.recurrent.recurrence import Recurrence, in_steps
from upslope.gradnorm.trace import reducing


class Sequences(nn.Module):
    def __init__(self, kind: str, **options) -> None:
        super().__init__()
        name, _, nonlinearity = kind.partition(" ")
        if nonlinearity:
            options["nonlinearity"] = nonlinearity
        self.rnn = getattr(nn, name)(3, 4, **options)
        width = options.get("proj_size") or 4
        self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:  # (n, t, 3)
        batch_first = self.rnn.batch_first
        out, state = self.rnn(x if batch_first else x.transpose(0, 1))
        last = state[0] if isinstance(state, tuple) else state
        pooled = out.mean(dim=1 if batch_first else 0)
        return self.head(pooled) + last.sum(dim=(0, 2))[:, None] * pooled[:, :3]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh", "RNN relu"])
def test_recurrent_networks(kind, layers, bidirectional, batch_first):
    torch.manual_seed(layers)
    model = Sequences(kind, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first)
    assert_agrees(model, torch.randn(3, 5, 3))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh"])
def test_products_by_onednn(kind, bidirectional, monkeypatch):
    if not matrix_products._AVAILABLE:
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(matrix_products, "_BLAS_SUFFICES", False)
    monkeypatch.setattr(matrix_products, "WORTH", 0)
    torch.manual_seed(0)
    model, x = Sequences(kind, bidirectional=bidirectional, batch_first=True), torch.randn(4, 6, 3)
    found = gradient_norms(model, x, "entropy")
    exact = gradient_norms(model.double(), x.double(), "entropy")
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=0, check_dtype=False)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh"])
def test_no_steps_stay_when_the_proof_begins(kind, bidirectional):
    torch.manual_seed(0)
    model = Sequences(kind, bidirectional=bidirectional)
    found: list[Recurrence] = []
    looks_around = reducing.model_may_mix_samples

    def look(run):
        for kernel in gc.get_objects():
            if issubclass(type(kernel), Recurrence):  # `isinstance` would wake up proxies
                tensors = [t for t in tree_leaves(vars(kernel)) if isinstance(t, Tensor)]
                assert max(map(Tensor.numel, tensors)) < 37 * 5 * 4  # weights alone
                found.append(kernel)
        return looks_around(run)

    with mock.patch.object(reducing, "model_may_mix_samples", look):
        assert_agrees(model, torch.randn(5, 37, 3))
    assert found


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("n", [1, 5])
def test_as_many_samples_as_steps_and_a_single_sample(n, batch_first):
    torch.manual_seed(0)
    assert_agrees(Sequences("LSTM", batch_first=batch_first), torch.randn(n, 5, 3))


def test_without_biases():
    torch.manual_seed(0)
    assert_agrees(Sequences("GRU", bias=False, batch_first=True), torch.randn(3, 4, 3))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh"])
def test_both_directions_without_biases(kind):
    torch.manual_seed(0)
    assert_agrees(
        Sequences(kind, bias=False, bidirectional=True, batch_first=True), torch.randn(3, 4, 3)
    )


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh"])
def test_a_single_step_in_both_directions(kind):
    torch.manual_seed(0)
    assert_agrees(Sequences(kind, bidirectional=True, batch_first=True), torch.randn(3, 1, 3))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_directions_that_share_weights(kind):
    torch.manual_seed(0)
    model = Sequences(kind, bidirectional=True, batch_first=True)
    model.rnn.weight_hh_l0_reverse = model.rnn.weight_hh_l0
    model.rnn.bias_ih_l0_reverse = model.rnn.bias_ih_l0
    assert_agrees(model, torch.randn(3, 4, 3))


@pytest.mark.parametrize("frozen", ["weight_hh_l0", "weight_ih_l0_reverse", "bias_hh_l0_reverse"])
def test_one_direction_with_a_frozen_weight(frozen):
    torch.manual_seed(0)
    model = Sequences("GRU", bidirectional=True, batch_first=True)
    getattr(model.rnn, frozen).requires_grad_(False)
    assert_agrees(model, torch.randn(3, 4, 3))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_with_projection_in_both_directions(layers, batch_first):
    torch.manual_seed(0)
    model = Sequences(
        "LSTM", proj_size=3, bidirectional=True, num_layers=layers, batch_first=batch_first
    )
    assert_agrees(model, torch.randn(3, 4, 3))


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("place", [slice(None), slice(2, 4)])
def test_steps_of_both_directions_are_views_in_the_order_taken(flipped, place):
    steps = torch.randn(2, 5, 3, 6)[..., place]
    views = in_steps(steps, flipped)
    for t, view in enumerate(views):
        assert torch.equal(view, torch.stack([steps[0, t], steps[1, 4 - t if flipped else t]]))
        view.fill_(t)
    expected = torch.arange(5.0)
    assert torch.equal(steps[0, :, 0, 0], expected)
    assert torch.equal(steps[1, :, 0, 0], expected.flip(0) if flipped else expected)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["LSTM", "GRU", "RNN tanh", "RNN relu"]),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    batch_first=st.booleans(),
    projected=st.booleans(),
    n=st.integers(1, 4),
    steps=st.integers(1, 6),
    seed=st.integers(0, 2**20),
)
def test_any_form_of_a_recurrent_network(
    kind, layers, bidirectional, bias, batch_first, projected, n, steps, seed
):
    torch.manual_seed(seed)
    options = {"proj_size": 3} if projected and kind == "LSTM" else {}
    model = Sequences(
        kind,
        num_layers=layers,
        bidirectional=bidirectional,
        bias=bias,
        batch_first=batch_first,
        dropout=0.0,
        **options,
    )
    assert_agrees(model, torch.randn(n, steps, 3))


def test_lstm_with_projection():
    torch.manual_seed(0)
    assert_agrees(Sequences("LSTM", proj_size=3, batch_first=True), torch.randn(3, 4, 3))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_lstm_in_blocks_of_steps(monkeypatch, bidirectional):
    """Coefficients are found for a few steps at a time: here for two, and one is left over."""
    monkeypatch.setattr(lstm, "_BLOCK", 2 * 3 * 16)
    torch.manual_seed(0)
    model = Sequences("LSTM", bidirectional=bidirectional, batch_first=True)
    assert_agrees(model, torch.randn(3, 5, 3))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh"])
def test_long_sequences_share_a_gram_matrix_or_do_without(kind):
    torch.manual_seed(0)
    for steps in (2, 40):
        assert_agrees(Sequences(kind, batch_first=True), torch.randn(2, steps, 3))


def test_frozen_weights_and_a_part_of_the_parameters():
    torch.manual_seed(0)
    model = Sequences("LSTM", num_layers=2, batch_first=True)
    model.rnn.weight_ih_l0.requires_grad_(False)
    model.rnn.bias_hh_l1.requires_grad_(False)
    assert_agrees(model, torch.randn(3, 5, 3))
    chosen = ["rnn.weight_hh_l0"]
    assert_agrees(model, torch.randn(3, 5, 3), parameters=chosen, wanted=lambda n: n in chosen)


class WritesIntoStates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x.transpose(0, 1))
        return self.head(states.mul_(2).sum(dim=0))


def test_a_write_into_the_states_is_noticed():
    torch.manual_seed(0)
    assert_agrees(WritesIntoStates(), torch.randn(3, 5, 3), path="one by one")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_several_losses_share_a_forward_pass(kind):
    """Each backward pass goes through time again, from what the one forward pass kept."""
    torch.manual_seed(0)
    model, x = Sequences(kind, batch_first=True).double().eval(), torch.randn(3, 5, 3).double()
    found = expected_gradient_length(model, x).scores
    p = model(x).softmax(dim=1).detach()
    alone = torch.zeros(3, dtype=torch.float64)
    for label in range(3):
        alone += p[:, label] * norms_one_by_one(
            model, x, lambda out, _, label=label: -out.log_softmax(dim=1)[0, label]
        )
    torch.testing.assert_close(found, alone, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh", "RNN relu"])
def test_half_precision_stays_near(kind):
    torch.manual_seed(0)
    model, x = Sequences(kind, batch_first=True).eval(), torch.randn(8, 5, 3)
    exact = gradient_norms(model, x, "entropy")
    half = gradient_norms(model, x, "entropy", dtype=torch.bfloat16)
    assert relative_error(half, exact) < 0.1


@pytest.mark.parametrize("packed", [False, True])
def test_a_processor_without_an_lstm_in_half_precision(monkeypatch, packed):
    monkeypatch.setattr(torch_faults, "_has_lstm", lambda _: False)
    torch.manual_seed(0)
    layer, x = nn.LSTM(3, 4, batch_first=True), torch.randn(8, 5, 3)
    sequences = pack_padded_sequence(x, [5, 5, 4, 3, 3, 2, 1, 1], batch_first=True)
    inputs = sequences if packed else x
    exact, _ = layer(inputs)
    with torch.autocast("cpu", torch.bfloat16), torch_faults.exact_batch_norm():
        half, _ = layer(inputs)
    if packed:
        exact, half = exact.data, half.data
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0, atol=0.01)


class Cells(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        name, _, nonlinearity = kind.partition(" ")
        options = {"nonlinearity": nonlinearity} if nonlinearity else {}
        self.cell, self.head = getattr(nn, name)(3, 4, **options), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell tanh", "RNNCell relu"])
def test_cells(kind):
    torch.manual_seed(0)
    assert_agrees(Cells(kind), torch.randn(3, 4, 3))


class LearnedStart(nn.Module):
    """The first hidden state is a parameter, expanded to the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.rnn = nn.Parameter(torch.randn(1, 1, 4)), nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x, self.start.expand(1, len(x), 4).contiguous())
        return self.head(out[:, -1])


def test_a_learned_initial_state():
    torch.manual_seed(0)
    assert_agrees(LearnedStart(), torch.randn(3, 4, 3))


class Packed(nn.Module):
    """All outputs of sequences of unequal lengths, and the states after their own ends."""

    def __init__(
        self, kind: type[nn.RNNBase], sorted_: bool, learned: bool, **options: Any
    ) -> None:
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True, **options)
        self.start = nn.Parameter(torch.randn(self.states, 1, 4)) if learned else None
        self.head, self.sorted = nn.LazyLinear(3), sorted_

    @property
    def states(self) -> int:
        return self.rnn.num_layers * (2 if self.rnn.bidirectional else 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            x.sin(), lengths.cpu(), batch_first=True, enforce_sorted=self.sorted
        )
        start = None
        if self.start is not None:
            start = self.start.expand(self.states, len(x), -1).contiguous()
        out, last = self.rnn(packed, start)
        out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        last = last if isinstance(last, tuple) else (last,)
        ends = [state.transpose(0, 1).flatten(1) for state in last]
        return self.head(torch.cat([out.cos().sum(dim=1) - out.shape[1], *ends], dim=1))


def assert_packed_agrees(kind: Any, lengths: list[int], **options: Any) -> None:
    torch.manual_seed(0)
    options = {"sorted_": False, "learned": False, **options}
    model, x = Packed(kind, **options), torch.randn(len(lengths), 5, 3)
    model(x, torch.tensor(lengths))  # tells the head its width
    assert_agrees(model, (x, torch.tensor(lengths)), path="kernels")


@pytest.mark.parametrize(
    "lengths", mark_rest_long([[5, 2, 4], [4], [2, 1, 5, 2, 5, 1], [1, 5], [3, 3, 3, 3]], 2)
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_packed_sequences(kind, options, lengths):
    assert_packed_agrees(kind, lengths, **options)


def test_packed_sequences_of_a_projected_lstm():
    assert_packed_agrees(nn.LSTM, [5, 2, 4], proj_size=2, bidirectional=True)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_packed_sequences_from_a_learned_state(kind):
    assert_packed_agrees(kind, [5, 2, 4], learned=True)


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    projected=st.booleans(),
)
def test_any_form_of_packed_sequences(kind, lengths, layers, bidirectional, bias, projected):
    options = {"proj_size": 2} if projected and kind is nn.LSTM else {}
    assert_packed_agrees(
        kind, lengths, num_layers=layers, bidirectional=bidirectional, bias=bias, **options
    )


def test_packed_sequences_that_are_sorted_already():
    assert_packed_agrees(nn.LSTM, [5, 4, 4, 1], sorted_=True)


class PackedBetween(nn.Module):
    """Layers between packing and unpacking, where samples lie sorted and packed."""

    def __init__(self, between: bool) -> None:
        super().__init__()
        self.before, self.rnn = nn.Linear(3, 3), nn.GRU(3, 4, batch_first=True)
        self.between, self.head = nn.Linear(3, 3) if between else None, nn.Linear(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.before(x).sin(), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        if self.between is not None:
            packed = packed._replace(data=self.between(packed.data).sin())
        return self.head(self.rnn(packed)[1][-1])


@pytest.mark.parametrize("between", [False, True])
def test_batches_that_are_sorted_in_unlike_ways(between):
    torch.manual_seed(0)
    model, probed = PackedBetween(between).double().eval(), []
    on_gradient = LayoutProbe.on_gradient

    def watched_hear(self: LayoutProbe, index: int, *heard: Any) -> None:
        probed.append(index)
        on_gradient(self, index, *heard)

    with mock.patch.object(LayoutProbe, "on_gradient", watched_hear), watched() as seen:
        for lengths in ([2, 5, 4], [5, 2, 4], [1, 1, 5, 3], [4, 5]):
            x = torch.randn(len(lengths), 5, 3).double(), torch.tensor(lengths)
            probed.clear()
            truth = norms_one_by_one(model, x)
            assert relative_error(gradient_norms(model, x, "entropy"), truth) < 1e-9
            assert probed or not between
    assert seen.path == "kernels"


class PackedByLength(nn.Module):
    """Takes samples from the longest to the shortest; a layer works on the packed rows."""

    def __init__(self, unpacks: bool) -> None:
        super().__init__()
        self.between, self.rnn = nn.Linear(3, 4), nn.GRU(4, 4, batch_first=True)
        self.head, self.unpacks = nn.Linear(4, 2), unpacks

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        packed = packed._replace(data=self.between(packed.data).tanh())
        if not self.unpacks:
            return self.head(self.rnn(packed)[1][0])
        return self.head(nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)[0].sum(dim=1))


@pytest.mark.parametrize("unpacks", [False, True])
def test_lengths_that_add_up_to_as_many_packed_rows(unpacks):
    torch.manual_seed(0)
    model = PackedByLength(unpacks).double().eval()
    for lengths in ([4, 2, 1], [3, 2, 2], [3, 3, 1], [4, 2, 1], [3, 2, 2]):
        x = torch.randn(3, 4, 3).double(), torch.tensor(lengths)
        truth = norms_one_by_one(model, x)
        assert relative_error(gradient_norms(model, x, "entropy"), truth) < 1e-9


def test_sorted_sequences_that_a_recurrence_alone_takes_are_known():
    torch.manual_seed(0)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            steps, last = self.rnn(packed)
            steps, _ = nn.utils.rnn.pad_packed_sequence(steps, batch_first=True)
            return self.head(steps.sum(dim=1) + last[0])

    model, probed = Plain().double().eval(), []
    on_gradient = LayoutProbe.on_gradient

    def watched_hear(self: LayoutProbe, index: int, *heard: Any) -> None:
        probed.append(index)
        on_gradient(self, index, *heard)

    with mock.patch.object(LayoutProbe, "on_gradient", watched_hear):
        for turn, lengths in enumerate(([4, 2, 1], [4, 2, 1], [4, 2, 1])):
            x = torch.randn(3, 4, 3).double(), torch.tensor(lengths)
            probed.clear()
            truth = norms_one_by_one(model, x)
            assert relative_error(gradient_norms(model, x, "entropy"), truth) < 1e-9
            assert bool(probed) == (turn == 0)
