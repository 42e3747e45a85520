"""Qwen-Image: a transformer of two streams, a VAE made for videos, and the embeddings of Qwen2.5-VL."""

from collections.abc import Iterator

from weave.models import control_transformers, single_files, sizes
from weave.models.components import BY_DIFFUSERS, ModelClass
from weave.models.configs import rules
from weave.models.family import Activations, Family, bounds, defaults
from weave.models.files import Header
from weave.models.qwen import DESCRIBE, QWEN2_5_VL, QWEN_TOKENIZER, QWEN_VAE, check_rotations, text_size, vae_sizes
from weave.models.single_files import DENOISER, SingleFile, of_prefix
from weave.models.sizes import Configs, Expected
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING

TRANSFORMER = ModelClass(
    library="diffusers",
    class_name="QwenImageTransformer2DModel",
    config=rules(
        f"{BY_DIFFUSERS} pooled_projection_dim",
        side="patch_size",
        size="in_channels out_channels? attention_head_dim num_attention_heads joint_attention_dim axes_dims_rope[]",
        count="num_layers",
        flag="guidance_embeds zero_cond_t use_additional_t_cond use_layer3d_rope",
    ),
    defaults={
        "in_channels": 64,
        "out_channels": 16,
        "patch_size": 2,
        "attention_head_dim": 128,
        "joint_attention_dim": 3584,
        "guidance_embeds": False,
        "axes_dims_rope": [16, 56, 56],
        "zero_cond_t": False,
        "use_additional_t_cond": False,
        "use_layer3d_rope": False,
    },
)


def common_sizes(configs: Configs, *, unsupported: tuple[str, ...] = ()) -> Iterator[Expected | str]:
    """Those of every model with this transformer. `unsupported` flags must be false."""
    yield from vae_sizes(configs)
    latents = configs["vae"]["z_dim"]
    yield Expected("transformer", "in_channels", 4 * latents, "4 times the VAE's z_dim")
    yield Expected("transformer", "out_channels", latents, "the VAE's z_dim")
    yield Expected("transformer", "patch_size", 2, "as in this family")
    width = text_size(configs, "hidden_size")
    yield Expected("transformer", "joint_attention_dim", width, "the hidden_size of the text encoder's text_config")
    yield sizes.rotations(configs, axes=3)
    for key in ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope", *unsupported):
        yield Expected("transformer", key, False, "not supported in this family")
    check_rotations(configs, width // text_size(configs, "num_attention_heads"))


def _sizes(configs: Configs) -> Iterator[Expected | str]:
    yield from common_sizes(configs, unsupported=("zero_cond_t",))


def _is_of(header: Header) -> bool:
    """Its files have the names of diffusers."""
    return {"txt_norm.weight", "transformer_blocks.0.img_mod.1.weight"} <= single_files.denoiser_of(header).keys()


FILE = SingleFile(
    parts={
        "text_encoder": of_prefix("text_encoders.qwen25_7b.transformer."),
        "transformer": of_prefix(DENOISER),
        "vae": single_files.of_vae("vae_of_wan"),
    },
    is_of=_is_of,
    usual_files={
        "text_encoder": "qwen_2.5_vl_7b.safetensors of Comfy-Org/Qwen-Image_ComfyUI",
        "vae": "qwen_image_vae.safetensors of Comfy-Org/Qwen-Image_ComfyUI",
    },
    layouts=("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit", "Qwen/Qwen-Image-Edit-2509"),  # as the file is
    in_gguf=("transformer",),
)

ACTIVATIONS = Activations(denoiser=364, text=16_000_000, vae=3460, tile=256, published_tile=256)

FAMILIES = (
    Family(
        name="qwen-image",
        bounds=bounds(largest_side=2048, multiple=16, prompt_characters=4000, controls=1),
        defaults=defaults(side=1024, steps=50, cfg_scale=4.0, scheduler="flow_euler"),
        schedulers=("flow_euler",),
        caches=("taylorseer",),
        pipeline="QwenImagePipeline",
        pipelines={IMAGE_TO_IMAGE: "QwenImageImg2ImgPipeline", INPAINTING: "QwenImageInpaintPipeline"},
        components={
            "tokenizer": QWEN_TOKENIZER,
            "text_encoder": QWEN2_5_VL,
            "transformer": TRANSFORMER,
            "vae": QWEN_VAE,
        },
        activations=ACTIVATIONS,
        sizes=_sizes,
        single_file=FILE,
        control_nets=control_transformers.QWEN_IMAGE,
        max_sequence_length=512,
        prompt_template=DESCRIBE,
        free_tokens=34,
        adapter="qwen_image",
    ),
)
