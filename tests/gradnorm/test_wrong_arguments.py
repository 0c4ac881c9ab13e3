"""Arguments that cannot be: each is told by name, with the value and what was expected."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError
from upslope.gradnorm import (
    entropy_over,
    estimated_rms_length,
    expected,
    expected_gradient_length,
    explain,
    gradient_inner_products,
    gradient_norms,
    gradient_sketches,
    label_free,
    samples_that_fit,
    select,
    supervised,
)

MODEL = nn.Sequential(nn.Linear(5, 4)).double()
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 3, 0, 1])
NAN, ONES = float("nan"), torch.ones(3, 2)

FUNCTIONS: dict[Callable[..., Any], dict[str, Any]] = {
    gradient_norms: {"loss": "entropy"},
    gradient_sketches: {"loss": "entropy"},
    gradient_inner_products: {"loss": "entropy", "direction": {"0.bias": torch.ones(4)}},
    expected_gradient_length: {},
    estimated_rms_length: {},
    samples_that_fit: {},
    explain: {},
    select: {},
}

WRONG: dict[str, tuple[Any, ...]] = {
    "model": (None, "text", 3, torch.relu, torch.ones(2)),
    "loss": (None, "text", NAN, [], {}, ONES),
    "norm": (None, "text", 2, [], ONES),
    "parameters": ("text", NAN, -1, True, ONES, torch.ones(()), [None]),
    "max_memory": ("1GB", NAN, -1, 0, True, ONES, [], float("inf")),
    "memory": ("1GB", NAN, -1, 0, True, ONES),
    "dtype": ("half", torch.float64, 16),
    "share": (None, "all", NAN, -1, 0, 2.0, ONES),
    "kind": (None, "text", ONES, []),
    "logits": (None, "text", 3, lambda _: None, lambda z: z.long()),
    "probes": (None, "many", NAN, 2.5, 1, True, ONES),
    "dim": (None, "wide", NAN, 1.5, 0, True, ONES),
    "seed": (None, "text", NAN, 0.5, True, ONES),
    "direction": (None, "text", [], {"0.bias": None}, {"0.bias": torch.ones(3)}, {"x": ONES}),
}

KEYWORDS = {
    gradient_norms: ("model", "loss", "norm", "parameters", "max_memory", "dtype"),
    gradient_sketches: ("model", "loss", "dim", "seed", "parameters", "max_memory"),
    gradient_inner_products: ("model", "loss", "direction", "max_memory"),
    expected_gradient_length: ("model", "share", "kind", "norm", "parameters", "logits", "dtype"),
    estimated_rms_length: ("model", "probes", "seed", "parameters", "max_memory", "logits"),
    samples_that_fit: ("model", "memory"),
    explain: ("model", "parameters"),
    select: ("model", "parameters"),
}


@pytest.mark.parametrize(
    ("function", "name"), [(f, name) for f, names in KEYWORDS.items() for name in names]
)
def test_a_wrong_argument_is_told_by_name(function: Callable[..., Any], name: str) -> None:
    for value in WRONG[name]:
        arguments = {"model": MODEL, "inputs": X, **FUNCTIONS[function], name: value}
        with pytest.raises(GradientNormError, match="Expected") as caught:
            function(**arguments)
        assert name in str(caught.value) or name == "parameters", str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: supervised(Y[:5]), "label for each of the 6 samples but got 5"),
        (lambda: supervised(Y[:, None]), r"labels of shape \(6,\), .*but got \(6, 1\)"),
        (lambda: supervised(torch.tensor(1)), "6 samples but got a single number"),
        (lambda: supervised(Y + 6), r"labels in 0..3, .*4 classes, but got 9.*-100"),
        (lambda: supervised(Y - 1), r"labels in 0..3, .*but got -1"),
        (lambda: supervised(Y.double()), r"torch.float64 of shape \(6,\).*labels.long"),
        (lambda: supervised(Y.int()), r"torch.int64 but got torch.int32.*labels.long"),
        (lambda: supervised(Y > 1), "torch.int64 but got torch.bool"),
        (lambda: supervised([0, 1]), "labels in a tensor but got an object of type list"),
        (lambda: supervised(Y, None), "`criterion` to be called as .* but got None"),
        (lambda: supervised(Y, lambda o, t: F.nll_loss(o, t)), r"takes \(o, t\)\. .*lambda logits"),
        (lambda: supervised(Y, nn.CrossEntropyLoss()), r"CrossEntropyLoss takes \(input"),
        (lambda: expected(nn.CrossEntropyLoss()), r"CrossEntropyLoss takes \(input"),
        (lambda: expected(posterior=ONES), "but got a tensor of shape"),
        (lambda: expected(dim="1"), "`dim` to be None or a whole number, a dimension, but got '1'"),
        (lambda: entropy_over(1.0), "`dim` to be None or a whole number"),
        (lambda: label_free(3), "`loss` to be a function.*but got 3"),
    ],
)
def test_a_loss_that_cannot_be_is_told(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(GradientNormError, match=words):
        gradient_norms(MODEL, X, make())


def test_labels_that_cross_entropy_takes_are_taken() -> None:
    norms = gradient_norms(MODEL, X, supervised(Y))
    assert torch.equal(norms, gradient_norms(MODEL, X, supervised(Y.byte())))
    one_hot = F.one_hot(Y, 4).double()
    torch.testing.assert_close(norms, gradient_norms(MODEL, X, supervised(one_hot)))

    def plain(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(logits, labels, reduction=reduction)

    torch.testing.assert_close(norms, gradient_norms(MODEL, X, supervised(Y, plain)))
    ignored = gradient_norms(MODEL, X, supervised(Y.index_fill(0, torch.tensor([0]), -100)))
    assert ignored[0] == 0
    assert torch.equal(ignored[1:], norms[1:])


def test_counts_of_numpy_are_counts() -> None:
    numpy = pytest.importorskip("numpy")
    sketches = gradient_sketches(MODEL, X, "entropy", dim=numpy.int64(8), seed=numpy.int32(1))
    assert torch.equal(sketches.vectors, gradient_sketches(MODEL, X, "entropy", dim=8, seed=1)[1])


def test_numbers_of_any_type_and_size_are_numbers() -> None:
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten())
    model, x = nn.Sequential(*layers, nn.Linear(512, 4)).double(), torch.randn(9, 3, 8, 8).double()
    for bound in (2e4, 5e4, Fraction(60_001, 2)):
        norms = gradient_norms(model, x, "entropy", max_memory=bound)  # type: ignore[arg-type]
        assert torch.equal(norms, gradient_norms(model, x, "entropy", max_memory=int(bound)))
    half = expected_gradient_length(MODEL, X, share=Fraction(1, 2))  # type: ignore[arg-type]
    assert torch.equal(half.scores, expected_gradient_length(MODEL, X, share=0.5).scores)
    for seed in (2**70 + 3, -(2**70) + 3):
        scores = estimated_rms_length(MODEL, X, seed=seed).scores
        assert torch.equal(scores, estimated_rms_length(MODEL, X, seed=3).scores)
    below_zero = estimated_rms_length(MODEL, X, seed=-1).scores
    assert torch.equal(below_zero, estimated_rms_length(MODEL, X, seed=2**64 - 1).scores)


@pytest.mark.parametrize("function", [gradient_norms, gradient_sketches, explain])
def test_parameters_made_in_inference_mode_are_refused_by_name(function: Any) -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    more = () if function is explain else ("entropy",)
    with pytest.raises(GradientNormError, match=r"'0.weight', '0.bias'.*`torch.inference_mode`"):
        function(model, X.float(), *more)
    function(copy.deepcopy(model), X.float(), *more)  # as the error says
