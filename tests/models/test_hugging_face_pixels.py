"""Networks of transformers that segment images, and models from the cache of the Hub."""

import json

import pytest
import torch
from torch.nn import functional as F

from upslope import gradient_norms, model_hub, models, tasks
from upslope.errors import ConfigError, ModelError
from upslope.models import image_form

transformers = pytest.importorskip("transformers", reason="needs transformers, the extra [text]")
constants = pytest.importorskip("huggingface_hub.constants")
SHAPE = (3, 32, 32)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config(**changes):
    sizes = {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [8, 16],
        "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2], "decoder_hidden_size": 12, "classifier_dropout_prob": 0.0,
        "drop_path_rate": 0.0, "num_labels": 4,
    }  # fmt: skip
    return transformers.SegformerConfig(**sizes, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SegFormer with random weights, as save_pretrained leaves it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "segformer"
    transformers.SegformerForSemanticSegmentation(config()).save_pretrained(path)
    form = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
            "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4],
            "size": {"height": 32, "width": 32}}  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(form))
    return path


def build(path, classes=4, **options):
    return models.build(
        "transformers", num_classes=classes, input_shape=SHAPE, path=str(path), **options
    )


def test_pixels_get_the_logits_of_the_library_interpolated(folder):
    images = torch.randn(2, *SHAPE)
    library = transformers.SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = library(images).logits
        outputs = build(folder).eval()(images)
    assert logits.shape == (2, 4, 8, 8)
    expected = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(outputs, expected)


def test_other_classes_get_a_new_head_on_the_same_weights(folder):
    three, four = build(folder, classes=3), build(folder)
    assert three.eval()(torch.randn(2, *SHAPE)).shape == (2, 3, 32, 32)
    for name, value in four.state_dict().items():
        if "decode_head.classifier" not in name:
            assert torch.equal(three.state_dict()[name], value), name


def test_an_encoder_gets_a_decoder_where_pixels_are_asked_for(folder, tmp_path):
    torch.manual_seed(1)
    transformers.SegformerForImageClassification(config()).save_pretrained(tmp_path)
    assert build(tmp_path)(torch.randn(1, *SHAPE)).shape == (1, 4)
    network = build(tmp_path, output="pixels").eval()
    assert network(torch.randn(2, *SHAPE)).shape == (2, 4, 32, 32)
    saved = transformers.SegformerForImageClassification.from_pretrained(tmp_path).state_dict()
    for name, value in network.network.segformer.state_dict().items():
        assert torch.equal(saved[f"segformer.{name}"], value), name
    vit = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        image_size=32, patch_size=16,
    )  # fmt: skip
    transformers.ViTForImageClassification(vit).save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelError, match="classifies pixels of images"):
        build(tmp_path / "vit", output="pixels")


def test_gradient_norms_are_those_of_autograd(folder):
    torch.manual_seed(2)
    network = build(folder).eval()
    task = tasks.build("segmentation", num_classes=4)
    images, masks = torch.randn(3, *SHAPE), torch.randint(0, 4, (3, 32, 32))
    norms = gradient_norms(network, images, lambda outputs: task.losses(outputs, masks))
    for i in range(3):
        network.zero_grad()
        task.losses(network(images[i : i + 1]), masks[i : i + 1]).sum().backward()
        squares = [p.grad.double().square().sum() for p in network.parameters()]
        torch.testing.assert_close(
            norms[i].double(), torch.stack(squares).sum().sqrt(), rtol=1e-4, atol=0
        )


@pytest.fixture
def offline(folder, tmp_path, monkeypatch):
    """The Hub cannot be reached, and its cache holds the tiny SegFormer as owner/tiny."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub" / "models--owner--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    (home / "snapshots").mkdir()
    (home / "snapshots" / COMMIT).symlink_to(folder)
    model_hub._from_hub.cache_clear()
    yield home
    model_hub._from_hub.cache_clear()


def test_a_name_on_the_hub_is_read_from_its_cache(folder, offline):
    expected = build(folder).state_dict()
    for path in ("hf:owner/tiny", f"hf:owner/tiny@{COMMIT}"):
        for name, value in build(path).state_dict().items():
            assert torch.equal(value, expected[name])
        assert image_form("transformers", {"path": path}).mean == (0.5, 0.4, 0.3)


def test_a_hub_that_cannot_be_reached_is_one_error(offline):
    for path in ("hf:owner/other", "hf:owner/tiny@main2"):
        with pytest.raises(ModelError, match=rf"'{path}' on the Hugging Face Hub.*save_pretrained"):
            build(path)


@pytest.mark.parametrize("path", ["hf:", "hf:tiny", "hf:a/b/c", "hf:../b c", "hf:a/b@"])
def test_names_that_are_none_are_refused(path):
    with pytest.raises(ConfigError, match="hf:owner/model"):
        build(path)


def test_pickles_and_code_of_a_folder_are_not_read(folder, tmp_path):
    network = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        build(tmp_path)
    code = tmp_path / "code"
    code.mkdir()
    content = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (code / "config.json").write_text(json.dumps(content))
    (code / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError):
        build(code)
    assert not (tmp_path / "ran").exists()
