"""Stable Diffusion 1 and 2: the same classes, with different text encoders."""

from collections.abc import Iterator

from weave.models import control_nets, single_files, sizes
from weave.models.components import AUTOENCODER_KL, CLIP_TEXT, CLIP_TOKENIZER, UNET
from weave.models.family import Activations, Family, bounds, defaults
from weave.models.files import Header
from weave.models.original_names import of_unet
from weave.models.schedulers import DIFFUSION
from weave.models.single_files import FilePart, SingleFile, of_prefix
from weave.models.sizes import Configs, Expected, Sizes
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING


def _family(name: str, expected: Sizes, single_file: SingleFile, *, largest_side: int, side: int, width: int) -> Family:
    return Family(
        name=name,
        bounds=bounds(largest_side=largest_side, multiple=8, prompt_characters=2048),
        defaults=defaults(side=side, steps=25, cfg_scale=7.5, scheduler="dpmpp_2m"),
        schedulers=DIFFUSION,
        pipeline="StableDiffusionPipeline",
        pipelines={
            IMAGE_TO_IMAGE: "StableDiffusionImg2ImgPipeline",
            INPAINTING: "StableDiffusionInpaintPipeline",
        },
        components={
            "tokenizer": CLIP_TOKENIZER,
            "text_encoder": CLIP_TEXT,
            "unet": UNET,
            "vae": AUTOENCODER_KL,
        },
        activations=Activations(denoiser=520, text=1_000_000, vae=1537, published_tile=side),
        sizes=expected,
        single_file=single_file,
        original_names=of_unet,
        embedding_widths=(width,),
        control_nets=control_nets.SD1 if name == "sd1" else control_nets.SD2,
        fixed={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    )


def _sizes(other_family: str, other_width: int) -> Sizes:
    """The width of the real text encoders, 768 or 1024, distinguishes the two families."""

    def expected(configs: Configs) -> Iterator[Expected | str]:
        width = configs["text_encoder"]["hidden_size"]
        yield Expected("unet", "cross_attention_dim", width, "the text encoder's hidden_size")
        yield Expected("unet", "addition_embed_type", None, "not supported in this family")
        yield from sizes.unet(configs)
        if width == other_width:
            yield f"text_encoder/config.json: hidden_size is {width}, as in family {other_family}"

    return expected


def _is_either(header: Header) -> bool:
    unet = single_files.denoiser_of(header)
    return "input_blocks.0.0.weight" in unet and "label_emb.0.0.weight" not in unet


def _has_open_clip(header: Header) -> bool:
    width = single_files.context_width(single_files.denoiser_of(header))
    return width == 1024 or any(name.startswith(_OPEN_CLIP) for name in header)


_OPEN_CLIP = "cond_stage_model.model."
_SD1_FILE = SingleFile(
    parts={
        "text_encoder": of_prefix("cond_stage_model.transformer."),
        "unet": single_files.UNET,
        "vae": single_files.VAE,
    },
    is_of=lambda header: _is_either(header) and not _has_open_clip(header),
    usual_files={"vae": "vae-ft-mse-840000-ema-pruned.safetensors of stabilityai/sd-vae-ft-mse-original"},
    tokenizers={"tokenizer": single_files.CLIP},
)
_SD2_FILE = SingleFile(
    parts={
        "text_encoder": FilePart((_OPEN_CLIP,), "open_clip_of_sd2", ("text_model.",)),
        "unet": single_files.UNET,
        "vae": single_files.VAE,
    },
    is_of=lambda header: _is_either(header) and _has_open_clip(header),
    tokenizers={"tokenizer": single_files.OPEN_CLIP},
    velocity_bias="up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias",  # as ComfyUI tells the two kinds apart
)

FAMILIES = (
    _family("sd1", _sizes("sd2", 1024), _SD1_FILE, largest_side=1024, side=512, width=768),
    _family("sd2", _sizes("sd1", 768), _SD2_FILE, largest_side=1536, side=768, width=1024),
)
