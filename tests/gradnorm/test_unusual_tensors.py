"""Jagged tensors, complex outputs, parameters without a shape."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees, norms_one_by_one
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm import explain, gradient_norms


def test_jagged_tensors_go_one_by_one_and_say_so() -> None:
    class Jagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            lengths = (x[:, :, 0] > 0).sum(dim=1).clamp(min=1).tolist()
            rows = [row[:length] for row, length in zip(x, lengths, strict=True)]
            nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
            sums = [row.tanh().sum(dim=0) for row in self.first(nested).unbind()]
            return self.head(torch.stack(sums))

    torch.manual_seed(0)
    model, x = Jagged().double(), torch.randn(4, 6, 5, dtype=torch.float64)
    expected = norms_one_by_one(model, x)
    with pytest.warns(Warning, match="nested tensor"):
        norms = gradient_norms(model, x, "entropy")
    torch.testing.assert_close(norms, expected, rtol=1e-9, atol=0)


def test_complex_outputs_are_explained() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.real, self.imaginary = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.complex(self.real(x), self.imaginary(x))

    assert len(explain(Complex(), torch.randn(4, 5)).uses) == 2


def test_lazy_modules_are_refused_by_name() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh())
    with pytest.raises(GradientNormError, match=r"`0\.weight` belongs to a lazy module"):
        gradient_norms(model, torch.randn(3, 5), "entropy")


def test_an_unbatched_convolution_has_its_kernel() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.conv(image).flatten() for image in x])

    assert_agrees(Loop(), torch.randn(3, 2, 4, 4))


def test_a_parameter_without_entries_has_a_gradient_without_entries() -> None:
    class MeanPooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
            self.no_class_tokens = nn.Parameter(torch.zeros(0, 4))

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.cat((self.no_class_tokens.expand(len(x), 0, 4), self.tokens(x)), dim=1)
            return self.head(tokens.mean(dim=1))

    assert_agrees(MeanPooled(), torch.randn(3, 5, 4))
