"""Stable Diffusion XL: two text encoders, and the image's sizes as an additional condition."""

from collections.abc import Iterator
from typing import Any

from weave.models import control_nets, single_files, sizes
from weave.models.components import AUTOENCODER_KL, CLIP_TEXT, CLIP_TEXT_WITH_PROJECTION, CLIP_TOKENIZER, UNET
from weave.models.configs import rules
from weave.models.family import Activations, Family, bounds, defaults
from weave.models.files import Header, ModelFilesRefused
from weave.models.original_names import of_unet
from weave.models.schedulers import DIFFUSION, EDM
from weave.models.single_files import FilePart, SingleFile, StoredValue, of_prefix
from weave.models.sizes import Configs, Expected, total
from weave.protocol.inputs import IMAGE_TO_IMAGE, INPAINTING

_LATENTS = 4  # channels: latents_mean and latents_std are for so many in the pipeline


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
    for key in ("latents_mean", "latents_std"):
        values = configs["vae"].get(key)
        if values is not None and len(values) != _LATENTS:
            yield f"vae/config.json: {key} has {len(values)} values, expected {_LATENTS}"


def _is_of(header: Header) -> bool:
    unet = single_files.denoiser_of(header)
    return "input_blocks.0.0.weight" in unet and "label_emb.0.0.weight" in unet


def _derive(header: Header) -> dict[str, dict[str, Any]]:
    """Empty tensors mark models that predict velocity, and those whose last step has no signal; other tensors those
    with EDM's noise schedule, whatever else marks them. The names are ComfyUI's."""
    if marks := tuple(sorted(name for name in header if name.startswith("edm_"))):
        if marks not in _OF_EDM:
            expected = ", or ".join(" and ".join(names) for names in _OF_EDM)
            raise ModelFilesRefused(f"{', '.join(marks)}: EDM's noise schedule is marked by {expected}")
        return _OF_EDM[marks]
    scheduler: dict[str, Any] = {}
    if "v_pred" in header:
        scheduler["prediction_type"] = "v_prediction"
    if "ztsnr" in header:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {"scheduler": scheduler}


# The configs that differ from those of SDXL, by the tensors that mark models with EDM's noise schedule.
_COMMON: dict[str, Any] = {"num_train_timesteps": 1000, "rho": 7.0, "sigma_min": 0.002}
_COSXL = {
    "scheduler": {
        **_COMMON,
        "_class_name": "EDMEulerScheduler",
        "prediction_type": "v_prediction",
        "sigma_data": 1.0,
        "sigma_max": 120.0,
        "sigma_schedule": "exponential",
    }
}
_PLAYGROUND = {
    "scheduler": {
        **_COMMON,
        "_class_name": "EDMDPMSolverMultistepScheduler",
        "prediction_type": "epsilon",
        "sigma_data": 0.5,
        "sigma_max": 80.0,
        "sigma_schedule": "karras",
    },
    "vae": {"scaling_factor": 0.5},
}
_OF_EDM: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {
    ("edm_mean", "edm_std"): _PLAYGROUND,
    ("edm_vpred.sigma_max", "edm_vpred.sigma_min"): _COSXL,
    ("edm_vpred.sigma_max",): _COSXL,
}

_FILE = SingleFile(
    parts={
        "text_encoder": of_prefix("conditioner.embedders.0.transformer."),
        "text_encoder_2": FilePart(("conditioner.embedders.1.model.",), "open_clip", ("text_model.",)),
        "unet": single_files.UNET,
        "vae": single_files.VAE,
    },
    is_of=_is_of,
    derive=_derive,
    values={
        "edm_mean": StoredValue("vae", "latents_mean", "number", _LATENTS),
        "edm_std": StoredValue("vae", "latents_std", "positive", _LATENTS),
        "edm_vpred.sigma_max": StoredValue("scheduler", "sigma_max", "positive"),
        "edm_vpred.sigma_min": StoredValue("scheduler", "sigma_min", "positive"),
    },
    usual_files={"vae": "sdxl_vae.safetensors of stabilityai/sdxl-vae"},
    tokenizers={"tokenizer": single_files.CLIP, "tokenizer_2": single_files.OPEN_CLIP},
)

FAMILIES = (
    Family(
        name="sdxl",
        bounds=bounds(largest_side=2048, multiple=8, prompt_characters=2048),
        defaults=defaults(side=1024, steps=30, cfg_scale=5.0, scheduler="euler"),
        schedulers=(*DIFFUSION, *EDM),
        pipeline="StableDiffusionXLPipeline",
        pipelines={
            IMAGE_TO_IMAGE: "StableDiffusionXLImg2ImgPipeline",
            INPAINTING: "StableDiffusionXLInpaintPipeline",
        },
        components={
            "tokenizer": CLIP_TOKENIZER,
            "tokenizer_2": CLIP_TOKENIZER,
            "text_encoder": CLIP_TEXT,
            "text_encoder_2": CLIP_TEXT_WITH_PROJECTION,
            "unet": UNET,
            "vae": AUTOENCODER_KL,
        },
        activations=Activations(denoiser=315, text=1_000_000, vae=1537, decodes_in_float32=True),
        sizes=_sizes,
        single_file=_FILE,
        original_names=of_unet,
        embedding_widths=(768, 1280),
        control_nets=control_nets.SDXL,
        settings=rules(flag="force_zeros_for_empty_prompt"),
        fixed={"add_watermarker": False},
        adapter="sdxl",
    ),
)
