"""Statistics of a batch behind a condition that the first batch does not set off."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from oracle import assert_agrees
from torch import Tensor, nn
from torch.nn import functional as F

from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.proofs.dependence import of_products, try_dependence
from upslope.gradnorm.proofs.owners import front_owners


def squares(outputs: Tensor) -> Tensor:
    return outputs.square().sum(dim=1)


def mean_weights(x: Tensor) -> Tensor:
    return torch.full((1, len(x)), 1 / len(x), dtype=x.dtype)


def bounds(x: Tensor) -> Tensor:
    return torch.linspace(-3, 3, 601, dtype=x.dtype)


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "product with weights": lambda x: mean_weights(x) @ x,
    "einsum": lambda x: torch.einsum("nd->d", x) / len(x),
    "linear of the transpose": lambda x: F.linear(x.T, mean_weights(x)).T,
    "pooling over the batch": lambda x: F.avg_pool1d(x.T[None], len(x))[0].T,
    "convolution over the batch": lambda x: F.conv1d(x.T[:, None], mean_weights(x)[None])[:, 0].T,
    "norm over the batch": lambda x: torch.linalg.vector_norm(x, dim=0),
    "first place of a sort": lambda x: x.sort(0).values[0],
    "added into one row": lambda x: torch.zeros_like(x[:1]).index_add(
        0, torch.zeros(len(x), dtype=torch.long), x
    ),
    "singular values": lambda x: torch.linalg.svdvals(x).sum().expand(5),
    "covariance": lambda x: x.T.cov().diagonal(),
    "correlation": lambda x: torch.corrcoef(x).nan_to_num().sum().expand(5),
    "spectrum": lambda x: torch.fft.rfft(x, dim=0)[0].real,
    "layer norm of the transpose": lambda x: F.layer_norm(x.T, (len(x),)).T,
    "mean": lambda x: x.mean(0),
    "comparison": lambda x: torch.greater(x, x.flip(0)).to(x),
    "bits": lambda x: torch.bitwise_xor((9 * x).long(), (9 * x.flip(0)).long()).to(x),
    "divisors": lambda x: torch.gcd((9 * x).long(), (9 * x.flip(0)).long()).to(x),
    "search among others": lambda x: torch.isin((4 * x).round(), (4 * x).round() + 1).to(x),
    "search in rows of others": lambda x: torch.searchsorted(
        x.flip(0).sort(dim=1).values.contiguous(), x
    ).to(x),
    "search in one row for all": lambda x: torch.bucketize(x, x[0].sort().values).to(x),
    "what others have found": lambda x: torch.bucketize(x.flip(0), bounds(x)).to(x),
    "what others were found in": lambda x: torch.isin((9 * x).round(), bounds(x)).flip(0).to(x) - x,
    "products of counts": lambda x: torch.outer(*[(9 * x[:, 0]).long()] * 2).sum(1, True).to(x),
}


class Filling(nn.Module):
    """Holes of a sample are filled with a statistic of the batch."""

    def __init__(self, statistic: Callable[[Tensor], Tensor]):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.statistic = statistic

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.where(x.isnan(), self.statistic(x.nan_to_num(0.0)), x))


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("name", STATISTICS)
def test_a_batch_without_holes_does_not_speak_for_one_with_them(name: str) -> None:
    torch.manual_seed(0)
    model = Filling(STATISTICS[name])
    whole = torch.randn(6, 5, dtype=torch.float64)
    plain = gradient_norms(model.body, whole, squares)
    torch.testing.assert_close(gradient_norms(model, whole, squares), plain, rtol=1e-9, atol=0)
    holes = torch.randn(6, 5, dtype=torch.float64)
    holes[2, 1] = torch.nan
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(model, holes, squares)


@pytest.mark.filterwarnings("ignore::upslope.errors.GradientNormWarning")
@pytest.mark.parametrize("name", ["product with weights", "norm over the batch"])
@pytest.mark.parametrize("place", [0, 17, 63])
def test_a_single_hole_in_a_large_first_batch_is_seen(name: str, place: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 5, dtype=torch.float64)
    x[place, 1] = torch.nan
    with pytest.raises(GradientNormError, match="mixes samples"):
        gradient_norms(Filling(STATISTICS[name]), x, squares)


@pytest.mark.parametrize("n", [2, 3, 6, 8])
def test_operators_say_on_which_samples_their_entries_depend(n: int) -> None:
    x = torch.randn(n, 4, 3)
    given = [(x, front_owners(n, x))]
    for func, args, mixes in [
        (torch.baddbmm, (torch.zeros(3), x, x.transpose(1, 2)[:, :, :3]), False),
        (torch.bmm, (x, torch.randn(n, 3, 2)), False),
        (torch.tensordot, (x, torch.randn(n, 2), ([0], [0])), True),
        (torch.fft.fft, (x, None, 0), True),
        (torch.fft.fft, (x, None, -1), False),
        (torch.renorm, (x, 2, 1, 0.1), True),
        (torch.renorm, (x, 2, 0, 0.1), False),
        (Tensor.index_add_, (torch.zeros(n, 2, 3), 1, torch.tensor([0, 1, 1, 0]), x), False),
        (Tensor.index_add_, (torch.zeros(n, 4, 3), 0, torch.zeros(n, dtype=torch.long), x), True),
        (Tensor.scatter_add_, (torch.zeros(n, 4, 3), 1, torch.zeros(x.shape).long(), x), False),
    ]:
        (depends,) = try_dependence(func, args, {}, given, func(*args)) or [None]
        assert depends is not None, func
        assert depends.mixes is mixes, (func, args[1:])
        if not mixes:
            assert depends.owners is not None
            assert depends.owners.flatten().tolist() == list(range(n))


@pytest.mark.parametrize("n", [2, 3, 6])
def test_operators_in_place_say_on_which_samples_their_entries_depend(n: int) -> None:
    for func, args, mixes in [
        (F.hardswish, (True,), False),
        (F.celu, (1.0, True), False),
        (torch.Tensor.renorm_, (2, 0, 0.1), False),
        (torch.Tensor.renorm_, (2, 1, 0.1), True),
        (torch.Tensor.addr_, (torch.ones(n), torch.ones(3)), False),
        (torch.Tensor.addmm_, (torch.ones(n, n), torch.randn(n, 3)), False),
    ]:
        x = torch.randn(n, 3)
        out = func(x, *args)
        (depends,) = try_dependence(func, (x, *args), {}, [(x, front_owners(n, x))], out) or [None]
        assert depends is not None, func
        assert depends.mixes is mixes, (func, args)
        if not mixes:
            assert depends.owners is not None
            assert depends.owners.flatten().tolist() == list(range(n))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("activation", [nn.Hardswish, nn.Hardsigmoid, nn.Mish, nn.CELU, nn.RReLU])
def test_activations_in_place_are_no_reason_to_look_at_every_batch(
    activation: type[nn.Module],
) -> None:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), activation(inplace=True), nn.Conv2d(4, 2, 3)]
    model = nn.Sequential(*body, activation(inplace=True), nn.Flatten(), nn.Linear(8, 5)).double()
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    assert_agrees(model.eval(), x)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


PRODUCTS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]], list[int | None]]] = {
    "rows and a matrix": (torch.matmul, [(4, 3, 5), (5, 2)], [0, None]),
    "a matrix and columns": (torch.matmul, [(2, 5), (4, 5, 3)], [None, 0]),
    "of each sample": (torch.bmm, [(4, 3, 5), (4, 5, 2)], [0, 0]),
    "samples in rows": (torch.matmul, [(3, 4, 5), (3, 5, 2)], [1, None]),
    "samples in columns": (torch.matmul, [(3, 2, 5), (3, 5, 4)], [None, 2]),
    "summed over samples": (torch.matmul, [(3, 5, 4), (3, 4, 2)], [2, None]),
    "summed over samples of both": (torch.matmul, [(5, 4), (4, 2)], [1, 0]),
    "weights of samples, by a matrix of them": (torch.matmul, [(2, 4), (4, 2)], [None, 0]),
    "all pairs": (torch.matmul, [(4, 5), (5, 4)], [0, 1]),
    "of others": (torch.matmul, [(4, 1, 3, 5), (4, 5, 2)], [0, 0]),
    "attention": (attention, [(4, 2, 3, 5)] * 3, [0, 0, 0]),
    "attention to constants": (attention, [(4, 2, 3, 5)] * 3, [0, None, None]),
    "attention to samples": (attention, [(2, 4, 5)] * 3, [1, 1, 1]),
    "attention between heads": (attention, [(2, 4, 3, 5)] * 3, [1, 1, 1]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_that_are_known_keep_apart_what_trying_them_out_keeps_apart(name: str) -> None:
    func, shapes, places = PRODUCTS[name]
    torch.manual_seed(0)
    operands = [torch.randn(shape) for shape in shapes]
    owners = [
        None if dim is None else front_owners(4, x.movedim(dim, 0)).movedim(0, dim)
        for x, dim in zip(operands, places, strict=True)
    ]
    out = func(*operands)
    known = of_products(
        "scaled_dot_product_attention" if func is attention else func.__name__,
        operands, {}, operands, owners, out,
    )  # fmt: skip
    pairs = [(x, own) for x, own in zip(operands, owners, strict=True) if own is not None]
    tried = try_dependence(func, tuple(operands), {}, pairs, out)
    assert tried is not None
    if known is not None:
        assert not tried[0].mixes
        assert tried[0].owners is not None
        assert torch.equal(known.expand(out.shape), tried[0].owners.expand(out.shape))
    elif name not in ("attention between heads", "attention to constants"):
        assert tried[0].mixes


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "search",
    [
        lambda x: torch.bucketize(x, bounds(x)),
        lambda x: torch.searchsorted(x.sort(dim=1).values, x.flip(1)),
        lambda x: torch.searchsorted(x, x.mean(dim=1, keepdim=True), sorter=x.argsort(dim=1)),
        lambda x: torch.isin((9 * x).round(), bounds(x)),
        lambda x: torch.stack([torch.isin(row, row[:2]) for row in x.unbind()]),
    ],
)
def test_searches_in_tables_of_their_own_are_no_reason_to_look_at_every_batch(
    search: Callable[[Tensor], Tensor],
) -> None:
    class Searching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x * search(x).to(x))

    torch.manual_seed(0)
    model = Searching()
    for _ in range(2):
        x = torch.randn(6, 5, dtype=torch.float64)
        plain = gradient_norms(model.layer, x * search(x).to(x), squares)
        torch.testing.assert_close(gradient_norms(model, x, squares), plain, rtol=1e-9, atol=0)
