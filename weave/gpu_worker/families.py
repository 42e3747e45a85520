"""The families of models that can be loaded: a whitelist of our own.

No class ever comes from a model's files: each component is loaded (loading.py) with the class named here, and the
pipeline is put together from them. So neither model_index.json, nor auto_map, nor a file of code in the folder can
choose what runs (diffusers has had ways around its own checks: CVE-2026-44513).
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import diffusers
import transformers
from PIL import Image, PngImagePlugin

from weave.gpu_worker.schedulers import SchedulerUnfit, fresh_scheduler

# What the pipelines let a T5 encoder have, by their own default.
T5_TOKENS = {"sd3": 256, "flux": 512}

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "pndm": "PNDMScheduler",
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
    "flow_heun": "FlowMatchHeunDiscreteScheduler",
}
_USUAL_STEPS = 20
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
            getattr(diffusers, SCHEDULERS[scheduler])
    Image.preinit()
    assert PngImagePlugin  # Image.save imports it by name


def check_schedulers(pipeline: Any, name: str) -> None:
    """Raises SchedulerUnfit where the model's own config rules out every scheduler of its family."""
    unfit = []
    for scheduler in FAMILIES[name].schedulers:
        try:
            fresh_scheduler(pipeline.scheduler, SCHEDULERS[scheduler], _USUAL_STEPS)
        except SchedulerUnfit as error:
            unfit.append(error)
        else:
            return
    raise unfit[0]


def set_scheduler(pipeline: Any, name: str, steps: int) -> None:
    """A fresh scheduler from the model's own, which the first call finds in the pipeline. Raises SchedulerUnfit."""
    own = pipeline.__dict__.setdefault("own_scheduler", pipeline.scheduler)
    pipeline.scheduler = fresh_scheduler(own, SCHEDULERS[name], steps)


def call_arguments(name: str, prompts: tuple[str, ...], negative_prompt: str, cfg_scale: float) -> dict[str, Any]:
    """The pipeline's arguments that differ from family to family. One prompt serves all encoders; else one for each,
    of which a pipeline with fewer takes the first ones."""
    encoders = FAMILIES[name].encoders
    arguments: dict[str, Any] = {"guidance_scale": cfg_scale}
    given = (prompts * encoders)[:encoders] if len(prompts) == 1 else prompts[:encoders]
    for number, prompt in enumerate(given, start=1):
        suffix = "" if number == 1 else f"_{number}"
        arguments[f"prompt{suffix}"] = prompt
        # An empty one is none, which is not the same to SDXL (force_zeros_for_empty_prompt) and Flux.
        if negative_prompt:
            arguments[f"negative_prompt{suffix}"] = negative_prompt
    # Flux is guided by an embedded scale; only with a negative prompt does it compute the second half too.
    if name == "flux" and negative_prompt:
        arguments["true_cfg_scale"] = cfg_scale
    if name in T5_TOKENS:
        arguments["max_sequence_length"] = T5_TOKENS[name]
    return arguments
