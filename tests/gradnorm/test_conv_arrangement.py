"""Convolutions of single pixels are products of matrices where that is faster, with one norm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from oracle import assert_agrees
from torch import nn

from upslope.gradnorm.core import matrix_products
from upslope.gradnorm.kernels.conv import arrangement
from upslope.gradnorm.kernels.conv.operands import Geometry

PIXEL = Geometry((1, 1), (0, 0), (1, 1), 1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    arrangement._arrange.cache_clear()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
    arrangement._arrange.cache_clear()


def is_product(n: int, side: int, o: int = 24, c: int = 16) -> bool:
    x, weight = torch.empty(n, c, side, side), torch.empty(o, c, 1, 1)
    return arrangement.arrange(x, weight, PIXEL, is_first=False, is_transposed=False).is_product


@pytest.mark.usefixtures("two_threads")
def test_few_pixels_are_a_product_whatever_the_number_of_threads() -> None:
    assert is_product(8, 16)
    assert is_product(2048, 1)
    assert not is_product(9, 16)
    assert not is_product(2049, 1)


@pytest.mark.usefixtures("two_threads")
def test_large_products_of_few_pixels_stay_where_onednn_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for blas_suffices in (True, False):
        monkeypatch.setattr(matrix_products, "_BLAS_SUFFICES", blas_suffices)
        arrangement._arrange.cache_clear()
        assert is_product(8, 8, 64, 32)
        expected = blas_suffices or not matrix_products._AVAILABLE
        assert is_product(8, 8, 512, 512) == expected


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("side", [1, 4, 40])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_norms_of_pixels_with_two_threads(side: int, order: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(5, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 7, 1, bias=False),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 3),
    ).eval()  # fmt: skip
    x = torch.randn(6, 5, side, side).contiguous(memory_format=order)
    assert_agrees(model, x)
