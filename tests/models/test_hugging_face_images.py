"""Image classifiers of transformers from a folder, LoRA, and networks of other libraries."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from upslope import gradient_norms, models
from upslope.errors import ConfigError, ModelError
from upslope.models import image_form

transformers = pytest.importorskip("transformers", reason="needs transformers, the extra [text]")
safetensors = pytest.importorskip("safetensors.torch")
SHAPE = (3, 16, 16)


@pytest.fixture
def folder(tmp_path):
    """A tiny vision transformer with random weights, as save_pretrained leaves it."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=16, patch_size=8, num_labels=5,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    form = {
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4],
        "size": {"height": 16, "width": 16},
    }  # fmt: skip
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(form))
    return tmp_path / "vit"


def build(folder, classes=5, shape=SHAPE, **options):
    return models.build(
        "transformers", num_classes=classes, input_shape=shape, path=str(folder), **options
    )


def test_outputs_are_those_of_the_library(folder):
    images = torch.randn(3, *SHAPE)
    library = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(build(folder).eval()(images), library(images).logits)


def test_other_classes_get_a_new_head_on_the_same_weights(folder):
    torch.manual_seed(1)
    three, five = build(folder, classes=3), build(folder)
    assert three(torch.randn(2, *SHAPE)).shape == (2, 3)
    for name, value in five.state_dict().items():
        if "classifier" not in name:
            assert torch.equal(three.state_dict()[name], value)
    random = build(folder, weights=False).state_dict()
    assert not all(torch.equal(random[k], v) for k, v in five.state_dict().items())


def test_the_form_is_the_processors(folder):
    form = image_form("transformers", {"path": str(folder)})
    assert (form.mean, form.std, form.size) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 16)
    assert image_form("transformers", {"path": str(folder), "weights": False}) is None
    file = folder / "preprocessor_config.json"
    content = json.loads(file.read_text())
    crop = {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 18}
    file.write_text(json.dumps({**content, **crop}))
    assert image_form("transformers", {"path": str(folder)}).size == 18
    file.write_text(json.dumps({**content, "rescale_factor": 1.0}))
    with pytest.raises(ConfigError, match="scale pixels"):
        image_form("transformers", {"path": str(folder)})
    file.write_text("{")
    with pytest.raises(ConfigError, match="readable JSON"):
        image_form("transformers", {"path": str(folder)})
    file.unlink()
    assert image_form("transformers", {"path": str(folder)}) is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"rescale_factor": None}, "rescale_factor=None"), ({"rescale_factor": "x"}, "=x")],
)
def test_a_processor_with_a_factor_that_is_no_number_is_refused(folder, entry, message):
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entry}))
    with pytest.raises(ConfigError, match=message):
        image_form("transformers", {"path": str(folder)})


def test_a_processor_with_a_size_that_is_no_number_has_none(folder):
    file = folder / "preprocessor_config.json"
    size = {"height": [16], "width": [16]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "size": size}))
    assert image_form("transformers", {"path": str(folder)}).size is None


@pytest.mark.parametrize("weights", [True, False])
def test_weights_in_half_precision_are_trained_in_single(folder, weights):
    """Steps of training that are small beside a weight were lost, for the type was the folder's."""
    half = transformers.ViTForImageClassification.from_pretrained(folder).bfloat16()
    half.save_pretrained(folder)
    network = build(folder, weights=weights)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    if weights:
        for name, value in network.network.state_dict().items():
            assert torch.equal(value, half.state_dict()[name].float()), name


def without(folder, of_name):
    """The folder without the weights whose name `of_name` tells."""
    file = folder / "model.safetensors"
    weights = {k: v for k, v in safetensors.load_file(file).items() if not of_name(k)}
    safetensors.save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("place", ["vit.", "layernorm_before", "vit.embeddings.cls_token", ""])
def test_a_folder_without_weights_below_the_head_is_refused(folder, place):
    """The library draws them at random; a layer of random weights was trained on, unnoticed."""
    with pytest.raises(ModelError, match=r"below its head but \d+ of 40 are missing: vit\."):
        build(without(folder, lambda name: place in name))
    assert build(folder, weights=False)(torch.zeros(1, *SHAPE)).shape == (1, 5)


def test_a_folder_without_a_head_gets_a_new_one(folder):
    expected = build(folder).state_dict()
    for name, value in build(without(folder, lambda n: "classifier" in n)).state_dict().items():
        assert torch.equal(value, expected[name]) == ("classifier.weight" not in name)


def test_a_folder_without_running_statistics_is_refused(tmp_path):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    build(without(tmp_path, lambda name: "num_batches_tracked" in name))
    with pytest.raises(ModelError, match="running_var"):
        build(without(tmp_path, lambda name: "running_var" in name))


PROCESSORS = {
    "ViT": {}, "DeiT": {"do_center_crop": True}, "Beit": {}, "ConvNext": {}, "Perceiver": {},
    "Levit": {}, "Segformer": {}, "CLIP": {}, "Bit": {}, "EfficientNet": {},
    "MobileViT": {"do_flip_channel_order": False},
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"do_normalize": False}, {"include_top": False}])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_images_look_as_the_library_makes_them(kind, changes, tmp_path):
    """EfficientNet divides twice, MobileViT states a mean that it does not take off."""
    stated = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    if kind != "MobileViT":
        stated |= changes
    if kind != "EfficientNet":
        stated.pop("include_top", None)
    processor = getattr(transformers, f"{kind}ImageProcessor")(**stated, **PROCESSORS[kind])
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    form = image_form("transformers", {"path": str(tmp_path)})
    pixels = torch.tensor([10, 120, 250], dtype=torch.uint8)
    image = pixels.expand(form.size, form.size, 3).numpy()
    seen = processor(image, return_tensors="pt")["pixel_values"][0]
    mean, std = map(torch.tensor, form.statistics(3))
    assert seen.shape == (3, form.size, form.size)
    middle = seen[:, form.size // 2, form.size // 2]  # MobileViT's is padded at its edges
    torch.testing.assert_close(middle, (pixels / 255 - mean) / std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"image_processor_type": "MobileViTImageProcessor"}, "do_flip_channel_order=True"),
        ({"do_color_quantize": True}, "do_color_quantize=True"),
        ({"do_grayscale": True, "do_thumbnail": False}, "do_grayscale=True"),
        ({"rescale_offset": True}, "rescale_offset=True"),
        ({"image_mean": None, "image_std": None}, "states none of them"),
    ],
)
def test_a_processor_that_does_more_than_normalise_is_refused(folder, entries, message):
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))
    with pytest.raises(ConfigError, match=message):
        image_form("transformers", {"path": str(folder)})


def test_a_processor_of_sound_says_nothing_of_images(folder):
    entries = {"do_normalize": True, "feature_size": 1, "sampling_rate": 16000}
    (folder / "preprocessor_config.json").write_text(json.dumps(entries))
    assert image_form("transformers", {"path": str(folder)}) is None


def test_inputs_of_another_kind_are_refused(folder):
    with pytest.raises(ModelError, match=r"\(c, h, w\), images, .* but got \(7,\)"):
        build(folder, shape=(7,))
    with pytest.raises(ModelError, match="loading it failed"):
        build(folder, shape=(2, 9))  # texts, and this is no network for texts


def test_gradient_norms_of_a_vision_transformer_are_autograds(folder):
    model = build(folder).eval()
    images, labels = torch.randn(3, *SHAPE), torch.tensor([0, 4, 2])
    got = gradient_norms(
        model, images, lambda z: nn.functional.cross_entropy(z, labels, reduction="none")
    )
    for i in range(3):
        model.zero_grad()
        nn.functional.cross_entropy(model(images[i : i + 1]), labels[i : i + 1]).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        expected = sum(g.double().square().sum() for g in gradients).sqrt()
        assert float(got[i]) == pytest.approx(float(expected), rel=1e-4)


def test_lora_begins_as_the_network_and_trains_adapters_and_head(folder):
    pytest.importorskip("peft", reason="needs peft for LoRA")
    torch.manual_seed(0)
    model, images = build(folder, lora=2), torch.randn(4, *SHAPE)
    plain = build(folder)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), plain.eval()(images))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in trained)
    assert any("lora_A" in name for name in trained)
    assert any("classifier.weight" in name for name in trained)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) < sum(
        p.numel() for p in plain.parameters()
    )
    labels = torch.tensor([0, 1, 2, 3])
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)  # zeros have no gradient behind them
    got = gradient_norms(
        model, images, lambda z: nn.functional.cross_entropy(z, labels, reduction="none")
    )
    model.zero_grad()
    nn.functional.cross_entropy(model(images[:1]), labels[:1]).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    expected = sum(g.double().square().sum() for g in gradients).sqrt()
    assert float(got[0]) == pytest.approx(float(expected), rel=1e-4)


def test_lora_without_its_package_or_weights_is_told(folder, monkeypatch):
    with pytest.raises(ConfigError, match="`weights` is false"):
        build(folder, lora=2, weights=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[lora\]'"):
        build(folder, lora=2)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_installed_is_told(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=f"pip install {library}"):
        models.build(f"{library}:resnet18", num_classes=3, input_shape=SHAPE)
    with pytest.raises(ConfigError, match="did you mean `checkpoint`"):
        models.check_options(f"{library}:resnet18", {"checkpiont": "x"})


def test_the_form_of_torchvisions_networks_of_other_kinds(monkeypatch):
    """Those for masks have no crop, which was an AttributeError; a wrong name was a ValueError."""
    stated = {"mean": [0.5] * 3, "std": [0.25] * 3}
    forms = {
        "resnet18": {**stated, "crop_size": [224]},
        "fcn_resnet50": {**stated, "resize_size": [520]},
        "ssd300": {},
    }

    def get_model_weights(name):
        if name not in forms:
            raise ValueError(f"Unknown model {name}")
        return SimpleNamespace(
            DEFAULT=SimpleNamespace(transforms=lambda: SimpleNamespace(**forms[name]))
        )

    library = SimpleNamespace(models=SimpleNamespace(get_model_weights=get_model_weights))
    monkeypatch.setitem(sys.modules, "torchvision", library)

    def form(name):
        return image_form(f"torchvision:{name}", {"checkpoint": "w.pth"})

    assert form("resnet18") == models.ImageForm((0.5,) * 3, (0.25,) * 3, 224)
    assert form("fcn_resnet50") == models.ImageForm((0.5,) * 3, (0.25,) * 3, None)
    assert form("ssd300") is None
    assert form("resnet19") is None


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_networks_of_a_library_take_weights_from_a_file(library, tmp_path):
    pytest.importorskip(library, reason=f"needs {library}")
    name = f"{library}:resnet18"
    torch.manual_seed(0)
    published = models.build(name, num_classes=7, input_shape=(3, 64, 64))
    torch.save(published.state_dict(), tmp_path / "w.pth")
    got = models.build(
        name, num_classes=3, input_shape=(3, 64, 64), checkpoint=str(tmp_path / "w.pth")
    )
    assert got(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    assert torch.equal(got.layer1[0].conv1.weight, published.layer1[0].conv1.weight)
    form = image_form(name, {"checkpoint": str(tmp_path / "w.pth")})
    assert form.mean == (0.485, 0.456, 0.406)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="Give the checkpoint of this network"):
        models.build(
            name, num_classes=3, input_shape=(3, 64, 64), checkpoint=str(tmp_path / "other.pth")
        )
