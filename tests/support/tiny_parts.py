"""What several of the tiny models consist of: VAEs, tokenizers, and the configs of encoders."""

import json
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import tokenizers
import transformers

from tests.support.daemon import DEMO_MODEL

TOKENS = 32


def vae(latent_channels: int, **options: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )


def clip_tokenizer() -> Any:
    return transformers.CLIPTokenizer.from_pretrained(str(DEMO_MODEL / "tokenizer"))


def clip_config() -> Any:
    tokenizer = clip_tokenizer()
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    return transformers.T5TokenizerFast(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0, model_max_length=TOKENS)


def t5_config(width: int) -> Any:
    return transformers.T5Config(
        vocab_size=64, d_model=width, d_ff=37, d_kv=8, num_layers=1, num_heads=4, relative_attention_num_buckets=8
    )


# The part of Qwen3's own template that concerns one message of a user.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


# Marks of images, whose tokens follow those of the tokenizer without them.
MARKS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}


def qwen_tokenizer(*marks: str) -> Any:
    """One token per byte."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate([*letters, *added])},
        merges=[],
        additional_special_tokens=added[1:],
        model_max_length=131072,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


QWEN_SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 2,
}


def qwen3_config(layers: int) -> Any:
    return transformers.Qwen3Config(**QWEN_SIZES, num_hidden_layers=layers, head_dim=8, tie_word_embeddings=True)


def qwen_vae(base_dim: int = 8) -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=base_dim,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[2.8, 1.5, 2.3, 2.7],
    )


class QwenProcessor:
    """In files as published: with transformers' own class it can only be saved where torchvision is installed."""

    CONFIG: ClassVar[dict[str, Any]] = {
        "crop_size": None,
        "data_format": "channels_first",
        "default_to_square": True,
        "device": None,
        "disable_grouping": None,
        "do_center_crop": None,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "input_data_format": None,
        "max_pixels": 1024,
        "merge_size": 2,
        "min_pixels": 64,
        "patch_size": 2,
        "processor_class": "Qwen2VLProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "return_tensors": None,
        "size": {"longest_edge": 1024, "shortest_edge": 64},
        "size_divisor": None,
        "temporal_patch_size": 2,
        "tokenizer_class": "Qwen2Tokenizer",
    }

    def save_pretrained(self, folder: Path) -> None:
        qwen_tokenizer(*MARKS.values()).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(self.CONFIG))
