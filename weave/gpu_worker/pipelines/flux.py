"""FLUX.1."""

from typing import Any

import torch

from weave.gpu_worker.pipelines import sd3


class Adapter(sd3.Adapter):
    """FluxPipeline packs four latents into one, and passes the guidance scale to the transformer.

    Only with a negative prompt does the pipeline also run classifier-free guidance, with a second scale.
    """

    needs = ("_unpack_latents",)

    def call_arguments(self, prompts: tuple[str, ...], negative_prompt: str, cfg_scale: float) -> dict[str, Any]:
        """The request's one scale is used for both."""
        arguments = super().call_arguments(prompts, negative_prompt, cfg_scale)
        return {**arguments, "true_cfg_scale": cfg_scale} if negative_prompt else arguments

    def is_guided(self, pipeline: Any, arguments: dict[str, Any]) -> bool:
        """Whether the second scale is in use."""
        return bool(arguments.get("true_cfg_scale", 1.0) > 1)

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Unpacked, then shifted as SD3's."""
        unpacked = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
        return super().for_vae(pipeline, unpacked, width, height)
