"""Stable Diffusion 1 and 2: the same classes, with different text encoders."""

from collections.abc import Iterator

from weave.models import sizes
from weave.models.components import AUTOENCODER_KL, CLIP_TEXT, CLIP_TOKENIZER, UNET
from weave.models.family import Family, bounds, defaults
from weave.models.schedulers import DIFFUSION
from weave.models.sizes import Configs, Expected, Sizes


def _family(name: str, expected: Sizes, *, largest_side: int, side: int) -> Family:
    return Family(
        name=name,
        bounds=bounds(largest_side=largest_side, multiple=8, prompt_characters=2048),
        defaults=defaults(side=side, steps=25, cfg_scale=7.5, scheduler="dpmpp_2m"),
        schedulers=DIFFUSION,
        pipeline="StableDiffusionPipeline",
        sibling_pipelines=("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
        components={
            "tokenizer": CLIP_TOKENIZER,
            "text_encoder": CLIP_TEXT,
            "unet": UNET,
            "vae": AUTOENCODER_KL,
        },
        sizes=expected,
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


FAMILIES = (
    _family("sd1", _sizes("sd2", 1024), largest_side=1024, side=512),
    _family("sd2", _sizes("sd1", 768), largest_side=1536, side=768),
)
