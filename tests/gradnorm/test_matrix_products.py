"""Products by either library are the product, whatever the strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.gradnorm.core import matrix_products
from upslope.gradnorm.core.chunks import SCRATCH
from upslope.gradnorm.core.gradients.per_sample_gradients import OuterProducts


@pytest.fixture(params=[0, 10**12], ids=["oneDNN", "BLAS"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == 0 and not matrix_products._AVAILABLE:
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(matrix_products, "_BLAS_SUFFICES", False)
    for limit in ("WORTH", "WORTH_EACH"):
        monkeypatch.setattr(matrix_products, limit, request.param)


def strided(*shape: int) -> list[Tensor]:
    """The same numbers laid out in several ways."""
    dense = torch.randn(*shape)
    wide = torch.randn(*shape[:-1], 3 * shape[-1])
    wide[..., shape[-1] : 2 * shape[-1]] = dense
    return [dense, dense.mT.contiguous().mT, wide[..., shape[-1] : 2 * shape[-1]]]


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (1, 4, 40, 5), (0, 5)])
def test_linear(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    bias = torch.randn(7)
    for x in strided(*shape):
        for weight in strided(7, 5):
            for b in (bias, None):
                expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
                found = matrix_products.linear(x, weight, b)
                torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_library")
def test_batches_of_products() -> None:
    torch.manual_seed(0)
    for a in strided(3, 4, 6):
        for b in strided(3, 6, 5):
            expected = a.double() @ b.double()
            found = matrix_products.batched_products(a, b).double()
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_library")
def test_products_that_are_prepared_of_one_weight_and_of_several() -> None:
    torch.manual_seed(0)
    for weight in (*strided(7, 5), *strided(2, 7, 5)):
        several = weight.shape[:-2]
        y, x = torch.randn(*several, 4, 7), torch.randn(*several, 4, 5)
        add_product = matrix_products.prepare_product(weight, 4)
        for shift in (y, y[..., :1, :], torch.randn(1)):
            expected = shift.double() + x.double() @ weight.double().mT
            found = add_product(x, shift).double()
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("scratch", [SCRATCH, 40 * 4 * 7])
def test_sums_of_outer_products_in_float32(scratch: int) -> None:
    torch.manual_seed(0)
    for x in strided(3, 9, 40):
        for g in strided(3, 9, 48):
            expected = (g.double().mT @ x.double()).square().sum(dim=(1, 2))
            for method in (OuterProducts.direct, OuterProducts.ghost):
                found = method(OuterProducts(x, g), scratch).double()
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch, of its own flags
def test_only_large_products_of_single_precision_on_a_cpu_go_to_the_other_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(matrix_products, "_BLAS_SUFFICES", False)
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    assert not matrix_products.prefers_onednn(matrix_products.WORTH - 1, single)
    assert not matrix_products.prefers_onednn(matrix_products.WORTH, single, double)
    assert (
        matrix_products.prefers_onednn(matrix_products.WORTH, single, single)
        == matrix_products._AVAILABLE
    )
    each = matrix_products.WORTH_EACH
    assert not matrix_products.prefers_onednn_for_each(each - 1, single)
    assert matrix_products.prefers_onednn_for_each(each, single) == matrix_products._AVAILABLE
    with torch.backends.mkldnn.flags(enabled=False):
        assert not matrix_products.prefers_onednn(matrix_products.WORTH, single)


@pytest.mark.parametrize(
    ("processor", "suffices"),
    [
        ({"cpu_name": "Intel Xeon", "avx2": True, "avx512_f": True}, True),
        ({"cpu_name": "Intel Xeon"}, True),
        ({"cpu_name": "AMD EPYC", "avx2": True, "avx512_f": True}, False),
        ({"cpu_name": "AMD EPYC", "avx2": True, "avx512_f": False}, True),
        ({"cpu_name": "AMD EPYC", "avx2": True}, False),
        ({"cpu_name": "AMD EPYC"}, False),
        ({}, False),
    ],
)
def test_mkl_takes_all_products_of_processors_that_it_makes_full_use_of(
    processor: dict[str, object], suffices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    assert matrix_products._is_mkl_at_full_speed() == suffices
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not matrix_products._is_mkl_at_full_speed()


def test_no_product_goes_to_onednn_where_blas_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not matrix_products._is_mkl_at_full_speed()
    monkeypatch.setattr(matrix_products, "_BLAS_SUFFICES", True)
    assert not matrix_products.prefers_onednn(10 * matrix_products.WORTH, torch.zeros(1))
