"""Z-Image."""

from typing import Any

from weave.gpu_worker.pipelines import sd3


class Adapter(sd3.Adapter):
    """ZImagePipeline: the VAE shifts its latents, as SD3's."""

    def call(self, pipeline: Any, arguments: dict[str, Any], **common: Any) -> None:
        """In a batch, ZImageControlNetInpaintPipeline repeats the image itself, but not the mask."""
        if "control_image" in common and isinstance(image := common.get("image"), list):
            common |= {"image": image[0], "mask_image": [common["mask_image"]] * len(image)}
        super().call(pipeline, arguments, **common)
