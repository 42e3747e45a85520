"""Krea 2: one stream of text and image tokens, states of many layers of Qwen3-VL, and Qwen-Image's VAE."""

from collections.abc import Iterator

from weave.models import single_files, sizes
from weave.models.components import BY_DIFFUSERS, ModelClass
from weave.models.configs import rules
from weave.models.family import Activations, Family, bounds, defaults
from weave.models.original_names import by_table
from weave.models.original_tables import KREA2
from weave.models.qwen import DESCRIBE_PREFIX, QWEN3_VL, QWEN_TOKENIZER, QWEN_VAE, check_rotations, text_size, vae_sizes
from weave.models.single_files import SingleFile, of_prefix
from weave.models.sizes import SETTINGS, Configs, Expected, in_range

# Where model_index.json does not say which, the pipeline takes the states of these layers.
_LAYERS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)

_TRANSFORMER = ModelClass(
    library="diffusers",
    class_name="Krea2Transformer2DModel",
    config=rules(
        BY_DIFFUSERS,
        size="""in_channels attention_head_dim num_attention_heads num_key_value_heads intermediate_size
            timestep_embed_dim text_hidden_dim text_num_attention_heads text_num_key_value_heads
            text_intermediate_size axes_dims_rope[]""",
        count="num_layers num_text_layers num_layerwise_text_blocks num_refiner_text_blocks",
        number="rope_theta",
        fraction="norm_eps",
    ),
    defaults={
        "in_channels": 64,
        "attention_head_dim": 128,
        "text_hidden_dim": 2560,
        "num_text_layers": 12,
        "axes_dims_rope": [32, 48, 48],
    },
    kept_in_float32=("norm", "norm1", "norm2", "norm_q", "norm_k"),
)


def _sizes(configs: Configs) -> Iterator[Expected | str]:
    settings = configs[SETTINGS]
    yield from vae_sizes(configs)
    yield Expected("transformer", "in_channels", 4 * configs["vae"]["z_dim"], "4 times the VAE's z_dim")
    if settings.get("patch_size", 2) != 2:
        yield f"{SETTINGS}: patch_size is {settings['patch_size']}, expected 2"
    width = text_size(configs, "hidden_size")
    yield Expected("transformer", "text_hidden_dim", width, "the hidden_size of the text encoder's text_config")
    layers = settings.get("text_encoder_select_layers") or _LAYERS
    yield Expected("transformer", "num_text_layers", len(layers), "the number of text_encoder_select_layers")
    yield from in_range("text_encoder", "num_hidden_layers", text_size(configs, "num_hidden_layers"), least=max(layers))
    yield sizes.rotations(configs, axes=3)
    check_rotations(configs, text_size(configs, "head_dim"))


_FILE = SingleFile(
    parts={
        "text_encoder": of_prefix(),  # in files with several components its prefix is not known
        "transformer": single_files.of_transformer("krea2", "transformer_blocks."),
        "vae": single_files.of_vae("vae_of_wan"),
    },
    is_of=lambda header: "txtfusion.projector.weight" in single_files.denoiser_of(header),
    usual_files={
        "text_encoder": "the folder text_encoder of krea/Krea-2-Turbo",
        "vae": "the folder vae of krea/Krea-2-Turbo",
    },
    layouts=("krea/Krea-2-Turbo", "krea/Krea-2-Raw"),
)

FAMILIES = (
    Family(
        name="krea2",
        bounds=bounds(largest_side=2048, multiple=16, prompt_characters=4000),
        defaults=defaults(side=1024, steps=8, cfg_scale=0.0, scheduler="flow_euler"),
        schedulers=("flow_euler",),
        pipeline="Krea2Pipeline",
        components={
            "tokenizer": QWEN_TOKENIZER,
            "text_encoder": QWEN3_VL,
            "transformer": _TRANSFORMER,
            "vae": QWEN_VAE,
        },
        activations=Activations(denoiser=398, text=274_000_000, vae=3460, tile=256, published_tile=256),
        sizes=_sizes,
        single_file=_FILE,
        original_names=by_table(KREA2),
        settings=rules(side="patch_size", count="text_encoder_select_layers[]?", flag="is_distilled"),
        max_sequence_length=512,
        prompt_template=DESCRIBE_PREFIX,
        free_tokens=29,
        adapter="krea2",
    ),
)
