"""Stable Diffusion, and what all families have in common."""

from typing import Any

import torch

from weave.models.family import Family


class Adapter:
    """Between a job and a family's pipeline in diffusers: the arguments of the call, and the latents that come out.

    Here as StableDiffusionPipeline has them; a subclass replaces what its pipeline does otherwise. It keeps nothing of
    a job.
    """

    # What the adapter itself uses of its pipeline's class, which libraries.py asks for.
    needs: tuple[str, ...] = ("do_classifier_free_guidance",)

    def __init__(self, family: Family) -> None:
        self.family = family

    def call_arguments(self, prompts: tuple[str, ...], negative_prompt: str, cfg_scale: float) -> dict[str, Any]:
        """Those that differ from family to family. One prompt serves all encoders; else there is one for each, and a
        pipeline with fewer encoders takes the first ones."""
        encoders = self.family.encoders
        arguments: dict[str, Any] = {"guidance_scale": cfg_scale}
        given = (prompts * encoders)[:encoders] if len(prompts) == 1 else prompts[:encoders]
        for number, prompt in enumerate(given, start=1):
            suffix = "" if number == 1 else f"_{number}"
            arguments[f"prompt{suffix}"] = prompt
            # An empty one is none, which is not the same to SDXL (force_zeros_for_empty_prompt) and Flux.
            if negative_prompt:
                arguments[f"negative_prompt{suffix}"] = negative_prompt
        if self.family.t5_tokens is not None:
            arguments["max_sequence_length"] = self.family.t5_tokens
        return arguments

    def is_guided(self, pipeline: Any, arguments: dict[str, Any]) -> bool:
        """Whether the call that the pipeline has just done, with these arguments, used the negative prompt."""
        return bool(pipeline.do_classifier_free_guidance)

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """The pipeline's latents as its VAE takes them; width and height are the image's, in pixels."""
        return latents / pipeline.vae.config.scaling_factor

    def decodes_in_float32(self, pipeline: Any) -> bool:
        """Whether a VAE in float16 must be float32 while it decodes."""
        return False
