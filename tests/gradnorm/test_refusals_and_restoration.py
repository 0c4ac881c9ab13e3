"""What is refused, and by which words; and that nothing is left behind, whatever happens."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees, assert_unchanged, state
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from upslope.errors import GradientNormError, UpslopeError
from upslope.gradnorm import expected, expected_gradient_length, gradient_norms, select


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3)
    ).double()


X = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0)).double()


def refused(model: nn.Module, words: str, inputs=X, loss="entropy", **options) -> None:
    before, random = state(model), torch.get_rng_state()
    with pytest.raises(GradientNormError, match=words) as caught:
        gradient_norms(model, inputs, loss, **options)
    assert isinstance(caught.value, UpslopeError)
    assert_unchanged(before, state(model))
    assert torch.equal(random, torch.get_rng_state())


def test_batch_norm_in_training_mode_is_refused_by_name():
    refused(net().train(), r"`1` normalises by the batch.*eval\(\)")


def test_batch_norm_in_training_mode_is_refused_by_name_where_it_is_frozen():
    model = net().train()
    model[1].requires_grad_(False)
    refused(model, "`1` normalises by the batch")
    refused(net().train(), "`1` normalises by the batch", parameters="last")


def test_batch_norm_without_parameters_or_with_a_single_value_is_refused():
    model = nn.Sequential(
        nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 3)
    ).double()
    refused(model, "`1` normalises by the batch", torch.randn(3, 4).double())
    refused(model, "`1` normalises by the batch", torch.randn(1, 4).double())


def test_batch_norm_without_running_statistics_is_refused_in_eval_mode_as_well():
    model = net().eval()
    model[1] = nn.BatchNorm2d(4, track_running_stats=False).double().eval()
    refused(model, "`1` normalises by the batch.*GroupNorm")


def test_a_reduced_loss_is_refused():
    targets = torch.zeros(3, dtype=torch.long)
    refused(net().eval(), 'reduction="none"', loss=lambda out: F.cross_entropy(out, targets))


@pytest.mark.parametrize("loss", [lambda out: out, lambda out: out[:2, 0], lambda out: 3.0])
def test_a_loss_of_another_shape_is_refused(loss):
    refused(net().eval(), r"one number per sample, shape \(3,\)", loss=loss)


def test_a_loss_that_is_not_finite_is_refused_naming_the_samples():
    x = X.clone()
    x[1, 0, 0, 0] = float("nan")
    refused(net().eval(), r"finite losses but those of samples \[1\] are \[nan\]", x)


def test_unknown_names_are_refused():
    model = net().eval()
    refused(model, "`norm` to be one of.*'l1'", norm="l1")
    refused(model, "`loss` to be a callable or one of.*'mse'", loss="mse")
    refused(model, r"\['head'\] are none", parameters=["head", "4.weight"])
    refused(model, "at least one parameter", parameters=lambda name, p: False)
    with pytest.raises(GradientNormError, match="posterior"):
        expected(posterior="free")
    for options in ({"share": 0.0}, {"share": 1.5}, {"kind": "median"}, {"norm": "l1"}):
        with pytest.raises(GradientNormError, match="Expected `"):
            expected_gradient_length(model, X, **options)


def test_a_model_without_trainable_parameters_is_refused():
    refused(net().eval().requires_grad_(False), "at least one parameter")


def test_inputs_without_a_tensor_are_refused():
    refused(net().eval(), "`inputs` to be a tensor", {"x": 3})


def test_outputs_without_logits_are_refused():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.w(x),)

    refused(Odd().double(), "Expected logits", torch.randn(3, 4).double())
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double()
    refused(model, "Expected logits", torch.randn(3, 4).double())


class Centred(nn.Module):
    def __init__(self, detached: bool, wrapped: bool = False) -> None:
        super().__init__()
        self.body, self.detached, self.wrapped = nn.Linear(4, 3), detached, wrapped

    def forward(self, x: Tensor):
        y = self.body(x)
        mean = y.mean(dim=0)
        y = y - (mean.detach() if self.detached else mean)
        return Wrapped(y) if self.wrapped else y


class Wrapped:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("detached", [False, True])
def test_a_model_that_mixes_samples_is_refused(detached, wrapped):
    torch.manual_seed(0)
    x = torch.randn(4, 4).double()
    refused(Centred(detached, wrapped).double(), "the model mixes samples", x)


def test_the_state_survives_with_gradients_hooks_and_modes_of_the_user():
    model = net().eval()
    model(X).sum().backward()
    model[0].weight.grad = None
    model[1].register_forward_hook(lambda module, args, out: None)
    model[4].register_full_backward_hook(lambda module, inner, outer: None)
    model[2].train()
    model[0].bias.requires_grad_(False)
    assert_agrees(model, X, path="one by one", evaluate=False)  # for the backward hook's sake


def test_the_state_survives_an_exception_in_the_model_and_in_the_loss():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net().eval()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.body(x)
            self.calls += 1
            raise KeyError("in the model")

    model = Fails()
    before = state(model)
    with pytest.raises(KeyError, match="in the model"):
        gradient_norms(model, X, "entropy")
    assert_unchanged(before, state(model))

    def loss(_: Tensor) -> Tensor:
        raise KeyError("in the loss")

    model = net().eval()
    before = state(model)
    with pytest.raises(KeyError, match="in the loss"):
        gradient_norms(model, X, loss)
    assert_unchanged(before, state(model))


def test_the_models_own_error_is_what_the_user_sees():
    with pytest.raises(RuntimeError, match="channels"):
        gradient_norms(net().eval(), torch.randn(3, 5, 6, 6).double(), "entropy")


class Counting(nn.Module):
    """Writes into a buffer, replaces another, in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach().mean(dim=0)[:3]
        return self.body(x)


def test_buffers_that_the_model_writes_are_put_back():
    torch.manual_seed(0)
    assert_agrees(Counting(), torch.randn(3, 4))


@pytest.mark.parametrize("evaluate", [True, False])
def test_instance_norm_in_training_mode_keeps_its_statistics(evaluate):
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    model = nn.Sequential(nn.Conv1d(2, 4, 3), norm, nn.Flatten(), nn.Linear(24, 3)).double()
    if evaluate:
        assert_agrees(model, torch.randn(3, 2, 8))
        return
    before = state(model)
    gradient_norms(model, torch.randn(3, 2, 8).double(), "entropy")
    assert_unchanged(before, state(model))


def test_the_inputs_keep_their_gradient_flag_and_field():
    x = X.clone().requires_grad_()
    gradient_norms(net().eval(), x, "entropy")
    assert x.requires_grad
    assert x.grad is None


def test_it_works_where_gradients_are_off():
    model = net().eval()
    truth = gradient_norms(model, X, "entropy")
    with torch.no_grad():
        assert torch.equal(gradient_norms(model, X, "entropy"), truth)
    with torch.inference_mode():
        assert torch.equal(gradient_norms(model, X, "entropy"), truth)
    with torch.inference_mode():
        made_there = X.clone()
    assert torch.equal(gradient_norms(model, made_there, "entropy"), truth)


def test_repeated_calls_are_equal_bit_for_bit():
    model = net().eval()
    first = gradient_norms(model, X, "entropy")
    assert all(torch.equal(gradient_norms(model, X, "entropy"), first) for _ in range(3))


class DropsInCheckpoint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Tanh())
        self.first, self.head = nn.Linear(4, 4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, self.first(x), use_reentrant=False))


DROPPING = {
    "plain": lambda: nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3)),
    # The engine's own pass ends at a checkpoint, before anything is drawn.
    "checkpoint": DropsInCheckpoint,
    # And here after some numbers were.
    "dropout and checkpoint": lambda: nn.Sequential(
        nn.Linear(4, 4), nn.Dropout(0.5), DropsInCheckpoint()
    ),
}


@pytest.mark.parametrize("kind", DROPPING)
def test_dropout_draws_what_an_ordinary_pass_draws(kind):
    torch.manual_seed(0)
    model = DROPPING[kind]().double().train()
    x = torch.randn(3, 4).double()
    torch.manual_seed(5)
    out = model(x)
    after = torch.get_rng_state()
    losses = torch.special.entr(out.softmax(dim=1)).sum(dim=1)
    truth = [
        torch.cat([g.flatten() for g in torch.autograd.grad(v, [*model.parameters()],
                                                            retain_graph=True)]).norm()
        for v in losses
    ]  # fmt: skip
    torch.manual_seed(5)
    found = gradient_norms(model, x, "entropy")
    assert torch.allclose(found, torch.stack(truth), rtol=1e-12)
    assert torch.equal(after, torch.get_rng_state())


def test_parameters_by_name_prefix_predicate_and_last():
    model = net().eval()
    by_name = {
        "last": lambda name: name.startswith("4."),
        "0": lambda name: name.startswith("0."),
        "1.weight": lambda name: name == "1.weight",
        ("0", "4.bias"): lambda name: name.startswith("0.") or name == "4.bias",
    }
    for parameters, wanted in by_name.items():
        asked = list(parameters) if isinstance(parameters, tuple) else parameters
        assert_agrees(model, X, parameters=asked, wanted=wanted)
    assert_agrees(model, X, parameters=lambda name, p: p.dim() == 1, wanted=lambda n: n not in (
        "0.weight", "4.weight"))  # fmt: skip
    assert_agrees(model, X, parameters="all")


def test_last_runs_no_backward_pass_through_the_body():
    seen = assert_agrees(net(), X, parameters="last", wanted=lambda name: name.startswith("4."))
    assert seen.operators == ["linear"]


def test_tied_parameters_are_chosen_by_either_name():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.decoder = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.decoder.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.decoder(torch.tanh(self.words(ids))).mean(dim=1)

    torch.manual_seed(0)
    model = Tied()
    for parameters in ("decoder.weight", "words", "last"):
        assert list(select(model, parameters)) == ["words.weight"]
        assert_agrees(model, torch.randint(0, 5, (3, 4)), parameters=parameters)
