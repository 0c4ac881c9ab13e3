"""The table of models, parameter counts, shapes, factories of the user's."""

import sys
from contextlib import suppress

import pytest
import torch
from torch import nn

from upslope import models
from upslope.errors import ConfigError, ModelError
from upslope.models.small import quarters

OTHER_INPUTS = ("mlp", "bag-of-words", "transformers")
"""Models that take other inputs than images, or of any shape."""


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "shape", "expected"),
    [
        ("resnet18-cifar", 10, (3, 32, 32), 11_173_962),
        ("resnet18-cifar", 100, (3, 32, 32), 11_220_132),
        ("resnet50-cifar", 10, (3, 32, 32), 23_520_842),
        ("resnet18", 1000, (3, 224, 224), 11_689_512),
        ("resnet50", 1000, (3, 224, 224), 25_557_032),
        ("vgg16", 1000, (3, 224, 224), 138_357_544),
        ("vgg16-bn", 1000, (3, 224, 224), 138_365_992),
    ],
)
def test_published_parameter_counts(name, classes, shape, expected):
    with torch.device("meta"):
        model = models.build(name, num_classes=classes, input_shape=shape)
        assert model(torch.empty(2, *shape)).shape == (2, classes)
    assert count(model) == expected


@pytest.mark.parametrize("name", ["resnet-small", "cnn-small", "mlp", "resnet18-cifar"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 64, 48)])
def test_small_networks_take_any_image_and_learn(name, shape):
    torch.manual_seed(0)
    model = models.build(name, num_classes=5, input_shape=shape)
    logits = model(torch.randn(3, *shape))
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_stages_are_modules_that_run_in_order_and_halve_the_image():
    model = models.build("resnet18-cifar", num_classes=10, input_shape=(3, 32, 32)).eval()
    seen = []
    for stage in model.stages:
        model.get_submodule(stage).register_forward_hook(
            lambda _m, _i, out, stage=stage: seen.append((stage, tuple(out.shape[1:])))
        )
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [
        ("layer1", (64, 32, 32)),
        ("layer2", (128, 16, 16)),
        ("layer3", (256, 8, 8)),
        ("layer4", (512, 4, 4)),
    ]
    for name in models.REGISTRY.keys() - {"transformers"}:  # which are as they come
        shape = (1, 32, 32, 32) if name.endswith("3d") else (3, 32, 32)
        shape = (2, 9) if name == "bag-of-words" else shape
        with torch.device("meta"):
            options = {"weights": False} if name.startswith("pretrained") else {}
            model = models.build(name, num_classes=3, input_shape=shape, **options)
        assert all(model.get_submodule(stage) is not None for stage in model.stages)
        assert len(model.stages) >= 2


def test_residual_block_is_what_the_paper_says():
    """Against the block written out: relu(bn(conv(relu(bn(conv(x))))) + bn(conv1x1(x)))."""
    torch.manual_seed(0)
    model = models.build("resnet-small", num_classes=4, input_shape=(3, 8, 8)).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    block = model.layer2[0]
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)

    def conv_bn(x, conv, bn, stride, padding):
        y = nn.functional.conv2d(x, conv.weight, stride=stride, padding=padding)
        scale = (bn.running_var + bn.eps).rsqrt() * bn.weight
        return (y - bn.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + bn.bias.view(-1, 1, 1)

    y = conv_bn(x, block.conv1, block.bn1, 2, 1).relu()
    y = conv_bn(y, block.conv2, block.bn2, 1, 1)
    expected = (y + conv_bn(x, *block.downsample, 2, 0)).relu()
    torch.testing.assert_close(block(x.clone()), expected)


@pytest.mark.parametrize("size", [(2, 2), (7, 7), (3, 8), (5, 4)])
def test_quarters_are_adaptive_pooling(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(quarters(x), nn.functional.adaptive_avg_pool2d(x, 2))


def test_torchvision_keys():
    with torch.device("meta"):
        keys = set(
            models.build("resnet50", num_classes=1000, input_shape=(3, 224, 224)).state_dict()
        )
        vgg = models.build("vgg16", num_classes=1000, input_shape=(3, 224, 224)).state_dict()
    assert {"conv1.weight", "layer1.0.downsample.1.running_var", "layer4.2.conv3.weight"} <= keys
    assert {"fc.weight", "fc.bias", "layer2.3.bn2.num_batches_tracked"} <= keys
    assert len(keys) == 320
    assert list(vgg)[:2] == ["features.0.weight", "features.0.bias"]
    assert list(vgg)[-2:] == ["classifier.6.weight", "classifier.6.bias"]
    assert len(vgg) == 32


def test_dropout_sits_in_front_of_the_head():
    for name in ("resnet-small", "cnn-small", "mlp"):
        model = models.build(name, num_classes=3, input_shape=(1, 8, 8), dropout=0.5)
        x = torch.randn(2, 1, 8, 8)
        model.eval()
        assert torch.equal(model(x), model(x))
        model.dropout.train()  # the rest stays in eval mode, as MC-dropout wants it
        assert not torch.equal(model(x), model(x))


def test_options_are_checked_together():
    with pytest.raises(ConfigError) as error:
        models.build("cnn-small", num_classes=3, input_shape=(1, 8, 8), width=0, dropot=0.1)
    assert "`width`" in str(error.value)
    assert "did you mean `dropout`" in str(error.value)
    with pytest.raises(ConfigError, match="did you mean `resnet18-cifar`"):
        models.build("resnet18cifar", num_classes=3, input_shape=(3, 32, 32))
    with pytest.raises(ModelError, match=r"at least 8 .*'resnet-small' but got \(3, 4, 4\)"):
        models.build("resnet-small", num_classes=3, input_shape=(3, 4, 4))
    for line in models.describe():
        assert 20 < len(line.summary) < 100
        assert all(option.help for option in line.options)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"num_classes": value} for value in (0, -1, "3", 2.5, None, True)),
        *({"input_shape": value} for value in (None, 8, (3, 0, 8), (3, "8", 8), (3.0, 8.0, 8.0))),
    ],
)
@pytest.mark.parametrize("name", ["mlp", "dilated-small", "my_nets:make"])
def test_sizes_are_whole_numbers(name, wrong):
    """No class made a network without outputs, others errors of torch."""
    with pytest.raises(ConfigError, match=r"`(num_classes|input_shape)`"):
        models.build(name, **{"num_classes": 3, "input_shape": (3, 8, 8), **wrong})


@pytest.mark.parametrize("name", [n for n in models.REGISTRY if n not in OTHER_INPUTS])
def test_the_smallest_images_that_are_taken_are_answered(name):
    """cnn-small took images of 4 to 7 pixels, and failed on them with an error of a pooling."""
    options = {"weights": False} if name.startswith("pretrained") else {}
    dimensions = 3 if name.endswith("-3d") else 2

    def build(size):
        with torch.device("meta"):
            shape = (3, *(size,) * dimensions)
            return models.build(name, num_classes=4, input_shape=shape, **options).eval()

    for size in range(1, 41):
        with suppress(ModelError):
            network = build(size)
            break
    for side in (size, size + 1):
        outputs = network(torch.empty(2, 3, *(side,) * dimensions, device="meta"))
        assert outputs.shape[:2] == (2, 4)


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "number = 3\n"
        "def make(num_classes, input_shape, bias=True):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1], num_classes, bias))\n"
        "def number_of(num_classes, input_shape):\n"
        "    return num_classes\n"
        "def deep(num_classes, input_shape, depth):\n"
        "    return nn.Identity()\n"
        "def channels_first(channels):\n"
        "    return nn.Identity()\n"
        "def lazy(num_classes, input_shape, width=5):\n"
        "    return nn.Sequential(nn.LazyConv2d(width, 3), nn.LazyBatchNorm2d(), nn.Flatten(),\n"
        "                         nn.LazyLinear(num_classes))\n"
        "def lazy_tokens(num_classes, input_shape):\n"
        "    return nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.LazyLinear(num_classes))\n"
        "network = nn.Linear(7, 4)\n"
        "def without():\n"
        "    return nn.Linear(7, 4)\n"
        "class Without(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "def typed(num_classes, input_shape, depth: int = 1, act: str | None = None):\n"
        "    return nn.Linear(7, num_classes)\n"
        "class Typed(nn.Linear):\n"
        "    def __init__(self, num_classes, input_shape, slope: float = 1):\n"
        "        super().__init__(7, num_classes)\n"
        "def anything(num_classes, input_shape, **options):\n"
        "    return nn.Linear(7, num_classes, **options)\n"
        "def broken(num_classes, input_shape):\n"
        "    return {}['x']\n"
        "class Unused(nn.Module):\n"
        "    def __init__(self, num_classes, input_shape):\n"
        "        super().__init__()\n"
        "        self.body = nn.Linear(input_shape[1], num_classes)\n"
        "        self.head = nn.LazyLinear(num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.body(x.flatten(1))\n"
    )
    (tmp_path / "broken_nets.py").write_text("import no_such_package\n")
    (tmp_path / "unfinished_nets.py").write_text("def make(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_nets", None)


def test_factory_of_the_users_own(nets):
    model = models.build("my_nets:make", num_classes=4, input_shape=(1, 7), bias=False)
    assert count(model) == 28


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_nets:make", "importing 'no_such_nets' failed"),
        ("broken_nets:make", "No module named 'no_such_package'"),
        ("my_nets:mak", "nothing of that name; did you mean `make`\\? Define it there"),
        ("my_nets:number", "a function .* but got int"),
        ("my_nets:network", "a new torch.nn.Module at each call but got a network, of Linear"),
        ("my_nets:without", r"its parameters are \(\). Add num_classes and input_shape"),
        ("my_nets:Without", r"its parameters are \(\). Add num_classes and input_shape"),
        ("my_nets:number_of", "to return a torch.nn.Module but got int"),
        ("my_nets:", "nothing of that name"),
    ],
)
def test_factories_that_are_none(nets, name, message):
    with pytest.raises(ConfigError, match=message):
        models.build(name, num_classes=4, input_shape=(1, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3}, "Expected options among `bias` but got `depth`"),
        ({"bais": True}, "did you mean `bias`\\?$"),
        ({"num_classes": 4}, "`num_classes` to be what the data set gives.* Leave it out"),
        ({"input_shape": [1, 7]}, "`input_shape` to be what the data set gives.* Leave it out"),
    ],
)
def test_factory_that_does_not_take_the_options(nets, options, message):
    with pytest.raises(ConfigError, match=message):
        models.check_options("my_nets:make", options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("typed", {"depth": 2, "act": "gelu"}, None),
        ("typed", {"act": None}, None),
        ("typed", {"depth": "two"}, "`depth` to be an integer but got 'two'"),
        ("typed", {"depth": True}, "`depth` to be an integer but got True"),
        ("typed", {"act": 3}, "`act` to be text or nothing but got 3"),
        ("Typed", {"slope": 2}, None),
        ("Typed", {"slope": "x"}, "`slope` to be a number but got 'x'"),
        ("anything", {"bias": False}, None),
    ],
)
def test_options_are_of_the_types_that_the_function_states(nets, name, options, message):
    if message is None:
        assert models.check_options(f"my_nets:{name}", options) == options
        models.build(f"my_nets:{name}", num_classes=4, input_shape=(1, 7), **options)
        return
    with pytest.raises(ConfigError, match=message):
        models.check_options(f"my_nets:{name}", options)


def test_what_the_data_set_gives_is_no_option_of_ours_either():
    with pytest.raises(ConfigError) as error:
        models.check_options("cnn-small", {"num_classes": 4, "widht": 8})
    assert "Leave it out" in str(error.value)
    assert "did you mean `width`" in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_nets:deep", "`depth` to be an option with a value"),
        ("my_nets:channels_first", r"its parameters are \(channels\). Add num_classes and"),
        ("my_nets:broken", r"it raised KeyError: 'x' \(my_nets.py, line 30\)"),
        ("unfinished_nets:make", r"SyntaxError: .* \(unfinished_nets.py, line 1\)"),
        (":make", "Empty module name"),
    ],
)
def test_factories_of_the_users_own_that_fail_are_told_in_one_message(nets, name, message):
    with pytest.raises(ConfigError, match=message):
        models.build(name, num_classes=4, input_shape=(1, 7))


def test_the_current_folder_is_importable_while_a_network_is_made_and_no_longer(
    nets, tmp_path, monkeypatch
):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "local_nets.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, input_shape):\n"
        "    import local_parts\n"
        "    return local_parts.layer(7, num_classes)\n"
    )
    (folder / "local_parts.py").write_text("from torch.nn import Linear as layer\n")
    monkeypatch.chdir(folder)
    before = list(sys.path)
    assert count(models.build("local_nets:make", num_classes=4, input_shape=(1, 7))) == 32
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("my_nets:lazy", (3, 8, 8), (5 * 27 + 5) + 2 * 5 + (5 * 36 + 1) * 4),
        ("my_nets:lazy_tokens", (6,), 10 * 3 + (18 + 1) * 4),
    ],
)
def test_lazy_layers_get_their_sizes_and_the_seed_their_weights(nets, name, shape, expected):
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(models.build(name, num_classes=4, input_shape=shape))
    assert count(networks[0]) == expected
    assert networks[0].training
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    if "1.num_batches_tracked" in states[0]:
        assert states[0]["1.num_batches_tracked"] == 0  # statistics are left alone


def test_lazy_layers_that_no_sample_settles_are_named(nets):
    with pytest.raises(ModelError, match=r"head \(LazyLinear\) has none.* Give these layers"):
        models.build("my_nets:Unused", num_classes=4, input_shape=(1, 7))


def test_a_factory_given_in_python_is_initialised_with_a_sample():
    calls = []

    def sample():
        calls.append(1)
        return torch.zeros(2, 5)

    factory = models.without_lazy_layers(lambda: nn.Sequential(nn.LazyLinear(3)), sample)
    assert count(factory()) == 18
    assert len(calls) == 1
    models.without_lazy_layers(lambda: nn.Linear(5, 3), sample)()
    assert len(calls) == 1  # nothing is read for a network that needs it not
