"""FLUX.2 klein: FLUX.2's transformer and VAE with the embeddings of Qwen3, distilled to few steps or not."""

from collections.abc import Iterator

from weave.models import single_files, sizes
from weave.models.components import BY_DIFFUSERS, ModelClass
from weave.models.configs import rules
from weave.models.family import Activations, Family, bounds, defaults
from weave.models.files import Header
from weave.models.original_names import by_table
from weave.models.original_tables import FLUX2
from weave.models.qwen import CHAT_WITHOUT_THINKING, QWEN3_FOR_CAUSAL_LM, QWEN_TOKENIZER
from weave.models.single_files import SingleFile, of_prefix
from weave.models.sizes import Configs, Expected, in_range, total
from weave.protocol.inputs import INPAINTING, REFERENCES

# The pipeline takes the states of Qwen3's layers 9, 18 and 27.
_LAYERS, _LAST_LAYER = 3, 27

_TRANSFORMER = ModelClass(
    library="diffusers",
    class_name="Flux2Transformer2DModel",
    config=rules(
        BY_DIFFUSERS,
        side="patch_size",
        size="""in_channels out_channels? attention_head_dim num_attention_heads joint_attention_dim
            timestep_guidance_channels axes_dims_rope[] rope_theta""",
        count="num_layers num_single_layers",
        number="mlp_ratio",
        fraction="eps",
        flag="guidance_embeds",
    ),
    defaults={
        "in_channels": 128,
        "out_channels": None,
        "patch_size": 1,
        "attention_head_dim": 128,
        "joint_attention_dim": 15360,
        "axes_dims_rope": [32, 32, 32, 32],
    },
)
_VAE = ModelClass(
    library="diffusers",
    class_name="AutoencoderKLFlux2",
    config=rules(
        f"{BY_DIFFUSERS} force_upcast",
        side="patch_size[]",
        size="""in_channels out_channels block_out_channels[] decoder_block_out_channels[]? latent_channels
            norm_num_groups sample_size""",
        count="layers_per_block",
        name="down_block_types[] up_block_types[] act_fn",
        fraction="batch_norm_eps batch_norm_momentum",
        flag="use_quant_conv use_post_quant_conv mid_block_add_attention",
    ),
    defaults={
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 32,
        "block_out_channels": [128, 256, 512, 512],
        "patch_size": [2, 2],
    },
)


def _sizes(configs: Configs) -> Iterator[Expected | str]:
    yield from sizes.packed_transformer(configs, axes=4)
    yield Expected("vae", "patch_size", 2, "as in this family")
    encoder = configs["text_encoder"]
    width = total(*[encoder["hidden_size"]] * _LAYERS)
    yield Expected("transformer", "joint_attention_dim", width, "3 times the text encoder's hidden_size")
    yield from in_range("text_encoder", "num_hidden_layers", encoder["num_hidden_layers"], least=_LAST_LAYER)


def _is_of(header: Header) -> bool:
    """FLUX.2 dev, which has Mistral's embeddings, is guided by guidance_in."""
    found = single_files.denoiser_of(header)
    return "double_stream_modulation_img.lin.weight" in found and "guidance_in.in_layer.weight" not in found


_FILE = SingleFile(
    parts={
        "text_encoder": of_prefix("text_encoders.qwen3_4b.transformer.", "text_encoders.qwen3_8b.transformer."),
        "transformer": single_files.of_transformer("flux2"),
        "vae": single_files.of_vae("vae_of_flux2"),
    },
    is_of=_is_of,
    usual_files={
        "text_encoder": "the folder text_encoder of black-forest-labs/FLUX.2-klein-4B",
        "vae": "the folder vae of black-forest-labs/FLUX.2-klein-4B",
    },
    layouts=("black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-9B"),
)

FAMILIES = (
    Family(
        name="flux2-klein",
        # The inpainting pipeline shrinks larger images.
        bounds=bounds(largest_side=2048, multiple=16, prompt_characters=4000, inpainting_pixels=1024 * 1024),
        defaults=defaults(side=1024, steps=4, cfg_scale=1.0, scheduler="flow_euler"),
        schedulers=("flow_euler",),
        caches=("taylorseer",),
        pipeline="Flux2KleinPipeline",
        pipelines={INPAINTING: "Flux2KleinInpaintPipeline", REFERENCES: "Flux2KleinPipeline"},
        components={
            "tokenizer": QWEN_TOKENIZER,
            "text_encoder": QWEN3_FOR_CAUSAL_LM,
            "transformer": _TRANSFORMER,
            "vae": _VAE,
        },
        activations=Activations(denoiser=512, text=71_000_000, vae=1537, tile=1024),
        sizes=_sizes,
        single_file=_FILE,
        original_names=by_table(FLUX2),
        settings=rules(flag="is_distilled"),
        max_sequence_length=512,
        prompt_template=CHAT_WITHOUT_THINKING,
        adapter="flux2_klein",
    ),
)
