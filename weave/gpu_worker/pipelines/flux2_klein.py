"""FLUX.2 klein."""

from typing import Any

import torch

from weave.gpu_worker.pipelines import base


class Adapter(base.Adapter):
    """Flux2KleinPipeline takes a negative prompt as embeddings only, and normalises the latents that it packs."""

    needs = (*base.Adapter.needs, "_unpatchify_latents", "encode_prompt")

    def call_names(self) -> set[str]:
        """With the embeddings in place of the negative prompt."""
        return super().call_names() - {"negative_prompt"} | {"negative_prompt_embeds"}

    def call(self, pipeline: Any, arguments: dict[str, Any], **common: Any) -> None:
        """Encodes the negative prompt if it has an effect."""
        given = dict(arguments)
        negative_prompt = given.pop("negative_prompt", "")
        if negative_prompt and given["guidance_scale"] > 1 and not pipeline.config.is_distilled:
            length = given["max_sequence_length"]
            given["negative_prompt_embeds"], _ = pipeline.encode_prompt(negative_prompt, max_sequence_length=length)
        super().call(pipeline, given, **common)

    def for_vae(self, pipeline: Any, latents: torch.Tensor, width: int, height: int) -> torch.Tensor:
        """Unpacked, and denormalised by what the VAE's batch normalisation has recorded."""
        vae, side = pipeline.vae, 2 * pipeline.vae_scale_factor
        patches = latents.transpose(1, 2).reshape(len(latents), -1, height // side, width // side)
        mean, variance = (values.view(1, -1, 1, 1) for values in (vae.bn.running_mean, vae.bn.running_var))
        std = (variance + vae.config.batch_norm_eps).sqrt()
        return pipeline._unpatchify_latents(patches * std.to(latents) + mean.to(latents))
