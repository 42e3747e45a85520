"""Descriptions of the classes that models consist of: their type, and the classes that several families share.

A class that only one family uses is described in the family's file.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from weave.models.configs import Rules, rules

# Keys that diffusers writes into every config, and keys left over from training with averaged weights (EMA).
BY_DIFFUSERS = """_class_name _diffusers_version _name_or_path _use_default_values
    decay inv_gamma min_decay optimization_step power update_after_step use_ema_warmup"""

# Keys that transformers writes, or once wrote, into every config: names, versions, and settings for generating text.
BY_TRANSFORMERS = """_class_name _name_or_path _commit_hash _attn_implementation_autoset architectures model_type
    transformers_version torch_dtype dtype tokenizer_class return_dict use_return_dict output_hidden_states
    output_attentions torchscript use_bfloat16 tf_legacy_loss pruned_heads tie_word_embeddings tie_encoder_decoder
    is_encoder_decoder is_decoder use_cache add_cross_attention cross_attention_hidden_size chunk_size_feed_forward
    gradient_checkpointing finetuning_task id2label label2id num_labels problem_type task_specific_params prefix
    sep_token_id decoder_start_token_id max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens dropout classifier_dropout output_past n_positions num_decoder_layers scale_decoder_outputs"""


class ModelClass(Struct, frozen=True, kw_only=True):
    """A class with weights. `config` has a rule for each key of its config.json. `defaults` are the class's own values
    for the keys that a family compares (sizes.py), used where a config lacks them. Files may name the class by one of
    `aliases`. Files of transformers may hold `unused_tensors`, which the class does not have. The modules
    `kept_in_float32` stay so when the model is loaded in float16. `is_large`: it has billions of weights, so they may
    stay quantised (kept.py)."""

    library: Literal["diffusers", "transformers"]
    class_name: str
    config: Rules
    defaults: Mapping[str, Any]
    aliases: tuple[str, ...] = ()
    unused_tensors: tuple[str, ...] = ()
    kept_in_float32: tuple[str, ...] = ()
    is_large: bool = False

    @property
    def weights(self) -> str:
        """The name of the file with the weights, without suffix and variant."""
        return "diffusion_pytorch_model" if self.library == "diffusers" else "model"


class TokenizerClass(Struct, frozen=True, kw_only=True):
    """A tokenizer's class. At least one of `vocabularies` must be complete: all of its files exist."""

    class_name: str
    vocabularies: tuple[tuple[str, ...], ...]
    aliases: tuple[str, ...] = ()
    library: Literal["transformers"] = "transformers"


class ProcessorClass(Struct, frozen=True, kw_only=True):
    """What prepares a prompt and its images for a vision-language encoder: a tokenizer and an image processor. Files
    may name the image processor by any of `image_processors`; the first is its class. `config` has a rule for each key
    of its config, `defaults` are the class's own values."""

    class_name: str
    image_processors: tuple[str, ...]
    tokenizer: TokenizerClass
    config: Rules
    defaults: Mapping[str, Any]
    aliases: tuple[str, ...] = ()
    library: Literal["transformers"] = "transformers"


Component: TypeAlias = ModelClass | TokenizerClass | ProcessorClass


def class_names(component: Component) -> tuple[str, ...]:
    """The classes in `component.library` that make up the component."""
    if isinstance(component, ProcessorClass):
        return (component.class_name, component.image_processors[0], component.tokenizer.class_name)
    return (component.class_name,)


CLIP_TOKENIZER = TokenizerClass(
    class_name="CLIPTokenizer",
    vocabularies=(("tokenizer.json",), ("vocab.json", "merges.txt")),
    aliases=("CLIPTokenizerFast",),
)
T5_TOKENIZER = TokenizerClass(
    class_name="T5TokenizerFast", vocabularies=(("tokenizer.json",),), aliases=("T5Tokenizer",)
)

_CLIP = rules(
    BY_TRANSFORMERS,
    size="vocab_size hidden_size intermediate_size projection_dim num_attention_heads max_position_embeddings",
    count="num_hidden_layers",
    name="hidden_act",
    fraction="layer_norm_eps attention_dropout?",
    number="initializer_range initializer_factor?",
    token="pad_token_id? bos_token_id? eos_token_id",
)
# A buffer of older versions, and CLIP's scale between text and image. CLIPTextModel has no projection either.
_CLIP_UNUSED = ("text_model.embeddings.position_ids", "logit_scale")
CLIP_TEXT = ModelClass(
    library="transformers",
    class_name="CLIPTextModel",
    config=_CLIP,
    defaults={"hidden_size": 512, "projection_dim": 512},
    unused_tensors=(*_CLIP_UNUSED, "text_projection.weight"),
)
CLIP_TEXT_WITH_PROJECTION = ModelClass(
    library="transformers",
    class_name="CLIPTextModelWithProjection",
    config=_CLIP,
    defaults=CLIP_TEXT.defaults,
    unused_tensors=_CLIP_UNUSED,
)

T5_ENCODER = ModelClass(
    library="transformers",
    class_name="T5EncoderModel",
    config=rules(
        BY_TRANSFORMERS,
        size="""vocab_size d_model d_kv d_ff num_heads relative_attention_num_buckets
            relative_attention_max_distance""",
        count="num_layers",
        fraction="dropout_rate layer_norm_epsilon",
        number="initializer_factor",
        name="feed_forward_proj dense_act_fn",
        flag="is_gated_act",
        token="pad_token_id? bos_token_id? eos_token_id*?",
    ),
    defaults={"d_model": 512},
    # The decoder in files of these classes is not loaded.
    aliases=("T5ForConditionalGeneration", "T5Model"),
    unused_tensors=("lm_head.weight",),
    kept_in_float32=("wo",),
    is_large=True,
)

UNET = ModelClass(
    library="diffusers",
    class_name="UNet2DConditionModel",
    config=rules(
        BY_DIFFUSERS,
        side="sample_size*?",
        size="""in_channels out_channels block_out_channels[] norm_num_groups? cross_attention_dim* encoder_hid_dim?
            attention_head_dim* num_attention_heads*? addition_time_embed_dim? num_class_embeds? time_embedding_dim?
            time_cond_proj_dim? conv_in_kernel conv_out_kernel projection_class_embeddings_input_dim?
            addition_embed_type_num_heads""",
        count="""freq_shift layers_per_block* downsample_padding transformer_layers_per_block*
            reverse_transformer_layers_per_block[]?""",
        number="mid_block_scale_factor resnet_out_scale_factor",
        fraction="dropout norm_eps",
        flag="""center_input_sample flip_sin_to_cos only_cross_attention* dual_cross_attention use_linear_projection
            upcast_attention resnet_skip_time_act class_embeddings_concat mid_block_only_cross_attention?""",
        name="""down_block_types[] mid_block_type? up_block_types[] act_fn encoder_hid_dim_type? class_embed_type?
            addition_embed_type? resnet_time_scale_shift time_embedding_type time_embedding_act_fn? timestep_post_act?
            attention_type cross_attention_norm?""",
    ),
    defaults={
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 1280,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "class_embed_type": None,
        "num_class_embeds": None,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    },
)

AUTOENCODER_KL = ModelClass(
    library="diffusers",
    class_name="AutoencoderKL",
    config=rules(
        BY_DIFFUSERS,
        size="in_channels out_channels block_out_channels[] latent_channels norm_num_groups sample_size",
        count="layers_per_block",
        name="down_block_types[] up_block_types[] act_fn",
        number="scaling_factor shift_factor? latents_mean[]?",
        positive="latents_std[]?",
        flag="force_upcast use_quant_conv use_post_quant_conv mid_block_add_attention",
    ),
    defaults={"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [64]},
)

_TOKENS = """bos_token? eos_token? unk_token? pad_token? sep_token? cls_token? mask_token?
    additional_special_tokens[]? extra_special_tokens*?"""

# The rules for every tokenizer's files.
TOKENIZER_RULES: dict[str, Rules] = {
    "tokenizer_config.json": rules(
        # The chat template is code, in Jinja: loading.py replaces it.
        """__type name_or_path special_tokens_map_file tokenizer_file processor_class use_fast is_local
            local_files_only chat_template""",
        tokens=f"{_TOKENS} added_tokens_decoder",
        length="model_max_length?",
        count="max_length? stride? extra_ids? pad_token_type_id? pad_to_multiple_of?",
        name="tokenizer_class? backend? padding_side truncation_side truncation_strategy? errors",
        text="model_input_names[]",
        empty="sp_model_kwargs?",
        flag="""add_prefix_space? add_bos_token? add_eos_token? do_lower_case? clean_up_tokenization_spaces? legacy?
            spaces_between_special_tokens? split_special_tokens truncation? padding?""",
    ),
    "special_tokens_map.json": rules(tokens=_TOKENS),
}
