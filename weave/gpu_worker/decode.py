"""From latents to an image: one way for previews and pictures, so that the last preview is the picture.

The steps are those of each family's pipeline in diffusers, which has no function for them.
"""

from typing import Any

import torch
from PIL import Image

_PREVIEW_SIDE = 256


def decode(pipeline: Any, name: str, latents: torch.Tensor, width: int, height: int) -> Image.Image:
    """The image; width and height are the job's, in pixels. The VAE is left as it was, also after an error."""
    if name == "flux":
        latents = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    vae = pipeline.vae
    # SDXL's VAE overflows in float16.
    upcast = name == "sdxl" and vae.dtype == torch.float16 and vae.config.force_upcast
    try:
        if upcast:
            vae.to(dtype=torch.float32)
            latents = latents.to(torch.float32)
        decoded = vae.decode(_unscaled(name, vae.config, latents), return_dict=False)[0]
    finally:
        if upcast:
            vae.to(dtype=torch.float16)
    image: Image.Image = pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
    return image.convert("RGB")


def preview(pipeline: Any, name: str, latents: torch.Tensor, width: int, height: int) -> Image.Image:
    """An unfinished image, at most 256 pixels a side; width and height are the job's."""
    image = decode(pipeline, name, latents, width, height)
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    return image


def _unscaled(name: str, config: Any, latents: torch.Tensor) -> torch.Tensor:
    if name == "sdxl":
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            mean, std = (
                torch.tensor(values).view(1, -1, 1, 1).to(latents.device, latents.dtype) for values in (mean, std)
            )
            return latents * std / config.scaling_factor + mean
    latents = latents / config.scaling_factor
    if name in ("sd3", "flux") and config.shift_factor is not None:
        latents = latents + config.shift_factor
    return latents
