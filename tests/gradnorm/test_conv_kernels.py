"""Convolutions of every geometry against the oracle, by every method, in every dimension."""

from __future__ import annotations

import warnings
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import assert_agrees, norms_one_by_one, relative_error
from torch import Tensor, nn

from upslope.errors import GradientNormWarning
from upslope.gradnorm import gradient_norms
from upslope.gradnorm.kernels.conv import cost_model, gradients, methods, operands
from upslope.gradnorm.kernels.conv.methods import ConvWeightGradient
from upslope.gradnorm.kernels.conv.operands import Geometry

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
METHODS = sorted(methods.METHODS)
checked = settings(max_examples=10, deadline=None, derandomize=True, database=None)


class Net(nn.Module):
    """A convolution, something smooth, the mean over positions, logits."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv, self.head = conv, nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).square().flatten(2).mean(dim=2))


sizes = st.tuples(*[st.integers(3, 7)] * 3)
kernels = st.tuples(*[st.integers(1, 3)] * 3)
small = st.tuples(*[st.integers(1, 2)] * 3)
pads = st.tuples(*[st.integers(0, 2)] * 3)
narrow_pads = st.tuples(*[st.integers(0, 1)] * 3)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@checked
@given(
    size=sizes, kernel=kernels, stride=small, dilation=small, padding=pads,
    groups=st.sampled_from([1, 2]), each=st.integers(1, 3), bias=st.booleans(), n=st.integers(1, 3),
)  # fmt: skip
def test_any_geometry(dimensions, size, kernel, stride, dilation, padding, groups, each, bias, n):
    d = dimensions
    spans = [(k - 1) * e + 1 for k, e in zip(kernel[:d], dilation[:d], strict=True)]
    assume(all(s + 2 * p >= k for s, p, k in zip(size, padding, spans, strict=False)))
    torch.manual_seed(sum(size))
    conv = CONVOLUTIONS[d - 1](
        groups * each, 2 * groups, kernel[:d], stride[:d], padding[:d], dilation[:d], groups, bias
    )
    assert_agrees(Net(conv, 2 * groups), torch.randn(n, groups * each, *size[:d]))


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_padding_modes(dimensions, padding, mode):
    torch.manual_seed(0)
    # An even kernel makes "same" lopsided.
    kernel, dilation = (2, 3, 2)[:dimensions], (1, 2, 1)[:dimensions]
    conv = CONVOLUTIONS[dimensions - 1](
        2, 3, kernel, padding=padding, dilation=dilation, padding_mode=mode
    )
    assert_agrees(Net(conv, 3), torch.randn(2, 2, *(5, 6, 4)[:dimensions]))


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_depthwise(dimensions, multiplier):
    torch.manual_seed(0)
    conv = CONVOLUTIONS[dimensions - 1](4, 4 * multiplier, 3, padding=1, groups=4)
    assert_agrees(Net(conv, 4 * multiplier), torch.randn(3, 4, *(6, 5, 3)[:dimensions]))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@checked
@given(
    size=sizes, kernel=kernels, stride=small, padding=narrow_pads, extra=st.integers(0, 1),
    groups=st.sampled_from([1, 2]), bias=st.booleans(), n=st.integers(1, 3),
)  # fmt: skip
def test_transposed(dimensions, size, kernel, stride, padding, extra, groups, bias, n):
    d = dimensions
    assume(all(k > 2 * p for k, p in zip(kernel[:d], padding[:d], strict=True)))
    torch.manual_seed(sum(size))
    output_padding = [min(extra, s - 1) for s in stride[:d]]
    conv = TRANSPOSED[d - 1](
        2 * groups, groups, kernel[:d], stride[:d], padding[:d], output_padding, groups, bias
    )
    assert_agrees(Net(conv, groups), torch.randn(n, 2 * groups, *size[:d]))


def test_transposed_with_dilation_and_an_output_size():
    torch.manual_seed(0)

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 2, 3, stride=2, dilation=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=(12, 14))

    assert_agrees(Net(Up(), 2), torch.randn(2, 3, 5, 6))


@pytest.mark.parametrize(
    ("conv", "space"),
    [
        (nn.ConvTranspose2d(4, 4, 3, dilation=2, output_padding=1, groups=4), (4, 3)),
        (nn.ConvTranspose2d(4, 8, (5, 4), (1, 2), 0, (0, 2), 2, dilation=(1, 3)), (6, 7)),
        (nn.ConvTranspose1d(4, 6, 1, dilation=3, output_padding=1), (7,)),
        (nn.ConvTranspose3d(4, 8, (1, 2, 3), (1, 2, 1), 0, (2, 1, 0), 4, dilation=3), (4, 4, 3)),
        (nn.ConvTranspose2d(4, 6, (3, 2), (2, 1), (1, 2), (0, 1), 2, dilation=(1, 3)), (5, 6)),
    ],
    ids=["depthwise", "groups", "a pixel", "volumes", "padding"],
)
def test_transposed_with_a_border_that_no_window_needs(conv, space):
    torch.manual_seed(0)
    model, x = Net(conv, conv.out_channels), torch.randn(4, 4, *space)
    assert_agrees(model, x)
    exact = gradient_norms(model, x.double(), "entropy")
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradientNormWarning)
        norms = gradient_norms(model.float(), x, "entropy")
    assert torch.allclose(norms, exact, rtol=1e-4)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dimensions", [1, 3])
def test_products_of_pixels_in_the_order_of_the_images(dimensions, bias, order):
    torch.manual_seed(0)
    kind, shape = CONVOLUTIONS[dimensions - 1], (5, 4, 3)[:dimensions]
    first = kind(2, 4, 3, padding=1)
    model = Net(nn.Sequential(first, nn.Tanh(), kind(4, 6, 1, bias=bias)), 6)
    x = torch.randn(4, 2, *shape)
    if dimensions == 3:
        model, x = model.to(memory_format=order), x.contiguous(memory_format=order)
    assert_agrees(model, x)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_sample_with_its_channels_last(groups, dtype):
    """For which PyTorch's own gradient depends on a stride that says nothing."""
    torch.manual_seed(0)
    weight = torch.zeros(4, 4 // groups, 3, 3, dtype=dtype, requires_grad=True)
    x, g = torch.randn(1, 4, 7, 6, dtype=dtype), torch.randn(1, 4, 5, 4, dtype=dtype)
    out = nn.functional.conv2d(x, weight, groups=groups)
    (truth,) = torch.autograd.grad(out, weight, g)
    last = x.contiguous(memory_format=torch.channels_last)
    geometry = Geometry((1, 1), (0, 0), (1, 1), groups)
    for stride in (1, 4, 24, 168, 500):
        odd = last.as_strided((1, 1, 4, 7, 6), (168, stride, 1, 24, 4))
        for method in ("direct", "per_sample"):
            part = ConvWeightGradient(odd, g[:, None], geometry, tuple(weight.shape))
            found = torch.cat(list(gradients.GRADIENTS[method](part, 1 << 20)))
            assert torch.allclose(found[0], truth, atol=1e-4), (method, stride)


GEOMETRIES = {
    "3x3": lambda: (nn.Conv2d(5, 6, 3, padding=1), (5, 6, 7)),
    "3x3, no padding": lambda: (nn.Conv2d(5, 6, 3), (5, 6, 7)),
    "3x3, wide padding": lambda: (nn.Conv2d(3, 4, 3, padding=4), (3, 4, 3)),
    "few pixels": lambda: (nn.Conv2d(5, 6, 3, padding=1), (5, 4, 3)),
    "few pixels, no padding": lambda: (nn.Conv2d(5, 6, (3, 2)), (5, 4, 4)),
    "few pixels, 1d": lambda: (nn.Conv1d(4, 3, 5, padding=3, dilation=2), (4, 9)),
    "few pixels, 3d": lambda: (nn.Conv3d(3, 4, 3, padding=1), (3, 2, 3, 2)),
    "oblong": lambda: (nn.Conv2d(4, 3, (1, 5), padding=(0, 2)), (4, 5, 6)),
    "dilated": lambda: (nn.Conv2d(4, 3, 3, dilation=2, padding=2), (4, 6, 5)),
    "dilated past the image": lambda: (nn.Conv2d(4, 3, 3, dilation=6, padding=6), (4, 5, 5)),
    "strided": lambda: (nn.Conv2d(4, 3, 3, stride=2, padding=1), (4, 7, 6)),
    "1x1": lambda: (nn.Conv2d(4, 3, 1), (4, 5, 5)),
    "groups": lambda: (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 6, 5)),
    "groups of many channels": lambda: (nn.Conv2d(12, 6, 3, groups=2), (12, 5, 4)),
    "groups, 1d": lambda: (nn.Conv1d(4, 6, 5, padding=2, groups=2), (4, 8)),
    "groups, 3d": lambda: (nn.Conv3d(4, 4, 2, groups=2), (4, 3, 4, 3)),
    "groups, transposed": lambda: (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 4, 4)),
    "1x1, strided and padded": lambda: (nn.Conv2d(4, 3, 1, stride=2, padding=1), (4, 5, 4)),
    "1d": lambda: (nn.Conv1d(4, 3, 5, padding=2, dilation=2), (4, 11)),
    "3d": lambda: (nn.Conv3d(3, 4, 3, padding=1), (3, 4, 3, 5)),
    "3d, of a size that PyTorch does not unfold": lambda: (nn.Conv3d(21, 2, 2), (21, 32, 31, 2)),
    "even": lambda: (nn.Conv2d(3, 4, 2, padding="same"), (3, 5, 5)),
    "transposed": lambda: (nn.ConvTranspose2d(4, 3, 3, padding=1), (4, 5, 4)),
    "transposed, strided": lambda: (nn.ConvTranspose2d(4, 3, 3, stride=2), (4, 4, 4)),
    "depthwise": lambda: (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), (4, 6, 5)),
    "depthwise, one position": lambda: (nn.Conv2d(4, 4, 3, groups=4), (4, 3, 3)),
    "depthwise, 1d": lambda: (nn.Conv1d(4, 4, 3, dilation=2, groups=4), (4, 8)),
    "depthwise, 3d": lambda: (nn.Conv3d(4, 4, 2, groups=4), (4, 3, 4, 3)),
    "depthwise, transposed": lambda: (
        nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1, groups=4),
        (4, 4, 3),
    ),
}

EVERYWHERE = {"direct", "im2col", "ghost", "shifted_ghost"}
TRIED = {
    "3x3": EVERYWHERE,
    "few pixels": EVERYWHERE,
    "1d": EVERYWHERE | {"per_tap"},
    "3d": EVERYWHERE | {"per_depth_slice"},
    "3d, of a size that PyTorch does not unfold": {"direct", "per_sample", "per_depth_slice"},
    "groups": {"direct", "im2col"},
    "groups of many channels": {"direct", "im2col"},
    "groups, 1d": {"direct", "im2col"},
    "depthwise": {"direct", "depthwise", "windows"},
    "depthwise, transposed": {"direct", "depthwise", "windows"},
}


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_method_that_applies_gives_the_same_norm(geometry):
    torch.manual_seed(0)
    conv, shape = GEOMETRIES[geometry]()
    model = Net(conv, conv.out_channels).double()
    x = torch.randn(4, *shape, dtype=torch.float64)
    costs = cost_model.costs
    assert_agrees(model, x)
    reference = gradient_norms(model, x, "entropy")
    used: set[str] = set()
    for method in METHODS:

        def only(part, method=method):
            possible = costs(part)
            if method not in possible:
                return possible
            used.add(method)
            return {method: 0.0}

        with mock.patch.object(cost_model, "costs", only):
            for memory in (None, 1):
                found = gradient_norms(model, x, "entropy", max_memory=memory)
                assert relative_error(found, reference) < 1e-12, method
    assert used >= TRIED.get(geometry, set())


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_patches_by_rows_of_positions(geometry, monkeypatch):
    """Of large samples, no product takes all patches at once."""
    monkeypatch.setattr(gradients, "SLAB_BYTES", 256)
    torch.manual_seed(0)
    conv, shape = GEOMETRIES[geometry]()
    model = Net(conv, conv.out_channels).double()
    costs = cost_model.costs
    slabs = mock.Mock(wraps=gradients.patches_in_slabs)
    monkeypatch.setattr(gradients, "patches_in_slabs", slabs)

    def cheap_patches(part):
        return {name: 0.0 if name == "im2col" else cost for name, cost in costs(part).items()}

    monkeypatch.setattr(cost_model, "costs", cheap_patches)
    assert_agrees(model, torch.randn(4, *shape, dtype=torch.float64))
    assert slabs.called or geometry not in {g for g, tried in TRIED.items() if "im2col" in tried}


def test_sums_over_patches_keep_their_digits_in_half_precision(monkeypatch):
    x = torch.ones(1, 1, 1, 64, 64, dtype=torch.bfloat16)
    part = ConvWeightGradient(x, x, Geometry((1, 1), (0, 0), (1, 1), 1), (1, 1, 1, 1))
    monkeypatch.setattr(gradients, "SLAB_BYTES", 128)
    (whole,) = gradients.im2col(part, 1 << 20)
    assert whole.dtype == torch.bfloat16
    assert whole.item() == 4096  # sums of ones in half precision end at 256


@pytest.mark.parametrize(("padding", "dilation"), [(0, 1), (3, 2), (12, 3)])
def test_signals_by_every_generator(padding, dilation):
    """The gradients themselves, where few taps of the kernel meet a pixel as well."""
    torch.manual_seed(0)
    conv = nn.Conv1d(4, 3, 5, padding=padding, dilation=dilation).double()
    x = torch.randn(6, 1, 4, 11, dtype=torch.float64)
    g = torch.randn(6, 1, *conv(x[:, 0]).shape[1:], dtype=torch.float64)
    shape = tuple(conv.weight.shape)
    part = ConvWeightGradient(x, g, Geometry((1,), (padding,), (dilation,), 1), shape)
    for i in range(6):
        (truth,) = torch.autograd.grad(conv(x[i]), conv.weight, g[i])
        for name in gradients.GENERATORS.keys() & cost_model.costs(part).keys():
            with mock.patch.object(cost_model, "best", return_value=name):
                for scratch in (1, 1 << 20):
                    formed = torch.cat(list(part.dense_pieces(scratch)))
                    assert torch.allclose(formed[i], truth, rtol=1e-12, atol=1e-12), name


def test_the_method_follows_the_shape():
    """Wide images take a direct form, narrow ones of many channels a ghost norm."""

    def best(channels: int, side: int, stride: int = 1) -> str:
        x = torch.empty(1, 1, channels, side, side)
        conv = nn.Conv2d(channels, channels, 3, stride, padding=1)
        g = conv(x[:, 0])[:, None]
        part = ConvWeightGradient(x, g, _geometry(stride), tuple(conv.weight.shape))
        costs = cost_model.costs(part)
        return min(costs, key=costs.__getitem__)

    assert best(64, 32) in ("direct", "per_sample", "im2col")
    assert best(512, 4) == "shifted_ghost"
    assert best(512, 8, stride=2) == "ghost"


@pytest.mark.parametrize(("n", "method"), [(2, "windows"), (64, "direct")])
def test_a_call_is_shared_by_no_more_samples_than_there_are(n, method):
    x = torch.empty(n, 1, 56, 4, 4)
    part = ConvWeightGradient(x, x, Geometry((1, 1), (1, 1), (1, 1), 56), (56, 1, 3, 3))
    assert cost_model.best(part) == method


def test_first_layers_go_sample_by_sample():
    """Images of few channels are slow to copy to the groups of one call."""
    x, g = torch.empty(8, 1, 3, 96, 96), torch.empty(8, 1, 32, 48, 48)
    part = ConvWeightGradient(x, g, _geometry(2), (32, 3, 3, 3))
    assert cost_model.best(part) == "per_sample"


def _geometry(stride: int):
    return Geometry((stride,) * 2, (1, 1), (1, 1), 1)


def test_one_convolution_on_images_of_one_and_of_two_sizes():
    class Pyramid(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.conv, self.head, self.scale = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4), scale

        def forward(self, x: Tensor) -> Tensor:
            a = torch.tanh(self.conv(x))
            b = nn.functional.avg_pool2d(a, 2) if self.scale < 1 else a
            b = torch.tanh(self.conv(b))
            return self.head(a.mean(dim=(2, 3)) + b.square().mean(dim=(2, 3)))

    torch.manual_seed(0)
    for scale in (1.0, 0.5):
        assert_agrees(Pyramid(scale), torch.randn(3, 3, 6, 6))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_views_behind_a_convolution_in_either_memory_format(memory_format):
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 25, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.head(torch.tanh(y.contiguous().view(y.size(0), -1)))

    torch.manual_seed(0)
    model = Viewed().to(memory_format=memory_format)
    assert_agrees(model, torch.randn(3, 3, 5, 5).to(memory_format=memory_format))


def test_view_of_an_output_that_an_ordinary_convolution_would_lay_out_so():
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 25, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.conv(x).view(-1, 100)))

    torch.manual_seed(0)
    assert_agrees(Viewed(), torch.randn(3, 3, 5, 5))


def test_windows_folded_into_the_batch():
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.head = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:  # (n, k, 2, h, w)
            n, k = x.shape[:2]
            y = torch.relu(self.bn(self.conv(x.flatten(0, 1))))
            return self.head(y.mean(dim=(2, 3)).unflatten(0, (n, k)).amax(dim=1))

    torch.manual_seed(0)
    assert_agrees(Windows(), torch.randn(4, 5, 2, 5, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", [(3, 8), (2, 8), (3, 7), (3, 1)])
def test_windows_over_words_as_wide_as_their_vectors(kernel, dtype):
    """An image of one channel, whose gradient goes on to the words."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(20, 8), nn.Linear(5, 3)
            self.conv = nn.Conv2d(1, 5, kernel)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.conv(self.words(x).unsqueeze(1))).amax(dim=(2, 3)))

    torch.manual_seed(0)
    model, x = Words().to(dtype).eval(), torch.randint(20, (5, 9))
    truth = norms_one_by_one(model, x)
    for _ in range(2):
        found = gradient_norms(model, x, "entropy")
        assert relative_error(found, truth) < (1e-9 if dtype == torch.float64 else 1e-4)


@pytest.mark.parametrize("place", [0, 3, -1, slice(2, 4), slice(None)])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {}), (3, {"padding": 2}), (3, {"padding": 5}), (2, {"stride": 2, "padding": 1}),
        (3, {"dilation": 2, "padding": 4, "groups": 2}), (1, {}), (1, {"stride": 3, "padding": 2}),
    ],
)  # fmt: skip
def test_signals_of_which_few_positions_are_asked(kernel, options, place, monkeypatch):
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(4, 4, 3), nn.Conv1d(4, 6, kernel, **options)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.second(torch.tanh(self.first(x)))[:, :, place]
            return self.head(torch.tanh(y).flatten(2).mean(dim=2) if y.dim() == 3 else y)

    monkeypatch.setattr(operands, "_WORTH_A_LOOK", 0)
    torch.manual_seed(0)
    assert_agrees(Part(), torch.randn(3, 4, 19))


def test_most_of_a_signal_is_left_out_where_one_position_is_asked():
    geometry = Geometry((1,), (4,), (2,), 1)
    x, g = torch.randn(2, 3, 900), torch.zeros(2, 8, 904)
    g[1, 2, 902] = 1.0
    part = operands.reached_signals(x, g, geometry, (8, 3, 3))
    assert part is None  # too little work
    x, g = torch.randn(2, 100, 9000), torch.zeros(2, 100, 9004)
    g[1, 2, 9002] = 1.0
    part = operands.reached_signals(x, g, geometry, (100, 100, 3))
    assert part is not None
    assert part.x.shape[2] == 5
    assert part.g.shape[2] == 1
    assert part.start == 8998
