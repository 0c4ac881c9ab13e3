"""Text classification: ids and mask in one tensor, networks of transformers as they come."""

import pytest
import torch
from one_by_one import norms
from torch import nn

from upslope import models
from upslope.errors import ConfigError, DataError, ModelError
from upslope.models import SequenceClassifier
from upslope.pool import Need
from upslope.signals import build
from upslope.tasks import TextClassification

CLASSES = 3


def texts(n=5, t=7):
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 30, (n, t), generator=rng)
    mask = (torch.arange(t) < torch.randint(2, t + 1, (n, 1), generator=rng)).long()
    return torch.stack((torch.where(mask == 1, ids, 0), mask), dim=1).int()


def bert(transformers):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, num_labels=CLASSES, hidden_size=8, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=16, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def test_gradient_norms_are_autograds():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    network = bert(transformers)
    model = SequenceClassifier(network).double().eval()
    task, x = TextClassification(CLASSES), texts()
    task.check(model, task.prepare(x))
    direct = network(input_ids=x[:, 0].long(), attention_mask=x[:, 1].long()).logits
    torch.testing.assert_close(task.logits(model(x)), direct)

    def entropy(outputs, _):
        return torch.special.entr(outputs[0].softmax(0)).sum()

    found = build(Need.of("gradnorm", loss="entropy")).compute(model, task, x)
    torch.testing.assert_close(found, norms(model, x, entropy), rtol=1e-9, atol=0)
    length = build(Need.of("egl")).compute(model, task, x)
    p = direct.softmax(1).detach()
    truth = sum(
        p[:, c] * norms(model, x, lambda o, _, c=c: -o[0].log_softmax(0)[c]) for c in range(CLASSES)
    )
    torch.testing.assert_close(length, truth, rtol=1e-9, atol=0)


def test_ids_beyond_the_vocabulary_ask_for_its_tokenizer():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, x = SequenceClassifier(bert(transformers)).eval(), texts()
    x[0, 0, 0] = 2**31 - 1
    with pytest.raises(ModelError, match=r"ids up to 2147483647 .*`data\.tokenizer`"):
        TextClassification(CLASSES).check(model, x)


def test_what_stands_behind_the_mask_does_not_count():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, x = SequenceClassifier(bert(transformers)).double().eval(), texts()
    other = torch.stack((torch.where(x[:, 1] == 1, x[:, 0], 9), x[:, 1]), dim=1)
    torch.testing.assert_close(model(other), model(x))


def decoder(transformers, **ids):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=30, num_labels=CLASSES, hidden_size=8, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, **ids,
    )  # fmt: skip
    return transformers.LlamaForSequenceClassification(config)


@pytest.mark.parametrize("padding", [0, 2, 3])
def test_the_last_token_is_the_one_before_the_padding_whatever_stands_there(padding):
    """A decoder looks for its own id of padding: with another one it read behind the text."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    network = decoder(transformers, pad_token_id=3)
    model, x = SequenceClassifier(network).double().eval(), texts()
    x[:, 0] = torch.where(x[:, 1] == 1, x[:, 0], padding)
    one_by_one = [network(row[:1, : int(row[1].sum())].long()).logits for row in x]
    torch.testing.assert_close(model(x), torch.cat(one_by_one))


def test_a_network_without_its_padding_is_told_what_to_set():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = SequenceClassifier(decoder(transformers)).eval()
    with pytest.raises(ModelError, match=r"no `pad_token_id`. Set it in config\.json"):
        model(texts())


def test_from_a_folder_with_its_weights_or_without(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    network = bert(transformers)
    network.save_pretrained(tmp_path)
    given = {"num_classes": CLASSES, "input_shape": (2, 7), "path": str(tmp_path)}
    model = models.build("transformers", **given)
    assert model.training
    torch.testing.assert_close(model.eval()(texts()), SequenceClassifier(network.eval())(texts()))
    torch.manual_seed(4)
    fresh = models.build("transformers", **given, weights=False)
    torch.manual_seed(4)
    again = models.build("transformers", **given, weights=False)
    for (name, a), b in zip(fresh.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(fresh.state_dict()[name], model.state_dict()[name]) or "bias" in name
    with pytest.raises(ModelError, match=r"that classifies images, as .* \(3, 8, 8\)"):
        models.build("transformers", **{**given, "input_shape": (3, 8, 8)})
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"model of transformers in .* but loading it failed"):
        models.build("transformers", **given)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    import sys

    given = {"num_classes": 2, "input_shape": (2, 7)}
    with pytest.raises(ConfigError, match=r"`path` to be a folder with a config\.json but got ''"):
        models.build("transformers", **given)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install '.\[text\]'"):
        models.build("transformers", **given, path=str(tmp_path))


def test_losses_and_inputs():
    task = TextClassification(CLASSES, label_smoothing=0.1)
    z, y = torch.randn(4, CLASSES), torch.tensor([0, 2, 1, 1])
    expected = [
        nn.functional.cross_entropy(z[i : i + 1], y[i : i + 1], label_smoothing=0.1)
        for i in range(4)
    ]
    torch.testing.assert_close(task.losses(z, y), torch.stack(expected))
    assert task.prepare(texts()).dtype == torch.int32
    for wrong in (torch.zeros(2, 2, 5), torch.zeros(2, 5, dtype=torch.int64)):
        with pytest.raises(DataError, match=r"\(n, 2, t\)"):
            task.prepare(wrong)
