"""How many tokens of a prompt reach the text encoders: pipelines cut the rest silently."""

from typing import Any

from weave.gpu_worker.pipelines.base import Adapter
from weave.models.components import CLIP_TEXT, CLIP_TEXT_WITH_PROJECTION
from weave.protocol.client_messages import EncoderTokens, Tokens

_SUFFIXES = ("", "_2", "_3")


def count_tokens(pipeline: Any, adapter: Adapter, arguments: dict[str, Any]) -> Tokens:
    """`arguments` are those of the pipeline's latest call."""
    guided = adapter.is_guided(pipeline, arguments)
    return Tokens(
        prompt=_count(pipeline, adapter, arguments, "prompt"),
        # Without guidance the pipeline does not encode it.
        negative_prompt=_count(pipeline, adapter, arguments, "negative_prompt") if guided else (),
    )


def _count(pipeline: Any, adapter: Adapter, arguments: dict[str, Any], kind: str) -> tuple[EncoderTokens, ...]:
    counts, family = [], adapter.family
    for suffix in _SUFFIXES:
        text, encoder = arguments.get(kind + suffix), f"text_encoder{suffix}"
        if text is None or getattr(pipeline, encoder) is None:
            continue
        tokenizer = adapter.tokenizer(pipeline, suffix)
        if family.components[encoder] in (CLIP_TEXT, CLIP_TEXT_WITH_PROJECTION):
            limit = getattr(pipeline, "tokenizer_max_length", tokenizer.model_max_length)
        else:
            limit = (family.max_sequence_length or 0) + family.free_tokens
            text = family.prompt_template.format(text)
        if hasattr(pipeline, "maybe_convert_prompt"):
            text = pipeline.maybe_convert_prompt(text, tokenizer)
        used = len(tokenizer(text, truncation=True, max_length=limit).input_ids)
        cut = len(tokenizer(text).input_ids) - used
        counts.append(EncoderTokens(encoder=encoder, used=used, cut=cut))
    return tuple(counts)
