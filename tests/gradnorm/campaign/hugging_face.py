"""Architectures of Hugging Face `transformers`, tiny, from configurations, with random weights.

SIZES holds the fields that make a configuration small, whichever of them it has; EXTRA what one of
them needs beside. Architectures that the installed release does not know are left out.
"""

# ruff: noqa: E501  (tables, which read better whole)
from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from campaign.case import Batch, Case, first_tensor, readout

AVAILABLE = importlib.util.find_spec("transformers") is not None

SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "dim", "n_embd", "embedding_size", "emb_dim", "embed_dim",
         "num_mel_bins", "projection_dim", "moe_intermediate_size"), 8,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "encoder_layers",
         "decoder_layers", "num_decoder_layers", "num_encoder_layers", "num_attention_heads",
         "n_heads", "n_head", "num_heads", "encoder_attention_heads", "decoder_attention_heads",
         "num_key_value_heads", "type_vocab_size", "num_experts_per_tok", "expand",
         "time_step_rank"), 2,
    ),
    **dict.fromkeys(
        ("intermediate_size", "hidden_dim", "d_ff", "n_inner", "ffn_dim", "encoder_ffn_dim",
         "decoder_ffn_dim", "d_inner"), 16,
    ),
    **dict.fromkeys(
        ("d_kv", "head_dim", "num_experts", "num_local_experts", "n_routed_experts", "patch_size",
         "sliding_window", "attention_window", "rotary_dim", "state_size"), 4,
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_source_positions",
         "max_target_positions"), 32,
    ),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout"), 0.0),
    "vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "image_size": 8, "num_labels": 3, "conv_kernel": 3,
}  # fmt: skip

WAVES: dict[str, Any] = {
    "conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (8, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "conv_bias": False, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8,
}  # fmt: skip
STAGES: dict[str, Any] = {"hidden_sizes": [8, 8], "depths": [1, 1]}

EXTRA: dict[str, dict[str, Any]] = {
    "t5": {"is_encoder_decoder": True},
    "xlnet": {"max_position_embeddings": None},
    "funnel": {"block_sizes": [1, 1], "d_head": 4, "num_hidden_layers": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "lilt": {"hidden_size": 24},
    "xmod": {"languages": ["en"], "default_language": "en"},
    "convnext": {**STAGES, "num_stages": 2}, "convnextv2": {**STAGES, "num_stages": 2},
    "resnet": {**STAGES, "embedding_size": 8, "layer_type": "basic"},
    "regnet": {**STAGES, "embedding_size": 8, "groups_width": 4},
    "bit": {**STAGES, "embedding_size": 8, "num_groups": 2},
    "poolformer": {
        "hidden_sizes": [8, 8], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [3, 3],
        "strides": [2, 2], "padding": [1, 1],
    },
    "segformer": {
        "hidden_sizes": [8, 8], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [3, 3],
        "strides": [2, 2], "sr_ratios": [2, 1], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
        "decoder_hidden_size": 8,
    },
    "swin": {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 2,
             "patch_size": 2, "image_size": 16},
    "swinv2": {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 2,
               "patch_size": 2, "image_size": 16},
    "donut-swin": {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 2,
                   "patch_size": 2, "image_size": 16},
    "focalnet": {"embed_dim": 8, "depths": [1, 1], "focal_levels": [1, 1],
                 "focal_windows": [3, 3], "patch_size": 2},
    "hiera": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": [16, 16],
              "patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1],
              "masked_unit_size": [4, 4], "query_stride": [2, 2],
              "num_query_pool": 1},
    "levit": {"hidden_sizes": [8, 8, 8], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
              "key_dim": [4, 4, 4], "image_size": 64, "patch_size": 16},
    "mobilenet_v1": {"depth_multiplier": 0.25, "min_depth": 2},
    "mobilenet_v2": {"depth_multiplier": 0.1, "depth_divisible_by": 2, "min_depth": 2},
    "mobilevit": {"hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 8],
                  "image_size": 32, "patch_size": 2},
    "swiftformer": {"depths": [1, 1], "embed_dims": [8, 8], "downsamples": [True, True]},
    "audio-spectrogram-transformer": {"max_length": 16, "patch_size": 4},
    **dict.fromkeys(("wav2vec2", "hubert", "unispeech", "unispeech-sat", "wavlm", "sew", "data2vec-audio", "wav2vec2-conformer"), WAVES),
    "data2vec-audio": {**WAVES, "conv_pos_kernel_size": 3},
    "whisper": {"max_source_positions": 10},
}  # fmt: skip


def listed(names: str) -> list[str]:
    """The names, which blanks separate."""
    return names.split()


TEXT = listed("""
    albert arcee bert big_bird biogpt bloom camembert convbert ctrl data2vec-text deberta
    deberta-v2 diffllama distilbert doge electra ernie esm eurobert exaone4 flaubert fnet funnel
    gemma gemma2 gemma3_text glm gpt2 gpt_bigcode gpt_neo gpt_neox gptj gte helium ibert jetmoe
    layoutlm lilt llama longformer megatron-bert mistral mixtral mobilebert modernbert mpnet mpt
    nemotron nomic_bert nystromformer olmo olmo2 openai-gpt opt persimmon phi phi3 phimoe qwen2
    qwen2_moe qwen3 qwen3_moe rembert roberta roberta-prelayernorm roformer smollm3 squeezebert
    stablelm starcoder2 tapas xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso minimax gpt_oss
    canine
""")
IMAGE = listed("""
    beit bit convnext convnextv2 data2vec-vision deit dinov2 dinov2_with_registers donut-swin
    focalnet hiera ijepa levit mobilenet_v1 mobilenet_v2 mobilevit poolformer regnet resnet
    segformer swiftformer swin swinv2 vit vit_msn
""")
AUDIO = listed("""
    audio-spectrogram-transformer data2vec-audio hubert sew unispeech unispeech-sat wav2vec2
    wav2vec2-conformer wavlm whisper
""")
CAUSAL = listed("""
    bert-generation bitnet blenderbot cohere cohere2 falcon_mamba granite granitemoe lfm2
    llama4_text mamba marian nanochat olmoe olmo_hybrid pegasus trocr flex_olmo ernie4_5_moe
    glm4_moe whisper
""")
PAIRS = listed("""
    bart bigbird_pegasus blenderbot led longt5 m2m_100 marian mbart mt5 mvp nllb-moe pegasus
    pegasus_x plbart switch_transformers t5 umt5
""")

HEAVY = ("canine", "ctrl", "mobilebert", "led", "longt5", "pegasus_x", "mobilenet_v1", "mobilevit")
"""Large even so, or slow by themselves: left to the long form."""


def configuration(name: str) -> Any:
    """The tiny configuration of this model type."""
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[name]
    usual, extra = made(), EXTRA.get(name, {})
    fields = {
        key: value
        for key, value in SIZES.items()
        if hasattr(usual, key) and not isinstance(getattr(usual, key), list | tuple | dict)
        if key not in extra
    }
    for key in ("num_hidden_layers", "max_position_embeddings"):
        if extra.get(key, 0) is None:
            fields.pop(key, None)
    config = made(**fields, **{k: v for k, v in extra.items() if v is not None})
    config._experts_implementation = "eager"
    return config


MAPPINGS = {
    "text": "SEQUENCE_CLASSIFICATION",
    "image": "IMAGE_CLASSIFICATION",
    "audio": "AUDIO_CLASSIFICATION",
    "causal": "CAUSAL_LM",
    "pairs": "SEQ_TO_SEQ_CAUSAL_LM",
}


def build(kind: str, name: str) -> nn.Module:
    """The network with its head."""
    import transformers
    from transformers.models.auto import modeling_auto

    table = getattr(modeling_auto, f"MODEL_FOR_{MAPPINGS[kind]}_MAPPING_NAMES")
    # Some have a second class, for distillation.
    made = table[name] if isinstance(table[name], str) else table[name][0]
    model = getattr(transformers, made)(configuration(name))
    # Biases and scales start at 0 and 1, which hides faults.
    for p in model.parameters():
        if p.dim() < 2:
            p.data.add_(0.1 * torch.randn_like(p))
    return model


def ids(n: int, length: int) -> tuple[Tensor, Tensor]:
    """Tokens with as many real ones as each sample has, padded with zeros, and the mask."""
    tokens = torch.randint(3, 30, (n, length))
    lengths = torch.randint(length // 2, length + 1, (n,))
    mask = (torch.arange(length) < lengths[:, None]).long()
    tokens[torch.arange(n), lengths - 1] = 2
    return tokens * mask, mask


def draw(kind: str, name: str, n: int) -> Batch:
    """Inputs for this kind of network."""
    extra = EXTRA.get(name, {})
    length = int(torch.tensor([4, 6, 8])[n % 3])
    if kind in ("text", "causal"):
        if name == "canine":
            return Batch({"input_ids": torch.randint(3, 30, (n, 16))})
        tokens, mask = ids(n, 8 if name == "longformer" else length)
        if kind == "causal" and name in ("marian", "whisper"):
            return Batch({"input_ids": tokens})
        return Batch({"input_ids": tokens, "attention_mask": mask})
    if kind == "pairs":
        tokens, mask = ids(n, 8 if name == "led" else length)
        return Batch(
            {"input_ids": tokens, "attention_mask": mask, "decoder_input_ids": ids(n, 4)[0]}
        )
    if kind == "image":
        size = extra.get("image_size", {"mobilenet_v1": 32, "mobilenet_v2": 32}.get(name, 8))
        size = size[0] if isinstance(size, list) else size
        size = max(size, 16) if "hidden_sizes" in extra else size
        return Batch({"pixel_values": torch.randn(n, 3, size, size)})
    if name == "audio-spectrogram-transformer":
        return Batch({"input_values": torch.randn(n, 16, 8)})
    if name == "whisper":
        return Batch({"input_features": torch.randn(n, 8, 20)})
    return Batch({"input_values": torch.randn(n, 160)})


def last_position(outputs: Any, _: Any) -> Tensor:
    """The loss of the last position's logits alone."""
    return readout(first_tensor(outputs)[:, -1])


class Clip(nn.Module):
    """Two towers with a loss on the embeddings of both."""

    def __init__(self, name: str):
        super().__init__()
        import transformers

        fields = {
            key: SIZES[key] for key in (
                "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            )
        }  # fmt: skip
        text = {**fields, "vocab_size": 30, "max_position_embeddings": 16, "eos_token_id": 2,
                "bos_token_id": 1, "pad_token_id": 0, "projection_dim": 8,
                "projection_size": 8}  # fmt: skip
        image = {**fields, "image_size": 8, "patch_size": 4}
        made = getattr(transformers, name + "Config")
        extra = {} if name.startswith("Siglip") else {"projection_dim": 8}
        self.model = getattr(transformers, name + "Model")(
            made(text_config=text, vision_config=image, **extra)
        )

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


def both_embeddings(outputs: Any, _: Any) -> Tensor:
    return readout(torch.cat([outputs.image_embeds, outputs.text_embeds], dim=1))


def similarities(outputs: Any, _: Any) -> Tensor:
    return torch.nn.functional.cross_entropy(
        outputs.logits_per_image, torch.arange(len(outputs.logits_per_image)), reduction="none"
    )


def draw_clip(n: int) -> Batch:
    tokens, mask = ids(n, 6)
    inputs = {
        "input_ids": tokens, "attention_mask": mask, "pixel_values": torch.randn(n, 3, 8, 8),
    }  # fmt: skip
    return Batch(inputs)


def cases() -> list[Case]:
    """One case per architecture; text decoders also with the last position's loss."""
    if not AVAILABLE:
        return []
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    logging.set_verbosity_error()
    known = set(CONFIG_MAPPING.keys())
    out = []
    sizes = ((3, 3, 2), (2, 2, 4), (4, 4, 1), (8, 4, 4), (5, 5, 3))
    for kind, names in (
        ("text", TEXT), ("image", IMAGE), ("audio", AUDIO), ("causal", CAUSAL), ("pairs", PAIRS),
    ):  # fmt: skip
        for k, name in enumerate(n for n in names if n in known):
            losses: list[tuple[str, Any]] = [("", "entropy" if k % 2 else readout)]
            if kind in ("causal", "pairs"):
                losses = [("", readout), (", last position", last_position)]
            for words, loss in losses:
                make: Callable[[], nn.Module] = functools.partial(build, kind, name)
                batch: Callable[[int], Batch] = functools.partial(draw, kind, name)
                out.append(
                    Case(f"{kind} {name}{words}", "transformers", make, batch, loss, sizes[k % 5],
                         in_suite=not words and k % 2 == 0 and name not in HEAVY)
                )  # fmt: skip
    for name in ("CLIP", "Siglip", "AltCLIP", "ChineseCLIP", "CLIPSeg"):
        for words, loss in (("embeddings", both_embeddings), ("similarities", similarities)):
            out.append(
                Case(f"{name}, {words}", "transformers", functools.partial(Clip, name), draw_clip,
                     loss, (4, 4, 6))
            )  # fmt: skip
    return out
