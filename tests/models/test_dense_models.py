"""Networks for segmentation and for volumes: counts, shapes, exactness of what is scored."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from upslope import models
from upslope.errors import ModelError
from upslope.gradnorm import gradient_norms
from upslope.models.drn import BilinearUpsample


def trainable(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def conv_bn(inputs, outputs, taps):
    return inputs * outputs * taps + 2 * outputs


def block(inputs, width, taps):
    shortcut = conv_bn(inputs, width, 1) if inputs != width else 0
    return conv_bn(inputs, width, taps) + conv_bn(width, width, taps) + shortcut


def test_drn_d_22_has_the_published_size():
    """The layers of the table in the paper of Yu et al., summed by hand."""
    expected = conv_bn(3, 16, 49) + conv_bn(16, 16, 9) + conv_bn(16, 32, 9)
    for inputs, width in ((32, 64), (64, 128), (128, 256), (256, 512)):
        expected += block(inputs, width, 9) + block(width, width, 9)
    expected += 2 * conv_bn(512, 512, 9) + 512 * 19 + 19
    with torch.device("meta"):
        model = models.build("drn-d-22", num_classes=19, input_shape=(3, 688, 688))
        assert model(torch.empty(1, 3, 688, 688)).shape == (1, 19, 688, 688)
        assert model.base(torch.empty(1, 3, 688, 688)).shape == (1, 512, 86, 86)
    assert trainable(model) == expected == 15_890_499
    assert list(model.state_dict())[-3:] == ["seg.weight", "seg.bias", "up.weight"]
    keys = set(model.state_dict())
    assert {"base.0.0.weight", "base.3.0.downsample.1.running_var", "base.6.1.conv2.weight"} <= keys
    assert {"base.7.0.weight", "base.8.1.bias"} <= keys


def test_resnet18_3d_has_the_size_of_the_paper():
    expected = conv_bn(1, 64, 27) + 2 * block(64, 64, 27)
    for inputs, width in ((64, 128), (128, 256), (256, 512)):
        expected += block(inputs, width, 27) + block(width, width, 27)
    with torch.device("meta"):
        model = models.build("resnet18-3d", num_classes=50, input_shape=(1, 32, 32, 32))
        assert model(torch.empty(2, 1, 32, 32, 32)).shape == (2, 50)
        shapes = []
        x = model.conv1(torch.empty(1, 1, 32, 32, 32))
        for stage in model.stages:
            x = model.get_submodule(stage)(x)
            shapes.append(tuple(x.shape[1:]))
    assert trainable(model) == expected + 512 * 50 + 50 == 33_165_426
    assert shapes == [(64, 32, 32, 32), (128, 16, 16, 16), (256, 8, 8, 8), (512, 4, 4, 4)]


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_upsampling_is_bilinear_away_from_the_border(factor):
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    up = BilinearUpsample(3, factor).double()
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    inside = (..., slice(factor, -factor), slice(factor, -factor))
    torch.testing.assert_close(up(x)[inside], expected[inside])
    assert not list(up.parameters())


@pytest.mark.parametrize(("name", "stride"), [("drn-d-22", 8), ("dilated-small", 4)])
def test_a_pixel_of_the_answer_lies_over_its_pixel(name, stride):
    """Any size; the answer's plane is the coarse logits, upsampled in place."""
    torch.manual_seed(0)
    model = models.build(name, num_classes=3, input_shape=(3, 22, 37)).eval()
    x = torch.randn(1, 3, 22, 37)
    with torch.no_grad():
        coarse = model.seg(model.base(x))
        assert coarse.shape[2:] == (-(-22 // stride), -(-37 // stride))
        fine = F.interpolate(coarse, scale_factor=stride, mode="bilinear", align_corners=False)
        got = model(x)
    assert got.shape == (1, 3, 22, 37)
    centre = (..., slice(stride, 22 - stride), slice(stride, 37 - stride))
    torch.testing.assert_close(got[centre], fine[..., :22, :37][centre], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        pytest.param("drn-d-22", (3, 24, 24), {}, marks=pytest.mark.long),
        ("dilated-small", (3, 22, 30), {"width": 4}),
        pytest.param("resnet18-3d", (1, 8, 8, 8), {}, marks=pytest.mark.long),
        ("resnet-small-3d", (1, 12, 12, 12), {"width": 4}),
    ],
)
def test_scored_exactly_after_a_training_step(name, shape, options):
    """The engine against one backward per sample through the network as it is, in double."""
    torch.manual_seed(0)
    model = models.build(name, num_classes=4, input_shape=shape, **options)
    x = torch.randn(3, *shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    optimizer.step()
    model, x = model.double().eval(), x.double()
    for norm in ("global", "tensor-sum"):
        expected = []
        for i in range(2):
            p = model(x[i : i + 1]).softmax(dim=1)
            loss = -(p * p.log()).sum(dim=1).mean()
            norms = torch.stack([g.norm() for g in torch.autograd.grad(loss, model.parameters())])
            expected.append(norms.norm() if norm == "global" else norms.sum())
        got = gradient_norms(model, x[:2], "entropy", norm=norm)
        np.testing.assert_allclose(got, torch.stack(expected), rtol=1e-8)


def test_dropout_sits_in_front_of_the_last_layer():
    for name, shape in (("dilated-small", (3, 8, 8)), ("resnet-small-3d", (1, 8, 8, 8))):
        model = models.build(name, num_classes=3, input_shape=shape, dropout=0.5).eval()
        x = torch.randn(2, *shape)
        assert torch.equal(model(x), model(x))
        model.dropout.train()
        assert not torch.equal(model(x), model(x))


def test_shapes_that_are_none_of_theirs():
    with pytest.raises(ModelError, match=r"\(c, d, h, w\).*'resnet18-3d' but got \(3, 32, 32\)"):
        models.build("resnet18-3d", num_classes=3, input_shape=(3, 32, 32))
    with pytest.raises(ModelError, match=r"'drn-d-22' but got \(1, 32, 32, 32\)"):
        models.build("drn-d-22", num_classes=3, input_shape=(1, 32, 32, 32))


def test_blocks_are_residual_blocks():
    """One block of volumes written out: relu(bn(conv(relu(bn(conv x)))) + bn(conv1x1x1 x))."""
    torch.manual_seed(1)
    model = models.build("resnet-small-3d", num_classes=2, input_shape=(1, 8, 8, 8), width=3)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    one = model.layer2[0]
    x = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)

    def step(x, conv, bn, stride, padding):
        y = F.conv3d(x, conv.weight, stride=stride, padding=padding)
        return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias)

    y = step(step(x, one.conv1, one.bn1, 2, 1).relu(), one.conv2, one.bn2, 1, 1)
    torch.testing.assert_close(one(x), (y + step(x, *one.downsample, 2, 0)).relu())
