"""Qwen-Image-Edit."""

from typing import Any

from PIL import Image

from weave.gpu_worker.pipelines import qwen_image
from weave.gpu_worker.pipelines.base import PromptRefused
from weave.protocol.parameters import Parameters


class Adapter(qwen_image.Adapter):
    """QwenImageEditPipeline and QwenImageEditPlusPipeline truncate no prompt; the transformer fails if it is too
    long."""

    def call(self, pipeline: Any, arguments: dict[str, Any], **common: Any) -> None:
        """Truncates the prompts to the length that count_tokens() reports. Raises PromptRefused."""
        tokenizer = self.tokenizer(pipeline)
        texts = {key: arguments[key] for key in ("prompt", "negative_prompt") if key in arguments}
        for key, text in texts.items():
            for mark in (pipeline.processor.image_token, pipeline.processor.video_token):
                if mark in text:
                    raise PromptRefused(f"{key} contains {mark}")
        super().call(pipeline, arguments | {key: self._cut(tokenizer, text) for key, text in texts.items()}, **common)

    def reference_arguments(self, references: tuple[Image.Image, ...], parameters: Parameters) -> dict[str, Any]:
        """The first class takes one image."""
        return {"image": references[0] if self.family.bounds.references.max == 1 else list(references)}

    def tokenizer(self, pipeline: Any, suffix: str = "") -> Any:
        """The processor's tokenizer: the pipelines have another one, but do not use it."""
        return pipeline.processor.tokenizer

    def _cut(self, tokenizer: Any, text: str) -> str:
        """The text up to the first token beyond the limit."""
        limit = (self.family.max_sequence_length or 0) + self.family.free_tokens
        excess = len(tokenizer(self.family.prompt_template.format(text)).input_ids) - limit
        if excess <= 0:
            return text
        starts = [start for start, _ in tokenizer(text, return_offsets_mapping=True).offset_mapping]
        return text[: starts[max(len(starts) - excess, 0)]]
