"""The adapter for Stable Diffusion, and the base class of the others."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image

from weave.gpu_worker.canvas import Canvas
from weave.models.family import Family
from weave.protocol.parameters import Parameters


class PromptRefused(Exception):
    """A prompt contains a placeholder of the model. The message names the field and the text."""


class Adapter:
    """What differs between the families' pipelines in diffusers: the arguments of the call, and the latents' form.

    This class fits StableDiffusionPipeline; a subclass overrides what differs in its pipeline. An adapter keeps no
    state between jobs.
    """

    # The attributes of the pipeline's class that the adapter uses; libraries.py checks that they exist.
    needs: tuple[str, ...] = ("do_classifier_free_guidance",)
    # The names of the arguments that reference_arguments() returns.
    reference_names: tuple[str, ...] = ("image",)
    # As `needs`, for the class of a task, in addition to those.
    task_needs: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __init__(self, family: Family) -> None:
        self.family = family

    def call_arguments(self, prompts: tuple[str, ...], negative_prompt: str, cfg_scale: float) -> dict[str, Any]:
        """The arguments that differ between families. A single prompt goes to all encoders; several prompts go to the
        encoders in order, and a pipeline with fewer encoders uses the first ones."""
        encoders = self.family.encoders
        arguments: dict[str, Any] = {"guidance_scale": cfg_scale}
        given = (prompts * encoders)[:encoders] if len(prompts) == 1 else prompts[:encoders]
        for number, prompt in enumerate(given, start=1):
            suffix = "" if number == 1 else f"_{number}"
            arguments[f"prompt{suffix}"] = prompt
            # An empty one is left out: SDXL (force_zeros_for_empty_prompt) and Flux treat None and "" differently.
            if negative_prompt:
                arguments[f"negative_prompt{suffix}"] = negative_prompt
        if self.family.max_sequence_length is not None:
            arguments["max_sequence_length"] = self.family.max_sequence_length
        return arguments

    def call_names(self) -> set[str]:
        """The names of the arguments that differ, for the check of what the libraries lack."""
        return set(self.call_arguments(("a",), "b", 1.0))

    def canvas_arguments(self, pipeline: Any, canvas: Canvas, parameters: Parameters) -> dict[str, Any]:
        """The image and its size, as the pipeline takes them: some take the size from the image."""
        known = inspect.signature(type(pipeline).__call__).parameters
        arguments: dict[str, Any] = {"width": parameters.width, "height": parameters.height}
        if canvas.image is not None:
            arguments |= {"image": canvas.image, "strength": parameters.strength}
            # Qwen-Image's ControlNets for inpainting see the image to repaint, and take the mask with it.
            arguments |= {"mask_image": canvas.mask, "control_mask": canvas.mask} if canvas.mask is not None else {}
        if canvas.references:
            arguments |= self.reference_arguments(canvas.references, parameters)
        return {name: value for name, value in arguments.items() if name in known}

    def reference_arguments(self, references: tuple[Image.Image, ...], parameters: Parameters) -> dict[str, Any]:
        """The reference images, as the pipeline takes them."""
        return {"image": list(references)}

    def call(self, pipeline: Any, arguments: dict[str, Any], **common: Any) -> None:
        """Run the pipeline; its callback gets the latents. `common` arguments are the same for all families."""
        pipeline(**arguments, **common)

    def tokenizer(self, pipeline: Any, suffix: str = "") -> Any:
        """The one for the encoder with this suffix: "", "_2" or "_3"."""
        return getattr(pipeline, f"tokenizer{suffix}")

    def is_guided(self, pipeline: Any, arguments: dict[str, Any]) -> bool:
        """Whether the pipeline's latest call, which had these arguments, used the negative prompt."""
        return bool(pipeline.do_classifier_free_guidance)

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """The pipeline's latents in the form that its VAE takes. `width` and `height` are the image's, in pixels."""
        return latents / pipeline.vae.config.scaling_factor

    def decodes_in_float32(self, pipeline: Any) -> bool:
        """Whether a float16 VAE must decode in float32."""
        return False
