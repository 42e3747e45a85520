"""Latents become an image. Previews and images share this code, so the last preview is the image.

The steps are those inside each family's pipeline in diffusers, which does not offer them as a function.
"""

from typing import Any

import torch
from PIL import Image

from weave.gpu_worker.pipelines.base import Adapter

_PREVIEW_SIDE = 256


def decode(pipeline: Any, adapter: Adapter, latents: torch.Tensor, width: int, height: int) -> Image.Image:
    """`width` and `height` are the job's, in pixels. The VAE's dtype is restored, also after an error."""
    vae = pipeline.vae
    upcast = vae.dtype == torch.float16 and adapter.decodes_in_float32(pipeline)
    try:
        if upcast:
            vae.to(dtype=torch.float32)
        latents = latents.to(vae.dtype)  # some pipelines keep them in float32
        decoded = vae.decode(adapter.for_vae(pipeline, latents, width, height), return_dict=False)[0]
        if decoded.ndim == 5:  # a video of one frame
            decoded = decoded[:, :, 0]
    finally:
        if upcast:
            vae.to(dtype=torch.float16)
    image: Image.Image = pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
    return image.convert("RGB")


def reduced(image: Image.Image) -> Image.Image:
    """A preview, at most 256 pixels a side, of an image that nothing else uses."""
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    return image
