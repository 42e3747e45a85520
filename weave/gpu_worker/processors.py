"""Processors, which prepare a prompt and its images for a vision-language encoder, and the check that the two fit."""

from typing import Any

import transformers

from weave.gpu_worker.classes import component_class
from weave.models.components import ProcessorClass
from weave.models.files import ModelFilesRefused

# Keys of the encoder's config that are token IDs, and the placeholders in a prompt that must have these IDs.
_MARKS = {
    "image_token_id": "<|image_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def processor_of(component: ProcessorClass, config: dict[str, Any], tokenizer: Any) -> Any:
    """`config` is that of the image processor, checked."""

    class Processor(component_class(component)):  # type: ignore[misc]
        """Without a video processor: those of transformers need torchvision."""

        def __init__(self, image_processor: Any, tokenizer: Any) -> None:
            super().__init__(image_processor, tokenizer)

    given = {key: value for key, value in config.items() if value is not None}  # null would override a default
    image_processor = getattr(transformers, component.image_processors[0])(**given)
    return Processor(image_processor, tokenizer)


def check_marks(part: str, processor: Any, config: Any) -> None:
    """Check that the placeholders in the pipeline's own text are the tokens that the encoder replaces by images.
    `config` is the encoder's. Raises ModelFilesRefused."""
    for key, mark in _MARKS.items():
        found, expected = processor.tokenizer(mark).input_ids, getattr(config, key)
        if found != [expected]:
            raise ModelFilesRefused(f"{part}: {mark} is {found}, expected [{expected}] (the text encoder's {key})")
