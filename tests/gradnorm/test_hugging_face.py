"""Models of Hugging Face `transformers`, as they come, from tiny random configurations."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

TEXT = {"vocab_size": 30, "num_labels": 3, "pad_token_id": 0}
SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def bert(attention: str):
    config = transformers.BertConfig(**TEXT, **SMALL, max_position_embeddings=16)
    config._attn_implementation = attention
    return transformers.BertForSequenceClassification(config)


def distilbert(attention: str):
    config = transformers.DistilBertConfig(
        **TEXT, dim=8, n_layers=2, n_heads=2, hidden_dim=16, max_position_embeddings=16
    )
    config._attn_implementation = attention
    return transformers.DistilBertForSequenceClassification(config)


def gpt2(attention: str):
    config = transformers.GPT2Config(**TEXT, n_embd=8, n_layer=2, n_head=2, n_positions=16)
    config._attn_implementation = attention
    return transformers.GPT2ForSequenceClassification(config)


def vit(attention: str):
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=3)
    config._attn_implementation = attention
    return transformers.ViTForImageClassification(config)


def t5(attention: str):
    config = transformers.T5Config(
        vocab_size=30, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, num_labels=3,
    )  # fmt: skip
    return transformers.T5ForSequenceClassification(config)


def words(n: int = 3, length: int = 6) -> dict[str, torch.Tensor]:
    ids = torch.randint(2, 30, (n, length))
    mask = torch.ones(n, length, dtype=torch.long)
    for i in range(n):
        padded = i % 3
        if padded:
            ids[i, -padded:], mask[i, -padded:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("n", [1, 3, 6])
@pytest.mark.parametrize("build", [bert, distilbert, gpt2], ids=lambda f: f.__name__)
def test_text_classifiers(build, n, attention):
    torch.manual_seed(0)
    assert_agrees(build(attention), words(n))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_vision_transformer(attention):
    torch.manual_seed(0)
    assert_agrees(vit(attention), {"pixel_values": torch.randn(3, 3, 8, 8)})


def test_inputs_as_a_tokenizer_returns_them():
    torch.manual_seed(0)
    assert_agrees(bert("sdpa"), transformers.BatchEncoding(words()))


def test_t5_with_its_tied_embeddings_and_position_bias():
    torch.manual_seed(0)
    inputs = words()
    inputs["input_ids"][torch.arange(3), inputs["attention_mask"].sum(dim=1) - 1] = 1
    assert_agrees(t5("eager"), inputs)


def xlnet():
    config = transformers.XLNetConfig(**TEXT, d_model=8, n_layer=2, n_head=2, d_inner=16)
    return transformers.XLNetForSequenceClassification(config)


def deberta():
    config = transformers.DebertaV2Config(
        **TEXT, **SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4,
        max_position_embeddings=16,
    )  # fmt: skip
    return transformers.DebertaV2ForSequenceClassification(config)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("build", [xlnet, deberta], ids=lambda f: f.__name__)
def test_positions_that_are_copied_to_every_sample(build, n):
    torch.manual_seed(0)
    assert_agrees(build(), words(n))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_shifted_windows(n):
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        embed_dim=8, depths=[2], num_heads=[2], window_size=2, image_size=8, patch_size=2,
        num_labels=3,
    )  # fmt: skip
    model = transformers.SwinForImageClassification(config)
    assert_agrees(model, {"pixel_values": torch.randn(n, 3, 8, 8)})
