"""Sketches keep norms and inner products; inner products are directional derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from upslope.errors import GradientNormError
from upslope.gradnorm import (
    entropy,
    gradient_inner_products,
    gradient_norms,
    gradient_sketches,
)
from upslope.gradnorm.core.gradients.per_sample_gradients import OuterProducts
from upslope.gradnorm.kernels.conv.methods import ConvWeightGradient
from upslope.gradnorm.sketch import Projection, _draw_columns, _draw_rows


class Tied(nn.Module):
    """An embedding whose table is also the decoder: a parameter with two uses of two forms."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.layer(self.words(ids)).mean(dim=1)
        return hidden @ self.words.weight.T


def convolutional() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(8 * 36, 300), nn.ReLU(), nn.Linear(300, 5),
    )  # fmt: skip
    return model.double().eval(), torch.randn(5, 3, 6, 6, dtype=torch.float64)


def tied() -> tuple[nn.Module, Tensor]:
    return Tied().double().eval(), torch.randint(7, (5, 4))


def strided() -> tuple[nn.Module, Tensor]:
    """Convolutions whose borders no position covers, in groups, dilated, one-dimensional."""
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), nn.Tanh(),
        nn.Conv2d(8, 6, (2, 1), dilation=(2, 1)), nn.Tanh(), nn.Conv2d(6, 6, 1), nn.Flatten(2),
        nn.Conv1d(6, 5, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(4),
    )  # fmt: skip
    x = torch.randn(5, 4, 10, 9, dtype=torch.float64)
    model.double()(x)
    return model.eval(), x


def normalised() -> tuple[nn.Module, Tensor]:
    """Weights that are made of a direction and of lengths."""
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(
        norm(nn.Conv1d(3, 6, 3)), nn.Tanh(), norm(nn.Conv1d(6, 6, 2, groups=2), dim=2), nn.Tanh(),
        nn.Flatten(), norm(nn.Linear(30, 4)),
    )  # fmt: skip
    return model.double().eval(), torch.randn(5, 3, 8, dtype=torch.float64)


CASES = pytest.mark.parametrize("make", [convolutional, tied, strided, normalised])


def gradients(model: nn.Module, x: Tensor) -> Tensor:
    """(n, parameters), one sample at a time."""
    rows = []
    for i in range(len(x)):
        found = torch.autograd.grad(entropy(model(x[i : i + 1]))[0], list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


@CASES
def test_sketches_carry_the_exact_norm(make) -> None:
    torch.manual_seed(0)
    model, x = make()
    sketches = gradient_sketches(model, x, "entropy", dim=16)
    torch.testing.assert_close(
        sketches.norms, gradient_norms(model, x, "entropy"), rtol=1e-9, atol=0
    )
    assert sketches.vectors.shape == (5, 16)


@CASES
def test_sketches_keep_inner_products_to_the_stated_error(make) -> None:
    torch.manual_seed(0)
    model, x = make()
    g = gradients(model, x)
    exact = g @ g.T
    dim, seeds = 64, 60
    errors = []
    for seed in range(seeds):
        v = gradient_sketches(model, x, "entropy", dim=dim, seed=seed).vectors
        errors.append(v @ v.T - exact)
    error = torch.stack(errors)
    square = exact.diag()
    bound = 3 * (square[:, None] * square + exact**2) / dim  # of the variance
    # The mean over seeds is within four standard errors of zero, the variance within its bound.
    assert bool((error.mean(dim=0).abs() <= 4 * (bound / seeds).sqrt()).all())
    assert bool((error.square().mean(dim=0) <= 1.6 * bound).all())


def test_a_sketch_depends_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    model, x = convolutional()
    one = gradient_sketches(model, x, "entropy", dim=32, seed=3).vectors
    torch.manual_seed(1)
    rest = gradient_sketches(model, x[1:3], "entropy", dim=32, seed=3).vectors
    torch.testing.assert_close(rest, one[1:3])
    assert not torch.allclose(one, gradient_sketches(model, x, "entropy", dim=32, seed=4).vectors)


def test_a_large_product_is_sketched_as_if_it_were_formed() -> None:
    torch.manual_seed(0)
    part = OuterProducts(torch.randn(4, 3, 20).double(), torch.randn(4, 3, 30).double())
    projection = Projection(16, seed=0)
    formed = projection.dense("weight", part.materialize(slice(0, 4)))
    (piece,) = part.outer_products(1 << 20, 3) or ()
    torch.testing.assert_close(projection.outer("weight", piece, 30), formed)
    assert part.outer_products(1 << 20, 2) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_halves_are_sketched_in_single_precision(dtype) -> None:
    torch.manual_seed(0)
    part = OuterProducts(torch.randn(4, 3, 20).to(dtype), torch.randn(4, 3, 30).to(dtype))
    projection = Projection(16, seed=0)
    formed = projection.dense("weight", part.g.float().mT @ part.x.float())
    (piece,) = part.outer_products(1 << 20, 3) or ()
    torch.testing.assert_close(projection.outer("weight", piece, 30), formed)


@pytest.mark.filterwarnings("error")
def test_models_in_bfloat16_keep_their_kernels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(600, 300), nn.Tanh(), nn.Linear(300, 5)).bfloat16()
    x = torch.randn(3, 600).bfloat16()
    found = gradient_sketches(model, x, "entropy", dim=64).vectors.float()
    expected = gradient_sketches(model.float(), x.float(), "entropy", dim=64).vectors
    errors = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert bool((errors < 0.05).all())


@pytest.mark.parametrize("shape", [(7,), (3, 5), (4, 3, 2, 2), (6, 600, 90)])
def test_entries_go_to_the_buckets_that_the_hashes_say(shape) -> None:
    """By a loop over entries; weights those that are kept and those that are not."""
    torch.manual_seed(0)
    projection, rows = Projection(16, seed=5), torch.randn(2, *shape).double()
    buckets, signs = of_entries(16, "5/weight", shape)
    expected = torch.zeros(2, 16).double()
    for n in range(2):
        expected[n] = torch.bincount(buckets.flatten(), (rows[n] * signs).flatten(), 16)
    for _ in range(2):  # the second time, buckets are known
        torch.testing.assert_close(projection.dense("weight", rows), expected)
    if len(shape) == 4:
        last = rows.movedim(2, -1).contiguous().movedim(-1, 2)
        torch.testing.assert_close(projection.dense("weight", last), expected)


def of_entries(dim: int, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The buckets and signs of the entries of a weight, of its shape."""
    taps = math.prod(shape[2:])
    columns = _draw_columns(dim, name, shape[:2][-1], taps)
    b, r = columns.buckets.T, columns.signs.T  # (c, taps)
    if len(shape) == 1:
        return b[:, 0], r[:, 0].double()
    a, s, _ = _draw_rows(dim, name, shape[0])
    buckets, signs = (a[:, None, None] + b) % dim, s[:, None, None] * r
    return buckets.reshape(shape), signs.reshape(shape).double()


@pytest.mark.parametrize(("channels", "dim"), [(5, 8), (8, 8), (21, 8), (3, 1)])
def test_runs_go_to_the_buckets_of_their_entries(channels, dim) -> None:
    """All at once and entry by entry, both as the hashes say."""
    torch.manual_seed(0)
    taps = [torch.randn(4, 3, channels).double() for _ in range(2)]
    hashes = _draw_columns(dim, "0/weight", channels, 2)
    expected = torch.zeros(4, 3, dim).double()
    for values, buckets, signs in zip(taps, hashes.buckets, hashes.signs, strict=True):
        for i in range(channels):
            expected[..., buckets[i]] += signs[i] * values[..., i]
    for entries in (1, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("upslope.gradnorm.sketch._WORTH_A_CALL", entries)
            found = Projection(dim, 0)._columns("weight", taps)
        torch.testing.assert_close(found, expected)


def test_entries_of_a_row_meet_no_more_often_than_at_random() -> None:
    """In a run never, in two runs or at two entries of a kernel once in `dim` draws."""
    dim, draws = 8, 4000
    buckets = torch.stack(
        [_draw_columns(dim, str(k), 12, 2).buckets.flatten() for k in range(draws)]
    )
    same = (buckets[:, :, None] == buckets[:, None, :]).double().mean(dim=0)
    place = torch.arange(24)
    run = place // 12 * 2 + place % 12 // dim
    in_one_run = run[:, None] == run
    assert bool((same[in_one_run] == torch.eye(24)[in_one_run]).all())
    assert bool(((same[~in_one_run] - 1 / dim).abs() < 5 * (1 / dim / draws) ** 0.5).all())


@pytest.mark.parametrize("channels", [2, 6])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, (3, 2)])
def test_a_convolution_is_sketched_as_if_its_gradient_were_formed(
    channels, memory_format, kernel, monkeypatch
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 5, kernel, stride=2, padding=0 if kernel == 1 else 1)
    x = torch.randn(3, channels, 5, 4).double().contiguous(memory_format=memory_format)
    assert_sketched_as_if_formed(conv, x, monkeypatch)


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv1d(3, 5, 4, stride=3, dilation=2), (3, 14)),
        (nn.Conv3d(3, 5, (1, 2, 3), padding=1), (3, 2, 3, 4)),
        (nn.ConvTranspose1d(3, 5, 3, stride=2, output_padding=1), (3, 6)),
        (nn.ConvTranspose2d(3, 5, 2, padding=1), (3, 5, 4)),
    ],
)
def test_convolutions_of_every_kind_are_sketched_so(conv, shape, monkeypatch) -> None:
    assert_sketched_as_if_formed(conv, torch.randn(3, *shape).double(), monkeypatch)


def assert_sketched_as_if_formed(conv: nn.Module, x: Tensor, monkeypatch) -> None:
    model = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    model(x)
    formed = gradient_sketches(model, x, "entropy", dim=8)
    taken = []

    def outer_products(self, scratch, _, own=ConvWeightGradient.outer_products):
        taken.append(self)
        return own(self, scratch, 99)

    monkeypatch.setattr(ConvWeightGradient, "outer_products", outer_products)
    transformed = gradient_sketches(model, x, "entropy", dim=8)
    assert taken
    torch.testing.assert_close(transformed.vectors, formed.vectors)
    torch.testing.assert_close(transformed.norms, formed.norms)


@CASES
def test_inner_products_are_those_of_the_gradients(make) -> None:
    torch.manual_seed(0)
    model, x = make()
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    flat = torch.cat([d.flatten() for d in direction.values()])
    found = gradient_inner_products(model, x, "entropy", direction)
    torch.testing.assert_close(found, gradients(model, x) @ flat, rtol=1e-9, atol=1e-12)


def test_inner_products_without_a_forward_mode() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(Square.apply(self.a(x)))
            return out

    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(3, 4, dtype=torch.float64)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    flat = torch.cat([d.flatten() for d in direction.values()])
    found = gradient_inner_products(model, x, "entropy", direction)
    torch.testing.assert_close(found, gradients(model, x) @ flat, rtol=1e-9, atol=1e-12)


def test_inner_products_see_what_autograd_sees() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            with torch.no_grad():
                aside = torch.tanh(self.first(x))
            h.register_hook(lambda g: g * 0.5)
            out: Tensor = self.second(h + aside)
            return out

    torch.manual_seed(0)
    model, x = Cut().double(), torch.randn(3, 4, dtype=torch.float64)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    flat = torch.cat([d.flatten() for d in direction.values()])
    inner = gradient_inner_products(model, x, "entropy", direction)
    torch.testing.assert_close(inner, gradients(model, x) @ flat, rtol=1e-9, atol=1e-12)


def test_inner_products_of_complex_parameters_are_derivatives() -> None:
    class Turn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.turn = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.complex128) @ self.turn).abs()

    torch.manual_seed(0)
    model, x = Turn(), torch.randn(3, 4, dtype=torch.float64)
    v = torch.randn(4, 3, dtype=torch.complex128)
    inner = gradient_inner_products(model, x, "entropy", {"turn": v})
    step = 1e-6
    with torch.no_grad():
        sides = []
        for sign in (1, -1):
            model.turn.add_(sign * step * v)
            sides.append(entropy(model(x)))
            model.turn.sub_(sign * step * v)
    torch.testing.assert_close(inner, (sides[0] - sides[1]) / (2 * step), rtol=1e-6, atol=1e-8)


def test_inner_products_refuse_what_mixes() -> None:
    direction = {"0.weight": torch.ones(5, 3, dtype=torch.float64)}
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    before = model[1].running_mean.clone()
    with pytest.raises(GradientNormError, match="fixed statistics"):
        gradient_inner_products(model, torch.randn(4, 3).double(), "entropy", direction)
    assert torch.equal(model[1].running_mean, before)
    model.eval()[0].weight.requires_grad_(False)
    with pytest.raises(GradientNormError, match=r"require a gradient but '0\.weight'"):
        gradient_inner_products(model, torch.randn(4, 3).double(), "entropy", direction)


def test_a_direction_must_fit_the_model() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(GradientNormError, match="'weight' has \\(3, 2\\) where the model has"):
        gradient_inner_products(model, torch.randn(2, 3), "entropy", {"weight": torch.zeros(3, 2)})
    with pytest.raises(GradientNormError, match="no such parameter"):
        gradient_inner_products(model, torch.randn(2, 3), "entropy", {"w": torch.zeros(1)})
    for numbers, words in (
        (torch.full((2, 3), math.nan), "finite numbers but some of 'weight'"),
        (
            torch.full((2, 3), 1e300, dtype=torch.float64),
            r"'weight' are not, as numbers of type torch\.float32",
        ),
        (torch.ones(2, 3) * 1j, r"real numbers for 'weight', .* but got torch\.complex64"),
    ):
        with pytest.raises(GradientNormError, match=words):
            gradient_inner_products(model, torch.randn(2, 3), "entropy", {"weight": numbers})
    with pytest.raises(
        GradientNormError, match="`dim` to be a whole number of at least 1 but got 0"
    ):
        gradient_sketches(model, torch.randn(2, 3), "entropy", dim=0)


def test_sketches_of_gradients_without_a_norm_are_refused() -> None:
    """A root at zero has an infinite slope (what float32 cannot square has one: `test_range`)."""

    def losses(outputs: Tensor) -> Tensor:
        return (outputs - outputs.detach()).sqrt().sum(dim=1)

    with pytest.raises(GradientNormError, match=r"norms of samples \[0, 1\] are \[inf"):
        gradient_sketches(nn.Linear(3, 2), torch.ones(2, 3), losses)


def test_looked_up_rows_are_sketched_as_if_the_table_were_formed() -> None:
    """Words that come again, that pad, and that a bag counts; against autograd."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 5, padding_idx=0)
            self.bag = nn.EmbeddingBag(9, 5, mode="sum")
            self.head = nn.Linear(5, 3)

        def forward(self, ids: Tensor) -> Tensor:
            hidden = torch.tanh(self.words(ids)).mean(dim=1) + torch.tanh(self.bag(ids[:, :2]))
            out: Tensor = self.head(hidden)
            return out

    torch.manual_seed(0)
    model, ids = Words().double(), torch.randint(9, (6, 7))
    ids[:, 3] = ids[:, 1]
    ids[0, 5:] = 0
    found = gradient_sketches(model, ids, "entropy", dim=8)
    g = gradients(model, ids)
    torch.testing.assert_close(found.norms, g.norm(dim=1))
    sizes = [p.numel() for p in model.parameters()]
    expected = sum(
        Projection(8, 0).dense(name, rows.view(6, *p.shape))
        for (name, p), rows in zip(model.named_parameters(), g.split(sizes, dim=1), strict=True)
    )
    torch.testing.assert_close(found.vectors, expected)


class Experts(nn.Module):
    """Each row goes to one expert, which others may leave without any."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(4, 3), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        p = self.gate(x).softmax(dim=1)
        out = x.new_zeros(len(x), 8)
        for k, expert in enumerate(self.experts):
            rows = (p.argmax(dim=1) == k).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(x[rows]) * p[rows, k, None])
        return self.head(out)


@pytest.mark.filterwarnings("error")
def test_sketches_of_experts_without_rows_keep_their_kernels() -> None:
    torch.manual_seed(0)
    model = Experts().double()
    for n in (6, 1, 9, 1):
        x = torch.randn(n, 4, dtype=torch.float64)
        sketches = gradient_sketches(model, x, "entropy", dim=64)
        torch.testing.assert_close(sketches.norms, gradients(model, x).norm(dim=1))
        dense = Projection(64, 0)
        total = torch.zeros(n, 64, dtype=torch.float64)
        for i in range(n):
            loss = entropy(model(x[i : i + 1]))[0]
            pairs = dict(model.named_parameters())
            grads = torch.autograd.grad(loss, list(pairs.values()), allow_unused=True)
            for (name, _), g in zip(pairs.items(), grads, strict=True):
                total[i] += 0 if g is None else dense.dense(name, g[None])[0]
        torch.testing.assert_close(sketches.vectors, total)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_that_cancel_are_no_false_alarm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(5, 4).to(dtype), torch.randn(6, 5, dtype=dtype)
    along = {"weight": torch.ones(4, 5)}
    products = gradient_inner_products(model, x, "entropy", along)
    # Of a softmax the gradients of all rows add up to nothing.
    assert bool((products.abs() < 100 * torch.finfo(dtype).eps).all())
