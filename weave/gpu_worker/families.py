"""Our own list of what a model may consist of, family by family.

No class ever comes from a model's files: what they name only has to agree with this list. A component's folder is
loaded with the class written here, and a name that is not here is refused.
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from weave.gpu_worker.model_files import ModelFilesRefused, read_json

# The text encoders in the order in which a version 1 client gives its prompts.
Encoder = Literal["clip_l", "clip_g", "t5"]


@dataclass(frozen=True)
class Component:
    """One folder of a model: the class we load it with, and the names under which model_index.json may know it.

    `optional`: may be absent, as SD3's T5 is for small GPUs. `weights`: has a safetensors file.
    """

    load: str
    library: str
    aliases: tuple[str, ...] = ()
    optional: bool = False
    weights: bool = True

    def names(self) -> tuple[str, ...]:
        """The class names that are accepted for it."""
        return (self.load.rpartition(".")[2], *self.aliases)


@dataclass(frozen=True)
class Scheduler:
    """A scheduler class, and what of its config we set whatever the model's says, or only where that is silent."""

    load: str
    always: Mapping[str, Any] = field(default_factory=dict)
    unless_set: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A pipeline class and all that may go into it.

    `ignored` are components that model_index.json may name and that are never loaded. `options` are switches in
    model_index.json that belong to the pipeline, with what we pass where the file is silent; `fixed` are arguments of its
    constructor that are always ours. `encoders` says which of a version 1 client's prompts the pipeline's prompt,
    prompt_2 and prompt_3 are. `default_scheduler` stands in for one that we do not have.
    """

    pipeline: str
    components: Mapping[str, Component]
    schedulers: Mapping[str, Scheduler]
    default_scheduler: str
    encoders: tuple[Encoder, ...]
    ignored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    options: Mapping[str, bool] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


_CLIP_TOKENIZER = Component(
    "transformers.models.clip.tokenization_clip.CLIPTokenizer", "transformers", ("CLIPTokenizerFast",), weights=False
)
# In transformers 5 the fast tokenizers are the only ones: T5TokenizerFast is another name of T5Tokenizer.
_T5_TOKENIZER = Component(
    "transformers.models.t5.tokenization_t5.T5Tokenizer", "transformers", ("T5TokenizerFast",), weights=False
)
_CLIP = Component("transformers.models.clip.modeling_clip.CLIPTextModel", "transformers")
_CLIP_PROJECTED = Component("transformers.models.clip.modeling_clip.CLIPTextModelWithProjection", "transformers")
_T5 = Component("transformers.models.t5.modeling_t5.T5EncoderModel", "transformers")
_VAE = Component("diffusers.models.autoencoders.autoencoder_kl.AutoencoderKL", "diffusers")
_UNET = Component("diffusers.models.unets.unet_2d_condition.UNet2DConditionModel", "diffusers")
_SD3 = Component("diffusers.models.transformers.transformer_sd3.SD3Transformer2DModel", "diffusers")
_FLUX = Component("diffusers.models.transformers.transformer_flux.FluxTransformer2DModel", "diffusers")

# For models that predict noise or velocity. Latents are not bounded by 1, so DDIM must not clip them; PNDM without
# skip_prk_steps would run the model four times a step at the start (both as in Stable Diffusion's own config).
_DIFFUSION: Mapping[str, Scheduler] = {
    "ddim": Scheduler(
        "diffusers.schedulers.scheduling_ddim.DDIMScheduler",
        unless_set={"clip_sample": False, "set_alpha_to_one": False},
    ),
    "euler": Scheduler("diffusers.schedulers.scheduling_euler_discrete.EulerDiscreteScheduler"),
    "euler_a": Scheduler(
        "diffusers.schedulers.scheduling_euler_ancestral_discrete.EulerAncestralDiscreteScheduler"
    ),
    "dpmpp_2m": Scheduler(
        "diffusers.schedulers.scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler",
        always={"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),
    "unipc": Scheduler("diffusers.schedulers.scheduling_unipc_multistep.UniPCMultistepScheduler"),
    "pndm": Scheduler(
        "diffusers.schedulers.scheduling_pndm.PNDMScheduler",
        always={"skip_prk_steps": True},
        unless_set={"set_alpha_to_one": False},
    ),
}

# For models trained by flow matching.
_FLOW_EULER = Scheduler(
    "diffusers.schedulers.scheduling_flow_match_euler_discrete.FlowMatchEulerDiscreteScheduler"
)
_FLOW_HEUN = Scheduler("diffusers.schedulers.scheduling_flow_match_heun_discrete.FlowMatchHeunDiscreteScheduler")

_SAFETY = {
    "safety_checker": ("StableDiffusionSafetyChecker",),
    "feature_extractor": ("CLIPImageProcessor", "CLIPFeatureExtractor"),
    "image_encoder": ("CLIPVisionModelWithProjection",),
}

_STABLE_DIFFUSION = Family(
    pipeline="diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion.StableDiffusionPipeline",
    components={"vae": _VAE, "text_encoder": _CLIP, "tokenizer": _CLIP_TOKENIZER, "unet": _UNET},
    schedulers=_DIFFUSION,
    default_scheduler="ddim",
    encoders=("clip_l",),
    ignored=_SAFETY,
    # Whether a picture may be shown is for the client's side to judge; here is no checker to switch on.
    fixed={
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    },
    options={"requires_safety_checker": False},
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "sd1": _STABLE_DIFFUSION,
        "sd2": _STABLE_DIFFUSION,
        "sdxl": Family(
            pipeline="diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl.StableDiffusionXLPipeline",
            components={
                "vae": _VAE,
                "text_encoder": _CLIP,
                "text_encoder_2": _CLIP_PROJECTED,
                "tokenizer": _CLIP_TOKENIZER,
                "tokenizer_2": _CLIP_TOKENIZER,
                "unet": _UNET,
            },
            schedulers=_DIFFUSION,
            default_scheduler="euler",
            encoders=("clip_l", "clip_g"),
            ignored={name: _SAFETY[name] for name in ("feature_extractor", "image_encoder")},
            # Watermarks need a further package; the switch in the file is accepted and not followed.
            fixed={"feature_extractor": None, "image_encoder": None, "add_watermarker": False},
            options={"force_zeros_for_empty_prompt": True, "add_watermarker": False},
        ),
        "sd3": Family(
            pipeline="diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3.StableDiffusion3Pipeline",
            components={
                "transformer": _SD3,
                "vae": _VAE,
                "text_encoder": _CLIP_PROJECTED,
                "tokenizer": _CLIP_TOKENIZER,
                "text_encoder_2": _CLIP_PROJECTED,
                "tokenizer_2": _CLIP_TOKENIZER,
                "text_encoder_3": Component(_T5.load, _T5.library, optional=True),
                "tokenizer_3": Component(
                    _T5_TOKENIZER.load, _T5_TOKENIZER.library, _T5_TOKENIZER.aliases, optional=True, weights=False
                ),
            },
            schedulers={"flow_euler": _FLOW_EULER, "flow_heun": _FLOW_HEUN},
            default_scheduler="flow_euler",
            encoders=("clip_l", "clip_g", "t5"),
            ignored={"image_encoder": ("SiglipVisionModel",), "feature_extractor": ("SiglipImageProcessor",)},
            fixed={"image_encoder": None, "feature_extractor": None},
        ),
        "flux": Family(
            pipeline="diffusers.pipelines.flux.pipeline_flux.FluxPipeline",
            components={
                "transformer": _FLUX,
                "vae": _VAE,
                "text_encoder": _CLIP,
                "tokenizer": _CLIP_TOKENIZER,
                "text_encoder_2": _T5,
                "tokenizer_2": _T5_TOKENIZER,
            },
            # Not Heun: FluxPipeline hands its own sigmas and mu to set_timesteps, which takes neither there.
            schedulers={"flow_euler": _FLOW_EULER},
            default_scheduler="flow_euler",
            encoders=("clip_l", "t5"),
            ignored=_SAFETY,
            fixed={"image_encoder": None, "feature_extractor": None},
        ),
    }
)
