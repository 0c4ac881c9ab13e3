"""The same networks at the sizes in which they are published and used, with random weights.

The small forms have layers a few times narrower, of fewer channels, and as many positions as the
large ones: what a parameter costs beside a position is another matter there.
"""

from __future__ import annotations

import functools
import importlib.util

import torch

from speed.zoo.entry import Entry, images, words
from speed.zoo.medical import build as build_medical
from speed.zoo.other import Bags, EntityEmbeddings, PointNet, TabularEmbeddings
from speed.zoo.published import adapt, build, decoder
from speed.zoo.recurrent import DPRNN, TCN, ConvLSTM, Recurrence

LENGTH = 64
"""Words of a text."""

_make, _last, _last_3d = functools.partial, torch.channels_last, torch.channels_last_3d


def _texts() -> dict[str, Entry]:
    classify = "ForSequenceClassification"
    distilbert = _make(build, "DistilBert" + classify, "DistilBertConfig", "input_ids")
    return {
        "distilbert": Entry(distilbert, words(30_000, LENGTH)),
        "distilbert-lora": Entry(lambda: adapt(distilbert()), words(30_000, LENGTH)),
        "gpt2": Entry(_make(decoder, "GPT2LMHeadModel", "GPT2Config"), words(50_000, LENGTH)),
        "llama": Entry(
            _make(decoder, "LlamaForCausalLM", "LlamaConfig", hidden_size=768,
                  intermediate_size=2048, num_hidden_layers=6, num_attention_heads=12,
                  num_key_value_heads=4, vocab_size=32_000),
            words(32_000, LENGTH),
        ),
        "mixtral": Entry(
            _make(decoder, "MixtralForCausalLM", "MixtralConfig", hidden_size=512,
                  intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
                  num_key_value_heads=4, vocab_size=32_000, num_local_experts=8,
                  num_experts_per_tok=2),
            words(32_000, LENGTH),
        ),
        "mamba": Entry(
            _make(decoder, "MambaForCausalLM", "MambaConfig", hidden_size=768,
                  num_hidden_layers=4, vocab_size=50_000),
            words(50_000, LENGTH), 4,
        ),
        "rwkv": Entry(
            _make(decoder, "RwkvForCausalLM", "RwkvConfig", hidden_size=768, num_hidden_layers=6,
                  vocab_size=50_000, context_length=LENGTH),
            words(50_000, LENGTH),
        ),
        "deberta-v3": Entry(
            _make(build, "DebertaV2" + classify, "DebertaV2Config", "input_ids", hidden_size=384,
                  intermediate_size=1536, num_attention_heads=6, num_hidden_layers=12,
                  vocab_size=128_100, relative_attention=True, position_buckets=256,
                  pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", share_att_key=True,
                  position_biased_input=False),
            words(120_000, LENGTH),
        ),
    }  # fmt: skip


def _pictures() -> dict[str, Entry]:
    pixels, classify = "pixel_values", "ForImageClassification"
    tokens = {
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
        "intermediate_size": 1536, "image_size": 112, "num_labels": 10,
    }  # fmt: skip

    def convolutional(name: str, config: str, size: int, n: int = 8, **options: object) -> Entry:
        make = _make(build, name + classify, config, pixels, num_labels=10, **options)
        return Entry(make, images(3, size, size), n, _last)

    return {
        "resnet50": convolutional("ResNet", "ResNetConfig", 160),
        "convnext": convolutional("ConvNext", "ConvNextConfig", 128),
        "efficientnet-b0": convolutional(
            "EfficientNet", "EfficientNetConfig", 160, width_coefficient=1.0,
            depth_coefficient=1.0, hidden_dim=1280,
        ),
        "mobilenet-v2": convolutional("MobileNetV2", "MobileNetV2Config", 160),
        "regnet-y": convolutional(
            "RegNet", "RegNetConfig", 160, layer_type="y", hidden_sizes=[48, 120, 336, 888],
            depths=[2, 4, 13, 1], groups_width=24, embedding_size=32,
        ),
        "mobilevit-v2": convolutional("MobileViTV2", "MobileViTV2Config", 256, 4),
        "dinov2": Entry(
            _make(build, "Dinov2" + classify, "Dinov2Config", pixels,
                  **{**tokens, "mlp_ratio": 4}, patch_size=14),
            images(3, 112, 112),
        ),
        "swin": Entry(
            _make(build, "Swin" + classify, "SwinConfig", pixels, num_labels=10),
            images(3, 224, 224), 4,
        ),
        "segformer-b0": Entry(
            _make(build, "SegformerForSemanticSegmentation", "SegformerConfig", pixels,
                  num_labels=10),
            images(3, 160, 160),
        ),
        "videomae": Entry(
            _make(build, "VideoMAEForVideoClassification", "VideoMAEConfig", pixels, **tokens,
                  num_frames=8),
            images(8, 3, 112, 112), 4,
        ),
        "timesformer": Entry(
            _make(build, "TimesformerForVideoClassification", "TimesformerConfig", pixels,
                  **tokens, num_frames=4),
            images(4, 3, 112, 112), 4,
        ),
    }  # fmt: skip


def _sounds() -> dict[str, Entry]:
    options = {"num_hidden_layers": 6, "num_labels": 12, "apply_spec_augment": False}
    classify = "ForSequenceClassification"
    return {
        "whisper": Entry(
            _make(build, "WhisperForAudioClassification", "WhisperConfig", "input_features",
                  d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536,
                  num_labels=12, max_source_positions=250),
            images(80, 500),
        ),
        "hubert": Entry(
            _make(build, "Hubert" + classify, "HubertConfig", "input_values", **options),
            images(16_000), 4,
        ),
        "wav2vec2": Entry(
            _make(build, "Wav2Vec2" + classify, "Wav2Vec2Config", "input_values", **options),
            images(16_000), 4,
        ),
    }  # fmt: skip


def _medical() -> dict[str, Entry]:
    sizes = {"in_channels": 1, "out_channels": 3}
    steps = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2), "num_res_units": 2}
    make = functools.partial(_make, build_medical)
    return {
        "unet-2d": Entry(make("UNet", spatial_dims=2, **sizes, **steps), images(1, 256, 256), 4,
                         _last),
        "unet-3d": Entry(make("UNet", spatial_dims=3, **sizes, **steps), images(1, 64, 64, 64), 2,
                         _last_3d),
        "segresnet-3d": Entry(
            make("SegResNet", spatial_dims=3, init_filters=16, **sizes, norm="INSTANCE"),
            images(1, 64, 64, 64), 1, _last_3d,
        ),
        "densenet121-2d": Entry(
            make("DenseNet121", spatial_dims=2, in_channels=3, out_channels=10),
            images(3, 160, 160), 8, _last,
        ),
        "densenet121-3d": Entry(
            make("DenseNet121", spatial_dims=3, in_channels=1, out_channels=10),
            images(1, 64, 64, 64), 2, _last_3d,
        ),
        "swin-unetr-2d": Entry(
            make("SwinUNETR", **sizes, feature_size=24, spatial_dims=2), images(1, 128, 128), 4,
            _last,
        ),
    }  # fmt: skip


def _by_hand() -> dict[str, Entry]:
    def draw_table(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(n, 16), torch.randint(32, (n, 8))

    return {
        "pointnet": Entry(PointNet, images(3, 1024), 32),
        "recurrence": Entry(_make(Recurrence, 28, 256), images(28, 28), 128),
        "conv-lstm": Entry(_make(ConvLSTM, 1, 64), images(10, 1, 32, 32), 4),
        "dprnn": Entry(_make(DPRNN, 64, 128), images(64, 40, 50), 4),
        "tcn": Entry(_make(TCN, 1, 64), images(1, 784), 32),
        "tabular-tokens": Entry(_make(TabularEmbeddings, dim=192), draw_table, 256),
        "tabular-embeddings": Entry(EntityEmbeddings, draw_table, 1024),
        "embedding-bag": Entry(_make(Bags, 95_811), lambda n: torch.randint(95_811, (n, 60)), 64),
    }


ENTRIES = _by_hand()
if importlib.util.find_spec("transformers") is not None:
    ENTRIES = {**_texts(), **_pictures(), **_sounds(), **ENTRIES}
if importlib.util.find_spec("monai") is not None:
    ENTRIES |= _medical()
