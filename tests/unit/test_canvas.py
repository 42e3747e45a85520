"""The repainted part goes back into its image."""

import resource

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from weave.gpu_worker.canvas import Canvas


class Pipeline:
    image_processor = VaeImageProcessor(vae_scale_factor=8)


def finished(image: tuple[int, int], generated: tuple[int, int], region: tuple[int, int, int, int]) -> Image.Image:
    """All of the region is repainted in white."""
    mask = Image.new("L", image)
    mask.paste(255, region)
    canvas = Canvas(original=Image.new("RGB", image), kept=mask, region=region)
    return canvas.finish(Pipeline(), Image.new("RGB", generated, (255, 255, 255)))


@pytest.mark.parametrize(("image", "generated"), [((16384, 256), (64, 2048)), ((256, 16384), (2048, 64))])
def test_the_most_unequal_ratios_take_little_memory(image: tuple[int, int], generated: tuple[int, int]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = finished(image, generated, (0, 0, *image))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert result.size == image and np.asarray(result).min() == 255
    assert grown < 512 * 1024  # KiB


def test_usual_ratios_are_pasted_as_in_diffusers() -> None:
    original, mask = Image.effect_noise((200, 100), 90).convert("RGB"), Image.new("L", (200, 100))
    region = (20, 10, 120, 60)
    mask.paste(255, region)
    generated = Image.effect_noise((512, 256), 90).convert("RGB")
    ours = Canvas(original=original, kept=mask, region=region).finish(Pipeline(), generated)
    theirs = Pipeline.image_processor.apply_overlay(mask, original, generated, region)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
