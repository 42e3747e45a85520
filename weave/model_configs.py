"""What a model's JSON files may say: known keys only, each with a value of its kind.

A key that a library acts on can choose code: `quantization_config` names a quantizer's class, `attn_implementation` a
kernel on the Hub, `auto_map` a Python file. So nothing is passed on that is not on a list here; a test compares the
lists with the installed classes. Standard library only: the command line checks with it too.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weave.model_files import ModelFilesRefused

_MAX_BYTES = 64 * 1024 * 1024
_SHOWN = 80
_MAX_ITEMS = 100_000  # trained_betas has one for each training step


class Kind(NamedTuple):
    """`words` completes "KEY is VALUE, expected ..."."""

    words: str
    fits: Callable[[Any], bool]


def _integers(low: int, high: int) -> Kind:
    return Kind(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _numbers(low: float, high: float) -> Kind:
    return Kind(
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high,
    )


# null, and lists of these, fit each kind too: what a class cannot do with them it says itself.
KINDS = {
    "size": _integers(1, 1 << 20),
    "side": _integers(1, 1024),
    "count": _integers(0, 1024),
    "token": _integers(-1, 1 << 20),
    "number": _numbers(-1e6, 1e6),
    "fraction": _numbers(0, 1),
    "flag": Kind("true or false", lambda value: type(value) is bool),
    "name": Kind(
        "a plain name", lambda value: type(value) is str and bool(re.fullmatch(r"[A-Za-z0-9_.+-]{1,64}", value))
    ),
    # The one infinity that diffusers itself writes.
    "clip": Kind(
        "a number or -Infinity",
        lambda value: type(value) in (int, float) and (value == -math.inf or abs(value) <= 1e6),
    ),
    "length": _numbers(1, 1e31),
    "text": Kind("text", lambda value: type(value) is str and len(value) <= 4096),
    "empty": Kind("an empty object", lambda value: value == {}),
    "tokens": Kind("a token", lambda value: _is_token(value) or _is_table_of_tokens(value)),
}


class Rules(NamedTuple):
    """`keys` maps what is passed on to its kind; what is in `ignored` may be there, and nobody reads it."""

    keys: Mapping[str, str]
    ignored: frozenset[str]


def rules(ignored: str = "", **keys: str) -> Rules:
    """Rules from words: one argument for each kind, with the keys of that kind."""
    of_kind = {key: kind for kind, names in keys.items() for key in names.split()}
    return Rules(of_kind, frozenset(ignored.split()))


# What diffusers writes into every config, and what training with an average of the weights leaves in it.
_BY_DIFFUSERS = """_class_name _diffusers_version _name_or_path _use_default_values
    decay inv_gamma min_decay optimization_step power update_after_step use_ema_warmup"""

# What transformers writes, or wrote, into every config: names, versions, and settings for generating text.
_BY_TRANSFORMERS = """_class_name _name_or_path _commit_hash _attn_implementation_autoset architectures model_type
    transformers_version torch_dtype dtype tokenizer_class return_dict use_return_dict output_hidden_states
    output_attentions torchscript use_bfloat16 tf_legacy_loss pruned_heads tie_word_embeddings tie_encoder_decoder
    is_encoder_decoder is_decoder use_cache add_cross_attention cross_attention_hidden_size chunk_size_feed_forward
    gradient_checkpointing finetuning_task id2label label2id num_labels problem_type task_specific_params prefix
    sep_token_id decoder_start_token_id max_length min_length do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate
    forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens dropout classifier_dropout output_past n_positions num_decoder_layers scale_decoder_outputs"""

_CLIP = rules(
    _BY_TRANSFORMERS,
    size="vocab_size hidden_size intermediate_size projection_dim num_attention_heads max_position_embeddings",
    count="num_hidden_layers",
    name="hidden_act",
    fraction="layer_norm_eps attention_dropout",
    number="initializer_range initializer_factor",
    token="pad_token_id bos_token_id eos_token_id",
)

CONFIG_RULES: dict[str, Rules] = {
    "UNet2DConditionModel": rules(
        _BY_DIFFUSERS,
        side="sample_size",
        size="""in_channels out_channels block_out_channels norm_num_groups cross_attention_dim encoder_hid_dim
            attention_head_dim num_attention_heads addition_time_embed_dim num_class_embeds time_embedding_dim
            time_cond_proj_dim conv_in_kernel conv_out_kernel projection_class_embeddings_input_dim
            addition_embed_type_num_heads""",
        count="freq_shift layers_per_block downsample_padding transformer_layers_per_block "
        "reverse_transformer_layers_per_block",
        number="mid_block_scale_factor resnet_out_scale_factor",
        fraction="dropout norm_eps",
        flag="""center_input_sample flip_sin_to_cos only_cross_attention dual_cross_attention use_linear_projection
            upcast_attention resnet_skip_time_act class_embeddings_concat mid_block_only_cross_attention""",
        name="""down_block_types mid_block_type up_block_types act_fn encoder_hid_dim_type class_embed_type
            addition_embed_type resnet_time_scale_shift time_embedding_type time_embedding_act_fn timestep_post_act
            attention_type cross_attention_norm""",
    ),
    "AutoencoderKL": rules(
        _BY_DIFFUSERS,
        size="in_channels out_channels block_out_channels latent_channels norm_num_groups sample_size",
        count="layers_per_block",
        name="down_block_types up_block_types act_fn",
        number="scaling_factor shift_factor latents_mean latents_std",
        flag="force_upcast use_quant_conv use_post_quant_conv mid_block_add_attention",
    ),
    "SD3Transformer2DModel": rules(
        _BY_DIFFUSERS,
        side="sample_size pos_embed_max_size patch_size",
        size="""in_channels out_channels attention_head_dim num_attention_heads joint_attention_dim
            caption_projection_dim pooled_projection_dim""",
        count="num_layers dual_attention_layers",
        name="qk_norm",
    ),
    "FluxTransformer2DModel": rules(
        _BY_DIFFUSERS,
        side="patch_size",
        size="""in_channels out_channels attention_head_dim num_attention_heads joint_attention_dim
            pooled_projection_dim axes_dims_rope""",
        count="num_layers num_single_layers",
        flag="guidance_embeds",
    ),
    "CLIPTextModel": _CLIP,
    "CLIPTextModelWithProjection": _CLIP,
    "T5EncoderModel": rules(
        _BY_TRANSFORMERS,
        size="""vocab_size d_model d_kv d_ff num_heads relative_attention_num_buckets
            relative_attention_max_distance""",
        count="num_layers",
        fraction="dropout_rate layer_norm_epsilon",
        number="initializer_factor",
        name="feed_forward_proj dense_act_fn",
        flag="is_gated_act",
        token="pad_token_id bos_token_id eos_token_id",
    ),
}

# Of all schedulers that we know: diffusers makes one from the config of another, and keeps what it does not need.
SCHEDULER_RULES = rules(
    # Of classes that we do not have, and of the first versions.
    """_name_or_path predict_epsilon solver_p original_inference_steps timestep_scaling sigma_data sigma_schedule rho
        s_noise noise_sampler_seed predictor_order corrector_order tau_func snr_shift_scale scale_factors upscale_mode
        eta clip_denoised tensor_format timestep_values""",
    name="""_class_name beta_schedule prediction_type timestep_spacing interpolation_type timestep_type
        final_sigmas_type algorithm_type solver_type variance_type time_shift_type""",
    text="_diffusers_version _use_default_values",
    size="num_train_timesteps base_image_seq_len max_image_seq_len",
    count="steps_offset solver_order disable_corrector",
    fraction="beta_start beta_end trained_betas dynamic_thresholding_ratio",
    number="""clip_sample_range sample_max_value sigma_min sigma_max flow_shift shift base_shift max_shift
        shift_terminal""",
    clip="lambda_min_clipped",
    flag="""clip_sample set_alpha_to_one thresholding rescale_betas_zero_snr use_karras_sigmas use_exponential_sigmas
        use_beta_sigmas use_flow_sigmas use_lu_lambdas lower_order_final euler_at_final skip_prk_steps predict_x0
        use_dynamic_shifting invert_sigmas stochastic_sampling""",
)

_TOKENS = "bos_token eos_token unk_token pad_token sep_token cls_token mask_token additional_special_tokens"

TOKENIZER_RULES: dict[str, Rules] = {
    "tokenizer_config.json": rules(
        """__type name_or_path special_tokens_map_file tokenizer_file processor_class use_fast is_local
            local_files_only""",
        tokens=f"{_TOKENS} extra_special_tokens added_tokens_decoder",
        length="model_max_length",
        count="max_length stride extra_ids pad_token_type_id pad_to_multiple_of",
        name="tokenizer_class backend padding_side truncation_side truncation_strategy errors",
        text="model_input_names",
        empty="sp_model_kwargs",
        flag="""add_prefix_space add_bos_token add_eos_token do_lower_case clean_up_tokenization_spaces legacy
            spaces_between_special_tokens split_special_tokens truncation padding""",
    ),
    "special_tokens_map.json": rules(tokens=f"{_TOKENS} extra_special_tokens"),
}


def read_object(model: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` of the model. Raises ModelFilesRefused."""
    try:
        with open(model / name, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        found = json.loads(data, object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise ModelFilesRefused(f"{name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFilesRefused(f"{name}: no sound JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelFilesRefused(f"{name}: expected an object, found {shown(found)}")
    return found


def check_values(name: str, found: Mapping[str, Any], allowed: Rules) -> dict[str, Any]:
    """What may be passed on of the object `found` in the file `name`. Raises ModelFilesRefused."""
    for key, value in found.items():
        if key in allowed.ignored:
            continue
        if key not in allowed.keys:
            raise ModelFilesRefused(f"{name}: {shown(key)} is no key that is known here; remove it")
        kind = KINDS[allowed.keys[key]]
        if not _fits(value, kind):
            raise ModelFilesRefused(f"{name}: {key} is {shown(value)}, expected {kind.words}")
    # diffusers marks what was not in the file that it read: such values are the class's own defaults.
    defaults = found.get("_use_default_values")
    defaults = defaults if isinstance(defaults, list) else []
    return {key: value for key, value in found.items() if key in allowed.keys and key not in defaults}


def shown(value: object) -> str:
    """A foreign value for a message: one line, not long, nothing that a terminal acts on."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an integer of too many digits, a list too deep
        return f"too large a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _fits(value: Any, kind: Kind, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < 3 and len(value) <= _MAX_ITEMS and all(_fits(item, kind, depth + 1) for item in value)
    return value is None or kind.fits(value)


def _is_token(value: Any) -> bool:
    """Text, or what transformers writes for an AddedToken."""
    if isinstance(value, str):
        return len(value) <= 4096
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        return False
    flags = {key: item for key, item in value.items() if key not in ("content", "__type")}
    known = {"lstrip", "rstrip", "normalized", "single_word", "special"}
    return value.get("__type", "AddedToken") == "AddedToken" and all(
        key in known and type(item) is bool for key, item in flags.items()
    )


def _is_table_of_tokens(value: Any) -> bool:
    """`added_tokens_decoder`: tokens by their number."""
    return isinstance(value, dict) and all(
        key.isascii() and key.isdigit() and len(key) <= 7 and _is_token(token) for key, token in value.items()
    )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key comes twice")
    return table
