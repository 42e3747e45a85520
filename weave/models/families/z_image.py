"""Z-Image and Z-Image-Turbo: one transformer for the tokens of text and image, and Qwen3's embeddings."""

from collections.abc import Iterator

from weave.models import control_transformers, single_files, sizes
from weave.models.components import AUTOENCODER_KL, BY_DIFFUSERS, ModelClass
from weave.models.configs import rules
from weave.models.family import Activations, Family, bounds, defaults
from weave.models.original_names import by_table
from weave.models.original_tables import Z_IMAGE
from weave.models.qwen import CHAT, QWEN3, QWEN_TOKENIZER
from weave.models.single_files import SingleFile, of_prefix
from weave.models.sizes import Configs, Expected, in_range, total
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING

_LARGEST_SIDE = 2048
_TOKENS = 512
# Of the tables of positions: for text and the frame behind it, padded to a multiple of 32, then rows, then columns.
_LEAST_POSITIONS = (_TOKENS + 33, _LARGEST_SIDE // 16, _LARGEST_SIDE // 16)
_MOST_POSITIONS = 1 << 16

_TRANSFORMER = ModelClass(
    library="diffusers",
    class_name="ZImageTransformer2DModel",
    config=rules(
        BY_DIFFUSERS,
        side="all_patch_size[] all_f_patch_size[]",
        size="in_channels dim n_heads n_kv_heads cap_feat_dim siglip_feat_dim? axes_dims[] axes_lens[]",
        count="n_layers n_refiner_layers",
        fraction="norm_eps",
        number="rope_theta t_scale",
        flag="qk_norm",
    ),
    defaults={
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": 16,
        "dim": 3840,
        "n_heads": 30,
        "cap_feat_dim": 2560,
        "siglip_feat_dim": None,
        "axes_dims": [32, 48, 48],
        "axes_lens": [1024, 512, 512],
    },
)


def _sizes(configs: Configs) -> Iterator[Expected | str]:
    transformer = configs["transformer"]
    yield from sizes.vae(configs)
    yield Expected("transformer", "in_channels", configs["vae"]["latent_channels"], "the VAE's latent_channels")
    yield Expected("transformer", "all_patch_size", 2, "as in this family")
    yield Expected("transformer", "all_f_patch_size", 1, "as in this family")
    yield Expected("transformer", "siglip_feat_dim", None, "not supported in this family")
    encoder = configs["text_encoder"]
    yield Expected("transformer", "cap_feat_dim", encoder["hidden_size"], "the text encoder's hidden_size")
    yield from in_range("text_encoder", "num_hidden_layers", encoder["num_hidden_layers"], least=1)
    axes, heads = transformer["axes_dims"], transformer["n_heads"]
    rotated = total(*axes) if len(axes) == 3 else None
    yield Expected("transformer", "dim", rotated and heads * rotated, "n_heads times the sum of the three axes_dims")
    for length, least in zip(transformer["axes_lens"], _LEAST_POSITIONS, strict=False):  # the class compares the number
        yield from in_range("transformer", "axes_lens", length, least=least, most=_MOST_POSITIONS)


_FILE = SingleFile(
    parts={
        "text_encoder": of_prefix("text_encoders.qwen3_4b.transformer."),
        "transformer": single_files.of_transformer("z_image", "all_x_embedder."),
        "vae": single_files.VAE,
    },
    # Lumina Image 2, whose names are the same, pads nothing.
    is_of=lambda header: "cap_pad_token" in single_files.denoiser_of(header),
    usual_files={
        "text_encoder": "qwen_3_4b.safetensors of Comfy-Org/z_image_turbo",
        "vae": "ae.safetensors of Comfy-Org/z_image_turbo",
    },
    layouts=("Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image"),
    in_gguf=("transformer",),
)

FAMILIES = (
    Family(
        name="z-image",
        bounds=bounds(
            largest_side=_LARGEST_SIDE, multiple=16, prompt_characters=4000, controls=1, control_in_part=False
        ),
        defaults=defaults(side=1024, steps=9, cfg_scale=0.0, scheduler="flow_euler"),
        schedulers=("flow_euler",),
        pipeline="ZImagePipeline",
        pipelines={IMAGE_TO_IMAGE: "ZImageImg2ImgPipeline", INPAINTING: "ZImageInpaintPipeline"},
        components={
            "tokenizer": QWEN_TOKENIZER,
            "text_encoder": QWEN3,
            "transformer": _TRANSFORMER,
            "vae": AUTOENCODER_KL,
        },
        activations=Activations(denoiser=949, text=125_000_000, vae=1536),
        sizes=_sizes,
        single_file=_FILE,
        original_names=by_table(Z_IMAGE),
        control_nets=control_transformers.Z_IMAGE,
        max_sequence_length=_TOKENS,
        prompt_template=CHAT,
        adapter="z_image",
    ),
)
