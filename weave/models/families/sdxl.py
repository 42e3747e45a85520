"""Stable Diffusion XL: two text encoders, and the image's sizes as an additional condition."""

from collections.abc import Iterator
from typing import Any

from weave.models import single_files, sizes
from weave.models.components import AUTOENCODER_KL, CLIP_TEXT, CLIP_TEXT_WITH_PROJECTION, CLIP_TOKENIZER, UNET
from weave.models.family import Family, bounds, defaults
from weave.models.files import Header, ModelFilesRefused
from weave.models.schedulers import DIFFUSION
from weave.models.single_files import FilePart, SingleFile, of_prefix
from weave.models.sizes import Configs, Expected, total


def _sizes(configs: Configs) -> Iterator[Expected | str]:
    """The UNet takes both encoders' embeddings, concatenated, and the second's pooled embedding with the sizes."""
    first, second = configs["text_encoder"], configs["text_encoder_2"]
    yield Expected("unet", "addition_embed_type", "text_time", "as in this family")
    width = total(first["hidden_size"], second["hidden_size"])
    yield Expected("unet", "cross_attention_dim", width, "the sum of the text encoders' hidden_size")
    times = configs["unet"]["addition_time_embed_dim"]
    embedded = total(*[times] * 6, second["projection_dim"])
    key = "projection_class_embeddings_input_dim"
    yield Expected("unet", key, embedded, "6 * addition_time_embed_dim + text_encoder_2's projection_dim")
    yield from sizes.unet(configs)


def _is_of(header: Header) -> bool:
    unet = single_files.denoiser_of(header)
    return "input_blocks.0.0.weight" in unet and "label_emb.0.0.weight" in unet


def _derive(header: Header) -> dict[str, dict[str, Any]]:
    """Empty tensors mark models that predict velocity, and those whose last step has no signal. EDM's noise schedule
    (Playground 2.5, CosXL) is not supported. The names are ComfyUI's."""
    if edm := sorted(name for name in header if name.startswith("edm_")):
        raise ModelFilesRefused(f"{edm[0]}: marks a model for the noise schedule of EDM, which is not supported")
    scheduler: dict[str, Any] = {}
    if "v_pred" in header:
        scheduler["prediction_type"] = "v_prediction"
    if "ztsnr" in header:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {"scheduler": scheduler}


_FILE = SingleFile(
    parts={
        "text_encoder": of_prefix("conditioner.embedders.0.transformer."),
        "text_encoder_2": FilePart(("conditioner.embedders.1.model.",), "open_clip", ("text_model.",)),
        "unet": single_files.UNET,
        "vae": single_files.VAE,
    },
    is_of=_is_of,
    derive=_derive,
    usual_files={"vae": "sdxl_vae.safetensors of stabilityai/sdxl-vae"},
    tokenizers={"tokenizer": single_files.CLIP, "tokenizer_2": single_files.OPEN_CLIP},
)

FAMILIES = (
    Family(
        name="sdxl",
        bounds=bounds(largest_side=2048, multiple=8, prompt_characters=2048),
        defaults=defaults(side=1024, steps=30, cfg_scale=5.0, scheduler="euler"),
        schedulers=DIFFUSION,
        pipeline="StableDiffusionXLPipeline",
        sibling_pipelines=("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
        components={
            "tokenizer": CLIP_TOKENIZER,
            "tokenizer_2": CLIP_TOKENIZER,
            "text_encoder": CLIP_TEXT,
            "text_encoder_2": CLIP_TEXT_WITH_PROJECTION,
            "unet": UNET,
            "vae": AUTOENCODER_KL,
        },
        sizes=_sizes,
        single_file=_FILE,
        settings=frozenset({"force_zeros_for_empty_prompt"}),
        fixed={"add_watermarker": False},
        adapter="sdxl",
    ),
)
