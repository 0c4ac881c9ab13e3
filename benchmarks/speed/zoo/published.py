"""Architectures of Hugging Face `transformers`, small, with random weights."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from speed.zoo.entry import Entry, Logits, images, words

WORDS = 8000

TEXT: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 4, "vocab_size": WORDS,
}  # fmt: skip
SPEECH: dict[str, Any] = {
    "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4,
    "num_attention_heads": 4, "conv_dim": (64,) * 7, "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 64, "num_labels": 12,
    "apply_spec_augment": False,
}  # fmt: skip
PATCHES: dict[str, Any] = {
    "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 3, "num_labels": 10,
}  # fmt: skip


def build(head: str, configuration: str, argument: str, **options: Any) -> nn.Module:
    """Return an architecture that takes its input by the name `argument` and returns logits."""
    import transformers

    config = getattr(transformers, configuration)(**options)
    config._experts_implementation = "eager"
    return Logits(getattr(transformers, head)(config), argument)


class _Adapter(nn.Module):
    """A linear layer that stays, and a low-rank update that is trained."""

    def __init__(self, base: nn.Linear, rank: int = 8):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + 2.0 * self.up(self.down(x))
        return out


def adapt(model: nn.Module) -> nn.Module:
    """Put adapters at the queries and values of DistilBERT; they and the head are trained."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name in ("q_lin", "v_lin"):
            if isinstance(getattr(module, name, None), nn.Linear):
                setattr(module, name, _Adapter(getattr(module, name)))
    for name in ("pre_classifier", "classifier"):
        getattr(model.model, name).requires_grad_(True)  # type: ignore[union-attr]
    return model


def _distilbert() -> nn.Module:
    return build(
        "DistilBertForSequenceClassification", "DistilBertConfig", "input_ids", dim=256,
        hidden_dim=1024, n_layers=4, n_heads=4, vocab_size=WORDS, num_labels=4,
    )  # fmt: skip


class _Classified(nn.Module):
    """A decoder with logits for the next word of the last position alone, (n, words)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=x).logits[:, -1]
        return logits


def decoder(head: str, configuration: str, **options: Any) -> nn.Module:
    """Return a language model that returns the logits of its last position."""
    import transformers

    config = getattr(transformers, configuration)(**options)
    config._experts_implementation = "eager"
    config.use_cache = False
    return _Classified(getattr(transformers, head)(config))


class _Encoded(nn.Module):
    """T5's encoder-decoder with one word of the decoder: its logits, (n, words)."""

    def __init__(self) -> None:
        super().__init__()
        import transformers

        config = transformers.T5Config(
            d_model=256, d_ff=1024, d_kv=64, num_layers=3, num_heads=4, vocab_size=WORDS,
            decoder_start_token_id=0, use_cache=False,
        )  # fmt: skip
        self.model = transformers.T5ForConditionalGeneration(config)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=x, decoder_input_ids=x[:, :8]).logits
        return logits[:, -1]


class _Siglip2(nn.Module):
    """Siglip2's vision tower, of patches in rows, and a head."""

    def __init__(self) -> None:
        super().__init__()
        import transformers

        config = transformers.Siglip2VisionConfig(
            hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=3,
            patch_size=4, num_patches=64,
        )  # fmt: skip
        self.model = transformers.Siglip2VisionModel(config)
        self.head = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        out = self.model(
            pixel_values=x,
            pixel_attention_mask=torch.ones(n, 64, dtype=torch.int32),
            spatial_shapes=torch.full((n, 2), 8),
        )
        logits: Tensor = self.head(out.pooler_output)
        return logits


_LAST = torch.channels_last


def _entries() -> dict[str, Entry]:
    make = functools.partial
    image, pixels = images(3, 64, 64), "pixel_values"
    classify = "ForImageClassification"
    return {
        "distilbert": Entry(_distilbert, words(WORDS, 96)),
        "distilbert-lora": Entry(lambda: adapt(_distilbert()), words(WORDS, 96)),
        "gpt2": Entry(
            make(decoder, "GPT2LMHeadModel", "GPT2Config", n_embd=256, n_layer=4, n_head=4,
                 n_positions=128, vocab_size=WORDS),
            words(WORDS, 96),
        ),
        "llama": Entry(
            make(decoder, "LlamaForCausalLM", "LlamaConfig", **TEXT, num_key_value_heads=2),
            words(WORDS, 96),
        ),
        "mixtral": Entry(
            make(decoder, "MixtralForCausalLM", "MixtralConfig",
                 **{**TEXT, "intermediate_size": 512}, num_key_value_heads=2, num_local_experts=4,
                 num_experts_per_tok=2),
            words(WORDS, 64),
        ),
        "mamba": Entry(
            make(decoder, "MambaForCausalLM", "MambaConfig", hidden_size=192, num_hidden_layers=4,
                 state_size=8, vocab_size=WORDS),
            words(WORDS, 48),
        ),
        "rwkv": Entry(
            make(decoder, "RwkvForCausalLM", "RwkvConfig", hidden_size=256, num_hidden_layers=4,
                 attention_hidden_size=256, vocab_size=WORDS, context_length=64),
            words(WORDS, 48),
        ),
        "deberta-v3": Entry(
            make(build, "DebertaV2ForSequenceClassification", "DebertaV2Config", "input_ids",
                 **TEXT, relative_attention=True, position_buckets=32, pos_att_type=["p2c", "c2p"],
                 norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False,
                 num_labels=4),
            words(WORDS, 64),
        ),
        "t5": Entry(_Encoded, words(WORDS, 64)),
        "convnext": Entry(
            make(build, "ConvNext" + classify, "ConvNextConfig", pixels,
                 hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 4, 2], num_labels=10),
            images(3, 96, 96), 8, _LAST,
        ),
        "efficientnet-b0": Entry(
            make(build, "EfficientNet" + classify, "EfficientNetConfig", pixels,
                 width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, image_size=96,
                 num_labels=10),
            images(3, 96, 96), 8, _LAST,
        ),
        "dinov2": Entry(
            make(build, "Dinov2" + classify, "Dinov2Config", pixels, **PATCHES, mlp_ratio=4,
                 image_size=64, patch_size=8),
            image,
        ),
        "swin": Entry(
            make(build, "Swin" + classify, "SwinConfig", pixels, image_size=64, patch_size=4,
                 embed_dim=48, depths=[2, 2, 2], num_heads=[3, 6, 12], window_size=4,
                 num_labels=10),
            image,
        ),
        "resnet50": Entry(
            make(build, "ResNet" + classify, "ResNetConfig", pixels, num_labels=10),
            images(3, 96, 96), 8, _LAST,
        ),
        "mobilenet-v2": Entry(
            make(build, "MobileNetV2" + classify, "MobileNetV2Config", pixels, image_size=96,
                 num_labels=10),
            images(3, 96, 96), 8, _LAST,
        ),
        "regnet-y": Entry(
            make(build, "RegNet" + classify, "RegNetConfig", pixels, layer_type="y",
                 hidden_sizes=[48, 104, 208, 440], depths=[1, 3, 6, 2], groups_width=8,
                 embedding_size=32, num_labels=10),
            images(3, 96, 96), 8, _LAST,
        ),
        "mobilevit-v2": Entry(
            make(build, "MobileViTV2" + classify, "MobileViTV2Config", pixels, image_size=64,
                 width_multiplier=0.5, num_labels=10),
            image, 8, _LAST,
        ),
        "segformer-b0": Entry(
            make(build, "SegformerForSemanticSegmentation", "SegformerConfig", pixels,
                 num_labels=8, decoder_hidden_size=256),
            image,
        ),
        "siglip2": Entry(_Siglip2, images(64, 48)),
        "videomae": Entry(
            make(build, "VideoMAEForVideoClassification", "VideoMAEConfig", pixels, **PATCHES,
                 image_size=32, patch_size=8, num_frames=8),
            images(8, 3, 32, 32),
        ),
        "timesformer": Entry(
            make(build, "TimesformerForVideoClassification", "TimesformerConfig", pixels,
                 **PATCHES, image_size=32, patch_size=8, num_frames=4),
            images(4, 3, 32, 32),
        ),
        "whisper": Entry(
            make(build, "WhisperForAudioClassification", "WhisperConfig", "input_features",
                 d_model=192, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=768,
                 num_mel_bins=40, max_source_positions=100, num_labels=12),
            images(40, 200),
        ),
        "hubert": Entry(
            make(build, "HubertForSequenceClassification", "HubertConfig", "input_values",
                 **SPEECH),
            images(8000), 4,
        ),
        "wav2vec2": Entry(
            make(build, "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", "input_values",
                 **SPEECH),
            images(8000), 4,
        ),
    }  # fmt: skip


ENTRIES = _entries() if importlib.util.find_spec("transformers") is not None else {}
