"""Images to start from, and what diffusers itself generates from them: the images that the daemon's must equal."""

import inspect
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from tests.support.reference import Reference
from weave.models.families import FAMILIES
from weave.protocol.inputs import INPAINTING


def noise(width: int, height: int, *, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def mask(width: int, height: int) -> Image.Image:
    """White in the middle, of a third of each side."""
    made = Image.new("L", (width, height))
    made.paste(255, (width // 3, height // 3, 2 * width // 3, 2 * height // 3))
    return made


class FromImages:
    """The class of diffusers for a task, with the components of a Reference."""

    def __init__(self, plain: Reference, family: str, task: str) -> None:
        self.plain, self.family, self.task = plain, family, task
        self.pipeline = getattr(diffusers, FAMILIES[family].pipelines[task])(**plain.pipeline.components)
        self.pipeline.set_progress_bar_config(disable=True)
        if family == "chroma":  # ChromaInpaintPipeline reads it without using it
            self.pipeline.transformer.register_to_config(guidance_embeds=False)

    def generate(self, scheduler: Any, seed: int, **arguments: Any) -> Image.Image:
        """`arguments` are those of the pipeline's call; those that it does not take are left out."""
        self.pipeline.scheduler = scheduler
        known = inspect.signature(type(self.pipeline).__call__).parameters
        given = {name: value for name, value in arguments.items() if name in known}
        with torch.inference_mode():
            if self.family == "flux2-klein" and "negative_prompt" in arguments:
                negative, _ = self.pipeline.encode_prompt(arguments["negative_prompt"])
                given["negative_prompt_embeds"] = negative
            given["generator"] = torch.Generator("cpu").manual_seed(seed)
            if self.family == "sd3" and self.task == INPAINTING:
                return self._decoded(self.pipeline(**given, output_type="latent").images)
            made: Image.Image = self.pipeline(**given).images[0]
            return made

    def _decoded(self, latents: torch.Tensor) -> Image.Image:
        """As its other pipelines do; the inpainting one omits the shift."""
        config = self.pipeline.vae.config
        decoded = self.pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]
        image: Image.Image = self.pipeline.image_processor.postprocess(decoded)[0]
        return image

    def repaint(self, image: Image.Image, where: Image.Image, padding: int, **arguments: Any) -> Image.Image:
        """padding_mask_crop, for the pipelines that lack it or implement only half of it."""
        processor, width, height = self.pipeline.image_processor, arguments["width"], arguments["height"]
        region = processor.get_crop_region(where, width, height, pad=padding)
        part, its_mask = (processor.resize(it.crop(region), height, width, "fill") for it in (image, where))
        made = self.generate(image=part, mask_image=its_mask, **arguments)
        repainted: Image.Image = processor.apply_overlay(where, image, made, region)
        return repainted
