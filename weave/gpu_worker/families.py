"""The families of models that can be loaded: a whitelist of our own.

No class ever comes from a model's files: each component is loaded (loading.py) with the class named here, and the
pipeline is put together from them. So neither model_index.json, nor auto_map, nor a file of code in the folder can
choose what runs (diffusers has had ways around its own checks: CVE-2026-44513).
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from PIL import Image, PngImagePlugin

_PREVIEW_SIDE = 256

_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
DIFFUSION_SCHEDULERS = ("ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "pndm")
FLOW_SCHEDULERS = ("flow_euler", "flow_heun")


class Family(NamedTuple):
    """`components` maps a sub-folder to (library, class); those in `optional` may be missing from a model.

    `encoders` is how many text encoders take a prompt of their own; `fixed` is passed to the pipeline's class.
    """

    pipeline: str
    components: dict[str, tuple[Any, str]]
    schedulers: tuple[str, ...]
    encoders: int
    optional: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = MappingProxyType({})


_STABLE_DIFFUSION = Family(
    "StableDiffusionPipeline",
    {
        "tokenizer": (transformers, "CLIPTokenizer"),
        "text_encoder": (transformers, "CLIPTextModel"),
        "unet": (diffusers, "UNet2DConditionModel"),
        "vae": (diffusers, "AutoencoderKL"),
    },
    DIFFUSION_SCHEDULERS,
    encoders=1,
    fixed={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
)

FAMILIES: dict[str, Family] = {
    "sd1": _STABLE_DIFFUSION,
    "sd2": _STABLE_DIFFUSION,
    "sdxl": Family(
        "StableDiffusionXLPipeline",
        {
            "tokenizer": (transformers, "CLIPTokenizer"),
            "tokenizer_2": (transformers, "CLIPTokenizer"),
            "text_encoder": (transformers, "CLIPTextModel"),
            "text_encoder_2": (transformers, "CLIPTextModelWithProjection"),
            "unet": (diffusers, "UNet2DConditionModel"),
            "vae": (diffusers, "AutoencoderKL"),
        },
        DIFFUSION_SCHEDULERS,
        encoders=2,
        fixed={"add_watermarker": False},
    ),
    "sd3": Family(
        "StableDiffusion3Pipeline",
        {
            "tokenizer": (transformers, "CLIPTokenizer"),
            "tokenizer_2": (transformers, "CLIPTokenizer"),
            "tokenizer_3": (transformers, "T5TokenizerFast"),
            "text_encoder": (transformers, "CLIPTextModelWithProjection"),
            "text_encoder_2": (transformers, "CLIPTextModelWithProjection"),
            "text_encoder_3": (transformers, "T5EncoderModel"),
            "transformer": (diffusers, "SD3Transformer2DModel"),
            "vae": (diffusers, "AutoencoderKL"),
        },
        FLOW_SCHEDULERS,
        encoders=3,
        optional=frozenset({"tokenizer_3", "text_encoder_3"}),
    ),
    "flux": Family(
        "FluxPipeline",
        {
            "tokenizer": (transformers, "CLIPTokenizer"),
            "tokenizer_2": (transformers, "T5TokenizerFast"),
            "text_encoder": (transformers, "CLIPTextModel"),
            "text_encoder_2": (transformers, "T5EncoderModel"),
            "transformer": (diffusers, "FluxTransformer2DModel"),
            "vae": (diffusers, "AutoencoderKL"),
        },
        ("flow_euler",),
        encoders=2,
    ),
}


def import_families(names: Iterable[str]) -> None:
    """Import every class of these families, without starting a thread: diffusers and transformers import lazily."""
    for name in names:
        family = FAMILIES[name]
        getattr(diffusers, family.pipeline)
        for library, class_name in family.components.values():
            getattr(library, class_name)
        for scheduler in family.schedulers:
            getattr(diffusers, _SCHEDULERS[scheduler][0])
    Image.preinit()
    assert PngImagePlugin  # Image.save imports it by name


def set_scheduler(pipeline: Any, name: str) -> None:
    """A fresh scheduler from the model's own config, so that no job sees what the one before it left."""
    pipeline.scheduler = _class_of(name).from_config(pipeline.scheduler.config, **_SCHEDULERS[name][1])


def call_arguments(name: str, prompts: tuple[str, ...], negative_prompt: str, cfg_scale: float) -> dict[str, Any]:
    """The pipeline's arguments that differ from family to family. One prompt serves all encoders; else one for each,
    of which a pipeline with fewer takes the first ones."""
    encoders = FAMILIES[name].encoders
    arguments: dict[str, Any] = {"guidance_scale": cfg_scale}
    given = (prompts * encoders)[:encoders] if len(prompts) == 1 else prompts[:encoders]
    for number, prompt in enumerate(given, start=1):
        suffix = "" if number == 1 else f"_{number}"
        arguments[f"prompt{suffix}"] = prompt
        # Flux is guided by an embedded scale; only with a negative prompt does it compute the second half too.
        if negative_prompt or name != "flux":
            arguments[f"negative_prompt{suffix}"] = negative_prompt
    if name == "flux" and negative_prompt:
        arguments["true_cfg_scale"] = cfg_scale
    return arguments


def decode_preview(pipeline: Any, name: str, latents: torch.Tensor, width: int, height: int) -> Image.Image:
    """An unfinished image from `latents`, at most 256 pixels a side; width and height are the job's, in pixels."""
    if name == "flux":
        latents = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    config = pipeline.vae.config
    latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
    decoded = pipeline.vae.decode(latents.to(pipeline.vae.dtype), return_dict=False)[0]
    image: Image.Image = pipeline.image_processor.postprocess(decoded.detach(), output_type="pil")[0]
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    return image


def _class_of(scheduler: str) -> Any:
    return getattr(diffusers, _SCHEDULERS[scheduler][0])
