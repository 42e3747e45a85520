"""Resizes a job's image and mask to the size that the model works in, and pastes the generated image back.

The steps are those of `padding_mask_crop` in diffusers, which only some of its pipelines have.
"""

from typing import Any, NamedTuple

from PIL import Image

from weave.gpu_worker.inputs import Inputs
from weave.protocol.inputs import MAX_INPUT_PIXELS
from weave.protocol.parameters import Parameters


class Canvas(NamedTuple):
    """`image` and `mask` have the parameters' `width` and `height`, for the pipeline's call. The result is pasted into
    `original`; `kept` is the mask in that size, and `region` the part that is repainted. `references` are as the client
    sent them: the pipelines resize them."""

    image: Image.Image | None = None
    mask: Image.Image | None = None
    original: Image.Image | None = None
    kept: Image.Image | None = None
    region: tuple[int, int, int, int] | None = None
    references: tuple[Image.Image, ...] = ()

    def finish(self, pipeline: Any, generated: Image.Image) -> Image.Image:
        """Unmasked pixels are exactly those of the original; grey parts of the mask blend."""
        if self.kept is None:
            return generated
        if self.region is not None:
            generated = _near_ratio(generated, self.region)
        finished: Image.Image = pipeline.image_processor.apply_overlay(self.kept, self.original, generated, self.region)
        return finished


def _near_ratio(generated: Image.Image, region: tuple[int, int, int, int]) -> Image.Image:
    """apply_overlay() enlarges the image until it covers the region, then crops it. With very different ratios that
    would take gigabytes, so the image is cropped first."""
    left, top, right, bottom = region
    scale = max((right - left) / generated.width, (bottom - top) / generated.height)
    if generated.width * generated.height * scale**2 <= MAX_INPUT_PIXELS:
        return generated
    width, height = (max(1, round(side / scale)) for side in (right - left, bottom - top))
    left, top = (generated.width - width) // 2, (generated.height - height) // 2
    return generated.crop((left, top, left + width, top + height))


def canvas_of(pipeline: Any, inputs: Inputs, parameters: Parameters) -> Canvas:
    """`pipeline` is any of the family's."""
    width, height, resize = parameters.width, parameters.height, pipeline.image_processor.resize
    if inputs.image is None:
        return Canvas(references=inputs.references)
    if inputs.mask is None:
        return Canvas(image=resize(inputs.image, height, width))
    mask = inputs.mask.convert("L")
    if parameters.mask_padding is None:
        image, mask = resize(inputs.image, height, width), resize(mask, height, width)
        return Canvas(image=image, mask=mask, original=image, kept=mask)
    # get_crop_region() fails if nothing is masked.
    region = (0, 0, *mask.size)
    if mask.getbbox() is not None:
        region = pipeline.image_processor.get_crop_region(mask, width, height, pad=parameters.mask_padding)
    image, cropped = (resize(whole.crop(region), height, width, resize_mode="fill") for whole in (inputs.image, mask))
    return Canvas(image=image, mask=cropped, original=inputs.image, kept=mask, region=region)
