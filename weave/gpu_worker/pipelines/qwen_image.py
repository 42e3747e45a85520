"""Qwen-Image."""

from typing import Any

import torch

from weave.gpu_worker.pipelines import base


class Adapter(base.Adapter):
    """QwenImagePipeline calls the guidance scale true_cfg_scale, and guides only with a negative prompt."""

    needs = ("_unpack_latents",)

    def call_arguments(self, prompts: tuple[str, ...], negative_prompt: str, cfg_scale: float) -> dict[str, Any]:
        """The scale under its name here; the pipeline's guidance_scale is for models that do not exist yet."""
        arguments = super().call_arguments(prompts, negative_prompt, cfg_scale)
        return {"true_cfg_scale": arguments.pop("guidance_scale"), **arguments}

    def call(self, pipeline: Any, arguments: dict[str, Any], **common: Any) -> None:
        """A space stands for no negative prompt, as the model's makers recommend."""
        super().call(pipeline, {"negative_prompt": " ", **arguments}, **common)

    def is_guided(self, pipeline: Any, arguments: dict[str, Any]) -> bool:
        """Whether the scale has an effect."""
        return bool(arguments["true_cfg_scale"] > 1)

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Unpacked into a video of one frame, and denormalised."""
        unpacked = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
        return denormalised(unpacked, pipeline.vae.config)


def denormalised(latents: torch.Tensor, config: Any) -> torch.Tensor:
    """`config` is that of an AutoencoderKLQwenImage. The divisions are the pipeline's: they show in the last bits."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    return latents / (1.0 / std.to(latents)) + mean.to(latents)
