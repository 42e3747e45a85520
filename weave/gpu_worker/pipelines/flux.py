"""FLUX.1."""

import inspect
from typing import Any

from PIL import Image

from weave.gpu_worker.pipelines import chroma
from weave.protocol.parameters import Parameters


class Adapter(chroma.Adapter):
    """FluxPipeline passes the guidance scale to the transformer.

    Only with a negative prompt does the pipeline also run classifier-free guidance, with a second scale.
    """

    needs = ("_unpack_latents",)
    reference_names = ("image", "max_area")

    def call_arguments(self, prompts: tuple[str, ...], negative_prompt: str, cfg_scale: float) -> dict[str, Any]:
        """The request's one scale is used for both."""
        arguments = super().call_arguments(prompts, negative_prompt, cfg_scale)
        return {**arguments, "true_cfg_scale": cfg_scale} if negative_prompt else arguments

    def reference_arguments(self, references: tuple[Image.Image, ...], parameters: Parameters) -> dict[str, Any]:
        """FluxKontextPipeline takes one image; it keeps the requested size only if that is `max_area` in all."""
        return {"image": references[0], "max_area": parameters.width * parameters.height}

    def call(self, pipeline: Any, arguments: dict[str, Any], **common: Any) -> None:
        """With ControlNets, the pipelines that start from an image have no negative prompt."""
        super().call(pipeline, {name: value for name, value in arguments.items() if _takes(pipeline, name)}, **common)

    def is_guided(self, pipeline: Any, arguments: dict[str, Any]) -> bool:
        """Whether the second scale is in use."""
        return bool(arguments.get("true_cfg_scale", 1.0) > 1) and _takes(pipeline, "true_cfg_scale")


def _takes(pipeline: Any, name: str) -> bool:
    return name in inspect.signature(type(pipeline).__call__).parameters
