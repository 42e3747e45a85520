"""Stable Diffusion XL: two text encoders, and the image's sizes as an additional condition."""

from collections.abc import Iterator

from weave.models import sizes
from weave.models.components import AUTOENCODER_KL, CLIP_TEXT, CLIP_TEXT_WITH_PROJECTION, CLIP_TOKENIZER, UNET
from weave.models.family import Family, bounds, defaults
from weave.models.schedulers import DIFFUSION
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
        settings=frozenset({"force_zeros_for_empty_prompt"}),
        fixed={"add_watermarker": False},
        adapter="sdxl",
    ),
)
