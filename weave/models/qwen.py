"""Descriptions of the Qwen tokenizer, encoders and VAE, which several families share."""

from collections.abc import Iterator
from typing import Any

from weave.models.components import BY_DIFFUSERS, BY_TRANSFORMERS, ModelClass, TokenizerClass
from weave.models.configs import rules, shown
from weave.models.files import ModelFilesRefused
from weave.models.sizes import Configs, Expected

QWEN_TOKENIZER = TokenizerClass(
    class_name="Qwen2Tokenizer",
    vocabularies=(("tokenizer.json",), ("vocab.json", "merges.txt")),
    aliases=("Qwen2TokenizerFast",),
)

_ROPE = rules(rope="rope_type type", period="rope_theta", size="mrope_section[]", flag="mrope_interleaved")
_ROPES = {"rope_parameters": _ROPE, "rope_scaling": _ROPE}  # the second name is that of older configs

_QWEN3 = rules(
    BY_TRANSFORMERS,
    size="""vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads? head_dim
        max_position_embeddings sliding_window?""",
    count="num_hidden_layers max_window_layers",
    fraction="rms_norm_eps attention_dropout",
    number="initializer_range",
    period="rope_theta",
    name="hidden_act layer_types[]?",
    flag="tie_word_embeddings attention_bias use_sliding_window",
    token="pad_token_id? bos_token_id? eos_token_id*?",
    objects=_ROPES,
)
QWEN3 = ModelClass(
    library="transformers",
    class_name="Qwen3Model",
    config=_QWEN3,
    defaults={"hidden_size": 4096, "num_hidden_layers": 32},
    aliases=("Qwen3ForCausalLM",),
    unused_tensors=("lm_head.weight",),
    is_large=True,
)
QWEN3_FOR_CAUSAL_LM = ModelClass(
    library="transformers", class_name="Qwen3ForCausalLM", config=_QWEN3, defaults=QWEN3.defaults, is_large=True
)

# Models that also see images; here they only read. Older configs repeat the keys of text_config beside it.
_IMAGE_TOKENS = "image_token_id video_token_id vision_start_token_id vision_end_token_id"
_TEXT_SIZES = """vocab_size hidden_size intermediate_size num_attention_heads num_key_value_heads?
    max_position_embeddings"""
_VISION_SIZES = "hidden_size intermediate_size num_heads in_channels out_hidden_size spatial_merge_size"
_VISION_SIDES = "patch_size* temporal_patch_size*"
QWEN2_5_VL = ModelClass(
    library="transformers",
    class_name="Qwen2_5_VLForConditionalGeneration",
    config=rules(
        f"""{BY_TRANSFORMERS} vision_token_id vocab_size hidden_size intermediate_size num_attention_heads
            num_key_value_heads max_position_embeddings num_hidden_layers max_window_layers sliding_window
            use_sliding_window rms_norm_eps attention_dropout initializer_range rope_theta rope_scaling hidden_act
            pad_token_id bos_token_id eos_token_id layer_types""",
        flag="tie_word_embeddings",
        token=_IMAGE_TOKENS,
        objects={
            "text_config": rules(
                f"{BY_TRANSFORMERS} {_IMAGE_TOKENS} vision_token_id",
                size=f"{_TEXT_SIZES} sliding_window?",
                count="num_hidden_layers max_window_layers?",
                fraction="rms_norm_eps attention_dropout?",
                number="initializer_range",
                period="rope_theta",
                name="hidden_act layer_types[]?",
                flag="use_sliding_window?",
                token="pad_token_id? bos_token_id? eos_token_id*?",
                objects=_ROPES,
            ),
            "vision_config": rules(
                f"{BY_TRANSFORMERS} in_chans spatial_patch_size",
                side=_VISION_SIDES,
                size=f"{_VISION_SIZES} window_size tokens_per_second",
                count="depth fullatt_block_indexes[]",
                number="initializer_range",
                name="hidden_act",
                objects={"rope_parameters": _ROPE},
            ),
        },
    ),
    defaults={},
    is_large=True,
)
QWEN3_VL = ModelClass(
    library="transformers",
    class_name="Qwen3VLModel",
    config=rules(
        BY_TRANSFORMERS,
        token=_IMAGE_TOKENS,
        objects={
            "text_config": rules(
                f"{BY_TRANSFORMERS} {_IMAGE_TOKENS} bos_token_id eos_token_id",
                size=f"{_TEXT_SIZES} head_dim",
                count="num_hidden_layers",
                fraction="rms_norm_eps attention_dropout",
                number="initializer_range",
                period="rope_theta",
                name="hidden_act",
                flag="attention_bias",
                token="pad_token_id?",
                objects=_ROPES,
            ),
            "vision_config": rules(
                BY_TRANSFORMERS,
                side=_VISION_SIDES,
                size=f"{_VISION_SIZES} num_position_embeddings",
                count="depth deepstack_visual_indexes[]",
                number="initializer_range",
                name="hidden_act",
                objects={"rope_parameters": _ROPE},
            ),
        },
    ),
    defaults={},
    aliases=("Qwen3VLForConditionalGeneration",),
    unused_tensors=("lm_head.weight",),
    is_large=True,
)

QWEN_VAE = ModelClass(
    library="diffusers",
    class_name="AutoencoderKLQwenImage",
    config=rules(
        BY_DIFFUSERS,
        size="base_dim z_dim dim_mult[] input_channels",
        count="num_res_blocks",
        fraction="dropout",
        number="attn_scales[] latents_mean[] latents_std[]",
        flag="temperal_downsample[]",
    ),
    defaults={"z_dim": 16, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True], "input_channels": 3},
)
# The families' pipelines count on it: each level but the first halves width and height.
_VAE_LEVELS = 4


def vae_sizes(configs: Configs) -> Iterator[Expected]:
    """The sizes of QWEN_VAE."""
    vae = configs["vae"]
    yield Expected("vae", "input_channels", 3, "red, green, blue")
    lengths = {"dim_mult": _VAE_LEVELS, "temperal_downsample": _VAE_LEVELS - 1}
    for key, length in {**lengths, "latents_mean": vae["z_dim"], "latents_std": vae["z_dim"]}.items():
        if key in vae and len(vae[key]) != length:
            raise ModelFilesRefused(f"vae/config.json: {key} has {len(vae[key])} values, expected {length}")


def text_size(configs: Configs, key: str) -> int:
    """A number in the encoder's text_config. It must be there: the class's own value is that of a larger model."""
    text: dict[str, Any] = configs["text_encoder"].get("text_config", {})
    if key not in text:
        raise ModelFilesRefused(f"text_encoder/config.json: text_config has no {key}")
    return int(text[key])


def check_rotations(configs: Configs, head: int) -> None:
    """A head of `head` values is rotated in pairs, which are divided among three axes. Raises ModelFilesRefused."""
    text = configs["text_encoder"]["text_config"]
    section = (text.get("rope_scaling") or text.get("rope_parameters") or {}).get("mrope_section", [])
    if len(section) != 3 or 2 * sum(section) != head:
        detail = f"mrope_section is {shown(section)}, expected three numbers whose sum is {head / 2:g}, half a head"
        raise ModelFilesRefused(f"text_encoder/config.json: text_config: {detail}")


# What the encoders were trained with: the template of a chat with one message from the user. The files have one too, in
# Jinja, which is code, and is never used.
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CHAT_WITHOUT_THINKING = f"{CHAT}<think>\n\n</think>\n\n"
# Qwen2.5-VL and Qwen3-VL were asked to describe an image. The pipelines have this text too.
DESCRIBE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n"
) + CHAT
# It was asked so for Qwen-Image-Edit, whose pipelines put the images before the prompt.
EDIT = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where "
    "appropriate.<|im_end|>\n"
) + CHAT
# Krea 2's pipeline adds the rest behind the prompt, outside the limit.
DESCRIBE_PREFIX = DESCRIBE.partition("{}")[0] + "{}"
